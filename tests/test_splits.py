import copy
import csv
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from fvlm import layout
from fvlm.data.coco import categories, category_records, load_instances
from fvlm.data.splits import (
    base_names,
    build_train_split,
    build_val_split,
    count_table,
    excluded_names,
    novel_names,
    scored_names,
    supervised_names,
)
from fvlm.errors import InputError
from fvlm.params import Params, load_params
from fvlm.stages import download, splits, val_splits

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji.yaml"

# DetPro, mmdet/datasets/coco.py: 0-based positions in COCO's order
IGNORE_IDS_TRAIN = [4, 5, 9, 10, 11, 12, 15, 16, 19, 20, 25, 27, 31, 32, 34, 35, 36, 38, 40, 41, 43, 52, 55, 57, 58, 60]
IGNORE_IDS_TRAIN += [66, 67, 71, 76, 77, 78]
IGNORE_IDS_TEST = [9, 10, 11, 12, 32, 34, 35, 38, 40, 52, 58, 60, 67, 77, 78]

PERSON, BICYCLE, TRAFFIC_LIGHT, CAT = 1, 2, 10, 17


def world() -> dict[str, Any]:
    """Seven images, ids not in order: each case that the settings and protocols decide differently."""
    contents: list[tuple[int, list[tuple[int, int]]]] = [  # image id, (category, iscrowd)
        (10, [(PERSON, 0), (PERSON, 1)]),
        (20, [(PERSON, 0), (CAT, 0)]),
        (70, [(BICYCLE, 0), (CAT, 1), (TRAFFIC_LIGHT, 0)]),
        (30, [(CAT, 0)]),
        (40, [(TRAFFIC_LIGHT, 0)]),
        (50, []),
        (60, [(BICYCLE, 1)]),
    ]
    annotations = [
        {"image_id": image_id, "category_id": category_id, "iscrowd": iscrowd}
        for image_id, objects in contents
        for category_id, iscrowd in objects
    ]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9, "flickr_url": "x"} for i, _ in contents],
        "annotations": [
            {**a, "id": 101 + n, "bbox": [1.0, 2.0, 3.0, 0.0], "area": 0.0, "attributes": {}}
            for n, a in enumerate(annotations)
        ],
        "categories": category_records(),
    }


def images_of(split: dict[str, Any]) -> list[int]:
    return [image["id"] for image in split["images"]]


def boxes_of(split: dict[str, Any]) -> list[int]:
    return [annotation["id"] for annotation in split["annotations"]]


def test_the_groups_are_detpros_label_lists():
    names = [name for _, name in categories()]
    assert base_names() == [name for i, name in enumerate(names) if i not in IGNORE_IDS_TRAIN]
    assert excluded_names() == [names[i] for i in IGNORE_IDS_TEST]
    assert novel_names() == [names[i] for i in sorted(set(IGNORE_IDS_TRAIN) - set(IGNORE_IDS_TEST))]


def test_the_groups_are_48_17_and_15_classes():
    assert (len(base_names()), len(novel_names()), len(excluded_names())) == (48, 17, 15)


def test_each_setting_supervises_its_classes_in_cocos_order():
    names = [name for _, name in categories()]
    assert supervised_names("zsd") == supervised_names("zsd_strict") == base_names()
    assert supervised_names("ovod") == scored_names("generalized") == [n for n in names if n not in excluded_names()]
    assert (scored_names("base"), scored_names("novel")) == (base_names(), novel_names())


@pytest.mark.parametrize("choose", [supervised_names, scored_names])
def test_a_setting_or_protocol_that_does_not_exist_is_named_with_the_known_ones(choose):
    with pytest.raises(InputError, match=r"expected one of .*, got 'zero'"):
        choose("zero")


