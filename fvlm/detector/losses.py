"""The four losses, each with the authors' normaliser. Their plain sum is minimised.

Source: F-VLM's `losses/maskrcnn_losses.py` and `losses/base_losses.py`. The normalisers matter as much as the terms:
with torch's usual ones the box term of the RPN is 9 times, and the class term up to 3.3 times, larger.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

RPN_HUBER_DELTA = 0.111


def rpn_score_loss(logits: Tensor, positive: Tensor, sampled: Tensor, anchors_per_image: int) -> Tensor:
    """Sigmoid cross-entropy over the sampled anchors / (N * anchors_per_image).

    Args:
        logits: (N, A); positive, sampled: (N, A) bool.
        anchors_per_image: the nominal sample size, the divisor also where fewer anchors could be sampled.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), positive.float(), reduction="none")
    return loss[sampled].sum() / (len(logits) * anchors_per_image)


def rpn_box_loss(deltas: list[Tensor], targets: list[Tensor], positive: list[Tensor]) -> Tensor:
    """Huber loss with delta 0.111: the mean over the batch's positive elements on each level, summed over levels.

    Args:
        deltas, targets: for each level (N, A_l, 4).
        positive: for each level (N, A_l) bool: ALL matched anchors, not only the sampled.

    A level without positives adds 0. Elements whose target is exactly 0 do not count, in the sum and in the mean: the
    authors mask by `target != 0`. Huber(delta) is delta times torch's smooth L1 with beta = delta.
    """
    total = deltas[0].new_zeros((), dtype=torch.float32)
    for delta, target, chosen in zip(deltas, targets, positive, strict=True):
        counted = chosen[..., None] & (target != 0)
        loss = F.huber_loss(delta.float()[counted], target[counted], reduction="sum", delta=RPN_HUBER_DELTA)
        total = total + loss / counted.sum().clamp(min=1)
    return total


def class_loss(logits: Tensor, labels: Tensor, background_weight: float) -> Tensor:
    """Softmax cross-entropy over background and the K supervised classes, averaged over ALL regions.

    Args:
        logits: (R, 1 + K); labels: (R,), 0 = background.
        background_weight: factor of the background regions' terms.

    The divisor is R. torch's `cross_entropy(weight=...)` divides by the sum of weights instead.
    """
    loss = F.cross_entropy(logits.float(), labels, reduction="none")
    weight = torch.where(labels == 0, background_weight, 1.0)
    return (loss * weight).sum() / max(len(labels), 1)


def box_loss(deltas: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Huber loss with delta 1, averaged over the 4 * R_foreground elements; 0 without foreground.

    Args:
        deltas, targets: (R, 4); labels: (R,), 0 = background.
    """
    foreground = labels > 0
    loss = F.huber_loss(deltas.float()[foreground], targets[foreground], reduction="sum", delta=1.0)
    return loss / (4 * foreground.sum()).clamp(min=1)
