"""The best detections of one image: per-class NMS, and the limit over all classes."""

import torch
from torch import Tensor
from torchvision.ops import nms

PRE_NMS_TOP_N = 1000  # regions of an image and class that enter NMS; model.gin of the authors' code
CANDIDATES = 4  # times max_detections: how many enter NMS at first


def best_detections(
    boxes: Tensor, probs: Tensor, *, nms_iou: float, score_threshold: float, max_detections: int
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

    Returns:
        regions (D,) int64 rows of `boxes`, classes (D,) int64 columns of `probs`, scores (D,); by falling score.

    Source: generate_detections.py of the authors' code: per class the best 1000, NMS, then the best over all classes.
    """
    classes = probs.shape[1]
    scores = _without_tails(probs).flatten()
    span = float(torch.ceil(boxes.max() - boxes.min() + 1)) if len(boxes) else 1.0
    count = CANDIDATES * max_detections
    while True:
        cut = float(scores.topk(count).values[-1]) if count < len(scores) else score_threshold
        candidates = (scores >= max(cut, score_threshold)).nonzero()[:, 0]
        region, class_ = candidates // classes, candidates % classes
        # classes lie side by side and cannot suppress each other; float64 holds the shifted coordinates exactly, so
        # that the shift changes no IoU
        apart = boxes[region].double() + span * class_[:, None]
        kept = candidates[nms(apart, scores[candidates].double(), nms_iou)][:max_detections]
        if len(kept) == max_detections or cut <= score_threshold:
            return kept // classes, kept % classes, scores[kept]
        count *= 4


def _without_tails(probs: Tensor) -> Tensor:
    """`probs` with -1, below every threshold, where a region is not among the best 1000 of its class."""
    if len(probs) <= PRE_NMS_TOP_N:
        return probs
    tails = probs.argsort(dim=0, descending=True, stable=True)[PRE_NMS_TOP_N:]
    return probs.scatter(0, tails, -1.0)
