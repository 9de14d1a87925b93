"""From stored pixels to the network's square canvas, in training (random scale, crop, flip) and at test time.

A canvas is (3, S, S) float32, CLIP-normalised RGB, the picture at its top left and zeros (the mean colour) to the right
and below. Boxes are float xyxy.

Source: F-VLM's released code, data/dataloader/input_utils.py (`resize_and_crop_image`) and data/maskrcnn_parser.py:
large scale jitter, bilinear resizing without antialias, zeros after normalisation. Departures: the crop's offset in
`scale_jitter`, the smallest box in `visible`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_BOX_SIDE = 1.0  # pixels of the canvas


class Resized(NamedTuple):
    """A picture on its canvas, with what maps boxes there and back."""

    canvas: Tensor  # (3, S, S) float32
    scale_xyxy: Tensor  # (4,) float32: original box * scale = canvas box; canvas box / scale = original box
    size_hw: tuple[int, int]  # of the picture in the canvas, pixels


def resize_to_canvas(image: Tensor, canvas_size: int, mean: Sequence[float], std: Sequence[float]) -> Resized:
    """Test-time form: the longest side becomes `canvas_size`, the aspect is kept (to the nearest pixel).

    Args:
        image: (3, H, W) uint8 RGB.
        canvas_size: S, pixels.
        mean, std: per channel, for values in [0, 1].
    """
    size_hw = fitted_size_hw(image, canvas_size)
    canvas = _on_canvas(_normalised(_resized(image, size_hw), mean, std), canvas_size)
    return Resized(canvas, _scale_xyxy(image, size_hw), size_hw)


def scale_jitter(
    image: Tensor,
    boxes: Tensor,
    generator: torch.Generator,
    *,
    canvas_size: int,
    scale_range: tuple[float, float],
    flip: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Training form: random scale, random crop where larger than the canvas, random horizontal flip.

    The scale is drawn from U[low, high] and the longest side becomes round(scale * canvas_size). With `scale_range`
    (1, 1) and `flip` 0 this equals `resize_to_canvas`.

    Args:
        image: (3, H, W) uint8 RGB.
        boxes: (G, 4) xyxy, pixels of `image`.
        generator: the only source of chance; always four numbers are drawn.
        flip: probability of a horizontal flip.

    Returns:
        The canvas, and (G, 4) boxes in its pixels, clipped to the part of the picture that is on it: a box outside the
        crop comes out with zero width or height (`visible` tells).
    """
    scale_draw, flip_draw, top_draw, left_draw = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    low, high = scale_range
    size_hw = fitted_size_hw(image, round((low + (high - low) * scale_draw) * canvas_size))
    boxes = boxes * _scale_xyxy(image, size_hw)
    resized = _resized(image, size_hw)
    if flip_draw < flip:
        resized = resized.flip(-1)
        boxes = torch.stack([size_hw[1] - boxes[:, 2], boxes[:, 1], size_hw[1] - boxes[:, 0], boxes[:, 3]], dim=1)

    # Departure: all offsets from 0 to the excess are equally likely; the authors' floor(u * excess) never is the last
    top, left = (
        int(draw * (max(side - canvas_size, 0) + 1)) for draw, side in zip((top_draw, left_draw), size_hw, strict=True)
    )
    crop = resized[:, top : top + canvas_size, left : left + canvas_size]
    boxes = boxes - boxes.new_tensor([left, top, left, top])
    limits = boxes.new_tensor([crop.shape[2], crop.shape[1]] * 2)
    boxes = boxes.clamp(min=0).minimum(limits)
    return _on_canvas(_normalised(crop, mean, std), canvas_size), boxes


def visible(boxes: Tensor) -> Tensor:
    """(G, 4) canvas boxes -> (G,) bool: at least `MIN_BOX_SIDE` wide and high.

    Departure: the authors drop empty boxes only. Their box coder adds 1 to every width, which bounds the logarithm of a
    sliver's width; torchvision's does not, and one box of 0.001 pixels would outweigh a batch. COCO's own boxes without
    height or width go the same way.
    """
    return ((boxes[:, 2:] - boxes[:, :2]) >= MIN_BOX_SIDE).all(dim=1)


def fitted_size_hw(image: Tensor, side: int) -> tuple[int, int]:
    """Height and width, at least 1, when the longest side of `image` (3, H, W) becomes `side` pixels."""
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _scale_xyxy(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    height, width = image.shape[-2:]
    return torch.tensor([size_hw[1] / width, size_hw[0] / height] * 2)


def _resized(image: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 -> (3, h, w) float32 in [0, 255]."""
    return F.interpolate(image[None].float(), size=size_hw, mode="bilinear", align_corners=False, antialias=False)[0]


def _normalised(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _on_canvas(image: Tensor, canvas_size: int) -> Tensor:
    canvas = image.new_zeros(3, canvas_size, canvas_size)
    canvas[:, : image.shape[1], : image.shape[2]] = image
    return canvas
