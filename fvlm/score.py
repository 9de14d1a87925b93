"""Command `score`: any detector's results file under a named protocol, with all that a citation has to say.

It needs no params and nothing that the pipeline built: results and annotations in COCO's format, of any data set.
"""

import os
import textwrap
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from . import __version__
from .data.class_split import ClassSplit, class_split
from .data.coco import CocoDict
from .errors import InputError
from .evaluation.ap import (
    AREA_RANGES,
    IOU_THRESHOLDS,
    MAX_DETECTIONS,
    SizeScore,
    best_detections,
    mean_by_size,
    scores_by_size,
)
from .evaluation.ground_truth import load_ground_truth
from .evaluation.results import Results, read_results
from .io import sha256_of_file, write_json

PROTOCOLS = {  # -> the groups of the split whose classes are scored
    "generalized": ("base", "novel"),
    "constrained_base": ("base",),
    "constrained_novel": ("novel",),
}
IMAGES = {
    "split": "those with an annotation of the scored classes, crowds too, as OVR-CNN's files have it",
    "all": "every image of the annotations",
}
IOU_STEP = IOU_THRESHOLDS[1] - IOU_THRESHOLDS[0]
WIDTH = 120  # of a printed line
SHOWN_CLASSES = 100  # more go to --json alone
SIZE_METRICS = SizeScore._fields
FEDERATED = (
    "the annotations are federated, as LVIS's are: each image was searched for some classes only (neg_category_ids, "
    "not_exhaustive_category_ids). COCO's rule is applied, not LVIS's: a detection of a class for which its image was "
    "not searched counts as false, and 100 detections of an image and class count, not 300 of an image. These are no "
    "LVIS APs"
)


def run(
    results_path: str, *, annotations: str, split: str, protocol: str, images: str, json_path: str | None = None
) -> None:
    """Score a results file, print the outcome, and write it to `json_path` if one is given.

    Args:
        results_path: the detector's results, COCO's format.
        annotations: the data set's instances file.
        split: "ovcoco", or a YAML file of base and novel classes (`data.class_split`).
        protocol: one of `PROTOCOLS`.
        images: one of `IMAGES`.

    Raises:
        InputError: an argument, or what is in a file; one line for each kind of finding.
    """
    for option, value, known in (("--protocol", protocol, PROTOCOLS), ("--images", images, IMAGES)):
        if value not in known:
            raise InputError(f"{option}: expected one of {', '.join(known)}, got {value!r}")
    if json_path is not None and os.path.realpath(json_path) in map(os.path.realpath, (results_path, annotations)):
        raise InputError(f"--json: expected a file for the outcome, got {json_path}, which is an input; name another")
    coco, told = load_ground_truth(annotations)
    classes = class_split(split, coco["categories"], PROTOCOLS[protocol], annotations)
    truth = _scored_truth(coco, classes, protocol, images, annotations)
    outcome = _scored(results_path, coco, truth, classes, PROTOCOLS[protocol])
    outcome |= {
        "fvlm": __version__,
        "protocol": protocol,
        "split": _described(classes, split, coco),
        "annotations": {"file": annotations, "sha256": sha256_of_file(annotations), **told},
        "rules": {
            "evaluation": "COCO, boxes",
            "iou_thresholds": [round(threshold, 2) for threshold in IOU_THRESHOLDS],
            "max_detections_of_image_and_class": MAX_DETECTIONS,
            "area_ranges": {size: list(area) for size, area in AREA_RANGES.items()},
            "area": "of an annotation its key area, of a detection width x height",
        },
        "metrics": {
            f"{protocol if protocol != 'generalized' else f'{protocol}_{group}'}_{metric}": value
            for group, of_group in outcome["groups"].items()
            for metric, value in (of_group["sizes"]["all"] or dict.fromkeys(SIZE_METRICS)).items()
        },
    }
    outcome["images"] |= {"rule": images, "annotated": len(coco["images"])}
    outcome["notes"] = _notes(outcome)
    print(shown(outcome), flush=True)
    if json_path is not None:
        try:
            write_json(json_path, outcome)
        except OSError as error:
            raise InputError(f"--json: {json_path} cannot be written ({error.strerror}); name another file") from None


def _scored_truth(coco: CocoDict, classes: ClassSplit, protocol: str, images: str, where: str) -> CocoDict:
    """The images and annotations that count under the protocol."""
    wanted = {category_id for group in PROTOCOLS[protocol] for category_id in getattr(classes, group)}
    annotations = [a for a in coco["annotations"] if a["category_id"] in wanted]
    if all(annotation["iscrowd"] for annotation in annotations):
        raise InputError(
            f"{where}: expected boxes of the {len(wanted)} classes that {protocol} scores, found none; use annotations "
            "that have some"
        )
    chosen = coco["images"]
    if images == "split":
        annotated = {annotation["image_id"] for annotation in annotations}
        chosen = [image for image in chosen if image["id"] in annotated]
    return {
        "images": chosen,
        "annotations": annotations,
        "categories": [category for category in coco["categories"] if category["id"] in wanted],
    }


