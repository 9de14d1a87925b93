"""From stored pixels to the network's square canvas, in training (random scale, crop, flip) and at test time.

A canvas is (3, S, S) float32, CLIP-normalised RGB, the picture at its top left and zeros (the mean colour) to the right
and below. Boxes are float xyxy.

It takes two steps, which may run in different processes. `fit` and `scale_jitter` choose what a canvas will show and
cut that part out of the stored picture, still uint8 and at its stored resolution: this is cheap, and what a loader
process hands over is a tenth of a canvas or less. `render` resamples, normalises and pads on the device
that trains. A picture enlarged to twice the canvas is never built whole: only the pixels of the crop are computed.

Source: F-VLM's released code, data/dataloader/input_utils.py (`resize_and_crop_image`) and data/maskrcnn_parser.py:
large scale jitter, bilinear resizing without antialias, zeros after normalisation. Departures: the crop's offset in
`scale_jitter`, the smallest box in `visible`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_BOX_SIDE = 1.0  # pixels of the canvas


class Crop(NamedTuple):
    """What a canvas shows of a picture, not yet resampled.

    The centre of canvas pixel (i, j) lies at `start_yx` + (i, j) * `step_yx` in `pixels`, where the centre of the first
    pixel is (0, 0). A mirrored picture has a negative horizontal step.
    """

    pixels: Tensor  # (3, h, w) uint8 RGB: the part of the stored picture that is sampled
    size_hw: tuple[int, int]  # on the canvas, pixels, each at most S
    start_yx: tuple[float, float]
    step_yx: tuple[float, float]


def fit(image: Tensor, canvas_size: int) -> Crop:
    """Test-time form: the longest side becomes `canvas_size`, the aspect is kept (to the nearest pixel).

    Args:
        image: (3, H, W) uint8 RGB.
        canvas_size: S, pixels.
    """
    size_hw = _fitted_size_hw(image, canvas_size)
    return _crop(image, size_hw, top_left=(0, 0), canvas_size=canvas_size, mirrored=False)


def scale_jitter(
    image: Tensor,
    boxes: Tensor,
    generator: torch.Generator,
    *,
    canvas_size: int,
    scale_range: tuple[float, float],
    flip: float,
) -> tuple[Crop, Tensor]:
    """Training form: random scale, random crop where larger than the canvas, random horizontal flip.

    The scale is drawn from U[low, high] and the longest side becomes round(scale * canvas_size). With `scale_range`
    (1, 1) and `flip` 0 this equals `fit`.

    Args:
        image: (3, H, W) uint8 RGB.
        boxes: (G, 4) xyxy, pixels of `image`.
        generator: the only source of chance; always four numbers are drawn.
        flip: probability of a horizontal flip.

    Returns:
        The crop, and (G, 4) boxes in pixels of the canvas, clipped to the part of the picture that is on it: a box
        outside the crop comes out with zero width or height (`visible` tells).
    """
    scale_draw, flip_draw, top_draw, left_draw = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    low, high = scale_range
    size_hw = _fitted_size_hw(image, round((low + (high - low) * scale_draw) * canvas_size))
    mirrored = flip_draw < flip
    # Departure: all offsets from 0 to the excess are equally likely; the authors' floor(u * excess) never is the last
    top, left = (
        int(draw * (max(side - canvas_size, 0) + 1)) for draw, side in zip((top_draw, left_draw), size_hw, strict=True)
    )
    crop = _crop(image, size_hw, top_left=(top, left), canvas_size=canvas_size, mirrored=mirrored)

    height, width = image.shape[-2:]
    boxes = boxes * scale_xyxy((height, width), size_hw)
    if mirrored:
        boxes = torch.stack([size_hw[1] - boxes[:, 2], boxes[:, 1], size_hw[1] - boxes[:, 0], boxes[:, 3]], dim=1)
    boxes = boxes - boxes.new_tensor([left, top, left, top])
    limits = boxes.new_tensor([crop.size_hw[1], crop.size_hw[0]] * 2)
    return crop, boxes.clamp(min=0).minimum(limits)


def render(crops: Sequence[Crop], canvas_size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Draw each crop at the top left of a canvas of its own.

    Resampling is bilinear, without antialias, with half-pixel centres and repeated border pixels, as `F.interpolate`
    does to the whole picture before a crop. Normalising comes first, on the fewer pixels: the weights sum to 1.

    Args:
        crops: N >= 1, their pixels on one device.
        canvas_size: S, pixels.
        mean, std: per channel, for values in [0, 1].

    Returns:
        (N, 3, S, S) float32 on the device of the crops, normalised, zero where there is no picture. On a CPU it depends
        on the crops alone, not on the number of threads.
    """
    device = crops[0].pixels.device
    std_tensor = torch.tensor(std)[:, None, None]
    gain = (1 / (255 * std_tensor)).to(device)
    offset = (-torch.tensor(mean)[:, None, None] / std_tensor).to(device)
    canvases = torch.zeros(len(crops), 3, canvas_size, canvas_size, device=device)
    for canvas, crop in zip(canvases, crops, strict=True):
        height, width = crop.size_hw
        rows, columns = (
            _grid_coordinates(*axis, device)
            for axis in zip(crop.size_hw, crop.start_yx, crop.step_yx, crop.pixels.shape[1:], strict=True)
        )
        grid = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=2)
        source = crop.pixels.float().mul_(gain).add_(offset)
        canvas[:, :height, :width] = F.grid_sample(
            source[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False
        )[0]
    return canvases


def visible(boxes: Tensor) -> Tensor:
    """(G, 4) canvas boxes -> (G,) bool: at least `MIN_BOX_SIDE` wide and high.

    Departure: the authors drop empty boxes only. Their box coder adds 1 to every width, which bounds the logarithm of a
    sliver's width; torchvision's does not, and one box of 0.001 pixels would outweigh a batch. COCO's own boxes without
    height or width go the same way.
    """
    return ((boxes[:, 2:] - boxes[:, :2]) >= MIN_BOX_SIDE).all(dim=1)


def scale_xyxy(stored_hw: tuple[int, int], size_hw: tuple[int, int]) -> Tensor:
    """(4,) float32 for a picture resized from `stored_hw` to `size_hw`: stored box * scale = resized box, and back."""
    return torch.tensor([size_hw[1] / stored_hw[1], size_hw[0] / stored_hw[0]] * 2)


def _fitted_size_hw(image: Tensor, side: int) -> tuple[int, int]:
    """Height and width, at least 1, when the longest side of `image` (3, H, W) becomes `side` pixels."""
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _crop(
    image: Tensor, size_hw: tuple[int, int], *, top_left: tuple[int, int], canvas_size: int, mirrored: bool
) -> Crop:
    """The part from `top_left` of `image` (3, H, W) resized to `size_hw` and then, where asked, mirrored."""
    shown, starts, steps, windows = [], [], [], []
    for stored, resized, first, backwards in zip(image.shape[-2:], size_hw, top_left, (False, mirrored), strict=True):
        count = min(resized - first, canvas_size)
        step = stored / resized
        if backwards:
            first, step = resized - 1 - first, -step
        start = (first + 0.5) * abs(step) - 0.5
        ends = sorted((start, start + (count - 1) * step))
        low, high = max(math.floor(ends[0]), 0), min(math.floor(ends[1]) + 1, stored - 1)  # bilinear reads both
        shown.append(count)
        starts.append(start - low)
        steps.append(step)
        windows.append(slice(low, high + 1))
    return Crop(image[:, windows[0], windows[1]], (shown[0], shown[1]), (starts[0], starts[1]), (steps[0], steps[1]))


def _grid_coordinates(count: int, start: float, step: float, pixels: int, device: torch.device) -> Tensor:
    """(count,) float32: start + i * step, from pixel indices to `grid_sample`'s -1 (first edge) to 1 (last edge)."""
    places = torch.arange(count, dtype=torch.float64, device=device)  # float32 would lose digits before the scaling
    return places.mul_(2 * step / pixels).add_((2 * start + 1) / pixels - 1).float()
