import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import make_coco

from fvlm import layout
from fvlm.errors import InputError
from fvlm.params import Data, Emoji, Params, load_params
from fvlm.stages import download

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji.yaml"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.chdir(tmp_path)
    return load_params(RECIPE)


@pytest.fixture
def params(recipe: Params, tiny_coco: Path) -> Params:
    """Params over the user's own folder."""
    return with_data(recipe, dataset="coco_folder", root=str(tiny_coco), emoji=None)


@pytest.fixture
def renderings(monkeypatch: pytest.MonkeyPatch) -> list[Emoji]:
    """A stand-in for the embedded world's renderer; the list holds what it was called with."""
    calls: list[Emoji] = []

    def render_dataset(emoji: Emoji, root: Path) -> None:
        calls.append(emoji)
        make_coco(root, emoji.train_images, emoji.val_images, (emoji.image_size, emoji.image_size), emoji.seed)

    module = ModuleType("fvlm.data.emoji")
    module.render_dataset = render_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fvlm.data.emoji", module)
    return calls


def with_data(params: Params, **changes: Any) -> Params:
    return dataclasses.replace(params, data=dataclasses.replace(params.data, **changes))


def with_emoji(params: Params, **changes: Any) -> Params:
    assert params.data.emoji is not None
    sizes = {"train_images": 9, "val_images": 8, "image_size": 64, **changes}
    return with_data(params, emoji=dataclasses.replace(params.data.emoji, **sizes))


def manifest_of(params: Params) -> Any:
    return json.loads(layout.manifest(params).read_text())


def findings(params: Params) -> list[str]:
    with pytest.raises(InputError) as error:
        download.run(params)
    assert not layout.manifest(params).exists()
    return str(error.value).splitlines()


def test_the_manifest_describes_both_parts_without_an_absolute_path(params, tiny_coco):
    download.run(params)
    manifest = manifest_of(params)
    assert manifest["dataset"] == "coco_folder"
    assert manifest["emoji"] is None
    assert {key: manifest["train"][key] for key in ("images", "annotations", "image_count", "annotation_count")} == {
        "images": "train2017",
        "annotations": "annotations/instances_train2017.json",
        "image_count": 12,
        "annotation_count": 20,
    }
    pictures = list((tiny_coco / "val2017").iterdir())
    assert manifest["val"]["image_count"] == len(pictures) == 8
    assert manifest["val"]["images_bytes"] == sum(picture.stat().st_size for picture in pictures)
    assert len(manifest["val"]["annotations_sha256"]) == len(manifest["val"]["images_sha256"]) == 64
    assert str(tiny_coco.parent) not in layout.manifest(params).read_text()


def test_a_folder_that_moved_gives_the_same_manifest(params, tiny_coco, tmp_path):
    download.run(params)
    before = layout.manifest(params).read_bytes()
    shutil.move(tiny_coco, tmp_path / "elsewhere")
    download.run(with_data(params, root=str(tmp_path / "elsewhere")))
    assert layout.manifest(params).read_bytes() == before


def test_train_and_val_may_be_the_same_files(params):
    same = with_data(params, val_images=params.data.train_images, val_annotations=params.data.train_annotations)
    download.run(same)
    assert manifest_of(same)["train"] == manifest_of(same)["val"]


def test_a_finding_in_files_that_are_train_and_val_at_once_is_named_once(params, tiny_coco):
    same = with_data(params, val_images=params.data.train_images, val_annotations=params.data.train_annotations)
    (tiny_coco / "train2017" / "000000000002.jpg").unlink()
    assert len(findings(same)) == 1


def test_an_intact_folder_is_only_checked_and_a_changed_picture_changes_the_manifest(params, tiny_coco):
    download.run(params)
    written = layout.manifest(params).stat().st_ino  # a written file is a new one
    download.run(params)
    assert layout.manifest(params).stat().st_ino == written
    before = manifest_of(params)
    picture = tiny_coco / "train2017" / "000000000001.jpg"
    picture.write_bytes(picture.read_bytes() + b"\0")
    download.run(params)
    after = manifest_of(params)
    assert after["train"]["images_sha256"] != before["train"]["images_sha256"]
    assert after["val"] == before["val"]


