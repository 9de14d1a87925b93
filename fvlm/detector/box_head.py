"""Second stage: region features, region embeddings, class-agnostic box deltas."""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from ..vlm.pooling import roi_align_at_centres
from .fpn import LEVELS, STRIDES
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
    """Region features, each from the level of its size.

    Args:
        pyramid: {"P2".."P6": (N, C, H / stride, W / stride)}.
        boxes: N x (R_i, 4) xyxy pixels.
        canonical_box_size: side of a box that belongs to P4, pixels.

    Returns:
        (R, C, 7, 7), R = sum of R_i, in the order of `boxes`.

    torchvision's `MultiScaleRoIAlign` is not used: it cannot sample at the bins' centres (see `roi_align_at_centres`).
    """
    features = pyramid[LEVELS[0]]
    levels = [level_of_boxes(b, canonical_box_size) for b in boxes]
    flat = torch.cat(levels)
    pooled = features.new_zeros(len(flat), features.shape[1], ROI_SIZE, ROI_SIZE)
    for number, (name, stride) in enumerate(zip(LEVELS, STRIDES, strict=True), start=2):
        rows = (flat == number).nonzero()[:, 0]
        if len(rows):
            of_level = [b[level == number] for b, level in zip(boxes, levels, strict=True)]
            crops = roi_align_at_centres(pyramid[name], of_level, ROI_SIZE, stride)
            pooled = pooled.index_copy(0, rows, crops.to(pooled.dtype))
    return pooled


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
        x = pooled
        for conv, norm in zip(self.convs, self.conv_norms, strict=True):
            x = F.relu(norm(conv(x)))
        x = F.relu(self.fc_norm(self.fc(x.flatten(1)))).float()
        with torch.autocast(x.device.type, enabled=False):  # what is compared with texts and decoded stays exact
            return self.embedding(x), self.box(x)
