"""COCO's instances format: its 80 categories, and a reader that trusts nothing before it is checked."""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import InputError, can_stand_in_a_line
from ..io import read_json, read_text

CocoDict = dict[str, Any]  # parsed instances_*.json: "images", "annotations", "categories"

SHOWN_FINDINGS = 20
LARGEST_ID = 2**63 - 1  # ids travel as int64
LARGEST_PIXEL = 10**6
LONGEST_NAME = 1000  # letters of a picture's path; Linux has 4,095 bytes at most, and a letter up to 4
NUMBERS = (float, int)  # exact types: bool is an int to isinstance
REMEDY = "get the file again, or export it anew in COCO's instances format"


class Findings:
    """What is wrong with one input, collected so that a person mends it in one go.

    Args:
        where: the file, which begins every line.
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self.where = where
        self.lines: list[str] = []
        self.count = 0

    def add(self, finding: str) -> None:
        self.count += 1
        if len(self.lines) < SHOWN_FINDINGS:
            self.lines.append(f"{self.where}: {finding}")

    def raise_if_any(self) -> None:
        """Raise InputError with the first `SHOWN_FINDINGS`, one a line, and the number of the others."""
        if self.count:
            more = self.count - len(self.lines)
            raise InputError("\n".join(self.lines + ([f"{self.where}: and {more} more findings"] if more else [])))


@functools.cache
def _records() -> tuple[dict[str, Any], ...]:
    records = read_json(Path(__file__).with_name("coco_categories.json"), "category list", "install fvlm again")
    return tuple(sorted(records, key=lambda record: record["id"]))


def category_records() -> list[dict[str, Any]]:
    """An instances file's "categories": the 80 (id, name, supercategory), by ascending id. The caller's own copy."""
    return [dict(record) for record in _records()]


def categories() -> list[tuple[int, str]]:
    """The 80 (category_id, name), by ascending id. Ids run from 1 to 90 with COCO's ten gaps."""
    return [(record["id"], record["name"]) for record in _records()]


def load_instances(path: str | os.PathLike[str]) -> CocoDict:
    """Read an instances file and check every record of it.

    What real COCO holds passes: boxes without height (annotations 918 and 2206849), duplicate boxes, crowds, images
    without annotations, boxes that reach over the image's edge. Harmless omissions are filled in: `iscrowd` 0 and
    `area` width * height. A file may list fewer than the 80 categories, in any order; each id must carry COCO's name.

    Returns:
        The file's content, ids and order kept, without `segmentation`: nothing here reads masks, and they are nine
        tenths of the memory. Boxes stay COCO's [x, y, width, height] in pixels.

    Raises:
        InputError: all findings, one a line (from `SHOWN_FINDINGS` on as a number): which record, what was expected,
            what came, what to do.
    """
    coco = _parse(path)
    findings = Findings(path)
    _check_layout(coco, findings)
    findings.raise_if_any()  # without the three lists there is nothing more to check

    category_ids = _check_categories(coco["categories"], findings)
    image_ids = _check_images(coco["images"], findings)
    _check_annotations(coco["annotations"], image_ids, category_ids, findings)
    findings.raise_if_any()
    return coco


def _parse(path: str | os.PathLike[str]) -> Any:
    text = read_text(path, "annotation file", REMEDY)
    try:
        return json.loads(text, object_hook=_without_mask)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        if not text.strip():
            came = "an empty file"
        elif isinstance(error, json.JSONDecodeError):
            at_end = error.pos >= len(text.rstrip()) - 1 and error.msg != "Extra data"
            broken_off = at_end or error.msg.startswith("Unterminated")
            came = f"a file that breaks off after {len(text)} characters" if broken_off else "something else"
            came += f" (line {error.lineno}, column {error.colno}: {error.msg})"
        else:
            came = f"something else ({error})"
        raise InputError(f"{path}: expected COCO instances as JSON, got {came}; {REMEDY}") from None


def _without_mask(record: dict[str, Any]) -> dict[str, Any]:
    record.pop("segmentation", None)  # while parsing, so that the masks of a whole file never exist at once
    return record


def _check_layout(coco: Any, findings: Findings) -> None:
    if not isinstance(coco, dict):
        findings.add(f"expected an object with images, annotations and categories, got {_shown(coco)}; {REMEDY}")
        return
    for key in ("images", "annotations", "categories"):
        if key not in coco:
            findings.add(f"{key}: expected a list, but the key is missing; {REMEDY}")
        elif not isinstance(coco[key], list):
            findings.add(f"{key}: expected a list, got {_shown(coco[key])}; {REMEDY}")


def _check_categories(records: Sequence[Any], findings: Findings) -> set[int]:
    """Returns every id that the file lists, also a wrong one: its annotations are no findings of their own."""
    name_of = dict(categories())
    id_of = {name: category_id for category_id, name in name_of.items()}
    seen: dict[int, int] = {}
    for index, record in enumerate(records):
        where = f"categories[{index}]"
        if type(record) is not dict:
            findings.add(f"{where}: expected an object with id and name, got {_shown(record)}; {REMEDY}")
            continue
        category_id, name = record.get("id"), record.get("name")
        _check_id(category_id, seen, index, "categories", findings)
        if type(category_id) is int and name_of.get(category_id) == name:
            continue
        if isinstance(name, str) and name in id_of:
            expected = f"{id_of[name]}, COCO's id of {name!r}, got id {_shown(category_id)}"
        elif type(category_id) is int and category_id in name_of:
            expected = f"{name_of[category_id]!r}, COCO's name of id {category_id}, got name {_shown(name)}"
        else:
            expected = f"one of COCO's 80 categories, got id {_shown(category_id)}, name {_shown(name)}"
        findings.add(f"{where}: expected {expected}; map the classes to COCO's ids and names")
    return set(seen)