def test_missing_and_empty_pictures_of_both_parts_are_named_at_once(params, tiny_coco):
    (tiny_coco / "train2017" / "000000000002.jpg").unlink()
    (tiny_coco / "train2017" / "000000000003.jpg").write_bytes(b"")
    (tiny_coco / "val2017" / "000000100001.jpg").unlink()
    (tiny_coco / "val2017" / "000000100001.jpg").mkdir()
    lines = findings(params)
    assert len(lines) == 3
    assert "train2017: 000000000002.jpg: picture not found" in lines[0]
    assert "train2017: 000000000003.jpg: expected a picture, got an empty file" in lines[1]
    assert "val2017: 000000100001.jpg: expected a picture, got no file" in lines[2]


def test_bad_annotations_of_both_parts_are_named_at_once(params, tiny_coco):
    for part in ("train", "val"):
        (tiny_coco / "annotations" / f"instances_{part}2017.json").write_text('{"images": [')
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in findings(params)] == [
        "instances_train2017.json",
        "instances_val2017.json",
    ]


def test_a_folder_that_is_not_there_is_one_line(params, tiny_coco, tmp_path):
    (line,) = findings(with_data(params, root=str(tmp_path / "none")))
    assert "none: expected the folder of the pictures and annotations" in line
    assert "data.root" in line
    shutil.rmtree(tiny_coco / "val2017")
    (line,) = findings(params)
    assert "val2017: expected the folder of instances_val2017.json's pictures" in line
    (tiny_coco / "annotations" / "instances_val2017.json").unlink()
    (line,) = findings(params)
    assert "instances_val2017.json: annotation file not found" in line


def test_a_failed_check_leaves_the_old_manifest_as_it_was(params, tiny_coco):
    download.run(params)
    before = layout.manifest(params).read_bytes()
    (tiny_coco / "train2017" / "000000000002.jpg").unlink()
    with pytest.raises(InputError):
        download.run(params)
    assert layout.manifest(params).read_bytes() == before


def test_the_embedded_world_is_rendered_once(recipe, renderings):
    params = with_emoji(recipe)
    download.run(params)
    assert renderings == [params.data.emoji]
    assert params.data.emoji is not None
    recorded = {
        "train_images": 9,
        "val_images": 8,
        "image_size": 64,
        "max_objects": params.data.emoji.max_objects,
        "seed": 0,
    }
    assert manifest_of(params)["emoji"] == recorded
    written = layout.manifest(params).stat().st_ino
    download.run(params)
    assert len(renderings) == 1
    assert layout.manifest(params).stat().st_ino == written


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "train2017" / "000000000001.jpg").unlink(),
        lambda root: (root / "train2017" / "000000000001.jpg").write_bytes(b""),
        lambda root: flip_last_byte(root / "val2017" / "000000100001.jpg"),
        lambda root: (root / "annotations" / "instances_val2017.json").write_text("{}"),
        lambda root: (root / "manifest.json").unlink(),
        lambda root: (root / "manifest.json").write_text("no json"),
    ],
)
def test_a_damaged_embedded_world_is_rendered_again_to_the_same_manifest(recipe, renderings, damage):
    params = with_emoji(recipe)
    download.run(params)
    before = layout.manifest(params).read_bytes()
    damage(layout.data_root(params))
    download.run(params)
    assert len(renderings) == 2
    assert layout.manifest(params).read_bytes() == before


def test_other_sizes_of_the_embedded_world_are_rendered_anew(recipe, renderings):
    download.run(with_emoji(recipe))
    other = with_emoji(recipe, seed=1)
    download.run(other)
    assert len(renderings) == 2
    assert manifest_of(other)["emoji"]["seed"] == 1


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_real_pictures_pass(recipe, real_coco):
    data = Data(
        dataset="coco_folder",
        root=str(real_coco),
        val_images="train2017",
        val_annotations="annotations/instances_train2017.json",
    )
    params = dataclasses.replace(recipe, data=data)
    download.run(params)
    assert manifest_of(params)["val"]["image_count"] == 80
