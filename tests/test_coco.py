import copy
import json
from pathlib import Path
from typing import Any

import pytest

from fvlm.data.coco import SHOWN_FINDINGS, categories, category_records, load_instances
from fvlm.errors import InputError


def sound() -> dict[str, Any]:
    """Two images, two boxes: a dict that passes."""
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48},
            {"id": 8, "file_name": "b.jpg", "width": 64, "height": 48},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 2, 30, 40], "area": 900.5, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 90, "bbox": [1.5, 2.5, 3.0, 4.0], "area": 12.0, "iscrowd": 0},
        ],
        "categories": category_records(),
    }


def load(tmp_path: Path, coco: Any) -> dict[str, Any]:
    path = tmp_path / "instances.json"
    path.write_text(coco if isinstance(coco, str) else json.dumps(coco), encoding="utf-8")
    return load_instances(path)


def findings(tmp_path: Path, coco: Any) -> list[str]:
    with pytest.raises(InputError) as error:
        load(tmp_path, coco)
    return str(error.value).splitlines()


def edited(group: str, index: int, **changes: Any) -> dict[str, Any]:
    """`sound()` with one record changed; a change to `...` removes the key."""
    coco = sound()
    record = coco[group][index]
    record.update(changes)
    for key in [key for key, value in changes.items() if value is ...]:
        del record[key]
    return coco


def test_there_are_80_categories_with_ids_1_to_90_and_cocos_gaps():
    ids = [category_id for category_id, _ in categories()]
    assert ids == sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
    assert len({name for _, name in categories()}) == 80
    assert dict(categories())[1] == "person"
    assert dict(categories())[90] == "toothbrush"


def test_a_caller_that_changes_a_category_record_changes_its_own_copy():
    category_records()[0]["name"] = "robot"
    assert category_records()[0] == {"id": 1, "name": "person", "supercategory": "person"}


def test_a_sound_file_is_returned_as_it_is(tmp_path):
    assert load(tmp_path, sound()) == sound()


def test_what_real_coco_holds_passes(tmp_path):
    coco = sound()
    coco["images"].append({"id": 200365, "file_name": "sub/c.jpg", "width": 640, "height": 480, "license": 3})
    whole = {"image_id": 200365, "area": 0.0, "iscrowd": 0}
    coco["annotations"] += [
        {"id": 918, "category_id": 58, "bbox": [296.65, 388.33, 1.03, 0.0], **whole},  # real: no height
        {"id": 2206849, "category_id": 1, "bbox": [9.98, 188.56, 5.54, 0.0], **whole},  # real: no height
        {"id": 3, "category_id": 1, "bbox": [9.98, 188.56, 5.54, 0.0], **whole},  # a duplicate box
        {"id": 4, "category_id": 1, "bbox": [-0.4, 0, 641.5, 480.2], **whole},  # over the edge
        {"id": 900100, "category_id": 1, "bbox": [0, 0, 9, 9], "image_id": 200365, "area": 81, "iscrowd": 1},
    ]
    expected = copy.deepcopy(coco)
    coco["annotations"][-1]["segmentation"] = {"size": [480, 640], "counts": [0, 10, 307190]}
    coco["annotations"][0]["segmentation"] = [[1, 2, 31, 2, 31, 42]]
    assert load(tmp_path, coco) == expected  # and masks are left behind


def test_categories_may_be_few_and_in_any_order(tmp_path):
    coco = sound()
    coco["categories"] = [record for record in reversed(coco["categories"]) if record["id"] in (1, 2, 90)]
    assert len(load(tmp_path, coco)["categories"]) == 3


def test_a_missing_iscrowd_is_0_and_a_missing_area_is_that_of_the_box(tmp_path):
    annotation = load(tmp_path, edited("annotations", 0, iscrowd=..., area=...))["annotations"][0]
    assert annotation["iscrowd"] == 0
    assert annotation["area"] == 1200


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("", "an empty file"),
        ("no json", "something else (line 1, column 1: Expecting value)"),
        (json.dumps(sound())[:700], "a file that breaks off after 700 characters"),
        (json.dumps(sound())[:-1], "a file that breaks off after"),
        (json.dumps(sound()).replace("[1, 2, 30, 40]", "[1, 2, 30 40]"), "something else (line 1, column"),
        (json.dumps(sound()) + "x", "something else (line 1, column"),
        ("[" * 100_000, "something else ("),
    ],
)
def test_a_file_that_is_not_json_says_what_came_instead(tmp_path, text, came):
    (line,) = findings(tmp_path, text)
    assert line.startswith(f"{tmp_path}/instances.json: expected COCO instances as JSON, got {came}")
    assert "get the file again" in line


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match=r"annotation file .*; get the file again"):
            load_instances(path)