def _check_images(records: Sequence[Any], findings: Findings) -> set[int]:
    """Returns every image id of the file."""
    seen: dict[int, int] = {}
    for index, record in enumerate(records):
        if type(record) is not dict:
            expected = "an object with id, file_name, width and height"
            findings.add(f"images[{index}]: expected {expected}, got {_shown(record)}; {REMEDY}")
            continue
        image_id = record.get("id")
        _check_id(image_id, seen, index, "images", findings)
        where = f"images[{index}] (id {_shown(image_id)})"
        file_name = record.get("file_name")
        if type(file_name) is not str or not file_name:
            findings.add(f"{where}: expected file_name, a text, got {_shown(file_name)}; name its picture")
        elif _leaves_folder(file_name):
            expected = f"a file_name below the picture folder, got {_shown(file_name)}"
            findings.add(f"{where}: expected {expected}; move the picture there")
        elif not can_stand_in_a_line(file_name) or len(file_name) > LONGEST_NAME:
            expected = f"a file_name of at most {LONGEST_NAME} letters, none a control letter, got {_shown(file_name)}"
            findings.add(f"{where}: expected {expected}; give the picture another name")
        for key in ("width", "height"):
            size = record.get(key)
            if type(size) is not int or not 1 <= size <= LARGEST_PIXEL:
                findings.add(f"{where}: expected {key} in pixels, at least 1, got {_shown(size)}; give the picture's")
    return set(seen)


def _leaves_folder(file_name: str) -> bool:
    path = PureWindowsPath(file_name)  # knows "/", "\\" and drives, so that a file means the same on every system
    return bool(path.anchor) or ".." in path.parts or "\0" in file_name


def _check_annotations(records: Sequence[Any], image_ids: set[int], category_ids: set[int], findings: Findings) -> None:
    """Checks each annotation and fills in `iscrowd` and `area`; COCO has 860,000, so exact types and no copies."""
    seen: dict[int, int] = {}
    for index, record in enumerate(records):
        if type(record) is not dict:
            expected = "an object with id, image_id, category_id and bbox"
            findings.add(f"annotations[{index}]: expected {expected}, got {_shown(record)}; {REMEDY}")
            continue
        # from 1, since pycocotools marks a detection without a match by annotation id 0
        _check_id(record.get("id"), seen, index, "annotations", findings, least=1)

        image_id, category_id = record.get("image_id"), record.get("category_id")
        if type(image_id) is not int or image_id not in image_ids:
            expected = f"image_id of an entry of images, got {_shown(image_id)}"
            findings.add(f"{_annotation(index, record)}: expected {expected}; add the image or remove the annotation")
        if type(category_id) is not int or category_id not in category_ids:
            expected = f"category_id of an entry of categories, got {_shown(category_id)}"
            findings.add(f"{_annotation(index, record)}: expected {expected}; correct it or remove the annotation")

        problem = _bbox_problem(record.get("bbox"))
        if problem:
            findings.add(f"{_annotation(index, record)}: {problem}; correct it or remove the annotation")
            continue
        iscrowd = record.setdefault("iscrowd", 0)
        if type(iscrowd) is not int or iscrowd not in (0, 1):
            findings.add(f"{_annotation(index, record)}: expected iscrowd 0 or 1, got {_shown(iscrowd)}; correct it")
        area = record.setdefault("area", record["bbox"][2] * record["bbox"][3])
        if type(area) not in NUMBERS or not 0 <= area <= LARGEST_PIXEL**2:
            findings.add(f"{_annotation(index, record)}: expected area in pixels, got {_shown(area)}; leave it out")


def _bbox_problem(bbox: Any) -> str | None:
    if type(bbox) is not list or len(bbox) != 4:
        return f"expected bbox as [x, y, width, height] in pixels, got {_shown(bbox)}"
    for value in bbox:
        if type(value) not in NUMBERS or not -LARGEST_PIXEL <= value <= LARGEST_PIXEL:  # false for NaN
            return f"expected bbox as four finite numbers of pixels, got {_shown(bbox)}"
    x, y, width, height = bbox
    if width < 0 or height < 0:
        return f"expected bbox with width and height of at least 0, got {_shown(bbox)}"
    if x <= -1 or y <= -1:  # above -1 it is rounding
        return f"expected bbox with its corner in the image, got {_shown(bbox)}"
    return None


def _check_id(value: Any, seen: dict[int, int], index: int, group: str, findings: Findings, *, least: int = 0) -> None:
    """Notes `value` in `seen` (id -> index of the first record), or says why it cannot be an id."""
    if type(value) is not int or not least <= value <= LARGEST_ID:
        expected = f"id, a whole number from {least}, got {_shown(value)}"
        findings.add(f"{group}[{index}]: expected {expected}; number them anew")
    elif value in seen:
        findings.add(f"{group}[{index}]: id {value} is already that of {group}[{seen[value]}]; give each its own id")
    else:
        seen[value] = index


def _annotation(index: int, record: dict[str, Any]) -> str:
    return f"annotations[{index}] (id {_shown(record.get('id'))})"


def _shown(value: Any) -> str:
    """A value as JSON writes it, on one line and not too long."""
    if isinstance(value, dict | list) and len(value) > 8:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
