"""A picture with what was found on it: a frame and a label for each box, a colour for each name."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .detections import Detections

SMALLEST_SIDE = 640  # longest side of a drawn picture at least, pixels: labels on smaller ones would hide everything
MOST_LETTERS = 40  # of a name in a label
# Okabe and Ito's colours, which people who are blind to some colours can tell apart, less black and with grey
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999")
DARK = {"#d55e00", "#0072b2", "#009e73"}  # grounds on which white letters are easier to read than black ones
Place = tuple[float, float, float, float]


def draw(pixels: Tensor, detections: Detections) -> Image.Image:
    """The picture, enlarged if it is small, with its boxes and labels; the best box is drawn last, on top.

    Args:
        pixels: (3, H, W) uint8 RGB, of which `detections` are.
    """
    height, width = detections.size_hw
    scale = max(1.0, SMALLEST_SIDE / max(height, width))
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if scale > 1:
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(image)
    unit = math.sqrt(image.width * image.height) / SMALLEST_SIDE  # lines and letters grow with the picture
    stroke, font = max(2, round(2.5 * unit)), _font(max(12, round(14 * unit)))
    frames = [_inside(box, scale, image.size) for box in detections.boxes.tolist()]
    colours = [COLOURS[place % len(COLOURS)] for place in detections.classes.tolist()]
    for frame, colour in reversed(list(zip(frames, colours, strict=True))):
        canvas.rectangle(frame, outline=colour, width=stroke)
    taken: list[Place] = []
    scores, places = detections.scores.tolist(), detections.classes.tolist()
    for frame, colour, name, place, score in zip(frames, colours, detections.names, places, scores, strict=True):
        text = f"{_written(name, place)} {score:.2f}"
        taken.append(_label(canvas, frame, text, colour, font, image.size, taken))
    return image


def _inside(xyxy: Sequence[float], scale: float, size: tuple[int, int]) -> Place:
    """The box on the drawn picture, kept within it and at least a pixel wide."""
    x0, x1 = (min(max(x * scale, 0), size[0] - 1) for x in xyxy[::2])
    y0, y1 = (min(max(y * scale, 0), size[1] - 1) for y in xyxy[1::2])
    return x0, y0, max(x0, x1), max(y0, y1)


def _written(name: str, place: int) -> str:
    """The name as the font can write it, shortened; a name in letters that it lacks by its number, counted from 1."""
    if not {ord(letter) for letter in name} <= _letters():
        return f"#{place + 1}"
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


def _label(
    canvas: ImageDraw.ImageDraw,
    frame: Place,
    text: str,
    colour: str,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: Sequence[Place],
) -> Place:
    """Write `text` at the frame where it hides the least of earlier labels. Returns the place taken."""
    pad = round(font.size / 4)
    width, height = canvas.textlength(text, font=font) + 2 * pad, font.size + 2 * pad
    x0, y0, x1, y1 = frame
    places: list[Place] = []
    for y in (y0 - height, y0, y1 - height, y1, (y0 + y1 - height) / 2):
        for x in (x0, x1 - width, x1):
            left = min(max(x, 0), max(size[0] - width, 0))
            top = min(max(y, 0), max(size[1] - height, 0))
            places.append((left, top, left + width, top + height))
    place = min(places, key=lambda candidate: sum(_overlap(candidate, other) for other in taken))  # the first of equals
    canvas.rectangle(place, fill=colour)
    ink = "white" if colour in DARK else "black"
    canvas.text((place[0] + pad, place[1] + height / 2), text, fill=ink, font=font, anchor="lm")
    return place


def _overlap(a: Place, b: Place) -> float:
    """Area that two places share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _font_file() -> str:
    """DejaVu Sans, which comes with matplotlib: the same letters on every machine."""
    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_file(), size)


@functools.cache
def _letters() -> frozenset[int]:
    return frozenset(FT2Font(_font_file()).get_charmap())
