"""Which anchors and regions learn from which ground-truth box."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from .box_head import REGION_CODER
from .rpn import ANCHOR_CODER

# IoU from which an anchor is positive, and below which it is negative; between them it does not learn.
ANCHOR_MATCHER = Matcher(0.7, 0.3, allow_low_quality_matches=True)
REGION_FOREGROUND_IOU = 0.5


@dataclass(frozen=True)
class AnchorTargets:
    """Targets of the A anchors of one image (all levels).

    positive, negative: (A,) bool, all that match; sampled: (A,) bool, those that enter the score loss.
    deltas: (A, 4), zeros where not positive.
    """

    positive: Tensor
    negative: Tensor
    sampled: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class RegionTargets:
    """The R sampled regions of one image: boxes (R, 4), labels (R,) with 0 = background, deltas (R, 4), there zeros."""

    boxes: Tensor
    labels: Tensor
    deltas: Tensor


def assign_anchors(anchors: Tensor, gt_boxes: Tensor, *, sample_size: int, positive_fraction: float) -> AnchorTargets:
    """Positive from IoU 0.7 on, and the best anchors of every box; negative below 0.3; a sample of both.

    Args:
        anchors: (A, 4) of all levels.
        gt_boxes: (G, 4), G may be 0: then every anchor is negative.
        sample_size: anchors in the score loss.
        positive_fraction: most positives among them.

    Source: F-VLM's `data/dataloader/anchor.py`. The sample is drawn from torch's global generator.
    """
    if len(gt_boxes) == 0:
        positive = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
        negative = ~positive
        deltas = torch.zeros_like(anchors)
    else:
        match = ANCHOR_MATCHER(box_iou(gt_boxes, anchors))
        positive = match >= 0
        negative = match == Matcher.BELOW_LOW_THRESHOLD
        deltas = torch.zeros_like(anchors)
        deltas[positive] = ANCHOR_CODER.encode_single(gt_boxes[match[positive]], anchors[positive])
    sampled = _sample(positive, negative, sample_size, positive_fraction)
    return AnchorTargets(positive, negative, sampled, deltas)


def sample_regions(
    proposals: Tensor, gt_boxes: Tensor, gt_labels: Tensor, *, sample_size: int, positive_fraction: float
) -> RegionTargets:
    """Ground-truth boxes join the proposals; foreground above IoU 0.5, all else background; a sample of both.

    Args:
        proposals: (R, 4).
        gt_boxes, gt_labels: (G, 4) and (G,) with classes 1..K; G may be 0.
        sample_size: regions kept, at most.
        positive_fraction: most foreground regions among `sample_size`.

    Source: F-VLM's `ops/target_ops.py`. The sample is drawn from torch's global generator.
    """
    candidates = torch.cat([proposals, gt_boxes])
    labels = torch.zeros(len(candidates), dtype=torch.int64, device=candidates.device)
    nearest = torch.zeros_like(labels)
    if len(gt_boxes):
        iou, nearest = box_iou(gt_boxes, candidates).max(dim=0)
        foreground = iou > REGION_FOREGROUND_IOU
        labels[foreground] = gt_labels[nearest[foreground]]
    chosen = _sample(labels > 0, labels == 0, sample_size, positive_fraction).nonzero()[:, 0]
    boxes, labels = candidates[chosen], labels[chosen]
    deltas = torch.zeros_like(boxes)
    foreground = labels > 0
    deltas[foreground] = REGION_CODER.encode_single(gt_boxes[nearest[chosen][foreground]], boxes[foreground])
    return RegionTargets(boxes, labels, deltas)


def _sample(positive: Tensor, negative: Tensor, size: int, positive_fraction: float) -> Tensor:
    """(A,) bool mask of at most `size` entries, at most `positive_fraction` of them positive."""
    labels = torch.full(positive.shape, -1, dtype=torch.int64, device=positive.device)
    labels[negative] = 0
    labels[positive] = 1
    [positives], [negatives] = BalancedPositiveNegativeSampler(size, positive_fraction)([labels])
    return (positives | negatives).bool()