@pytest.mark.parametrize(
    ("setting", "keep_empty", "images", "boxes"),
    [
        # annotations: 101, 102 crowd in image 10; 103, 104 cat in 20; 105, 106 cat crowd, 107 light in 70;
        # 108 cat in 30; 109 light in 40; 110 crowd in 60
        ("zsd", False, [10, 20, 70, 60], [101, 102, 103, 105, 110]),
        ("zsd", True, [10, 20, 70, 30, 40, 50, 60], [101, 102, 103, 105, 110]),
        ("ovod", False, [10, 20, 70, 30, 60], [101, 102, 103, 104, 105, 106, 108, 110]),
        ("ovod", True, [10, 20, 70, 30, 40, 50, 60], [101, 102, 103, 104, 105, 106, 108, 110]),
        ("zsd_strict", False, [10, 60], [101, 102, 110]),
        ("zsd_strict", True, [10, 40, 50, 60], [101, 102, 110]),
    ],
)
def test_a_setting_keeps_exactly_its_images_and_boxes_in_their_order(setting, keep_empty, images, boxes):
    split = build_train_split(world(), setting, keep_empty=keep_empty)
    assert (images_of(split), boxes_of(split)) == (images, boxes)
    assert [category["name"] for category in split["categories"]] == supervised_names(setting)


@pytest.mark.parametrize(
    ("protocol", "images", "boxes"),
    [
        ("base", [10, 20, 70, 60], [101, 102, 103, 105, 110]),
        ("novel", [20, 70, 30], [104, 106, 108]),
        ("generalized", [10, 20, 70, 30, 60], [101, 102, 103, 104, 105, 106, 108, 110]),
    ],
)
def test_a_protocol_keeps_exactly_its_images_and_boxes_in_their_order(protocol, images, boxes):
    split = build_val_split(world(), protocol)
    assert (images_of(split), boxes_of(split)) == (images, boxes)
    assert [category["name"] for category in split["categories"]] == scored_names(protocol)


def test_the_counts_are_those_counted_by_hand():
    rows = {row["subset"]: tuple(row.values())[1:] for row in count_table(world(), world())}
    assert rows == {  # images, annotations, crowd, boxes
        "train_full": (7, 10, 3, 7),
        "train_annotated": (6, 10, 3, 7),
        "train_zsd": (4, 5, 2, 3),
        "train_ovod": (5, 8, 3, 5),
        "train_zsd_strict": (2, 3, 2, 1),
        "train_novel": (3, 3, 1, 2),
        "train_excluded": (2, 2, 0, 2),
        "val_full": (7, 10, 3, 7),
        "val_annotated": (6, 10, 3, 7),
        "val_base": (4, 5, 2, 3),
        "val_novel": (3, 3, 1, 2),
        "val_generalized": (5, 8, 3, 5),
        "val_excluded": (2, 2, 0, 2),
    }


@pytest.mark.parametrize("setting", ["zsd", "ovod", "zsd_strict"])
def test_the_order_of_categories_never_matters(setting):
    coco, shuffled = world(), world()
    random.Random(0).shuffle(shuffled["categories"])
    assert build_train_split(shuffled, setting, keep_empty=False) == build_train_split(coco, setting, keep_empty=False)
    assert build_val_split(shuffled, "novel") == build_val_split(coco, "novel")


def test_building_a_split_does_not_change_its_source():
    coco = world()
    before = copy.deepcopy(coco)
    split = build_train_split(coco, "ovod", keep_empty=True)
    split["images"][0]["width"] = split["annotations"][0]["iscrowd"] = split["categories"][0]["id"] = -1
    assert coco == before
    assert category_records()[0]["id"] == 1


def test_a_split_holds_boxes_only_and_zero_height_ones_too():
    split = build_train_split(world(), "zsd", keep_empty=False)
    assert split["annotations"][0] == {
        "id": 101, "image_id": 10, "category_id": PERSON, "iscrowd": 0, "bbox": [1.0, 2.0, 3.0, 0.0], "area": 0.0
    }  # fmt: skip
    assert split["images"][0] == {"id": 10, "file_name": "10.jpg", "width": 9, "height": 9}


def test_the_splits_of_real_pictures_add_up(real_coco):
    coco = load_instances(real_coco / "annotations" / "instances_train2017.json")
    rows = {row["subset"]: row for row in count_table(coco, coco)}
    assert rows["train_full"]["images"] == 80
    assert rows["train_zsd"]["boxes"] + rows["train_novel"]["boxes"] == rows["train_ovod"]["boxes"]
    assert rows["train_ovod"]["annotations"] + rows["train_excluded"]["annotations"] == 705


