"""Validation pictures with ground truth and detections drawn: novel classes in another colour than base classes."""

import functools
import io
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .plots import COLOURS

Group = Literal["base", "novel"]
XYXY = tuple[float, float, float, float]

PANEL_SIDE = 448  # longest side of a drawn picture, pixels: small pictures are enlarged so that labels can be read
GAP = 12
FONT_SIZE = 14
STROKE_WIDTH = {"base": 2, "novel": 4}  # tells the groups apart in grey print, too


@dataclass(frozen=True)
class Box:
    """A box to draw: original pixels, xyxy."""

    xyxy: XYXY
    name: str
    group: Group
    score: float = 1.0


def choose_pictures(annotations: Iterable[Mapping[str, Any]], novel_ids: Collection[int], count: int) -> list[int]:
    """Ids of `count` pictures, or of all that have an annotation where these are fewer.

    They are chosen by their annotations, never by a score: each next one shows the most novel classes that none before
    it shows (ties: more novel classes, then the smaller image id); when all are shown, the count starts again.

    Args:
        annotations: of val_generalized.json; crowds do not count.
        novel_ids: category ids of the novel classes.
    """
    shown_by: dict[int, set[int]] = {}
    for annotation in annotations:
        novel = shown_by.setdefault(annotation["image_id"], set())
        if annotation["category_id"] in novel_ids and not annotation.get("iscrowd"):
            novel.add(annotation["category_id"])
    chosen: list[int] = []
    covered: set[int] = set()
    while len(chosen) < min(count, len(shown_by)):
        left = [image_id for image_id in sorted(shown_by) if image_id not in chosen]
        if not any(shown_by[image_id] - covered for image_id in left):
            covered = set()
        best = max(left, key=lambda image_id: (len(shown_by[image_id] - covered), len(shown_by[image_id]), -image_id))
        chosen.append(best)
        covered |= shown_by[best]
    return chosen


def boxes_by_image(
    records: Iterable[Mapping[str, Any]], classes: Mapping[int, tuple[str, Group]], *, score_threshold: float = 0.0
) -> dict[int, list[Box]]:
    """COCO annotations or results as boxes by image id, the best score first.

    Args:
        records: with image_id, category_id, bbox (xywh) and, for results, score.
        classes: name and group for each category id.
    """
    boxes: dict[int, list[Box]] = defaultdict(list)
    for record in records:
        score = record.get("score", 1.0)
        if score >= score_threshold:
            x, y, width, height = record["bbox"]
            name, group = classes[record["category_id"]]
            boxes[record["image_id"]].append(Box((x, y, x + width, y + height), name, group, score))
    return {image_id: sorted(found, key=lambda box: -box.score) for image_id, found in boxes.items()}


def draw(picture: np.ndarray, truth: Sequence[Box], detections: Sequence[Box]) -> Image.Image:
    """The picture, scaled to PANEL_SIDE, with the truth dashed and the detections drawn and labelled.

    Args:
        picture: (H, W, 3) uint8 RGB.
        detections: the best score first; the best is drawn last, on top.
    """
    height, width = picture.shape[:2]
    scale = PANEL_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(image)
    for box in truth:
        _dashed(canvas, _scaled(box.xyxy, scale, size))
    for box in reversed(detections):
        canvas.rectangle(_scaled(box.xyxy, scale, size), outline=COLOURS[box.group], width=STROKE_WIDTH[box.group])
    taken: list[XYXY] = []
    for box in detections:
        taken.append(_label(canvas, box, _scaled(box.xyxy, scale, size), size, taken))
    return image


def label_places(labels: Sequence[tuple[str, XYXY]], size: tuple[int, int]) -> list[XYXY]:
    """For each text and its box the place of the text, which hides the least of the labels before it.

    Args:
        labels: texts and boxes, in pixels of the drawn picture.
        size: the drawn picture's width and height.
    """
    taken: list[XYXY] = []
    for text, xyxy in labels:
        taken.append(_place(text, xyxy, size, taken))
    return taken


def _scaled(xyxy: XYXY, scale: float, size: tuple[int, int]) -> XYXY:
    """The box in panel pixels, kept inside the panel and at least a pixel wide, whatever the detector said."""
    x0, x1 = (min(max(x * scale, 0), size[0] - 1) for x in xyxy[::2])
    y0, y1 = (min(max(y * scale, 0), size[1] - 1) for y in xyxy[1::2])
    return x0, y0, max(x0, x1), max(y0, y1)