def _scored(
    results_path: str, coco: CocoDict, truth: CocoDict, classes: ClassSplit, groups: Sequence[str]
) -> dict[str, Any]:
    """Read the results and score them: "detections", "images", "groups" and "classes" of the outcome."""
    name_of = {category["id"]: category["name"] for category in truth["categories"]}
    results = read_results(results_path, coco, [image["id"] for image in truth["images"]], name_of)
    detections = results.detections
    best = best_detections(detections)
    progress = tqdm(
        scores_by_size(detections, best, truth, name_of),
        total=len(name_of),
        desc="score: by class",
        disable=None,
        leave=False,
    )
    scores = dict(progress)
    boxes = Counter(a["category_id"] for a in truth["annotations"] if not a["iscrowd"])
    found = Counter(
        dict(zip(*(part.tolist() for part in np.unique(detections.category_ids, return_counts=True)), strict=True))
    )
    members = {group: getattr(classes, group) for group in groups}
    if len(groups) > 1:
        members["all"] = tuple(name_of)
    return {
        "detections": {"file": results_path, "sha256": sha256_of_file(results_path), **_counts(results, len(best))},
        "images": {
            "scored": len(truth["images"]),
            "with_detections": len(np.unique(detections.image_ids)),
        },
        "groups": {
            group: {
                "classes": len(ids),
                "classes_with_boxes": sum(boxes[category_id] > 0 for category_id in ids),
                "boxes": sum(boxes[category_id] for category_id in ids),
                "sizes": _as_json(mean_by_size([scores[category_id] for category_id in ids])),
            }
            for group, ids in members.items()
        },
        "classes": [
            {
                "name": name_of[category_id],
                "category_id": category_id,
                "group": group,
                "boxes": boxes[category_id],
                "detections": found[category_id],
                "sizes": _as_json(scores[category_id]),
            }
            for group in groups
            for category_id in members[group]
        ],
    }


def _counts(results: Results, best: int) -> dict[str, int | bool]:
    return {
        "total": results.total,
        "of_scored_classes_and_images": len(results.detections),
        "left_out_other_classes": results.other_classes,
        "left_out_other_images": results.other_images,
        "not_counted_beyond_best_100": len(results.detections) - best,
        "without_area": results.without_area,
        "beyond_edge": results.beyond_edge,
        "within_a_pixel": results.within_a_pixel,
    }


def _described(classes: ClassSplit, split: str, coco: CocoDict) -> dict[str, Any]:
    name_of = {category["id"]: category["name"] for category in coco["categories"]}
    return {
        "name": classes.name,
        "given": split,
        "base": [name_of[category_id] for category_id in classes.base],
        "novel": [name_of[category_id] for category_id in classes.novel],
    }


def _as_json(scores: Mapping[str, SizeScore | None]) -> dict[str, dict[str, float] | None]:
    return {size: None if score is None else score._asdict() for size, score in scores.items()}