# --- the stages ---


@pytest.fixture
def params(tiny_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Params over the tiny world; the working directory is an empty one, and `download` has run."""
    monkeypatch.chdir(tmp_path)
    recipe = load_params(RECIPE)
    data = dataclasses.replace(recipe.data, dataset="coco_folder", root=str(tiny_coco), emoji=None)
    params = dataclasses.replace(recipe, data=data)
    download.run(params)
    return params


def edit(path: Path, change: Any) -> None:
    coco = json.loads(path.read_text())
    change(coco)
    path.write_text(json.dumps(coco))


def only_excluded(coco: dict[str, Any]) -> None:
    coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] == TRAFFIC_LIGHT]


def test_the_stages_write_every_split_as_sound_coco(params):
    for setting in ("zsd", "ovod", "zsd_strict"):
        splits.run(params, setting)
        split = load_instances(layout.train_split(setting))
        assert split["info"]["description"].startswith(f"training boxes of setting {setting}:")
    val_splits.run(params)
    sizes = {protocol: len(load_instances(layout.val_split(protocol))["images"]) for protocol in layout.VAL_SPLITS}
    assert sizes == {"base": 5, "novel": 3, "generalized": 6, "all": 8}  # of conftest.SCENES
    some, every = (load_instances(layout.val_split(name)) for name in ("generalized", "all"))
    assert every["annotations"] == some["annotations"]
    assert every["categories"] == some["categories"]
    with open(layout.COUNTS, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["subset", "images", "annotations", "crowd", "boxes"]
    assert len(rows) == 13
    assert rows[0] == dict(zip(rows[0], ["train_full", "12", "20", "1", "19"], strict=True))


def test_the_same_annotations_give_the_same_bytes(params):
    splits.run(params, "zsd")
    before = layout.train_split("zsd").read_bytes()
    splits.run(params, "zsd")
    assert layout.train_split("zsd").read_bytes() == before


def test_keep_empty_is_read_from_params(params):
    splits.run(dataclasses.replace(params, splits=dataclasses.replace(params.splits, keep_empty=True)), "zsd")
    assert len(load_instances(layout.train_split("zsd"))["images"]) == 12


def test_annotations_that_changed_since_download_are_refused(params, tiny_coco):
    file = tiny_coco / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text() + " ")
    for run in (lambda: splits.run(params, "zsd"), lambda: val_splits.run(params)):
        with pytest.raises(InputError, match=r"train2017\.json: .* changed since download; run `python"):
            run()
    file.unlink()
    with pytest.raises(InputError, match=r"instances_train2017\.json: annotation file not found"):
        splits.run(params, "zsd")
    assert not Path("data/splits").exists()


def test_params_that_changed_since_download_are_refused(params):
    data = dataclasses.replace(params.data, train_annotations=params.data.val_annotations)
    with pytest.raises(InputError, match=r"manifest\.json: .*section data, which changed since"):
        splits.run(dataclasses.replace(params, data=data), "zsd")


@pytest.mark.parametrize("content", [None, "{}", "[]", "no json"])
def test_a_missing_or_strange_manifest_says_what_to_do(params, content):
    layout.manifest(params).unlink()
    if content is not None:
        layout.manifest(params).write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json: .*run `python -m fvlm download`"):
        splits.run(params, "zsd")


def test_a_training_split_without_boxes_is_refused(params, tiny_coco):
    edit(tiny_coco / "annotations" / "instances_train2017.json", only_excluded)
    download.run(params)
    with pytest.raises(InputError, match=r"instances_train2017\.json: expected boxes of the 48 classes .* found none"):
        splits.run(params, "zsd")
    assert not layout.train_split("zsd").exists()


def test_every_protocol_without_boxes_is_named_and_nothing_written(params, tiny_coco):
    edit(tiny_coco / "annotations" / "instances_val2017.json", only_excluded)
    download.run(params)
    with pytest.raises(InputError) as error:
        val_splits.run(params)
    for classes, protocol in ((48, "base"), (17, "novel"), (65, "generalized")):
        assert f"expected boxes of the {classes} classes of protocol {protocol}, found none" in str(error.value)
    assert not Path("data/splits").exists()