def _dashed(canvas: ImageDraw.ImageDraw, xyxy: XYXY, dash: int = 6) -> None:
    """A thin dashed frame, white on black, so that it can be seen on any ground."""
    x0, y0, x1, y1 = xyxy
    canvas.rectangle(xyxy, outline="black", width=1)
    for start in range(0, int(x1 - x0) + 1, 2 * dash):
        for y in (y0, y1):
            canvas.line([(x0 + start, y), (min(x0 + start + dash, x1), y)], fill="white")
    for start in range(0, int(y1 - y0) + 1, 2 * dash):
        for x in (x0, x1):
            canvas.line([(x, y0 + start), (x, min(y0 + start + dash, y1))], fill="white")


def _label(canvas: ImageDraw.ImageDraw, box: Box, xyxy: XYXY, size: tuple[int, int], taken: Sequence[XYXY]) -> XYXY:
    """Write the class and score at the box where they hide the least of earlier labels; returns the place taken."""
    text = f"{box.name} {box.score:.2f}"
    place = _place(text, xyxy, size, taken)
    canvas.rectangle(place, fill=COLOURS[box.group])
    ink = "white" if box.group == "base" else "black"  # contrast 5.2 and 5.4 to the two grounds
    middle = (place[1] + place[3]) / 2
    canvas.text((place[0] + 3, middle), text, fill=ink, font=_font(FONT_SIZE), anchor="lm")
    return place


def _place(text: str, xyxy: XYXY, size: tuple[int, int], taken: Sequence[XYXY]) -> XYXY:
    width, height = _font(FONT_SIZE).getlength(text) + 6, FONT_SIZE + 4
    x0, y0, x1, y1 = xyxy
    places: list[XYXY] = []
    for y in (y0 - height, y0, y1, y1 - height, (y0 + y1 - height) / 2, y0 - 2 * height, y1 + height):
        for x in (x0, x1 - width, (x0 + x1 - width) / 2):
            inside_x = min(max(x, 0), max(size[0] - width, 0))
            inside_y = min(max(y, 0), max(size[1] - height, 0))
            places.append((inside_x, inside_y, inside_x + width, inside_y + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))  # the first of equals


def _overlap(a: XYXY, b: XYXY) -> float:
    """Area that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: the same letters on every machine."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


@dataclass(frozen=True)
class Comparison:
    """One picture, drawn with the fused and with the detector-only detections."""

    image_id: int
    fused: Image.Image
    detector_only: Image.Image


def sheet(comparisons: Sequence[Comparison], *, title: str) -> Image.Image:
    """All pictures on one sheet, two to a row, fused beside detector-only, with a legend; a note if there is none."""
    across = min(2, max(1, len(comparisons)))
    rows = [comparisons[start : start + across] for start in range(0, len(comparisons), across)]
    heights = [22 + max(panel.height for c in row for panel in (c.fused, c.detector_only)) + GAP for row in rows]
    width = GAP + across * (2 * (PANEL_SIDE + GAP) + GAP) - GAP
    head = 118
    image = Image.new("RGB", (width, head + (sum(heights) or 40)), "white")
    canvas = ImageDraw.Draw(image)
    canvas.text((GAP, 14), title, fill="black", font=_font(22))
    _legend(canvas, GAP, 52)
    rule = "Pictures are chosen by their annotations, never by a score: as many novel classes as possible."
    canvas.text((GAP, 84), rule, fill="#505050", font=_font(15))
    if not comparisons:
        canvas.text((GAP, head), "No picture was asked for: report.pictures is 0.", fill="black", font=_font(18))
    y = head
    for row, height in zip(rows, heights, strict=True):
        x = GAP
        for comparison in row:
            words = f"image {comparison.image_id}, fused", "detector only"
            for text, panel in zip(words, (comparison.fused, comparison.detector_only), strict=True):
                canvas.text((x, y), text, fill="black", font=_font(15))
                image.paste(panel, (x, y + 22))
                x += PANEL_SIDE + GAP
            x += GAP
        y += height
    return image


def _legend(canvas: ImageDraw.ImageDraw, x: float, y: float) -> None:
    """What the three kinds of frames mean."""
    entries: tuple[tuple[str, Group | None], ...] = (
        ("detected, novel class", "novel"),
        ("detected, base class", "base"),
        ("ground truth (under the detections)", None),
    )
    for words, group in entries:
        swatch = (x, y, x + 34, y + 20)
        if group:
            canvas.rectangle(swatch, outline=COLOURS[group], width=STROKE_WIDTH[group])
        else:
            _dashed(canvas, swatch)
        canvas.text((x + 42, y + 10), words, fill="black", font=_font(15), anchor="lm")
        x += 42 + canvas.textlength(words, font=_font(15)) + 28


def encode(image: Image.Image, format: Literal["PNG", "WEBP"]) -> bytes:
    """The image file's bytes: PNG without loss, WebP small."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"optimize": True} if format == "PNG" else {"quality": 80, "method": 4}
    image.save(buffer, format, **options)
    return buffer.getvalue()
