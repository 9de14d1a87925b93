"""Scenes of the embedded world, and which object owns each of their pixels.

Scene i of a split depends on the world's seed, the split and i alone: a longer world begins with the shorter one.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..params import Emoji
from .backgrounds import background
from .splits import base_names
from .sprites import OPAQUE, Pixels

SPLITS = ("train2017", "val2017")

EMPTY_SHARE = 0.02  # of scenes: no object at all
CROWD_SHARE = 0.06  # of the other scenes: one group of small pictures, annotated as one region
CROWD_MEMBERS = (6, 12)
CROWD_SIDE = (1 / 16, 1 / 10)  # of the scene's side, as are the two below
OBJECT_SIDE = (1 / 4.2, 1 / 2.5)
SMALL_SIDE, SMALL_SHARE = (1 / 8, 1 / 4), 0.08
DEALT_OBJECTS = 4  # of each scene: dealt from shuffled decks that hold every category, so that none is missing
BASE_CARDS = 2  # of each base category in a deck, one of the others: 3 of 4 objects are base, as in COCO
TAIL_RATIO = 4.0  # among the other objects the most frequent category is this many times as likely as the rarest

MAX_TURN = 12.0  # degrees
SATURATION, CONTRAST, BRIGHTNESS = (0.85, 1.15), (0.9, 1.1), (0.9, 1.1)
MAX_OUTSIDE = 0.12  # of an object's side that may lie beyond the scene's border
MIN_VISIBLE = 0.85  # of an object's own pixels
MIN_PIXELS = 16  # an object of fewer visible pixels cannot be told
PLACEMENT_TRIES = 20


@dataclass(frozen=True)
class SceneObject:
    """One object, or one crowd.

    Attributes:
        name: its category.
        crowd: several small pictures that nobody would outline one by one.
        drawn: pixels of its shape, also those beyond the scene's border.
        visible: pixels that it owns.
    """

    name: str
    crowd: bool
    drawn: int
    visible: int


@dataclass
class Scene:
    """A picture and who owns its pixels.

    Attributes:
        picture: (S, S, 3) RGB.
        owner: (S, S), 0 for background, k for objects[k - 1].
        objects: from back to front.
    """

    picture: Pixels
    owner: NDArray[np.int16]
    objects: list[SceneObject] = field(default_factory=list)

    def hidden_by(self, shape: NDArray[np.bool_], left: int, top: int) -> NDArray[np.int64]:
        """(1 + objects,) pixels that background and each object would lose to `shape` (h, w) at (left, top)."""
        there, part = self._overlap(shape.shape, left, top)
        return np.bincount(self.owner[there][shape[part]], minlength=1 + len(self.objects))

    def paste(self, piece: Pixels, left: int, top: int, owner: int) -> None:
        """Draw an RGBA piece; its opaque pixels go to `owner`."""
        there, part = self._overlap(piece.shape, left, top)
        piece = piece[part]
        behind = self.picture[there].astype(np.float32)
        alpha = piece[:, :, 3:] / np.float32(255)
        self.picture[there] = (behind + alpha * (piece[:, :, :3] - behind)).round().astype(np.uint8)
        self.owner[there][piece[:, :, 3] >= OPAQUE] = owner

    def _overlap(self, shape: tuple[int, ...], left: int, top: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where a piece at (left, top) lies in the scene, and which part of the piece that is."""
        size = len(self.owner)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + shape[1], size), min(top + shape[0], size)
        return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


