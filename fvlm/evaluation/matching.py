"""COCO's average precision and recall over arrays: the same numbers as pycocotools, without a dict for each box.

pycocotools and faster-coco-eval read a Python dict for every detection, which takes longer than counting them: of
5,000 pictures with 100 detections each there are half a million, and a sweep scores them dozens of times. Here all
pictures and classes are matched at once. `average_precision` of ap.py is the reference in the tests, ties included.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.coco import CocoDict
from ..errors import InputError
from .ap import IOU_THRESHOLDS, MAX_DETECTIONS, ClassScore

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# pycocotools' own expression: np.arange would give other recalls in the last bit
RECALLS: Floats = np.linspace(0.0, 1.0, int(np.round((1.0 - 0.0) / 0.01)) + 1, endpoint=True)
ANY_CLASS = 1  # the category_id of boxes that are found or missed whatever they are


@dataclass(frozen=True, kw_only=True, eq=False)
class Boxes:
    """Scored boxes of many pictures, D in all, in the order in which COCO would read them from a results file.

    Args:
        image_ids: (D,) int64, COCO's.
        category_ids: (D,) int64, COCO's.
        boxes_xywh: (D, 4) float64, pixels of the stored pictures.
        scores: (D,) float64.
    """

    image_ids: Ints
    category_ids: Ints
    boxes_xywh: Floats
    scores: Floats

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """Ground truth of one protocol: I pictures, K classes, G boxes.

    Args:
        image_ids: (I,) int64, rising.
        category_ids: (K,) int64, rising.
        names: K, of the classes.
        groups: (G,) int64, rising: picture index * K + class index. Within a group, crowds come last, as COCO has it.
        boxes_xywh: (G, 4) float64.
        crowd: (G,) bool; a crowd is nothing to find, and detections on it are no misses.
    """

    image_ids: Ints
    category_ids: Ints
    names: tuple[str, ...]
    groups: Ints
    boxes_xywh: Floats
    crowd: Bools

    @classmethod
    def of(cls, coco: CocoDict, image_ids: Collection[int] | None = None) -> "Truth":
        """From a COCO instances dict; all its pictures, or those of `image_ids`, which may hold no box."""
        images = np.unique(
            np.array(
                [image["id"] for image in coco["images"]] if image_ids is None else list(image_ids), dtype=np.int64
            )
        )
        names = {category["id"]: category["name"] for category in coco["categories"]}
        return cls._of(coco, images, dict(sorted(names.items())), {category_id: category_id for category_id in names})

    @classmethod
    def of_any_class(cls, coco: CocoDict, names: Collection[str]) -> "Truth":
        """The boxes of the classes `names`, as boxes of the one class `ANY_CLASS`."""
        images = np.unique(np.array([image["id"] for image in coco["images"]], dtype=np.int64))
        wanted = {category["id"]: ANY_CLASS for category in coco["categories"] if category["name"] in set(names)}
        return cls._of(coco, images, {ANY_CLASS: "any"}, wanted)

    @classmethod
    def _of(cls, coco: CocoDict, images: Ints, names: Mapping[int, str], category_of: Mapping[int, int]) -> "Truth":
        category_ids = np.array(list(names), dtype=np.int64)
        chosen = set(images.tolist())
        boxes = [a for a in coco["annotations"] if a["category_id"] in category_of and a["image_id"] in chosen]
        of_box = np.array([category_of[a["category_id"]] for a in boxes], dtype=np.int64)
        image_index = np.searchsorted(images, np.array([a["image_id"] for a in boxes], dtype=np.int64))
        groups = image_index * len(category_ids) + np.searchsorted(category_ids, of_box)
        crowd = np.array([bool(a.get("iscrowd", 0)) for a in boxes], dtype=np.bool_)
        order = np.lexsort((crowd, groups))  # stable: boxes of one group stay in the order of the annotations
        return cls(
            image_ids=images,
            category_ids=category_ids,
            names=tuple(names.values()),
            groups=groups[order],
            boxes_xywh=np.array([a["bbox"] for a in boxes], dtype=np.float64).reshape(-1, 4)[order],
            crowd=crowd[order],
        )


class Counts(NamedTuple):
    """COCOeval's tables, all areas and at most `MAX_DETECTIONS` of a picture and class; -1 without ground truth."""

    precision: Floats  # (T, 101, K) at `RECALLS`
    recall: Floats  # (T, K), of all detections


