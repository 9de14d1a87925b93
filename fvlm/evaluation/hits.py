"""Which detection found which object, by COCO's rules at IoU 0.5: what precision-recall curves and errors are made of.

AP itself is counted by `ap`; tests hold the curves here equal to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.coco import CocoDict
from .ap import MAX_DETECTIONS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

HIT_IOU = 0.5
RECALLS: Floats = np.linspace(0, 1, 101)  # COCO's, where precision is read
NOTHING = -1  # in place of an index of a ground-truth box


@dataclass(frozen=True, kw_only=True)
class Matches:
    """D detections and G ground-truth boxes of K classes, and how they meet.

    Detections stand by image id, then by falling score; where scores are equal, that order decides, as in COCO's code.
    Crowds are no ground truth here: a detection on one of its class is `on_crowd`, neither a hit nor an error.
    """

    names: tuple[str, ...]  # K, by ascending category id
    image_ids: Ints  # (D,)
    classes: Ints  # (D,) index into `names`
    scores: Floats  # (D,)
    boxes_xywh: Floats  # (D, 4), pixels of the stored pictures
    on_crowd: Bools  # (D,)
    truth: Ints  # (D,) the box that the detection found, NOTHING for none
    same_class_iou: Floats  # (D,) with the nearest box of the detection's class, found or not; 0 without one
    same_class_truth: Ints  # (D,) that box
    other_class_iou: Floats  # (D,) likewise, of the other classes
    other_class_truth: Ints  # (D,)
    truth_image_ids: Ints  # (G,)
    truth_classes: Ints  # (G,)
    truth_boxes_xywh: Floats  # (G, 4)

    @property
    def hit(self) -> Bools:
        """(D,) whether the detection found a box."""
        return self.truth != NOTHING

    @property
    def found(self) -> Bools:
        """(G,) whether a detection found the box."""
        found = np.zeros(len(self.truth_classes), dtype=bool)
        found[self.truth[self.hit]] = True
        return found

    @property
    def boxes(self) -> Ints:
        """(K,) ground-truth boxes of each class."""
        return np.bincount(self.truth_classes, minlength=len(self.names))


def match(results: Iterable[Mapping[str, Any]], coco: CocoDict) -> Matches:
    """Match COCO results to ground truth at IoU 0.5, at most 100 detections of an image and class.

    In every image and class the detections choose by falling score; each takes the nearest box that is still free.

    Args:
        results: {"image_id", "category_id", "bbox": [x, y, w, h], "score"} each, on images of `coco`; categories that
            `coco` lacks are ignored.
        coco: "images", "annotations" and "categories".

    Source: `evaluateImg` of pycocotools; tests hold the two equal.
    """
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    detections = _Boxes.of([r for r in results if r["category_id"] in class_of], class_of)
    detections = detections.sorted_by_image(detections.scores)
    annotations = [a for a in coco["annotations"] if a["category_id"] in class_of]
    truths = _Boxes.of([a for a in annotations if not a.get("iscrowd", 0)], class_of).sorted_by_image()
    crowds = _Boxes.of([a for a in annotations if a.get("iscrowd", 0)], class_of).sorted_by_image()

    kept, parts = [], []
    for image_id in np.unique(detections.image_ids):
        rows = detections.rows(image_id)
        kept.append(rows.start + _within_limit(detections.classes[rows]))
        parts.append(_match_image(detections, kept[-1], truths, truths.rows(image_id), crowds, crowds.rows(image_id)))
    order = np.concatenate([np.zeros(0, dtype=np.int64), *kept])
    found, on_crowd, same_iou, same, other_iou, other = (
        np.concatenate([np.zeros(0, dtype=kind), *columns])
        for kind, columns in zip(
            (np.int64, bool, np.float64, np.int64, np.float64, np.int64),
            zip(*parts, strict=True) if parts else [[]] * 6,
            strict=True,
        )
    )
    return Matches(
        names=tuple(category["name"] for category in categories),
        image_ids=detections.image_ids[order],
        classes=detections.classes[order],
        scores=detections.scores[order],
        boxes_xywh=detections.xywh[order],
        on_crowd=on_crowd,
        truth=found,
        same_class_iou=same_iou,
        same_class_truth=same,
        other_class_iou=other_iou,
        other_class_truth=other,
        truth_image_ids=truths.image_ids,
        truth_classes=truths.classes,
        truth_boxes_xywh=truths.xywh,
    )


def precision_at_recalls(scores: Floats, hits: Bools, boxes: int) -> Floats:
    """(101,) the best precision at each of `RECALLS` or beyond, 0..1; their mean is the AP.

    Args:
        scores: (D,) of one class, all images; equal ones count in the order given.
        hits: (D,) whether each found a box.
        boxes: ground-truth boxes of the class; where it is 0, nothing can be found and precision is 0.

    Source: `accumulate` of pycocotools.
    """
    if boxes == 0:
        return np.zeros(len(RECALLS))
    hits = hits[np.argsort(-scores, kind="stable")]
    so_far = np.cumsum(hits)
    precision = so_far / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(so_far / boxes, RECALLS, side="left")
    return np.append(best, 0.0)[reached]  # a recall that is never reached reads the 0 at the end


@dataclass(frozen=True)
class _Boxes:
    """COCO records as arrays."""

    image_ids: Ints
    classes: Ints
    xywh: Floats  # (N, 4)
    scores: Floats  # 0 for ground truth

    @classmethod
    def of(cls, records: list[Mapping[str, Any]], class_of: Mapping[int, int]) -> "_Boxes":
        return cls(
            np.array([record["image_id"] for record in records], dtype=np.int64),
            np.array([class_of[record["category_id"]] for record in records], dtype=np.int64),
            np.array([record["bbox"] for record in records], dtype=np.float64).reshape(-1, 4),
            np.array([record.get("score", 0.0) for record in records], dtype=np.float64),
        )

    def sorted_by_image(self, scores: Floats | None = None) -> "_Boxes":
        """By image id, within an image by falling `scores`; otherwise as they stood."""
        order = np.argsort(self.image_ids, kind="stable") if scores is None else np.lexsort((-scores, self.image_ids))
        return _Boxes(self.image_ids[order], self.classes[order], self.xywh[order], self.scores[order])

    def rows(self, image_id: int) -> slice:
        start, stop = np.searchsorted(self.image_ids, [image_id, image_id + 1])
        return slice(int(start), int(stop))


def _within_limit(classes: Ints) -> Ints:
    """Places of the detections of one image that COCO counts: the first 100 of each class."""
    if len(classes) <= MAX_DETECTIONS:
        return np.arange(len(classes))
    order = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[order], classes[order])
    return np.sort(order[np.arange(len(classes)) - starts < MAX_DETECTIONS])


def _match_image(
    detections: _Boxes, rows: Ints, truths: _Boxes, truth_rows: slice, crowds: _Boxes, crowd_rows: slice
) -> tuple[Ints, Bools, Floats, Ints, Floats, Ints]:
    """The columns `truth`, `on_crowd`, `same_class_*` and `other_class_*` of the detections `rows` of one image."""
    boxes, classes = detections.xywh[rows], detections.classes[rows]
    same = classes[:, None] == truths.classes[truth_rows]
    iou = _overlaps(boxes, truths.xywh[truth_rows])

    found = np.full(len(rows), NOTHING)
    free = np.where(same & (iou >= HIT_IOU), iou, 0.0)
    for row in np.flatnonzero(free.any(axis=1)):  # by falling score
        nearest = int(free[row].argmax())
        if free[row, nearest] > 0:
            found[row] = truth_rows.start + nearest
            free[:, nearest] = 0.0

    of_crowd = classes[:, None] == crowds.classes[crowd_rows]
    covered = _overlaps(boxes, crowds.xywh[crowd_rows], of_first=True)
    on_crowd = (found == NOTHING) & (of_crowd & (covered >= HIT_IOU)).any(axis=1)
    return (
        found,
        on_crowd,
        *_nearest(np.where(same, iou, 0.0), truth_rows.start),
        *_nearest(np.where(same, 0.0, iou), truth_rows.start),
    )


def _nearest(iou: Floats, start: int) -> tuple[Floats, Ints]:
    """(D, G) -> the greatest of each row, and its place counted from `start`; 0 and NOTHING where all are 0."""
    if iou.shape[1] == 0:
        return np.zeros(len(iou)), np.full(len(iou), NOTHING)
    place = iou.argmax(axis=1)
    greatest = iou[np.arange(len(iou)), place]
    return greatest, np.where(greatest > 0, start + place, NOTHING)


def _overlaps(a_xywh: Floats, b_xywh: Floats, *, of_first: bool = False) -> Floats:
    """(A, B) intersection over union, or over the first box's area alone: COCO's rule where the second is a crowd."""
    a, b = a_xywh[:, None], b_xywh[None]
    sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(min=0).prod(axis=-1)
    area_a, area_b = a[..., 2:].prod(axis=-1), b[..., 2:].prod(axis=-1)
    whole = area_a if of_first else area_a + area_b - shared
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
