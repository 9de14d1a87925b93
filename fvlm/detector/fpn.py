"""Feature pyramid P2..P6 on top of the frozen tower's C2..C5."""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from .recompute import let_go, normalise, read

LEVELS = ("P2", "P3", "P4", "P5", "P6")
STRIDES = (4, 8, 16, 32, 64)  # image pixels per cell, one for each of LEVELS
LECUN_TRUNCATION = 0.87962566103423978  # standard deviation of a unit normal cut off at two sigma


class FeaturePyramid(nn.Module):
    """Top-down pathway with lateral connections; every output level has a batch norm of its own.

    Args:
        in_channels: channels of C2, C3, C4, C5.
        channels: channels of every output level.
        norm_momentum, norm_eps: of the batch norms, in torch's sense.

    Source: F-VLM's `modeling/fpn.py`. Unlike torchvision's `FeaturePyramidNetwork`: convolutions have no bias, the
    norms stand on the outputs only and are not followed by a ReLU, and P6 is a stride-2 convolution of P5 before its
    norm (padded by one cell at the end only, as Flax's 'SAME' does for even sizes), not a max-pool.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, *, norm_momentum: float, norm_eps: float) -> None:
        super().__init__()
        self.channels = channels
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1, bias=False) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in in_channels)
        self.coarsest = nn.Conv2d(channels, channels, 3, stride=2, bias=False)
        self.norm = nn.ModuleList(nn.BatchNorm2d(channels, norm_eps, norm_momentum) for _ in LEVELS)
        for conv in [*self.lateral, *self.output, self.coarsest]:
            _lecun_normal_(conv.weight)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"C2".."C5": (N, C_l, H / stride, W / stride)} -> {"P2".."P6": (N, channels, H / stride, W / stride)}."""
        maps = [features[f"C{i}"] for i in range(2, 6)]
        merged = self._merge(maps)
        for level, x in enumerate(merged):
            let_go(x, partial(self._finest, maps[level:]))  # laterals are cheap, the maps that they fill are not
        outputs = [read(conv, x) for conv, x in zip(self.output, merged, strict=True)]
        outputs.append(self.coarsest(F.pad(outputs[-1], (0, 1, 0, 1))))
        return {level: normalise(norm, x) for level, norm, x in zip(LEVELS, self.norm, outputs, strict=True)}

    def _merge(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The coarsest of C2..C5 up to a level -> their laterals, each plus the one above it; finest first."""
        laterals = [conv(x) for conv, x in zip(list(self.lateral)[-len(maps) :], maps, strict=True)]
        merged = [laterals[-1]]
        for lateral in reversed(laterals[:-1]):
            merged.insert(0, lateral + F.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest"))
        return merged

    def _finest(self, maps: Sequence[Tensor]) -> Tensor:
        return self._merge(maps)[0]


def _lecun_normal_(weight: Tensor) -> None:
    """Flax's default initialiser of convolutions: a truncated normal of variance 1 / fan-in."""
    std = (weight[0].numel() ** -0.5) / LECUN_TRUNCATION
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