def count(found: Boxes, truth: Truth, iou_thresholds: Sequence[float] = IOU_THRESHOLDS) -> Counts:
    """Match `found` to `truth` and accumulate, as COCOeval's `evaluate` and `accumulate` do.

    Args:
        found: of the pictures of `truth`; boxes of classes that `truth` lacks are ignored.
        truth: of I pictures and K classes.
        iou_thresholds: T, rising.

    Raises:
        InputError: a box lies on a picture that `truth` lacks.

    Source: pycocotools/cocoeval.py (`computeIoU`, `evaluateImg`, `accumulate`) and bbIou in common/maskApi.c, orders
    and ties included.
    """
    found, image_index, class_index, rank = _ranked(found, truth)
    groups = image_index * len(truth.category_ids) + class_index
    hits, on_crowd = _match(found, groups, rank, truth, iou_thresholds)
    return _accumulate(found.scores, class_index, hits, on_crowd, truth)


def class_scores(counts: Counts, truth: Truth) -> dict[str, ClassScore | None]:
    """The score of each class; None for one without ground truth, which COCO leaves out of every mean."""
    precision = 100 * counts.precision.mean(axis=1)  # (T, K)
    return {
        name: ClassScore(float(of_class[0]), float(of_class.mean())) if of_class[0] >= 0 else None
        for name, of_class in zip(truth.names, precision.T, strict=True)
    }


def average_recall(counts: Counts) -> float | None:
    """Recall in percent, averaged over IoU thresholds and classes with ground truth; None where there is none."""
    defined = counts.recall[:, counts.recall[0] >= 0]
    return 100 * float(defined.mean()) if defined.size else None


def _ranked(found: Boxes, truth: Truth) -> tuple[Boxes, Ints, Ints, Ints]:
    """The best `MAX_DETECTIONS` of each picture and class: by rising picture, then class, then falling score.

    Returns:
        The boxes that are left, and for each its picture's index in `truth`, its class's, and its rank from 0.
    """
    known = np.isin(found.category_ids, truth.category_ids)
    image_index = np.searchsorted(truth.image_ids, found.image_ids)
    on_truth = np.isin(found.image_ids, truth.image_ids)
    if stray := np.unique(found.image_ids[known & ~on_truth]).tolist():
        raise InputError(f"detections on {len(stray)} images without ground truth, the first is image_id {stray[0]}")
    class_index = np.searchsorted(truth.category_ids, found.category_ids)
    groups = image_index * len(truth.category_ids) + class_index
    rows = np.flatnonzero(known)
    rows = rows[np.lexsort((-found.scores[rows], groups[rows]))]  # stable, as COCO's mergesort: ties stay in order
    ordered = groups[rows]
    rank = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    best = rank < MAX_DETECTIONS
    rows = rows[best]
    boxes = Boxes(
        image_ids=found.image_ids[rows],
        category_ids=found.category_ids[rows],
        boxes_xywh=found.boxes_xywh[rows],
        scores=found.scores[rows],
    )
    return boxes, image_index[rows], class_index[rows], rank[best]


