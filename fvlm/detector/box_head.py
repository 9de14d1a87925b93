"""Second stage: region features, region embeddings, class-agnostic box deltas."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from ..vlm.pooling import bin_taps
from . import region_conv
from .fpn import LEVELS, STRIDES
from .recompute import normalise, read
from .rpn import MAX_LOG_SCALE

ROI_SIZE = 7  # cells per side
CANONICAL_LEVEL = 4  # a box of the canonical size is pooled from P4
REGION_CODER = BoxCoder((10.0, 10.0, 5.0, 5.0), MAX_LOG_SCALE)


def level_of_boxes(boxes: Tensor, canonical_box_size: float) -> Tensor:
    """(R, 4) xyxy pixels -> (R,) level 2..6: floor(log2(sqrt(area) / canonical size)) + 4, clipped.

    Source: FPN (Lin et al., 2017), equation 1; F-VLM's `ops/spatial_transform_ops.py`, which uses P6 too.
    """
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=1e-6).sqrt()
    level = torch.floor(torch.log2(side / canonical_box_size)) + CANONICAL_LEVEL
    return level.clamp(2, 6).long()


def pool_pyramid(pyramid: dict[str, Tensor], boxes: list[Tensor], canonical_box_size: float) -> Tensor:
    """Region features, each from the level of its size: `roi_align_at_centres` on five maps of N images in one look-up.

    Args:
        pyramid: {"P2".."P6": (N, C, H / stride, W / stride)}.
        boxes: N x (R_i, 4) xyxy pixels.
        canonical_box_size: side of a box that belongs to P4, pixels.

    Returns:
        (R, C, 7, 7), R = sum of R_i, in the order of `boxes`; channels last in memory.

    All cells of all maps are the rows of one table; a bin is a weighted sum of four of them, which is what
    `embedding_bag` computes. torchvision's RoIAlign runs on one thread, takes longer, and where
    algorithms are deterministic on CUDA sorts every channel's every read. Its `MultiScaleRoIAlign` cannot sample
    at the bins' centres.
    """
    table, cells, weights = taps_of_pyramid(pyramid, boxes, canonical_box_size)
    return as_regions(F.embedding_bag(cells, table, mode="sum", per_sample_weights=weights))


def as_regions(bins: Tensor) -> Tensor:
    """(R * 7 * 7, C) -> (R, C, 7, 7), channels last in memory."""
    return bins.unflatten(0, (len(bins) // ROI_SIZE**2, ROI_SIZE, ROI_SIZE)).permute(0, 3, 1, 2)


def taps_of_pyramid(
    pyramid: dict[str, Tensor], boxes: list[Tensor], canonical_box_size: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What each bin of `pool_pyramid` reads: table (cells, C), its rows (R * 7 * 7, 4) and their weights, likewise."""
    maps = [pyramid[level] for level in LEVELS]
    table = torch.cat([x.permute(0, 2, 3, 1).flatten(0, 2) for x in maps])  # (cells, C): by level, image, row, column
    flat = torch.cat(boxes).float()
    device = flat.device

    def of_level(values: Sequence[float]) -> Tensor:
        """(R,) the number that belongs to each box's level."""
        return torch.tensor(values, dtype=torch.float32, device=device)[level]

    level = level_of_boxes(flat, canonical_box_size) - 2
    stride, height, width = of_level(STRIDES), *(of_level([x.shape[axis] for x in maps]) for axis in (2, 3))
    x1, y1, x2, y2 = flat.unbind(1)
    rows, row_weights = bin_taps(y1, y2, ROI_SIZE, height, stride)  # (R, 7, 2)
    columns, column_weights = bin_taps(x1, x2, ROI_SIZE, width, stride)

    first_of_level = torch.tensor([0, *(len(x) * x[0, 0].numel() for x in maps[:-1])], device=device).cumsum(0)
    image = torch.cat([torch.full((len(b),), i, device=device) for i, b in enumerate(boxes)])
    first = first_of_level[level] + image * (height * width).long()  # (R,) the table's row of each box's first cell
    of_rows = first[:, None, None] + rows * width.long()[:, None, None]
    cells = of_rows[:, :, None, :, None] + columns[:, None, :, None, :]  # (R, 7, 7, 2, 2)
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    return table, cells.reshape(-1, 4), weights.reshape(-1, 4).to(table.dtype)


class BoxHead(nn.Module):
    """4conv1fc head with two linear outputs: a region embedding in the text space and four class-agnostic box deltas.

    Args:
        in_channels: of the pyramid.
        channels: of the four convolutions.
        fc_dim: width of the fully connected layer.
        embed_dim: D, size of the text embeddings.
        norm_momentum, norm_eps: of the batch norms, in torch's sense.

    Source: F-VLM's `modeling/heads.py` FastrcnnHead. The embedding is a linear projection after the last ReLU, without
    bias; several ports take the non-negative ReLU output itself.
    """

    def __init__(
        self, in_channels: int, channels: int, fc_dim: int, embed_dim: int, *, norm_momentum: float, norm_eps: float
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, channels, 3, padding=1) for c in (in_channels, *[channels] * 3))
        self.conv_norms = nn.ModuleList(nn.BatchNorm2d(channels, norm_eps, norm_momentum) for _ in self.convs)
        self.fc = nn.Linear(channels * ROI_SIZE**2, fc_dim)
        self.fc_norm = nn.BatchNorm1d(fc_dim, norm_eps, norm_momentum)
        self.embedding = nn.Linear(fc_dim, embed_dim, bias=False)
        self.box = nn.Linear(fc_dim, 4)
        for conv in cast(Iterable[nn.Conv2d], self.convs):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, conv.bias))
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        nn.init.normal_(self.embedding.weight, std=0.01)
        nn.init.normal_(self.box.weight, std=0.001)
        nn.init.zeros_(self.box.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, 7, 7) -> region embeddings (R, D), not normalised, and box deltas (R, 4), both float32."""
        convs = cast(list[nn.Conv2d], list(self.convs))
        fast = region_conv.pays(convs, pooled)
        x = region_conv.by_cell(pooled) if fast else pooled
        layers = [partial(region_conv.convolve, conv) if fast else conv for conv in convs]
        for layer, norm in zip(layers[:-1], self.conv_norms[:-1], strict=True):
            x = normalise(norm, read(layer, x), relu=True)
        x = self.conv_norms[-1](read(layers[-1], x))
        x = region_conv.by_region(x) if fast else x
        x = F.relu_(x.flatten(1))  # in this order the copy that `flatten` makes is the only one that is kept
        x = F.relu_(self.fc_norm(self.fc(x))).float()
        with torch.autocast(x.device.type, enabled=False):  # what is compared with texts and decoded stays exact
            return self.embedding(x), self.box(x)
