"""Any detector's results file, read block by block: files of gigabytes need 60 bytes of memory a detection.

A results file is COCO's: a list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"}, other keys
ignored. Whatever it holds is scored, counted as left out, or an error: nothing is dropped without a word.
"""

import io
import itertools
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

import numpy as np
import orjson

from ..data.coco import CocoDict
from ..data.progress import ByteProgress
from ..errors import InputError
from .ap import Detections
from .findings import CountedFindings, shown
from .ground_truth import LARGEST_NUMBER, is_box

BLOCK_CHARACTERS = 1 << 23  # of a file at a time: 80,000 detections, which take 80 MB as Python's objects
BEYOND_EDGE_PIXELS = 1.0  # rounding is no news
REMEDY = "write the results anew as a list of {image_id, category_id, bbox, score}"
SPACE = re.compile(r"[ \t\n\r]*")  # JSON's
CUT = re.compile(r"\}[ \t\n\r]*,")
LONGEST_WORD = len("-Infinity")
Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # image_ids, category_ids, boxes, scores


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a results file holds, of the images and classes that are scored, and counts of all that it holds."""

    detections: Detections  # to be scored, in the file's order
    total: int  # detections of the file: the scored ones and the two counts below
    other_classes: int  # left out: of a class of the annotations that is not scored
    other_images: int  # left out: of a class that is scored, on an image of the annotations that is not
    without_area: int  # of the scored: no width or no height; they match nothing and count as false, as in COCO
    beyond_edge: int  # of the scored: more than a pixel outside of their image, where its size is known
    within_a_pixel: bool  # all boxes of the file are smaller than a pixel: fractions of the image, most likely


def read_results(
    path: str | os.PathLike[str], coco: CocoDict, image_ids: Collection[int], category_ids: Collection[int]
) -> Results:
    """Read a results file, check every detection of it, and keep those that are to be scored.

    Args:
        coco: all "images" and "categories" of the annotations.
        image_ids: the images to score; those of `coco`, or some of them.
        category_ids: the classes to score, likewise.

    Raises:
        InputError: the file is not a list, is empty, breaks off or is not JSON; or some detections have no whole
            number as image_id and category_id, an id that `coco` lacks, a box or score that is no finite number, a
            negative width or height, or a score outside [0, 1]. One line for each kind, with their number and the
            first.
    """
    reader = _Reader(path, coco, image_ids, category_ids)
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file, ByteProgress(f"score: reading {path}", size) as progress:
            for records in _records(f"{path}", io.TextIOWrapper(file, encoding="utf-8-sig"), size):
                reader.add(records)
                progress.advance(file.tell() - progress.done)
    except FileNotFoundError:
        raise InputError(f"{path}: results file not found; name the detector's results in COCO's format") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected a results file as JSON, got bytes that are no text ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: results file cannot be read ({error})") from None
    return reader.result()


class _Reader:
    """Takes the file's records block by block, checks them, and keeps what is to be scored as columns."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        coco: CocoDict,
        image_ids: Collection[int],
        category_ids: Collection[int],
    ) -> None:
        self.path = path
        self.findings = CountedFindings(f"{path}")
        images = sorted(coco["images"], key=lambda image: image["id"])
        self.image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        self.scored_images = np.isin(self.image_ids, np.array(sorted(image_ids), dtype=np.int64))
        self.category_ids = np.array(sorted(category["id"] for category in coco["categories"]), dtype=np.int64)
        self.scored_categories = np.isin(self.category_ids, np.array(sorted(category_ids), dtype=np.int64))
        self.sizes_wh = np.array([[_size(image, "width"), _size(image, "height")] for image in images]).reshape(-1, 2)
        self.kept: list[Columns] = []
        self.total = self.other_classes = self.other_images = self.without_area = self.beyond_edge = 0
        self.on_known_images = 0
        self.malformed = False
        self.largest_side = 0.0

    def add(self, records: Sequence[Any]) -> None:
        columns = _columns(records)
        if columns is None:
            self._explain(records)
        else:
            self._judge(columns, np.arange(self.total, self.total + len(records)))
        self.total += len(records)

    def _explain(self, records: Sequence[Any]) -> None:
        """Find out what is wrong with the records of a block, one by one; those that are sound are judged as ever."""
        self.malformed = True
        places = []
        for place, record in enumerate(records, start=self.total):
            problem = _problem(record)
            if problem is None:
                places.append(place)
            else:
                kind, value, remedy = problem
                self.findings.add(kind, f"detection {place}", value, remedy)
        columns = _columns([records[place - self.total] for place in places])
        assert columns is not None, "a record without a problem fits into columns"
        self._judge(columns, np.array(places, dtype=np.int64))

    def _judge(self, columns: Columns, places: np.ndarray) -> None:
        """Count what is wrong or left out, and keep the rest. `places` are the numbers of the detections."""
        image_ids, category_ids, boxes, scores = columns
        image, known_image = _lookup(self.image_ids, image_ids)
        category, known_category = _lookup(self.category_ids, category_ids)
        self.on_known_images += int(known_image.sum())

        def note(kind: str, wrong: Any, values: np.ndarray, remedy: str) -> None:
            if wrong.any():
                first = int(wrong.argmax())
                value = values[first].tolist()
                self.findings.add(kind, f"detection {places[first]}", value, remedy, int(wrong.sum()))

        note(
            "detections on images that the annotations lack",
            ~known_image,
            image_ids,
            "score against the annotations of all images that the detector saw; --images split leaves out those "
            "without a box of the protocol's classes",
        )
        note(
            "detections with a category_id that the annotations lack",
            ~known_category,
            category_ids,
            "write the annotations' ids, not the detector's own numbering, and score against annotations that list all "
            "of its classes",
        )
        note(
            "detections whose bbox has a negative width or height",
            (boxes[:, 2:] < 0).any(axis=1),
            boxes,
            "write [x, y, width, height], not corners",
        )
        note(
            "detections with a score outside [0, 1]",
            (scores < 0) | (scores > 1),
            scores,
            "bring them to [0, 1] in the same order: a sigmoid of logits, a hundredth of percent",
        )
        if not len(scores) or self.findings:
            return
        self.largest_side = max(self.largest_side, float(boxes[:, 2:].max()))
        of_class, on_image = self.scored_categories[category], self.scored_images[image]
        scored = of_class & on_image
        self.other_classes += int((~of_class).sum())
        self.other_images += int((of_class & ~on_image).sum())
        self.without_area += int((scored & (boxes[:, 2:] == 0).any(axis=1)).sum())
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        beyond = (low < -BEYOND_EDGE_PIXELS) | (high > self.sizes_wh[image] + BEYOND_EDGE_PIXELS)  # NaN: size unknown
        self.beyond_edge += int((scored & beyond.any(axis=1)).sum())
        self.kept.append((image_ids[scored], category_ids[scored], boxes[scored], scores[scored]))

    def result(self) -> Results:
        if not self.total:
            raise InputError(f"{self.path}: expected detections, got an empty list; run the detector again")
        if not self.on_known_images and not self.malformed:
            raise InputError(
                f"{self.path}: none of its {self.total:,} detections lies on an image of the annotations; these are "
                "results of another data set, or its image_ids are numbered otherwise"
            )
        self.findings.raise_if_any()
        kept, self.kept = self.kept, []
        image_ids, category_ids, boxes, scores = (_joined(kept, place) for place in range(4))
        return Results(
            detections=Detections(image_ids=image_ids, category_ids=category_ids, boxes_xywh=boxes, scores=scores),
            total=self.total,
            other_classes=self.other_classes,
            other_images=self.other_images,
            without_area=self.without_area,
            beyond_edge=self.beyond_edge,
            within_a_pixel=self.largest_side <= 1,
        )


