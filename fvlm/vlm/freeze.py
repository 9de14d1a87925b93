"""What of the image tower training may not change, and a measure of what it changed all the same.

`requires_grad = False` does not freeze a batch norm: in train mode it also moves its running mean and variance, without
any gradient. So open_clip's `visual.lock()` leaves every batch norm of the tower live, unless `freeze_bn_stats=True`,
which swaps them for a class with fewer tensors in its state dict. Here they stay what they are, in eval mode.
"""

from collections.abc import Mapping

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..params import FREEZE_MODES, FreezeMode

IMAGE_TOWER = "visual."  # prefix of the image tower's tensors in CLIP's state dict
DETECTOR_TOWER = "tower." + IMAGE_TOWER  # and in a detector's


def freeze(visual: ModifiedResNet, mode: FreezeMode) -> None:
    """Freeze `visual` in place. To be called again after every `train()`, which undoes it.

    - `all` (F-VLM): no parameter trains and no statistic moves.
    - `norm_eval`: batch norms normalise with their stored statistics, which do not move; every convolution and every
      affine weight trains.
    - `none`: everything trains, and batch norms follow `visual.training`: in training they normalise with the batch and
      their statistics drift towards it.

    The attention pool is frozen in every mode: it embeds regions for the VLM's score only, no loss reaches it.

    Source: `all` is the authors' `clip_models.py`: stopped gradients, `use_running_average=True` in each batch norm.
    `norm_eval` is MMDetection's ResNet option of that name. Departure: MMDetection's usual configs also freeze the stem
    and the first stage (`frozen_stages=1`); here all train, so that `none` differs in the statistics alone.
    """
    if mode not in FREEZE_MODES:
        raise ValueError(f"freeze: expected one of {', '.join(FREEZE_MODES)}, got {mode!r}")
    visual.requires_grad_(mode != "all")
    visual.attnpool.requires_grad_(False).eval()
    if mode == "all":
        visual.eval()
    elif mode == "norm_eval":
        for module in visual.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def statistics_shift(before: Mapping[str, Tensor], after: Mapping[str, Tensor], eps: float = 1e-5) -> float:
    """How far the running statistics of all batch norms moved, in units of their old standard deviation; 0: not at all.

    A channel's statistics describe a normal distribution; its shift is the 2-Wasserstein distance of the two,
    sqrt((mean' - mean)^2 + (std' - std)^2), divided by std. The mean is taken over the channels of a batch norm, then
    over batch norms, so that wide ones do not count for more.

    Args:
        before, after: state dicts of the same module; tensors that are not batch norm statistics are ignored.
        eps: added to each variance, as batch norm itself does; a dead channel stays finite.

    Raises:
        ValueError: there is no batch norm, or the two do not have the same ones.
    """
    names = [name.removesuffix(".running_mean") for name in before if name.endswith(".running_mean")]
    if not names or names != [name.removesuffix(".running_mean") for name in after if name.endswith(".running_mean")]:
        raise ValueError("expected state dicts of the same module with batch norms in it, got others")

    def mean_and_std(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.running_mean"].double(), (state[f"{name}.running_var"].double() + eps).sqrt()

    shifts = []
    for name in names:
        mean, std = mean_and_std(before, name)
        new_mean, new_std = mean_and_std(after, name)
        shifts.append((torch.hypot(new_mean - mean, new_std - std) / std).mean().item())
    return sum(shifts) / len(shifts)
