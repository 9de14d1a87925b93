"""Region proposal network: anchors, the head, and proposals from its outputs."""

import functools
import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

from .fpn import LEVELS, STRIDES
from .recompute import normalise, read

ASPECT_RATIOS = (1.0, 2.0, 0.5)  # width / height
MIN_SIDE = 1e-3  # pixels of a proposal; torchvision's
MAX_LOG_SCALE = math.log(1000 / 16)  # largest dw, dh that is decoded
ANCHOR_CODER = BoxCoder((1.0, 1.0, 1.0, 1.0), MAX_LOG_SCALE)


def make_anchors(sizes_hw: Sequence[tuple[int, int]], scale: float) -> list[Tensor]:
    """Anchors of every level, in the order in which `RpnHead` predicts: row, column, aspect ratio.

    Args:
        sizes_hw: cells of P2..P6.
        scale: side of a square anchor in strides of its level; F-VLM has 8, so 32 to 512 pixels.

    Returns:
        One (H * W * 3, 4) tensor a level, xyxy in pixels, not clipped.

    Source: F-VLM's `data/dataloader/anchor.py`. torchvision's `AnchorGenerator` is not used: it centres anchors on the
    cells' corners (k * stride) and rounds their sides; here the centres are (k + 1/2) * stride.
    """
    levels = []
    for (height, width), stride in zip(sizes_hw, STRIDES, strict=True):
        ratios = torch.tensor(ASPECT_RATIOS)
        half = torch.stack([ratios.sqrt(), ratios.rsqrt()], dim=1) * (scale * stride / 2)  # (3, 2) half width, height
        y = (torch.arange(height) + 0.5) * stride
        x = (torch.arange(width) + 0.5) * stride
        centre = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[:, :, None]  # (H, W, 1, 2) as x, y
        levels.append(torch.cat([centre - half, centre + half], dim=-1).reshape(-1, 4))
    return levels


@functools.lru_cache(maxsize=8)
def anchors_on(device: torch.device, sizes_hw: tuple[tuple[int, int], ...], scale: float) -> list[Tensor]:
    """`make_anchors` on `device`, made once for each size of pyramid. The same tensors come every time: leave them."""
    return [anchors.to(device) for anchors in make_anchors(sizes_hw, scale)]


class RpnHead(nn.Module):
    """Two 3x3 convolutions shared by the levels, a batch norm for each level after each, then scores and deltas.

    Source: F-VLM's `modeling/heads.py` RpnHead (two convolutions, level-specific norms; weights normal with standard
    deviation 0.01, biases zero). torchvision's `RPNHead` has no norms.
    """

    def __init__(self, channels: int, *, norm_momentum: float, norm_eps: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels, norm_eps, norm_momentum) for _ in LEVELS) for _ in self.convs
        )
        self.score = nn.Conv2d(channels, len(ASPECT_RATIOS), 1)
        self.box = nn.Conv2d(channels, len(ASPECT_RATIOS) * 4, 1)
        for conv in [*self.convs, self.score, self.box]:
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, pyramid: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """{"P2".."P6": (N, C, H, W)} -> logits (N, A_l) and deltas (N, A_l, 4) for every level, A_l = H * W * 3."""
        logits, deltas = [], []
        for level, name in enumerate(LEVELS):
            x = pyramid[name]
            for conv, norms in zip(self.convs, self.norms, strict=True):
                x = normalise(cast(nn.ModuleList, norms)[level], read(conv, x), relu=True)
            score, box = read(self._outputs, x).permute(0, 2, 3, 1).tensor_split([len(ASPECT_RATIOS)], dim=3)
            logits.append(score.flatten(1))
            deltas.append(box.flatten(1).unflatten(1, (-1, 4)))
        return logits, deltas

    def _outputs(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 3 + 12, H, W): both output layers as one, whose way back makes one gradient of `x`."""
        weight = torch.cat([self.score.weight, self.box.weight])
        return F.conv2d(x, weight, torch.cat([cast(Tensor, self.score.bias), cast(Tensor, self.box.bias)]))


@torch.no_grad()
def propose(
    logits: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
    sizes_hw: Sequence[tuple[int, int]],
    *,
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_iou: float,
) -> list[tuple[Tensor, Tensor]]:
    """Proposals of each image: the best of each level, decoded, clipped, non-maximum suppressed, then the best of all.

    Args:
        logits, deltas: what `RpnHead` gives.
        anchors: what `make_anchors` gives, on the same device.
        sizes_hw: height and width of each picture inside its canvas; boxes are clipped to it.
        pre_nms_top_n: anchors kept on each level before suppression.
        post_nms_top_n: proposals kept of an image.
        nms_iou: IoU above which the lower-scored of two boxes of one level goes.

    Returns:
        For each image boxes (R, 4) xyxy and objectness probabilities (R,), descending; R <= post_nms_top_n.

    Source: F-VLM's `ops/roi_ops.py`. Its cap of 1000 a level after suppression never binds: no more are kept in all.
    Departure: boxes without area go. Anchors of the padding are clipped to lines at the picture's border, which have no
    overlap with anything, so that none is suppressed, and take places in the list of a narrow picture.
    """
    levels, scores, boxes = best_of_levels(logits, deltas, anchors, pre_nms_top_n)
    results = []
    for size_hw, box, score in zip(sizes_hw, boxes, scores, strict=True):
        # a network that has diverged gives NaN: as coordinates they would index out of bounds before a loss is read
        candidates = clip_boxes_to_image(box.nan_to_num(0.0), size_hw)
        sound = has_area(candidates) | box.isnan().any(dim=1)  # what has diverged goes on to the loss, which says so
        candidates, score = candidates[sound], score[sound]
        keep = batched_nms(candidates, score, levels[sound], nms_iou)[:post_nms_top_n]
        results.append((candidates[keep], score[keep]))
    return results


def has_area(boxes: Tensor) -> Tensor:
    """(n, 4) xyxy -> (n,) bool: at least `MIN_SIDE` wide and high."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1)


def best_of_levels(
    logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], top_n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best `top_n` anchors of each level, decoded: levels (n,) from 0, scores (N, n), boxes (N, n, 4) xyxy."""
    boxes, scores, level_of = [], [], []
    for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
        top = logit.float().topk(min(top_n, len(anchor)))  # (N, n)
        chosen = delta.gather(1, top.indices[..., None].expand(-1, -1, 4)).float()
        decoded = ANCHOR_CODER.decode_single(chosen.flatten(0, 1), anchor[top.indices].flatten(0, 1))
        boxes.append(decoded.view_as(chosen))
        scores.append(top.values.sigmoid())
        level_of.append(torch.full_like(top.indices[0], level))
    return torch.cat(level_of), torch.cat(scores, dim=1), torch.cat(boxes, dim=1)
