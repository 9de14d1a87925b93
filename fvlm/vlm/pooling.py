"""Region embeddings from CLIP's own attention pool: C5 aligned to CLIP's pretraining grid, then the pool as pretrained.

`pool_crops` says what is computed; `pool_regions` computes the same without ever building a crop. With one sample per
bin RoIAlign is linear and separable: a crop is Y F X^T, where F is the map and each row of Y (S, H) and X (S, W) holds
the two bilinear weights of a bin along one axis. The pool's projections are linear too, so they run once on the map.
What is left per region are scores and weights, one number per head and cell: the score map q . K is aligned like any
map, and the attention is spread back over the map by the transposed alignment.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor
from torchvision.ops import roi_align

CHUNK_FLOATS = 1 << 23  # regions * heads * cells at a time: 32 MiB a buffer, a few of them alive; 256 regions of RN50


def roi_align_at_centres(features: Tensor, boxes: Sequence[Tensor], size: int, stride: int) -> Tensor:
    """F-VLM's RoIAlign: one bilinear sample per bin, at the bin's centre, at `box / stride` without a half-pixel shift.

    Cell k of the map is the point k, so a box is sampled half a cell to the lower right of what it covers: an image of
    S x S cells at 0.5, 1.5, .. S - 0.5. The box that hits every cell is the image's own moved by -stride / 2.
    A point past the outermost cells takes their value, up to -1 and H (W); further out it is 0.

    Args:
        features: (N, C, H, W).
        boxes: for each image (R_i, 4) xyxy image pixels, of any size; R_i may be 0.
        size: S, bins per side.
        stride: image pixels per cell.

    Returns:
        (R, C, S, S), R = sum R_i, in the order of `boxes`.

    Source: the authors' `ops/spatial_transform_ops.py`. `aligned=True` takes half a cell off, so half a stride is added
    before; `aligned=False` would not, but stretches a box below one cell to a cell. On CUDA, under deterministic
    algorithms, torchvision takes another implementation, which does not set far points to 0; boxes inside the image,
    as proposals are, have none.
    """
    return roi_align(features, [b + 0.5 * stride for b in boxes], size, 1 / stride, sampling_ratio=1, aligned=True)


def pool_crops(
    attnpool: AttentionPool2d, features: Tensor, boxes: Sequence[Tensor], *, grid: int, stride: int
) -> Tensor:
    """A region's VLM embedding by its definition; `pool_regions` gives the same, faster, and is tested against this.

    Arguments and result are those of `pool_regions`.
    """
    _check_grid(attnpool, grid)
    return attnpool(roi_align_at_centres(features, boxes, grid, stride))


def pool_regions(
    attnpool: AttentionPool2d, features: Tensor, boxes: Sequence[Tensor], *, grid: int, stride: int
) -> Tensor:
    """CLIP's embedding of each region, without crops. Equal to `pool_crops` up to float32 rounding.

    Args:
        attnpool: CLIP's, with its original positional embedding.
        features: (N, C, H, W), C5 of N >= 1 images.
        boxes: for each image (R_i, 4) xyxy image pixels, usually proposals; R_i may be 0.
        grid: S, cells per side of the crop: the grid that `attnpool` was pretrained with, 7 for RN50.
        stride: image pixels per cell, 32 for C5.

    Returns:
        (R, D) float32, R = sum R_i, not normalised.

    Raises:
        ValueError: `grid` does not fit the positional embedding.

    Source: the authors' `task_heads.py`; the crop has the pretraining grid's size, so that the positional embedding is
    used as it is. Departure: the order of computation only.
    """
    _check_grid(attnpool, grid)
    return torch.cat(
        [
            _pool_image(attnpool, image.float(), image_boxes.float(), grid, stride)
            for image, image_boxes in zip(features, boxes, strict=True)
        ]
    )


def _check_grid(attnpool: AttentionPool2d, grid: int) -> None:
    positions = len(attnpool.positional_embedding)
    if positions != 1 + grid**2:
        raise ValueError(
            f"grid={grid} needs {1 + grid**2} positions, but this attention pool was trained with {positions}; "
            f"use grid={round((positions - 1) ** 0.5)}"
        )


def _pool_image(attnpool: AttentionPool2d, image: Tensor, boxes: Tensor, grid: int, stride: int) -> Tensor:
    """One image: (C, H, W) and (R, 4) -> (R, D).

    Letters: n head of d channels, r region, P cells (h, w) of the map, T cells (i, j) of the crop. Token 0 is the mean.
    """
    heads = attnpool.num_heads
    height, width = image.shape[1:]

    def by_head(x: Tensor) -> Tensor:  # (rows, C) -> (n, rows, d)
        return x.unflatten(1, (heads, -1)).transpose(0, 1)

    cells = image.flatten(1).T  # (P, C)
    keys = by_head(F.linear(cells, attnpool.k_proj.weight))  # (n, P, d); biases go with the positions, once per token
    values = by_head(F.linear(cells, attnpool.v_proj.weight))
    positions = attnpool.positional_embedding  # (1 + T, C)
    position_keys = by_head(attnpool.k_proj(positions))  # (n, 1 + T, d)
    position_values = by_head(attnpool.v_proj(positions))

    embeddings = []
    for chunk in boxes.split(max(1, CHUNK_FLOATS // (heads * height * width))):
        x1, y1, x2, y2 = chunk.unbind(1)
        rows = _bin_weights(y1, y2, grid, height, stride)  # (r, S, H)
        columns = _bin_weights(x1, x2, grid, width, stride)  # (r, S, W)

        mean_weights = torch.einsum("rh,rw->rhw", rows.mean(1), columns.mean(1)).flatten(1)  # (r, P)
        query = by_head(attnpool.q_proj(mean_weights @ cells + positions[0]))  # (n, r, d), of token 0 alone
        query = query * query.shape[-1] ** -0.5

        score_maps = (query @ keys.mT).unflatten(2, (height, width))  # (n, r, h, w)
        scores = torch.einsum("nrhw,rjw,rih->nrij", score_maps, columns, rows).flatten(2)  # (n, r, T)
        logits = torch.cat([scores.mean(2, keepdim=True), scores], dim=2) + query @ position_keys.mT
        attention = logits.softmax(dim=2)  # (n, r, 1 + T)

        on_cells = attention[..., 1:] + attention[..., :1] / grid**2  # what token 0 gets, each cell gives a share of
        on_map = torch.einsum("nrij,rih,rjw->nrhw", on_cells.unflatten(2, (grid, grid)), rows, columns).flatten(2)
        pooled = on_map @ values + attention @ position_values  # (n, r, d)
        embeddings.append(attnpool.c_proj(pooled.transpose(0, 1).flatten(1)))
    return torch.cat(embeddings)


def _bin_weights(low: Tensor, high: Tensor, bins: int, cells: int, stride: int) -> Tensor:
    """RoIAlign along one axis: (R,), (R,) box sides in pixels -> (R, bins, cells), each bin's weights of the cells.

    A bin's weights sum to 1, or are 0 where its centre is beyond the map.
    """
    centres = _bin_centres(low, high, bins, stride)
    beyond = (centres < -1) | (centres > cells)
    distance = (centres.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=low.device)).abs()
    return (1 - distance).clamp(min=0).masked_fill(beyond[..., None], 0)


def bin_taps(low: Tensor, high: Tensor, bins: int, cells: Tensor, stride: Tensor) -> tuple[Tensor, Tensor]:
    """`_bin_weights` without the zeros, where each box has a map of its own size: the two cells that a bin reads.

    Args:
        low, high: (R,) box sides in pixels.
        cells, stride: (R,) cells of each box's map along this axis, and image pixels per cell.

    Returns:
        Cells (R, bins, 2) int64 in 0..cells - 1 and their weights (R, bins, 2), which sum to 1, or are 0 for a bin
        whose centre is beyond the map. On the outermost cell both are that cell.
    """
    last = (cells - 1)[:, None]
    centres = _bin_centres(low, high, bins, stride)
    beyond = (centres < -1) | (centres > cells[:, None])
    inside = centres.clamp(min=0).minimum(last)
    first = inside.floor()
    share = inside - first
    weights = torch.stack([1 - share, share], dim=-1).masked_fill(beyond[..., None], 0)
    return torch.stack([first, (first + 1).minimum(last)], dim=-1).long(), weights


def _bin_centres(low: Tensor, high: Tensor, bins: int, stride: Tensor | int) -> Tensor:
    """(R,), (R,) pixels -> (R, bins) in cells; cell k is the point k.

    The arithmetic, and the rule above for centres beyond the map, are torchvision's, step by step, so that
    `roi_align_at_centres` takes the same side of the rule's edges.
    """
    start = (low + 0.5 * stride) * (1 / stride) - 0.5
    end = (high + 0.5 * stride) * (1 / stride) - 0.5
    bin_size = ((end - start) / bins)[:, None]
    return start[:, None] + torch.arange(bins, device=low.device) * bin_size + 0.5 * bin_size
