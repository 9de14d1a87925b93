"""Class scores of regions: softmax over cosine similarities, and the fusion of the detector's scores with the VLM's."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = torch.finfo(torch.float32).min


def class_log_probs(similarity: Tensor, temperature: float, *, background: bool = True) -> Tensor:
    """Log-probabilities over background and K classes from cosine similarities.

    The columns given are the classes that compete: a protocol with K classes passes its own K columns and background.
    A column of -inf is masked: its probability is 0 and it takes nothing from the others.

    Args:
        similarity: (R, 1 + K), cosines of any floating type; column 0 is background.
        temperature: what the cosines are divided by, > 0. CLIP's is 0.01.
        background: whether background takes part. Without it the K classes share all the probability, as in the image
            head of ViLD and DetPro's ensemble; column 0 is then -inf.

    Returns:
        (R, 1 + K) float32, the exponentials of a row sum to 1. At CLIP's temperature they go down to -200, whose
        exponential is 0 in float16: half precision ends here.

    Raises:
        ValueError: the temperature is not positive.

    Source: the authors' `compute_region_text_similarity` (task_heads.py); both branches' softmax includes background.
    """
    if not temperature > 0:
        raise ValueError(f"expected a temperature > 0, got {temperature}")
    logits = similarity.float() / temperature
    if not background:
        logits[:, 0] = -torch.inf
    return torch.log_softmax(logits, dim=1)


def fuse_scores(
    detector_log_probs: Tensor,
    vlm_log_probs: Tensor,
    supervised: Tensor,
    *,
    alpha: float,
    beta: float,
    renormalise: bool = True,
) -> Tensor:
    """Weighted geometric mean of detector and VLM probabilities, class by class.

    Class i gets detector_i^(1 - w) * vlm_i^w, where w is alpha if the class had boxes in training and beta if not.
    Background keeps the detector's probability. Then each row is normalised again, so that regions stay comparable.
    (CLIM, DST-Det and F-ViT leave the last step out: `renormalise` off.)

    Args:
        detector_log_probs: (R, 1 + K) float32, from `class_log_probs`; column 0 is background.
        vlm_log_probs: (R, 1 + K) float32, likewise; its background column takes part in its softmax, but not here.
        supervised: (K,) bool, True where the class had boxes in training.
        alpha: VLM weight for supervised classes, 0 (detector only) to 1 (VLM only).
        beta: VLM weight for the other classes, same range.
        renormalise: whether the rows are made to sum to 1.

    Returns:
        (R, 1 + K) float32 probabilities; rows sum to 1, or to less where they are not normalised.

    Raises:
        ValueError: the shapes disagree, or a weight is outside [0, 1].

    Source: F-VLM (Kuo et al., ICLR 2023), section 3, the score combination; `ensemble_class_outputs` (task_heads.py),
    which keeps the detector's background and renormalises. Computed from logarithms: the same numbers, without
    underflow.
    """
    if detector_log_probs.shape != vlm_log_probs.shape or detector_log_probs.shape[1] != 1 + len(supervised):
        raise ValueError(
            f"expected detector_log_probs and vlm_log_probs (R, {1 + len(supervised)}) for {len(supervised)} classes "
            f"plus background, got {tuple(detector_log_probs.shape)} and {tuple(vlm_log_probs.shape)}"
        )
    if not (0 <= alpha <= 1 and 0 <= beta <= 1):
        raise ValueError(f"alpha and beta must lie in [0, 1], got alpha={alpha}, beta={beta}")

    of_classes = torch.where(supervised, alpha, beta)
    weights = F.pad(of_classes.to(detector_log_probs), (1, 0))  # 0 for background, which is the detector's
    fused = _weighted(detector_log_probs, 1 - weights) + _weighted(vlm_log_probs, weights)
    return torch.softmax(fused, dim=1) if renormalise else fused.exp()


def _weighted(log_probs: Tensor, weights: Tensor) -> Tensor:
    """`weights * log_probs` where p^0 is 1 for p = 0 too; the plain product gives 0 * -inf = NaN."""
    return log_probs.clamp(min=LEAST) * weights
