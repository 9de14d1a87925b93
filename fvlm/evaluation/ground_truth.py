"""The ground truth of any data set in COCO's format, checked as far as scoring depends on it.

`data.coco.load_instances` is for training and knows COCO's 80 categories; this reader takes any categories, and boxes
that its stricter sibling refuses, such as those of Objects365 that begin left of the picture.
"""

import json
import math
import os
from typing import Any, TypeGuard

from ..data.coco import CocoDict
from ..errors import InputError
from ..io import read_text
from .findings import CountedFindings, shown

REMEDY = "get the file again, or export it anew in COCO's instances format"
FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
IMAGE_KEYS = ("id", "width", "height")
CATEGORY_KEYS = ("id", "name", "frequency")
LARGEST_ID = 2**63 - 1  # ids travel as int64
LARGEST_NUMBER = 1e15  # of a coordinate; whole numbers of hundreds of digits would pass as finite


def load_ground_truth(path: str | os.PathLike[str]) -> tuple[CocoDict, dict[str, Any]]:
    """Read an instances file for scoring.

    Args:
        path: "images" (id), "annotations" (id, image_id, category_id, bbox [x, y, w, h]) and "categories" (id, name).
            `iscrowd` is 0 and `area` is width * height where they are missing.

    Returns:
        The lists with the keys that scoring reads (sizes of images and frequencies of categories where the file has
        them), and what is to be told of the file: "areas_filled_in", annotations without `area`, and "federated",
        whether the images say for which categories they were searched, as LVIS's do.

    Raises:
        InputError: each kind of finding in one line, with the number of records, the first of them, and what to do.
    """
    coco = _parse(path)
    findings = CountedFindings(f"{path}")
    federated = any(isinstance(image, dict) and any(key in image for key in FEDERATED_KEYS) for image in coco["images"])
    categories = _categories(coco["categories"], findings)
    images = _images(coco["images"], findings)
    findings.raise_if_any()  # or their annotations would be findings, too
    image_ids, category_ids = ({record["id"] for record in records} for records in (images, categories))
    annotations, filled = _annotations(coco["annotations"], image_ids, category_ids, findings)
    findings.raise_if_any()
    checked = {"images": images, "annotations": annotations, "categories": categories}
    return checked, {"areas_filled_in": filled, "federated": federated}


def _parse(path: str | os.PathLike[str]) -> CocoDict:
    text = read_text(path, "annotation file", REMEDY)
    try:
        coco = json.loads(text, object_hook=_without_mask)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        came = f"something else ({error})" if text.strip() else "an empty file"
        raise InputError(f"{path}: expected COCO instances as JSON, got {came}; {REMEDY}") from None
    if not isinstance(coco, dict):
        hint = "a results file is the other argument" if isinstance(coco, list) else REMEDY
        raise InputError(
            f"{path}: expected an object with images, annotations and categories, got {shown(coco)}; {hint}"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco.get(key), list):
            came = shown(coco[key]) if key in coco else "no such key"
            raise InputError(f"{path}: {key}: expected a list, got {came}; {REMEDY}")
    return coco


def _without_mask(record: dict[str, Any]) -> dict[str, Any]:
    record.pop("segmentation", None)  # while parsing: masks are nine tenths of the memory, and boxes are scored
    return record


def _categories(records: list[Any], findings: CountedFindings) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    names: set[str] = set()
    for index, record in _with_ids("categories", records, findings):
        name = record.get("name")
        if type(name) is not str or not name:
            findings.add("categories without a name", f"categories[{index}]", name, "name them")
        elif name in names:
            findings.add("categories with the name of another", f"categories[{index}]", name, "give each its own name")
        names.add(str(name))
        kept.append({key: record[key] for key in CATEGORY_KEYS if key in record})
    return kept


def _images(records: list[Any], findings: CountedFindings) -> list[dict[str, Any]]:
    return [
        {key: record[key] for key in IMAGE_KEYS if key in record}
        for _, record in _with_ids("images", records, findings)
    ]


def _annotations(
    records: list[Any], image_ids: set[int], category_ids: set[int], findings: CountedFindings
) -> tuple[list[dict[str, Any]], int]:
    """The annotations with the keys that scoring reads, and how many had no area."""
    kept: list[dict[str, Any]] = []
    filled = 0
    for index, record in _with_ids("annotations", records, findings):
        where = f"annotations[{index}]"
        image_id, category_id, box = record.get("image_id"), record.get("category_id"), record.get("bbox")
        iscrowd = record.get("iscrowd", 0)
        if type(image_id) is not int or image_id not in image_ids:
            findings.add("annotations with an image_id that is in none of images", where, image_id, REMEDY)
        elif type(category_id) is not int or category_id not in category_ids:
            findings.add("annotations with a category_id that is in none of categories", where, category_id, REMEDY)
        elif not is_box(box):
            what = "annotations whose bbox is not [x, y, width, height] in pixels, width and height from 0"
            findings.add(what, where, box, "correct or remove them")
        elif type(iscrowd) not in (int, bool) or iscrowd not in (0, 1):
            findings.add("annotations with iscrowd other than 0 or 1", where, iscrowd, "correct them")
        else:
            filled += "area" not in record
            area: Any = record.get("area", box[2] * box[3])
            if type(area) not in (int, float) or not 0 <= area < math.inf:
                findings.add("annotations whose area is no number of pixels", where, area, "correct or leave it out")
            kept.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(iscrowd),
                }
            )
    return kept, filled


def is_box(value: Any) -> TypeGuard[list[float]]:
    """Whether `value` is [x, y, width, height], four finite numbers, width and height of at least 0."""
    return (
        type(value) is list
        and len(value) == 4
        and all(type(number) in (int, float) and abs(number) <= LARGEST_NUMBER for number in value)  # not NaN
        and value[2] >= 0
        and value[3] >= 0
    )


def _with_ids(group: str, records: list[Any], findings: CountedFindings) -> list[tuple[int, dict[str, Any]]]:
    """The records that have an id of their own, with their places; the others are findings."""
    kept = []
    seen: set[int] = set()
    for index, record in enumerate(records):
        if type(record) is not dict:
            findings.add(f"{group} that are no objects", f"{group}[{index}]", record, REMEDY)
            continue
        number = record.get("id")
        if type(number) is not int or not -LARGEST_ID <= number <= LARGEST_ID:
            findings.add(f"{group} without an id, a whole number", f"{group}[{index}]", number, "number them")
        elif number in seen:
            findings.add(f"{group} with the id of another", f"{group}[{index}]", number, "give each its own id")
        else:
            seen.add(number)
            kept.append((index, record))
    return kept