@pytest.mark.parametrize(
    ("coco", "expected"),
    [
        ([1, 2], "expected an object with images, annotations and categories, got [1, 2]"),
        ({"images": [], "annotations": {}}, "annotations: expected a list, got {}"),
        ({"images": [], "annotations": {}}, "categories: expected a list, but the key is missing"),
        ({"images": None, "annotations": [], "categories": []}, "images: expected a list, got nothing"),
    ],
)
def test_a_wrong_layout_names_each_key(tmp_path, coco, expected):
    assert any(f"instances.json: {expected}" in line for line in findings(tmp_path, coco))


BAD_RECORDS = [
    ("categories", {"name": "robot"}, "categories[0]: expected 'person', COCO's name of id 1, got name \"robot\""),
    ("categories", {"id": 99}, "categories[0]: expected 1, COCO's id of 'person', got id 99"),
    ("categories", {"id": 99, "name": "robot"}, 'expected one of COCO\'s 80 categories, got id 99, name "robot"'),
    ("categories", {"id": 2}, "categories[1]: id 2 is already that of categories[0]"),
    ("categories", {"id": "1"}, 'categories[0]: expected id, a whole number from 0, got "1"'),
    ("images", {"id": 8}, "images[1]: id 8 is already that of images[0]"),
    ("images", {"id": ...}, "images[0]: expected id, a whole number from 0, got nothing"),
    ("images", {"id": 7.0}, "images[0]: expected id, a whole number from 0, got 7.0"),
    ("images", {"id": 2**63}, "images[0]: expected id, a whole number from 0, got 9223372036854775808"),
    ("images", {"file_name": ...}, "images[0] (id 7): expected file_name, a text, got nothing"),
    ("images", {"file_name": "../a.jpg"}, '(id 7): expected a file_name below the picture folder, got "../a.jpg"'),
    ("images", {"file_name": "/etc/a.jpg"}, "expected a file_name below the picture folder"),
    ("images", {"file_name": "x/../../a.jpg"}, "expected a file_name below the picture folder"),
    ("images", {"file_name": "C:\\a.jpg"}, "expected a file_name below the picture folder"),
    ("images", {"file_name": "a\0.jpg"}, "expected a file_name below the picture folder"),
    ("images", {"file_name": "a\n.jpg"}, "expected a file_name of at most 1000 letters, none a control letter"),
    ("images", {"file_name": "\ud800.jpg"}, "expected a file_name of at most 1000 letters, none a control letter"),
    ("images", {"file_name": "a" * 1001}, "expected a file_name of at most 1000 letters, none a control letter"),
    ("images", {"height": ...}, "images[0] (id 7): expected height in pixels, at least 1, got nothing"),
    ("images", {"width": 0}, "images[0] (id 7): expected width in pixels, at least 1, got 0"),
    ("images", {"width": "64"}, 'images[0] (id 7): expected width in pixels, at least 1, got "64"'),
    ("annotations", {"id": 2}, "annotations[1]: id 2 is already that of annotations[0]"),
    ("annotations", {"id": 0}, "annotations[0]: expected id, a whole number from 1, got 0"),
    ("annotations", {"id": ...}, "annotations[0]: expected id, a whole number from 1, got nothing"),
    ("annotations", {"image_id": 9}, "annotations[0] (id 1): expected image_id of an entry of images, got 9"),
    ("annotations", {"image_id": []}, "annotations[0] (id 1): expected image_id of an entry of images, got []"),
    ("annotations", {"category_id": 12}, "(id 1): expected category_id of an entry of categories, got 12"),
    ("annotations", {"category_id": ...}, "expected category_id of an entry of categories, got nothing"),
    ("annotations", {"bbox": ...}, "(id 1): expected bbox as [x, y, width, height] in pixels, got nothing"),
    ("annotations", {"bbox": [1, 2, 3]}, "expected bbox as [x, y, width, height] in pixels, got [1, 2, 3]"),
    ("annotations", {"bbox": {"x": 1}}, 'expected bbox as [x, y, width, height] in pixels, got {"x": 1}'),
    ("annotations", {"bbox": [1, 2, 3, "4"]}, 'expected bbox as four finite numbers of pixels, got [1, 2, 3, "4"]'),
    ("annotations", {"bbox": [1, 2, 3, True]}, "expected bbox as four finite numbers of pixels"),
    ("annotations", {"bbox": [1, float("nan"), 3, 4]}, "four finite numbers of pixels, got [1, NaN, 3, 4]"),
    ("annotations", {"bbox": [1, 2, float("inf"), 4]}, "four finite numbers of pixels, got [1, 2, Infinity, 4]"),
    ("annotations", {"bbox": [1, 2, 10**400, 4]}, "expected bbox as four finite numbers of pixels"),
    ("annotations", {"bbox": [1, 2, -3, 4]}, "expected bbox with width and height of at least 0, got [1, 2, -3, 4]"),
    ("annotations", {"bbox": [1, 2, 3, -0.5]}, "expected bbox with width and height of at least 0"),
    ("annotations", {"bbox": [-5, 2, 3, 4]}, "expected bbox with its corner in the image, got [-5, 2, 3, 4]"),
    ("annotations", {"bbox": [5, -1.0, 3, 4]}, "expected bbox with its corner in the image"),
    ("annotations", {"iscrowd": 2}, "annotations[0] (id 1): expected iscrowd 0 or 1, got 2"),
    ("annotations", {"area": float("nan")}, "annotations[0] (id 1): expected area in pixels, got NaN"),
]


