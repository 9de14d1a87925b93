"""Which anchors and regions learn from which ground-truth box.

The random samples of an image come from that image's own generator, so that they do not depend on which other images
share its batch, its pass or its process. Nothing here waits for the device but the choice of regions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou

from .box_head import REGION_CODER
from .rpn import ANCHOR_CODER

# IoU from which an anchor is positive, and below which it is negative; between them it does not learn.
ANCHOR_POSITIVE_IOU = 0.7
ANCHOR_NEGATIVE_IOU = 0.3
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


def assign_anchors(
    anchors: Tensor,
    gt_boxes: Tensor,
    *,
    sample_size: int,
    positive_fraction: float,
    generator: torch.Generator | None = None,
) -> AnchorTargets:
    """Positive from IoU 0.7 on, and the best anchors of every box; negative below 0.3; a sample of both.

    Args:
        anchors: (A, 4) of all levels.
        gt_boxes: (G, 4), G may be 0: then every anchor is negative.
        sample_size: anchors in the score loss.
        positive_fraction: most positives among them.
        generator: what the sample is drawn from, on the anchors' device; None for torch's global one.

    Source: F-VLM's `data/dataloader/anchor.py`. torchvision's `Matcher` decides the same, but waits for the device.
    """
    if len(gt_boxes) == 0:
        positive = torch.zeros(len(anchors), dtype=torch.bool, device=anchors.device)
        negative = ~positive
        deltas = torch.zeros_like(anchors)
    else:
        iou = box_iou(gt_boxes, anchors)  # (G, A)
        best, match = iou.max(dim=0)
        is_best_of_a_box = (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)  # ties too
        positive = (best >= ANCHOR_POSITIVE_IOU) | is_best_of_a_box
        negative = (best < ANCHOR_NEGATIVE_IOU) & ~is_best_of_a_box
        deltas = _deltas(ANCHOR_CODER, gt_boxes[match], anchors, positive)
    sampled = _sample(positive, negative, sample_size, positive_fraction, generator)
    return AnchorTargets(positive, negative, sampled, deltas)


def sample_regions(
    proposals: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    *,
    sample_size: int,
    positive_fraction: float,
    generator: torch.Generator | None = None,
) -> RegionTargets:
    """Ground-truth boxes join the proposals; foreground above IoU 0.5, all else background; a sample of both.

    Args:
        proposals: (R, 4).
        gt_boxes, gt_labels: (G, 4) and (G,) with classes 1..K; G may be 0.
        sample_size: regions kept, at most.
        positive_fraction: most foreground regions among `sample_size`.
        generator: what the sample is drawn from, on the proposals' device; None for torch's global one.

    Source: F-VLM's `ops/target_ops.py`.
    """
    candidates = torch.cat([proposals, gt_boxes])
    labels = torch.zeros(len(candidates), dtype=torch.int64, device=candidates.device)
    nearest = torch.zeros_like(labels)
    if len(gt_boxes):
        iou, nearest = box_iou(gt_boxes, candidates).max(dim=0)
        labels = gt_labels[nearest].where(iou > REGION_FOREGROUND_IOU, 0)
    chosen = _sample(labels > 0, labels == 0, sample_size, positive_fraction, generator).nonzero()[:, 0]
    boxes, labels = candidates[chosen], labels[chosen]
    deltas = torch.zeros_like(boxes)
    if len(gt_boxes):
        deltas = _deltas(REGION_CODER, gt_boxes[nearest[chosen]], boxes, labels > 0)
    return RegionTargets(boxes, labels, deltas)


def _deltas(coder: BoxCoder, gt_boxes: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
    """(A, 4) deltas that lead from `boxes` to `gt_boxes`, zeros where not `positive`."""
    return coder.encode_single(gt_boxes, boxes).where(positive[:, None], 0)


def _sample(
    positive: Tensor, negative: Tensor, size: int, positive_fraction: float, generator: torch.Generator | None
) -> Tensor:
    """(A,) bool mask of at most `size` entries, at most `positive_fraction` of them positive.

    torchvision's `BalancedPositiveNegativeSampler` draws from the global generator alone, and waits for the device.
    """
    keys = torch.rand(positive.shape, generator=generator, device=positive.device)
    limit = int(size * positive_fraction)
    positives = _with_greatest_keys(positive, keys, limit, limit)
    return positives | _with_greatest_keys(negative, keys, size, size - positives.sum())


def _with_greatest_keys(among: Tensor, keys: Tensor, limit: int, count: int | Tensor) -> Tensor:
    """(A,) bool mask of `count` entries of `among`, fewer where it has fewer; `count` is at most `limit`."""
    keys, indices = keys.where(among, -1).topk(min(limit, len(keys)))
    taken = (keys >= 0) & (torch.arange(len(keys), device=keys.device) < count)
    return torch.zeros_like(among).scatter(0, indices, taken)
