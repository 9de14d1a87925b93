"""The protocols of the field, and detections under one of them: softmax, fusion and NMS over its classes alone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from ..data.splits import base_names, novel_names
from ..detector.scores import class_log_probs, fuse_scores
from ..params import Evaluate
from .raw import RawDetections

CocoResult = dict[str, Any]  # {"image_id", "category_id", "bbox": [x, y, w, h], "score"}
PRE_NMS_TOP_N = 1000  # regions of an image and class that enter NMS; model.gin of the authors' code
BOX_DECIMALS = 2  # of an exported coordinate, pixels; what is exported is what is scored


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Which classes compete in the softmax, on which images, and over which classes AP is averaged."""

    split: str  # names the validation split whose images and boxes count: base, novel or generalized
    names: tuple[str, ...]  # K class names; with background they are the whole softmax, in both branches
    groups: Mapping[str, tuple[str, ...]]  # metric prefix -> classes averaged under it


def protocols() -> dict[str, Protocol]:
    """Constrained base (48 classes), constrained novel (17) and generalized (65), by name.

    Source: OVR-CNN's three validation sets (its configs' TEST); the classes are those of Bansal et al., ECCV 2018.
    """
    base, novel = tuple(base_names()), tuple(novel_names())
    every = base + novel
    return {
        "constrained_base": Protocol(split="base", names=base, groups={"constrained_base": base}),
        "constrained_novel": Protocol(split="novel", names=novel, groups={"constrained_novel": novel}),
        "generalized": Protocol(
            split="generalized",
            names=every,
            groups={"generalized_base": base, "generalized_novel": novel, "generalized_all": every},
        ),
    }


def detections_of(
    raw: RawDetections, names: Sequence[str], image_ids: Collection[int], evaluate: Evaluate
) -> list[CocoResult]:
    """Detections of the classes `names` on the images `image_ids`, as a COCO results list.

    Both branches take the softmax over background and exactly `names`; classes in `raw.supervised` are fused with
    alpha, the others with beta. The boxes are class-agnostic: one refined box of a region serves all of its classes.

    Args:
        raw: of these images and more.
        names: K class names, in any order.
        image_ids: COCO's; images outside are left out.
        evaluate: alpha and beta in [0, 1]; vlm_temperature, None for the VLM's own; nms_iou, score_threshold and
            max_detections as in `best_detections`.

    Returns:
        By image in the order of `raw`, then by falling score. Coordinates are rounded to 0.01 pixel.

    Source: `__call__` and `ensemble_class_outputs` in the authors' task_heads.py. No objectness enters the score.
    """
    columns = raw.columns(names)
    supervised = torch.tensor([name in raw.supervised for name in names], dtype=torch.bool)
    category_of = torch.tensor([raw.category_ids[column - 1] for column in columns[1:]], dtype=torch.int64)
    vlm_temperature = raw.vlm_temperature if evaluate.vlm_temperature is None else evaluate.vlm_temperature
    wanted = set(image_ids)
    results: list[CocoResult] = []
    for index, image_id in enumerate(raw.image_ids.tolist()):
        if image_id not in wanted:
            continue
        rows = raw.rows(index)
        probs = fuse_scores(
            class_log_probs(raw.detector_similarity[rows][:, columns], raw.detector_temperature),
            class_log_probs(raw.vlm_similarity[rows][:, columns], vlm_temperature),
            supervised,
            alpha=evaluate.alpha,
            beta=evaluate.beta,
        )
        regions, classes, scores = best_detections(
            raw.boxes[rows],
            probs[:, 1:],
            nms_iou=evaluate.nms_iou,
            score_threshold=evaluate.score_threshold,
            max_detections=evaluate.max_detections,
        )
        results += _coco_results(image_id, category_of[classes], raw.boxes[rows][regions], scores)
    return results


def proposals_of(raw: RawDetections, top_n: int) -> list[CocoResult]:
    """The `top_n` proposals of every image by objectness, as a COCO results list of one class, category_id 1."""
    results: list[CocoResult] = []
    for index, image_id in enumerate(raw.image_ids.tolist()):
        rows = raw.rows(index)
        scores, best = raw.proposal_scores[rows].sort(descending=True, stable=True)
        boxes = raw.proposals[rows][best[:top_n]]
        results += _coco_results(image_id, torch.ones(len(boxes), dtype=torch.int64), boxes, scores[:top_n])
    return results


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
    boxes = boxes.double()  # holds the shifted float32 coordinates exactly, so the shift changes no IoU
    span = float(torch.ceil(boxes.max() - boxes.min() + 1)) if len(boxes) else 1.0
    count = 4 * max_detections
    while True:
        cut = float(scores.topk(count).values[-1]) if count < len(scores) else score_threshold
        candidates = (scores >= max(cut, score_threshold)).nonzero()[:, 0]
        region, class_ = candidates // classes, candidates % classes
        apart = boxes[region] + span * class_[:, None]  # classes lie side by side and cannot suppress each other
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


def _coco_results(image_id: int, category_ids: Tensor, boxes_xyxy: Tensor, scores: Tensor) -> list[CocoResult]:
    corners = boxes_xyxy.double()
    boxes_xywh = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).round(decimals=BOX_DECIMALS)
    columns = zip(category_ids.tolist(), boxes_xywh.tolist(), scores.tolist(), strict=True)
    return [{"image_id": image_id, "category_id": c, "bbox": box, "score": s} for c, box, s in columns]