def _notes(outcome: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers, in words."""
    notes = []
    if outcome["annotations"]["federated"]:
        notes.append(FEDERATED)
    if outcome["protocol"] != "generalized":
        notes.append(
            f"{outcome['protocol']} asks that the detector itself chooses among these classes alone, which the file "
            "cannot show: detections of other classes are left out here, but may have won over these"
        )
    if empty := [of_class["name"] for of_class in outcome["classes"] if not of_class["boxes"]]:
        some = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        notes.append(f"{len(empty)} of the classes have no box to find and are in no mean: {some}")
    if filled := outcome["annotations"]["areas_filled_in"]:
        notes.append(f"{filled:,} annotations have no area; sizes go by width x height there")
    counts = outcome["detections"]
    if counts["without_area"]:
        notes.append(
            f"{counts['without_area']:,} detections have no width or no height: they match nothing and count as false"
        )
    if counts["within_a_pixel"]:
        notes.append("no detection is larger than a pixel: fractions of the image's size? COCO's boxes are pixels")
    if counts["beyond_edge"]:
        notes.append(
            f"{counts['beyond_edge']:,} detections reach more than a pixel over the edge of their image; they are "
            "scored as they are. If they are many: COCO's boxes are [x, y, width, height], not corners"
        )
    return notes


def shown(outcome: Mapping[str, Any]) -> str:
    """The outcome as text: what was scored, the means by group and size, each class, and a line to cite."""
    counts, images, split = outcome["detections"], outcome["images"], outcome["split"]
    groups = outcome["groups"]
    thresholds = outcome["rules"]["iou_thresholds"]
    kinds = f"{len(split['base'])} base and {len(split['novel'])} novel classes"
    head = {
        "detections": f"{counts['file']}: {counts['total']:,}, of which {counts['of_scored_classes_and_images']:,} are "
        f"of the scored classes and images ({counts['not_counted_beyond_best_100']:,} of them beyond the best "
        f"{MAX_DETECTIONS} of their image and class); left out: {counts['left_out_other_classes']:,} of other classes, "
        f"{counts['left_out_other_images']:,} on other images",
        "annotations": f"{outcome['annotations']['file']}, sha256 {outcome['annotations']['sha256'][:12]}",
        "split": split["name"] + ("" if split["name"] == split["given"] else f" ({split['given']})") + f": {kinds}",
        "protocol": outcome["protocol"],
        "images": f"{images['scored']:,} of {images['annotated']:,} ({images['rule']}: {IMAGES[images['rule']]}); "
        f"{images['with_detections']:,} have detections",
        "categories": ", ".join(
            f"{group} {of['classes']} ({of['classes_with_boxes']} with boxes, {of['boxes']:,} boxes)"
            for group, of in groups.items()
        ),
        "rule": f"COCO's, boxes: AP50 at IoU {thresholds[0]:.2f}; AP and AR the mean over IoU {thresholds[0]:.2f} to "
        f"{thresholds[-1]:.2f} in steps of {IOU_STEP:.2f}; maxDets {MAX_DETECTIONS} of an image and class; small up to "
        "32 x 32 pixels of area, large from 96 x 96; percent",
    }
    lines = [line for title, text in head.items() for line in _wrapped(title, text)]
    lines += [line for note in outcome["notes"] for line in _wrapped("note", note)]
    classes = outcome["classes"]
    columns = max(len("mean of"), *(len(of_class["name"]) for of_class in classes))
    lines += ["", *_table_head("mean of", columns)]
    lines += [_row(group, columns, "", of["boxes"], of["sizes"]) for group, of in groups.items()]
    if len(classes) > SHOWN_CLASSES:
        lines += ["", f"{len(classes):,} classes: their scores are in the file of --json"]
    else:
        lines += ["", *_table_head("class", columns)]
        lines += [_row(of["name"], columns, of["group"], of["boxes"], of["sizes"]) for of in classes]
    return "\n".join([*lines, "", *_wrapped("cite as", cited(outcome))])


def cited(outcome: Mapping[str, Any]) -> str:
    """One sentence with the numbers and all that they depend on."""
    groups = "; ".join(
        f"{group} "
        + ", ".join(f"{metric} {_number((of['sizes']['all'] or {}).get(metric))}" for metric in SIZE_METRICS)
        for group, of in outcome["groups"].items()
    )
    images, annotations = outcome["images"], outcome["annotations"]
    low, *_, high = outcome["rules"]["iou_thresholds"]
    rule = "COCO's rule and not that of LVIS" if annotations["federated"] else "COCO's rule"
    return (
        f"{groups}. {outcome['protocol']} protocol of split {outcome['split']['name']}: {len(outcome['classes'])} "
        f"classes on {images['scored']:,} of {images['annotated']:,} images (--images {images['rule']}) of "
        f"{os.path.basename(annotations['file'])}, sha256 {annotations['sha256'][:12]}; {rule}, maxDets "
        f"{MAX_DETECTIONS}, AP50 at IoU {low:.2f}, AP and AR over IoU {low:.2f}:{IOU_STEP:.2f}:{high:.2f}; "
        f"fvlm {outcome['fvlm']}"
    )


def _wrapped(title: str, text: str) -> Collection[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{title:<13}", subsequent_indent=" " * 13, break_on_hyphens=False)


def _table_head(first: str, columns: int) -> list[str]:
    sizes = "".join(f"  {size:>17}" for size in AREA_RANGES)
    metrics = "".join("  " + "".join(f"{metric:>6}" for metric in SIZE_METRICS).rjust(17) for _ in AREA_RANGES)
    return [f"{'':<{columns}}  {'':<5}  {'':>8}{sizes}", f"{first:<{columns}}  {'group':<5}  {'boxes':>8}{metrics}"]


def _row(name: str, columns: int, group: str, boxes: int, sizes: Mapping[str, Mapping[str, float] | None]) -> str:
    numbers = "".join(
        "  " + "".join(f"{_number((sizes[size] or {}).get(metric)):>6}" for metric in SIZE_METRICS).rjust(17)
        for size in AREA_RANGES
    )
    return f"{name:<{columns}}  {group:<5}  {boxes:>8,}{numbers}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
