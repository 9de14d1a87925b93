"""The best detections of one image: per-class NMS, and the limit over all classes."""

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PRE_NMS_TOP_N = 1000  # regions of an image and class that enter NMS; model.gin of the authors' code
CANDIDATES = 4  # times max_detections: how many enter NMS at first
MORE = 4  # times as many where too few survive


class Overlaps:
    """Which boxes of one image suppress which, found when first asked for.

    The boxes are class-agnostic, so that one table serves all classes, and all protocols with this NMS threshold. It is
    a whole number for each region, with a bit for every region that it suppresses.
    """

    def __init__(self, boxes: Tensor, nms_iou: float) -> None:
        self._boxes = boxes.double().numpy()  # (P, 4) xyxy, as exact as torchvision's NMS of float64
        self._nms_iou = nms_iou
        self._regions: NDArray[np.int64] = np.zeros(0, dtype=np.int64)  # those in the table, by the place of their bit
        self.bit_of: dict[int, int] = {}  # region -> its bit
        self.suppressed_by: dict[int, int] = {}  # region -> the bits of those that it overlaps too much

    def add(self, regions: Collection[int]) -> None:
        """Make sure that `regions` are in the table."""
        unknown = set(regions) - self.bit_of.keys()
        if not unknown:
            return
        new = np.array(sorted(unknown), dtype=np.int64)
        before = len(self._regions)
        self._regions = np.concatenate([self._regions, new])
        close = _iou(self._boxes[self._regions], self._boxes[new]) > self._nms_iou  # (all, new)
        rows = np.packbits(close, axis=1, bitorder="little")
        for region, row in zip(self._regions[:before].tolist(), rows, strict=False):
            self.suppressed_by[region] |= int.from_bytes(row.tobytes(), "little") << before
        columns = np.packbits(close.T, axis=1, bitorder="little")
        for place, (region, column) in enumerate(zip(new.tolist(), columns, strict=True), start=before):
            self.bit_of[region] = 1 << place
            self.suppressed_by[region] = int.from_bytes(column.tobytes(), "little")


def best_detections(
    boxes: Tensor,
    probs: Tensor,
    *,
    nms_iou: float,
    score_threshold: float,
    max_detections: int,
    overlaps: Overlaps | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Per-class NMS over class-agnostic boxes of one image, then the best `max_detections` over all classes.

    A detection is only ever suppressed by one of its class that ranks higher. So NMS over the best candidates alone
    gives the same survivors, in the same order, as NMS over all P * K would give at its head: we take a few, and more
    until enough survive. This is exact, ties included, because a tie at the cut is taken whole.

    Args:
        boxes: (P, 4) xyxy, one for each region.
        probs: (P, K) class probabilities, background left out.
        nms_iou: a box that overlaps a better one of its class by more is suppressed.
        score_threshold: least score, in [0, 1].
        max_detections: at most so many are returned.
        overlaps: of `boxes` at `nms_iou`, where they have been in use before.

    Returns:
        regions (D,) int64 rows of `boxes`, classes (D,) int64 columns of `probs`, scores (D,); by falling score, and
        equal scores by region, then class.

    Source: generate_detections.py of the authors' code: per class the best 1000, NMS, then the best over all classes.
    """
    classes = probs.shape[1]
    scores = _without_tails(probs).flatten().numpy()
    overlaps = overlaps or Overlaps(boxes, nms_iou)
    kept: list[int] = []
    count, above = CANDIDATES * max_detections, np.inf
    while True:
        cut = max(_cut(scores, classes, count) if count < len(scores) else score_threshold, score_threshold)
        candidates = np.flatnonzero((scores >= cut) & (scores < above))
        candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
        _keep(candidates, classes, overlaps, max_detections, kept)
        if len(kept) == max_detections or cut <= score_threshold:
            places = np.array(kept, dtype=np.int64)
            regions, of_classes = np.divmod(places, classes)
            return torch.from_numpy(regions), torch.from_numpy(of_classes), torch.from_numpy(scores[places])
        count, above = count * MORE, cut


def _cut(scores: NDArray[np.float32], classes: int, count: int) -> float:
    """A score that at least `count` of the flat (P * K,) scores reach, and not many more."""
    best_of_region = scores.reshape(-1, classes).max(axis=1)
    if len(best_of_region) >= count:  # then a class of each of `count` regions reaches this
        return float(np.partition(best_of_region, len(best_of_region) - count)[-count])
    return float(np.partition(scores, len(scores) - count)[-count])


def _keep(
    candidates: NDArray[np.int64],
    classes: int,
    overlaps: Overlaps,
    max_detections: int,
    kept: list[int],
) -> None:
    """Add to `kept` those of `candidates`, best first, that no kept one of their class suppresses, up to the limit."""
    regions, classes_of = (column.tolist() for column in np.divmod(candidates, classes))
    overlaps.add(regions)
    bit_of, suppressed_by = overlaps.bit_of, overlaps.suppressed_by
    suppressed: dict[int, int] = {}  # class -> the bits of its regions
    for candidate in kept:  # anew, since those kept before may suppress regions that have a bit only now
        region, class_ = divmod(candidate, classes)
        suppressed[class_] = suppressed.get(class_, 0) | suppressed_by[region]
    for candidate, region, class_ in zip(candidates.tolist(), regions, classes_of, strict=True):
        of_class = suppressed.get(class_, 0)
        if not of_class & bit_of[region]:
            kept.append(candidate)
            if len(kept) == max_detections:
                break
            suppressed[class_] = of_class | suppressed_by[region]


def _iou(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) IoU of xyxy boxes, by the arithmetic of torchvision's NMS; NaN between two without area."""
    area, other_area = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others))
    width = np.minimum(boxes[:, None, 2], others[:, 2]) - np.maximum(boxes[:, None, 0], others[:, 0])
    height = np.minimum(boxes[:, None, 3], others[:, 3]) - np.maximum(boxes[:, None, 1], others[:, 1])
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(invalid="ignore"):
        return shared / (area[:, None] + other_area - shared)


def _without_tails(probs: Tensor) -> Tensor:
    """`probs` with -1, below every threshold, where a region is not among the best 1000 of its class."""
    if len(probs) <= PRE_NMS_TOP_N:
        return probs
    tails = probs.argsort(dim=0, descending=True, stable=True)[PRE_NMS_TOP_N:]
    return probs.scatter(0, tails, -1.0)