class World:
    """The scenes of one seed.

    Args:
        emoji: sizes and seed.
        sprites: `load_sprites()`.
    """

    def __init__(self, emoji: Emoji, sprites: dict[str, list[Pixels]]) -> None:
        self.size = emoji.image_size
        self.max_objects = emoji.max_objects
        self.seed = emoji.seed
        self.sprites = sprites
        self.names = list(sprites)
        rank = np.random.default_rng(emoji.seed).permutation(len(self.names))
        weights = TAIL_RATIO ** (rank / (len(rank) - 1))
        self.deck = [name for name in self.names for _ in range(BASE_CARDS if name in base_names() else 1)]
        self.frequencies = weights / weights.sum()  # the same in both splits, as in COCO

    def scene(self, split: str, index: int) -> Scene:
        """Scene `index` (from 0) of a split: always the same."""
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        scene = Scene(background(rng, self.size), np.zeros((self.size, self.size), np.int16))
        if rng.random() < EMPTY_SHARE:
            return scene
        count = int(rng.integers(1, self.max_objects + 1))
        names = self._dealt(split, index)[:count]
        names += rng.choice(self.names, count - len(names), p=self.frequencies).tolist()
        if rng.random() < CROWD_SHARE:
            self._add_crowd(scene, rng, str(rng.choice(self.names)))
        for name in names:
            self._add_object(scene, rng, name)
        return scene

    def _dealt(self, split: str, index: int) -> list[str]:
        """The categories that a scene gets from the decks. One deck follows another, each shuffled anew."""
        names = []
        for position in range(index * DEALT_OBJECTS, (index + 1) * DEALT_OBJECTS):
            deck, card = divmod(position, len(self.deck))
            # The last number keeps decks apart from scenes, whose generators have three
            rng = np.random.default_rng([self.seed, SPLITS.index(split), deck, 1])
            names.append(self.deck[rng.permutation(len(self.deck))[card]])
        return names

    def _add_object(self, scene: Scene, rng: np.random.Generator, name: str) -> None:
        """Draw an object in front of the others, where all stay visible; leave it out if no such place is found."""
        low, high = SMALL_SIDE if rng.random() < SMALL_SHARE else OBJECT_SIDE
        piece = self._varied(rng, name, self.size * low * (high / low) ** rng.random())
        shape = piece[:, :, 3] >= OPAQUE
        drawn = int(shape.sum())
        height, width = shape.shape
        for _ in range(PLACEMENT_TRIES):
            left, top = self._place(rng, width), self._place(rng, height)
            hidden = scene.hidden_by(shape, left, top)
            after = [replace(o, visible=o.visible - int(n)) for o, n in zip(scene.objects, hidden[1:], strict=True)]
            after.append(SceneObject(name, False, drawn, visible=int(hidden.sum())))
            if all(o.visible >= max(MIN_VISIBLE * o.drawn, MIN_PIXELS) for o in after):
                scene.paste(piece, left, top, owner=len(after))
                scene.objects = after
                return

    def _place(self, rng: np.random.Generator, side: int) -> int:
        outside = MAX_OUTSIDE * side
        return round(rng.uniform(-outside, self.size - side + outside))

    def _add_crowd(self, scene: Scene, rng: np.random.Generator, name: str) -> None:
        """Draw a group of small pictures of one category as one crowd, the first object of its scene."""
        side = self.size * rng.uniform(*CROWD_SIDE)
        centre = self.size * rng.uniform(0.25, 0.75, 2)
        members = int(rng.integers(CROWD_MEMBERS[0], CROWD_MEMBERS[1] + 1))
        for offset in rng.normal(0, 1.3 * side, (members, 2)):
            piece = self._varied(rng, name, side * rng.uniform(0.8, 1.2))
            height, width = piece.shape[:2]
            left, top = np.clip(centre + offset, 0, [self.size - width, self.size - height]).astype(int).tolist()
            scene.paste(piece, left, top, owner=1)
        visible = int((scene.owner == 1).sum())
        scene.objects.append(SceneObject(name, True, visible, visible))

    def _varied(self, rng: np.random.Generator, name: str, side: float) -> Pixels:
        """RGBA of a category, its longer side `side` pixels before it is turned; flipped and recoloured by chance."""
        sprites = self.sprites[name]
        sprite = sprites[rng.integers(len(sprites))]
        scale = side / max(sprite.shape[:2])
        image = Image.fromarray(sprite[:, ::-1] if rng.random() < 0.5 else sprite)
        image = image.rotate(rng.uniform(-MAX_TURN, MAX_TURN), Image.Resampling.BICUBIC, expand=True)
        width, height = (max(round(length * scale), 1) for length in image.size)
        piece = np.array(image.resize((width, height), Image.Resampling.BICUBIC))

        saturation, contrast, brightness = (rng.uniform(*bounds) for bounds in (SATURATION, CONTRAST, BRIGHTNESS))
        colour = piece[:, :, :3].astype(np.float32)
        grey = colour.mean(axis=2, keepdims=True)
        colour = grey + saturation * (colour - grey)
        colour = brightness * (128 + contrast * (colour - 128))
        piece[:, :, :3] = np.clip(colour, 0, 255).astype(np.uint8)
        return piece
