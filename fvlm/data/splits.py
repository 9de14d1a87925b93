"""The open-vocabulary split of COCO: 48 base classes to train on, 17 novel ones to find, 15 that nobody scores.

A split is a COCO instances dict with boxes only. Which classes it keeps is looked up by name; ids and the order of
images and annotations stay COCO's.
"""

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..io import read_json
from .coco import CocoDict, categories, category_records

IMAGE_KEYS = ("id", "file_name", "width", "height")
ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


@functools.cache
def _groups() -> dict[str, tuple[str, ...]]:
    """Names of "base", "novel" and "excluded", each in COCO's id order."""
    groups = read_json(Path(__file__).with_name("ov_coco.json"), "class split", "install fvlm again")
    names = [name for _, name in categories()]
    assert sorted(groups["base"] + groups["novel"] + groups["excluded"]) == sorted(names), "ov_coco.json: not COCO's 80"
    return {group: tuple(n for n in names if n in groups[group]) for group in ("base", "novel", "excluded")}


def base_names() -> list[str]:
    """The 48 classes whose boxes supervise. Source: Bansal et al., ECCV 2018; the same in OVR-CNN, DetPro and F-VLM."""
    return list(_groups()["base"])


def novel_names() -> list[str]:
    """The 17 classes that are scored without any box in training."""
    return list(_groups()["novel"])


def excluded_names() -> list[str]:
    """The 15 classes that are neither supervised nor scored: ordinary background."""
    return list(_groups()["excluded"])


def supervised_names(setting: str) -> list[str]:
    """The classes whose boxes supervise under `setting`, in COCO's id order: 48, or 65 under ovod."""
    return _names_of({"zsd": ("base",), "ovod": ("base", "novel"), "zsd_strict": ("base",)}, setting, "setting")


def scored_names(protocol: str) -> list[str]:
    """The classes that a protocol (base, novel, generalized) scores, in COCO's id order: 48, 17 or 65."""
    kept = {"base": ("base",), "novel": ("novel",), "generalized": ("base", "novel")}
    return _names_of(kept, protocol, "protocol")


def build_train_split(coco: CocoDict, setting: str, *, keep_empty: bool) -> CocoDict:
    """What one setting trains on.

    zsd keeps the boxes of the 48 base classes; any other object is ordinary background. ovod keeps base and novel, 65.
    zsd_strict is zsd without the images that hold a novel object, as Bansal et al. trained. Crowds of kept classes
    stay.

    Args:
        coco: a checked instances dict (`load_instances`); it is not changed.
        setting: zsd, ovod or zsd_strict.
        keep_empty: keep the images that have no annotation of a kept class. The published files (OVR-CNN's
            instances_train2017_seen_2.json, 107,761 images) drop them and count a crowd as an annotation; DetPro's
            loader and ovdet's files keep them.

    Source: DetPro's `ignore_ids_train` (zsd) and `ignore_ids_test` (ovod); OVR-CNN's notebook for what is dropped.
    """
    names = supervised_names(setting)
    images, annotations = _select_train(coco, setting, keep_empty=keep_empty)
    return _boxes_only(images, annotations, names, f"training boxes of setting {setting}: {len(names)} classes")


def build_val_split(coco: CocoDict, protocol: str) -> CocoDict:
    """What one protocol is scored on: the boxes of its classes, and only the images that have one (a crowd counts).

    Source: OVR-CNN's instances_val2017_{seen,unseen,all}_2.json.
    """
    names = scored_names(protocol)
    images, annotations = _select(coco, names)
    return _boxes_only(images, annotations, names, f"validation boxes of protocol {protocol}: {len(names)} classes")


def build_val_all(coco: CocoDict) -> CocoDict:
    """The boxes of the generalized protocol on every picture, those without one included: 5,000 of COCO's, not 4,836.

    What `detect` runs on, so that one inference serves the code bases that score all pictures, too.

    Source: ovdet's val files (keep_coco_base.py, keep_coco_novel.py) and DetPro's loader keep all pictures.
    """
    names = scored_names("generalized")
    _, annotations = _select(coco, names)
    return _boxes_only(coco["images"], annotations, names, f"validation boxes of {len(names)} classes on all pictures")


