"""Pictures to begin with: validation scenes of the embedded world, drawn when they are asked for."""

import functools
import io
from typing import NamedTuple

from PIL import Image

from ..data.emoji import JPEG_QUALITY
from ..data.scenes import World
from ..data.sprites import load_sprites
from ..params import Emoji

# The default recipe's world (recipes/emoji.yaml), so that no model of it was trained on these scenes. They hold
# classes with and without boxes in training, and no crowd.
WORLD = Emoji(train_images=1200, val_images=400, image_size=256, max_objects=4, seed=0)
SCENES = (124, 141, 129, 57, 4, 16)
CREDIT = (
    "The example scenes are made of Twemoji graphics, copyright Twitter, Inc and other contributors, licensed under "
    "CC-BY 4.0 (creativecommons.org/licenses/by/4.0), scaled, turned, mirrored and recoloured."
)


class Example(NamedTuple):
    """A picture as a JPEG file, and what is on it."""

    jpeg: bytes
    names: tuple[str, ...]


@functools.cache
def examples() -> tuple[Example, ...]:
    """One for each of `SCENES`; seconds the first time."""
    world = World(WORLD, load_sprites())
    return tuple(_example(world, index) for index in SCENES)


def _example(world: World, index: int) -> Example:
    scene = world.scene("val2017", index)
    file = io.BytesIO()
    Image.fromarray(scene.picture).save(file, "JPEG", quality=JPEG_QUALITY)
    return Example(file.getvalue(), tuple(dict.fromkeys(thing.name for thing in scene.objects)))