def _joined(kept: list[Columns], place: int) -> np.ndarray:
    """One column of all blocks; the blocks lose it, so that the file is never held twice."""
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 4)), np.empty(0))
    joined = np.concatenate([columns[place] for columns in kept]) if kept else empty[place]
    for number, columns in enumerate(kept):
        kept[number] = (*columns[:place], empty[place], *columns[place + 1 :])  # type: ignore[assignment]
    return joined


def _size(image: dict[str, Any], side: str) -> float:
    size: Any = image.get(side)
    return float(size) if type(size) in (int, float) and size > 0 else np.nan


def _lookup(known: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each of `ids` in the sorted `known`, and whether it is there."""
    if not len(known):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
    place = np.searchsorted(known, ids).clip(max=len(known) - 1)
    return place, known[place] == ids


def _columns(records: Sequence[Any]) -> Columns | None:
    """The records as columns; None if any of them is not what a detection should be, apart from the values' range."""
    try:
        image_ids = [record["image_id"] for record in records]
        category_ids = [record["category_id"] for record in records]
        boxes = [record["bbox"] for record in records]
        scores = [record["score"] for record in records]
        if (
            {*map(type, image_ids), *map(type, category_ids)} - {int}  # exact: bool is an int to isinstance
            or {*map(type, boxes)} - {list}
            or {*map(len, boxes)} - {4}
            or {*map(type, itertools.chain.from_iterable(boxes)), *map(type, scores)} - {int, float}
        ):
            return None
        numbers = np.fromiter(itertools.chain.from_iterable(boxes), np.float64, 4 * len(boxes)).reshape(-1, 4)
        columns = (np.array(image_ids, np.int64), np.array(category_ids, np.int64), numbers, np.array(scores, float))
    except (KeyError, TypeError, OverflowError):
        return None
    within = (np.abs(numbers) <= LARGEST_NUMBER).all() and (np.abs(columns[3]) <= LARGEST_NUMBER).all()
    return columns if within else None  # NaN is not within either


def _problem(record: Any) -> tuple[str, Any, str] | None:
    """What kind of finding a record is, its value and what to do; None if `_columns` takes it."""
    if type(record) is not dict:
        return "entries that are no detections", record, REMEDY
    for key in ("image_id", "category_id"):
        value = record.get(key)
        if type(value) is not int or not -(2**63) <= value < 2**63:
            return (
                f"detections with a {key} that is no whole number",
                value,
                "write the ids of the annotations, not names",
            )
    if not isinstance(record.get("bbox"), list) or len(record["bbox"]) != 4:
        return "detections without a bbox of four numbers", record.get("bbox"), "write [x, y, width, height] in pixels"
    if not is_box([*record["bbox"][:2], 0, 0]) or not is_box([*record["bbox"][2:], 0, 0]):
        return "detections whose bbox is not four finite numbers", record["bbox"], "find where the detector made them"
    if not is_box([record.get("score"), 0, 0, 0]):
        return "detections whose score is no finite number", record.get("score"), "find where the detector made them"
    return None


def _records(path: str, file: TextIO, size: int) -> Iterator[list[Any]]:
    """The entries of a JSON list, some thousands at a time, without ever holding the whole file.

    A block is cut behind the last "}," and parsed as a list of its own. Where that cut lies within a detection (a
    nested object, a text), or at the file's end, entries are parsed one by one, which also finds the exact error.
    """
    text = ""
    while not text and (more := file.read(BLOCK_CHARACTERS)):
        text = more.lstrip()
    if not text.startswith("["):
        raise InputError(f"{path}: expected a list of detections, got {_beginning(text)}; {REMEDY}")
    entries = _Entries(path, size)
    text, at_end = text[1:], False
    while not at_end:
        cut = max((match.start() for match in CUT.finditer(text, max(0, text.rfind("},") - 1))), default=-1)
        try:
            if cut < 0 or entries.ended:
                raise ValueError("no entry to cut behind")
            records = orjson.loads(f"[{text[: cut + 1]}]")  # twice as fast as json
            text = text[CUT.match(text, cut).end() :]  # type: ignore[union-attr]
            entries.passed(records)
        except (ValueError, RecursionError):  # a wrong cut, or what json alone reads: NaN, Infinity
            records, text = entries.parse(text, whole=False)
        if records:
            yield records
        more = file.read(max(BLOCK_CHARACTERS, len(text)))  # as much again: a long entry is not parsed over and over
        at_end = not more
        text += more
    records, text = entries.parse(text, whole=True)
    if records:
        yield records


class _Entries:
    """Parses entries of a JSON list one by one and knows how many there were."""

    def __init__(self, path: str, size: int) -> None:
        self.path, self.size = path, size
        self.count = 0
        self.ended = False
        self.decode = json.JSONDecoder().raw_decode

    def passed(self, records: list[Any]) -> None:
        """Note entries that were parsed elsewhere, together with the comma behind the last."""
        self.count += len(records)

    def parse(self, text: str, *, whole: bool) -> tuple[list[Any], str]:
        """Entries at the head of `text` (behind "[" or a comma), and the text that is left.

        Args:
            whole: no more text follows; otherwise an entry that may go on is left.
        """
        records: list[Any] = []
        place = 0
        while not self.ended:
            begin = _skip(text, place)
            if text.startswith("]", begin) and not self.count:
                self.ended, place = True, begin + 1
                break
            try:
                record, end = self.decode(text, begin)
            except (ValueError, RecursionError) as error:
                if not whole and _may_go_on(error, text):
                    return records, text[place:]
                self._refuse(error, text, begin)
            end = _skip(text, end)
            if end == len(text):
                if not whole:  # neither comma nor bracket is there yet
                    return records, text[place:]
                self._refuse(None, text, end)
            if text[end] not in ",]":
                came = shown(text[end : end + 40])
                raise InputError(
                    f"{self.path}: detection {self.count}: expected a comma or ] behind it, got {came}; {REMEDY}"
                )
            records.append(record)
            self.count += 1
            self.ended, place = text[end] == "]", end + 1
        if rest := text[place:].strip():
            raise InputError(f"{self.path}: expected the file to end with its list, got {shown(rest)}; {REMEDY}")
        return records, ""

    def _refuse(self, error: Exception | None, text: str, place: int) -> None:
        reason = f" ({getattr(error, 'msg', error)})" if error else ""
        if place >= len(text) or (text[place] != "]" and error is not None and _may_go_on(error, text)):
            raise InputError(
                f"{self.path}: expected a list of detections, but the file breaks off after {self.size:,} bytes, "
                f"behind {self.count:,} detections{reason}; get it again, or let the detector write it again"
            )
        came = shown(text[place : place + 40])
        raise InputError(f"{self.path}: detection {self.count}: expected an object, got {came}{reason}; {REMEDY}")


def _skip(text: str, place: int) -> int:
    match = SPACE.match(text, place)
    assert match is not None, "the pattern matches nothing, too"
    return match.end()


def _may_go_on(error: Exception, text: str) -> bool:
    """Whether an entry failed because the text ends within it."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip()) - LONGEST_WORD


def _beginning(text: str) -> str:
    if not text:
        return "an empty file"
    if text.startswith("{"):
        hint = ", as an annotation file has it" if '"images"' in text or '"annotations"' in text else ""
        return f"an object{hint}"
    return f"a file that begins with {shown(text[:20])}"