def _match(
    found: Boxes, groups: Ints, rank: Ints, truth: Truth, iou_thresholds: Sequence[float]
) -> tuple[Bools, Bools]:
    """Which boxes hit ground truth (T, D), and which hit nothing but a crowd (T, D).

    COCO lets the boxes of a picture and class choose in the order of their scores: each takes, of the truths that are
    left and overlap enough, the one with the most overlap, of equals the last; only where there is none, a crowd, which
    is never used up. The choices of different pictures and classes do not meet, so that all boxes of one rank choose at
    once.
    """
    thresholds = np.minimum(np.array(iou_thresholds, dtype=np.float64), 1 - 1e-10)[:, None]  # (T, 1), COCO's least
    hits = np.zeros((len(thresholds), len(found)), dtype=np.bool_)
    on_crowd = np.zeros_like(hits)
    first = np.searchsorted(truth.groups, groups, side="left")
    many = np.searchsorted(truth.groups, groups, side="right") - first
    box = np.repeat(np.arange(len(found)), many)  # of each pair of a box and a truth of its picture and class
    target = np.repeat(first - (np.cumsum(many) - many), many) + np.arange(len(box))
    overlap = _overlaps(found.boxes_xywh[box], truth.boxes_xywh[target], truth.crowd[target])
    near = overlap >= thresholds[0]
    box, target, overlap = box[near], target[near], overlap[near]
    # within a box, what it prefers comes last: crowds first, then by rising overlap, then in the order of the truths
    order = np.lexsort((target, overlap, ~truth.crowd[target], box, rank[box]))
    box, target, overlap = box[order], target[order], overlap[order]
    crowd = truth.crowd[target]
    enough = overlap >= thresholds  # (T, pairs)
    taken = np.zeros((len(thresholds), len(truth.crowd)), dtype=np.bool_)
    of_rank = np.searchsorted(rank[box], np.arange(MAX_DETECTIONS + 1))
    for begin, end in zip(of_rank[:-1].tolist(), of_rank[1:].tolist(), strict=True):
        if begin == end:
            continue
        pairs = np.arange(begin, end)
        free = enough[:, begin:end] & (crowd[begin:end] | ~taken[:, target[begin:end]])
        starts = np.flatnonzero(np.diff(box[begin:end], prepend=-1))
        chosen = np.maximum.reduceat(np.where(free, pairs, -1), starts, axis=1)  # (T, boxes of this rank)
        level, chooser = np.nonzero(chosen >= 0)
        pair = chosen[level, chooser]
        hit = ~crowd[pair]
        hits[level[hit], box[pair[hit]]] = True
        taken[level[hit], target[pair[hit]]] = True
        on_crowd[level[~hit], box[pair[~hit]]] = True
    return hits, on_crowd


def _overlaps(boxes: Floats, truths: Floats, crowd: Bools) -> Floats:
    """(P,) IoU of P pairs of xywh boxes; of a crowd, the share of the box that lies in it."""
    ends, truth_ends = boxes[:, :2] + boxes[:, 2:], truths[:, :2] + truths[:, 2:]
    sides = np.minimum(ends, truth_ends) - np.maximum(boxes[:, :2], truths[:, :2])
    shared = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    area = boxes[:, 2] * boxes[:, 3]
    union = np.where(crowd, area, area + truths[:, 2] * truths[:, 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _accumulate(scores: Floats, class_index: Ints, hits: Bools, on_crowd: Bools, truth: Truth) -> Counts:
    """Precision at 101 recalls, made falling, and the last recall, of each class."""
    levels, classes = len(hits), len(truth.category_ids)
    precision = -np.ones((levels, len(RECALLS), classes))
    recall = -np.ones((levels, classes))
    to_find = np.bincount(truth.groups[~truth.crowd] % classes, minlength=classes) if classes else np.zeros(0, np.int64)
    # stable again: equal scores stay in the order of the pictures' ids, then of the ranks
    order = np.lexsort((-scores, class_index))
    bounds = np.searchsorted(class_index[order], np.arange(classes + 1))
    for k in np.flatnonzero(to_find).tolist():
        rows = order[bounds[k] : bounds[k + 1]]
        true = np.cumsum(hits[:, rows], axis=1, dtype=np.float64)
        false = np.cumsum(~(hits[:, rows] | on_crowd[:, rows]), axis=1, dtype=np.float64)
        recalls = true / to_find[k]
        precisions = true / (false + true + np.spacing(1))
        falling = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
        for t in range(levels):
            places = np.searchsorted(recalls[t], RECALLS, side="left")
            reached = places < len(rows)
            precision[t, :, k] = 0
            precision[t, reached, k] = falling[t, places[reached]]
            recall[t, k] = recalls[t, -1] if len(rows) else 0
    return Counts(precision, recall)
