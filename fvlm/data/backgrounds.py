"""What stands behind the objects of the embedded world: nothing that has a name."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .sprites import Pixels

GRAIN_SHARE = 0.7  # of backgrounds
MOST_GRAIN = 16  # grey levels either way
SPREAD = 40  # grey levels between a background's colours and their common base, either way: objects must stand out


def background(rng: np.random.Generator, size: int) -> Pixels:
    """(size, size, 3) of random colours: flat, gradient, blotches, stripes or discs, mostly with grain."""
    paint = _PAINTS[rng.integers(len(_PAINTS))]
    picture = paint(rng, size)
    if rng.random() < GRAIN_SHARE:
        level = int(rng.integers(1, MOST_GRAIN + 1))
        grain = rng.integers(-level, level + 1, (size, size, 1), dtype=np.int16)
        picture = np.clip(picture + grain, 0, 255).astype(np.uint8)
    return picture


def _flat(rng: np.random.Generator, size: int) -> Pixels:
    return np.tile(_colours(rng, 1), (size, size, 1))


def _gradient(rng: np.random.Generator, size: int) -> Pixels:
    start, end = _colours(rng, 2).astype(np.float32)
    along = _ramp(rng, size)
    along = (along - along.min()) / np.ptp(along)
    return (start + along[:, :, None] * (end - start)).astype(np.uint8)


def _blotches(rng: np.random.Generator, size: int) -> Pixels:
    cells = int(rng.choice([3, 5, 9, 17, 33]))
    spread = rng.uniform(10, SPREAD)
    coarse = _colours(rng, 1) + rng.uniform(-spread, spread, (cells, cells, 3))
    image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def _stripes(rng: np.random.Generator, size: int) -> Pixels:
    phase = _ramp(rng, size) * np.float32(rng.uniform(2, 16)) + np.float32(rng.random())
    first = phase - np.floor(phase) < rng.uniform(0.3, 0.7)
    return _colours(rng, 2)[first.astype(np.uint8)]


def _discs(rng: np.random.Generator, size: int) -> Pixels:
    colours = _colours(rng, int(rng.integers(4, 13))).tolist()
    image = Image.new("RGB", (size, size), tuple(colours[0]))
    draw = ImageDraw.Draw(image)
    for colour in colours[1:]:
        x, y, radius = size * rng.uniform([0, 0, 0.04], [1, 1, 0.3])
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(colour))
    return np.array(image)


_PAINTS: tuple[Callable[[np.random.Generator, int], Pixels], ...] = (_flat, _gradient, _blotches, _stripes, _discs)


def _colours(rng: np.random.Generator, count: int) -> Pixels:
    """(count, 3), any base colour and `count` neighbours of it."""
    base = rng.integers(0, 256, 3)
    return np.clip(base + rng.integers(-SPREAD, SPREAD + 1, (count, 3)), 0, 255).astype(np.uint8)


def _ramp(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """(size, size), rising by 1 over the length of a side, in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    axis = np.arange(size, dtype=np.float32) / np.float32(size)
    return np.float32(math.sin(angle)) * axis[:, None] + np.float32(math.cos(angle)) * axis[None, :]