def count_table(train: CocoDict, val: CocoDict) -> list[dict[str, Any]]:
    """The counts (`count_row`) of the subsets that papers count.

    `full` counts all images; every other row counts those with an annotation of its classes, whatever
    `splits.keep_empty` says, so that the numbers can be held against the published ones.
    """
    named = {"base": base_names(), "novel": novel_names(), "excluded": excluded_names()}
    every = [name for _, name in categories()]
    chosen = {"train_full": (train["images"], train["annotations"]), "train_annotated": _select(train, every)}
    for setting in ("zsd", "ovod", "zsd_strict"):
        chosen[f"train_{setting}"] = _select_train(train, setting, keep_empty=False)
    for group in ("novel", "excluded"):
        chosen[f"train_{group}"] = _select(train, named[group])
    chosen["val_full"] = (val["images"], val["annotations"])
    chosen["val_annotated"] = _select(val, every)
    for group in ("base", "novel"):
        chosen[f"val_{group}"] = _select(val, named[group])
    chosen["val_generalized"] = _select(val, scored_names("generalized"))
    chosen["val_excluded"] = _select(val, named["excluded"])
    return [count_row(subset, images, annotations) for subset, (images, annotations) in chosen.items()]


def count_row(subset: str, images: Collection[Any], annotations: Collection[Any]) -> dict[str, Any]:
    """subset, images, annotations, crowd, boxes; the boxes are the annotations that are no crowd."""
    crowd = sum(annotation["iscrowd"] for annotation in annotations)
    counts = {"images": len(images), "annotations": len(annotations), "crowd": crowd}
    return {"subset": subset, **counts, "boxes": len(annotations) - crowd}


def train_counts(coco: CocoDict, split: CocoDict, setting: str) -> list[dict[str, Any]]:
    """The counts of a training file and of one setting's split of it, images without an annotation left out there."""
    annotated = {annotation["image_id"] for annotation in split["annotations"]}
    return [
        count_row("train_full", coco["images"], coco["annotations"]),
        count_row(f"train_{setting}", annotated, split["annotations"]),
    ]


def oddities(split: CocoDict) -> list[str]:
    """What a reader should know of a split's boxes, in words: those without area, and those that repeat another.

    Both stay in the split, so that its counts are the published ones. Training leaves boxes without area out.
    """
    flat, repeated = [], []
    seen = set()
    for annotation in split["annotations"]:
        if not (annotation["bbox"][2] and annotation["bbox"][3]):
            flat.append(annotation["id"])
        box = (annotation["image_id"], annotation["category_id"], annotation["iscrowd"], *annotation["bbox"])
        if box in seen:
            repeated.append(annotation["id"])
        seen.add(box)
    found = {"without width or height, which training leaves out": flat, "equal to another one, kept": repeated}
    return [f"{len(ids)} {what} (annotations {_first(ids)})" for what, ids in found.items() if ids]


def _first(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")


def _names_of(kept: dict[str, tuple[str, ...]], key: str, what: str) -> list[str]:
    if key not in kept:
        raise InputError(f"{what}: expected one of {', '.join(kept)}, got {key!r}")
    groups = _groups()
    return [name for _, name in categories() if any(name in groups[group] for group in kept[key])]


def _ids_of(names: Collection[str]) -> set[int]:
    return {category_id for category_id, name in categories() if name in names}


def _select(coco: CocoDict, names: Collection[str]) -> tuple[list[Any], list[Any]]:
    """The annotations of the named classes, and the images that have one."""
    kept_ids = _ids_of(names)
    annotations = [a for a in coco["annotations"] if a["category_id"] in kept_ids]
    image_ids = {a["image_id"] for a in annotations}
    return [image for image in coco["images"] if image["id"] in image_ids], annotations


def _select_train(coco: CocoDict, setting: str, *, keep_empty: bool) -> tuple[list[Any], list[Any]]:
    images, annotations = _select(coco, supervised_names(setting))
    if keep_empty:
        images = coco["images"]
    if setting == "zsd_strict":
        novel_ids = _ids_of(novel_names())
        with_novel = {a["image_id"] for a in coco["annotations"] if a["category_id"] in novel_ids}
        images = [image for image in images if image["id"] not in with_novel]
        annotations = [a for a in annotations if a["image_id"] not in with_novel]
    return images, annotations


def _boxes_only(images: list[Any], annotations: list[Any], names: Collection[str], description: str) -> CocoDict:
    """A new instances dict; its categories come from our own list, so that their order in the source cannot matter."""
    return {
        "info": {"description": description},
        "images": [{key: image[key] for key in IMAGE_KEYS} for image in images],
        "annotations": [{key: annotation[key] for key in ANNOTATION_KEYS} for annotation in annotations],
        "categories": [record for record in category_records() if record["name"] in names],
    }
