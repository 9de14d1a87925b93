"""The four losses, each with the authors' normaliser. Their plain sum is minimised.

A batch may be spread over processes, and a process may take its images in several passes. So a loss comes in two steps:
`LossSums` holds the sums over some of the batch's images, and `Normalisers` what they are divided by, which is of the
whole batch. Added up over passes and processes the quotients are the batch's loss, and so are their gradients: neither
the number of passes nor that of processes is in the result.

Source: F-VLM's `losses/maskrcnn_losses.py` and `losses/base_losses.py`. The normalisers matter as much as the terms:
with torch's usual ones the box term of the RPN is 9 times, and the class term up to 3.3 times, larger.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RPN_HUBER_DELTA = 0.111


@dataclass(frozen=True)
class LossSums:
    """Sums over images, float32, with gradients; and how many foreground regions they hold.

    rpn_score, classes, box: scalars. rpn_box: (L,), a sum for each level. foreground: int64 scalar.
    """

    rpn_score: Tensor
    rpn_box: Tensor
    classes: Tensor
    box: Tensor
    foreground: Tensor


@dataclass(frozen=True)
class Normalisers:
    """What the sums are divided by, counted over the whole batch of a step.

    rpn_score: images * sampled anchors per image; classes: images * sampled regions per image. Both are the nominal
    sizes, also where an image has fewer to sample from.
    rpn_box: (L,) elements that count on each level, see `rpn_box_elements`. A level without any has the sum 0.
    """

    rpn_score: int
    rpn_box: Tensor
    classes: int

    def early_terms(self, sums: LossSums) -> dict[str, Tensor]:
        """The three terms whose normaliser is known before the forward pass; float32 scalars."""
        return {
            "rpn_score": sums.rpn_score / self.rpn_score,
            "rpn_box": (sums.rpn_box / self.rpn_box.clamp(min=1)).sum(),
            "class": sums.classes / self.classes,
        }


def box_term(box_sum: Tensor, foreground: Tensor) -> Tensor:
    """Average over the 4 elements of each of the batch's `foreground` regions; 0 without any."""
    return box_sum / (4 * foreground).clamp(min=1)


def rpn_score_sum(logits: Tensor, positive: Tensor, sampled: Tensor) -> Tensor:
    """Sigmoid cross-entropy, summed over the sampled anchors.

    Args:
        logits: (N, A); positive, sampled: (N, A) bool.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), positive.float(), reduction="none")
    return loss.where(sampled, 0).sum()


def rpn_box_sums(deltas: list[Tensor], targets: list[Tensor], positive: list[Tensor]) -> Tensor:
    """(L,): Huber loss with delta 0.111, summed over the elements that count of each level.

    Args:
        deltas, targets: for each level (N, A_l, 4).
        positive: for each level (N, A_l) bool: ALL matched anchors, not only the sampled.

    The batch's mean on each level is summed over the levels. Huber(delta) is delta times torch's smooth L1 with beta =
    delta.
    """
    return torch.stack(
        [
            F.huber_loss(delta.float(), target, reduction="none", delta=RPN_HUBER_DELTA)
            .where(_counted(target, chosen), 0)
            .sum()
            for delta, target, chosen in zip(deltas, targets, positive, strict=True)
        ]
    )


def rpn_box_elements(targets: list[Tensor], positive: list[Tensor]) -> Tensor:
    """(L,) int64: the elements that count on each level; arguments as in `rpn_box_sums`."""
    return torch.stack([_counted(target, chosen).sum() for target, chosen in zip(targets, positive, strict=True)])


def _counted(target: Tensor, positive: Tensor) -> Tensor:
    """An element whose target is exactly 0 counts in neither sum nor mean: the authors mask by `target != 0`."""
    return positive[..., None] & (target != 0)


def class_sum(logits: Tensor, labels: Tensor, background_weight: float) -> Tensor:
    """Softmax cross-entropy over background and the K supervised classes, summed over ALL regions.

    Args:
        logits: (R, 1 + K); labels: (R,), 0 = background.
        background_weight: factor of the background regions' terms.

    It is divided by the number of regions. torch's `cross_entropy(weight=...)` divides by the sum of weights instead.
    """
    loss = F.cross_entropy(logits.float(), labels, reduction="none")
    return (loss * torch.where(labels == 0, background_weight, 1.0)).sum()


def box_sum(deltas: Tensor, targets: Tensor, labels: Tensor) -> Tensor:
    """Huber loss with delta 1, summed over the elements of the foreground regions.

    Args:
        deltas, targets: (R, 4); labels: (R,), 0 = background.
    """
    loss = F.huber_loss(deltas.float(), targets, reduction="none", delta=1.0)
    return loss.where(labels[:, None] > 0, 0).sum()