@pytest.mark.parametrize(("group", "changes", "expected"), BAD_RECORDS)
def test_a_bad_record_is_one_line_that_says_where_and_what(tmp_path, group, changes, expected):
    lines = findings(tmp_path, edited(group, 0, **changes))
    assert [line for line in lines if expected in line and line.startswith(f"{tmp_path}/instances.json: {group}[")]


@pytest.mark.parametrize("group", ["images", "annotations", "categories"])
def test_a_record_that_is_no_object_is_named(tmp_path, group):
    coco = sound()
    coco[group].append("what")
    (line,) = findings(tmp_path, coco)
    assert f"{group}[{len(coco[group]) - 1}]: expected an object with id" in line
    assert 'got "what"' in line


def test_all_findings_of_a_file_come_at_once(tmp_path):
    coco = edited("annotations", 1, bbox=[1, 2, float("nan"), 4], image_id=5)
    coco["images"][1]["width"] = -1
    coco["categories"][0]["name"] = "robot"
    lines = findings(tmp_path, coco)
    where = ["categories[0]", "images[1] (id 8)", "annotations[1] (id 2)", "annotations[1] (id 2)"]
    assert [line.split(": ")[1] for line in lines] == where
    assert all("; " in line for line in lines)  # each ends with what to do


def test_a_wrong_category_is_one_finding_and_not_one_for_each_of_its_boxes(tmp_path):
    (line,) = findings(tmp_path, edited("categories", 0, name="robot"))
    assert "categories[0]" in line


def test_many_findings_are_cut_short_and_counted(tmp_path):
    coco = sound()
    coco["annotations"] = [{**coco["annotations"][0], "id": i + 1, "image_id": 99} for i in range(SHOWN_FINDINGS + 3)]
    lines = findings(tmp_path, coco)
    assert len(lines) == SHOWN_FINDINGS + 1
    assert lines[-1].endswith("instances.json: and 3 more findings")


def test_a_long_value_is_shown_short_and_on_one_line(tmp_path):
    (line,) = findings(tmp_path, edited("images", 0, width="long\n" * 1000))
    assert len(line) < 300


def test_real_coco_passes_as_it_is(real_coco):
    coco = load_instances(real_coco / "annotations" / "instances_train2017.json")
    assert (len(coco["images"]), len(coco["annotations"]), len(coco["categories"])) == (80, 705, 80)
    assert sum(annotation["iscrowd"] for annotation in coco["annotations"]) == 6
