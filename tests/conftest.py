"""What several test files share: a tiny world in COCO's layout, and the real one where a machine has it."""

import colorsys
import json
import os
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from small_model import write_folder

from fvlm import load_detector
from fvlm.data.coco import categories, category_records
from fvlm.data.splits import base_names, excluded_names, novel_names
from fvlm.predict.detector import Detector

# two test files run at a time: one thread each, and threads that wait sleep
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that two processes that take files in turn end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Stages and benchmarks set threads and determinism for good; two processes of two threads crawl."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)


# what the images of a part hold, in turn: every case that a split decides differently
SCENES = (
    ("base", "base"),
    ("base", "novel"),
    ("novel",),
    ("base", "excluded"),
    ("excluded",),
    ("base", "base crowd"),
    (),
    ("base", "novel", "excluded"),
)


def make_coco(
    root: Path,
    train_images: int = 12,
    val_images: int = 8,
    image_size: tuple[int, int] = (160, 120),
    seed: int = 0,
) -> Path:
    """Write pictures and instances in COCO's layout below `root` and return `root`.

    Image i of each part holds `SCENES[i % 8]`; one class has one colour throughout. The pictures are JPEGs with the
    noise and soft shading of photographs.

    Args:
        image_size: (width, height), pixels.
    """
    rng = np.random.default_rng(seed)
    id_of = {name: category_id for category_id, name in categories()}
    for part, count, first_id in (("train2017", train_images, 1), ("val2017", val_images, 100_001)):
        (root / part).mkdir(parents=True, exist_ok=True)
        names = {"base": cycle(base_names()), "novel": cycle(novel_names()), "excluded": cycle(excluded_names())}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(count):
            image_id, (width, height) = first_id + i, image_size
            picture = _background(rng, width, height)
            for content in SCENES[i % len(SCENES)]:
                group, *crowd = content.split()
                category_id = id_of[next(names[group])]
                box = _draw(rng, picture, category_id)
                annotations.append(
                    {
                        "id": 10 * first_id + len(annotations),
                        "image_id": image_id,
                        "category_id": category_id,
                        "bbox": [float(v) for v in box],
                        "area": float(box[2] * box[3]),
                        "iscrowd": len(crowd),
                        "segmentation": _crowd_mask(box, width, height) if crowd else [_corners(box)],
                    }
                )
            picture = picture.filter(ImageFilter.GaussianBlur(0.6))
            picture.save(root / part / f"{image_id:012d}.jpg", quality=92)
            images.append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": width, "height": height})
        coco = {
            "info": {"description": "made for the tests"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": category_records(),
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(coco), encoding="utf-8")
    return root


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    low, high = rng.uniform(40, 215, (2, 3))
    ramp = np.linspace(0, 1, width)[None, :, None] * np.linspace(0.3, 1, height)[:, None, None]
    pixels = low + (high - low) * ramp + rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw(rng: np.random.Generator, picture: Image.Image, category_id: int) -> tuple[int, int, int, int]:
    """Draws one object; returns its [x, y, width, height], whole pixels."""
    w, h = (int(side * rng.uniform(0.25, 0.5)) for side in picture.size)
    x, y = int(rng.integers(0, picture.width - w)), int(rng.integers(0, picture.height - h))
    red, green, blue = colorsys.hsv_to_rgb(category_id * 0.61803 % 1, 0.6 + 0.4 * (category_id % 2), 0.9)
    colour = (int(255 * red), int(255 * green), int(255 * blue))
    draw = ImageDraw.Draw(picture)
    if category_id % 3:
        draw.ellipse((x, y, x + w - 1, y + h - 1), fill=colour, outline="black")
    else:
        draw.rectangle((x, y, x + w - 1, y + h - 1), fill=colour, outline="white")
    return x, y, w, h


def _corners(box: tuple[int, int, int, int]) -> list[float]:
    x, y, w, h = (float(v) for v in box)
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def _crowd_mask(box: tuple[int, int, int, int], width: int, height: int) -> dict[str, Any]:
    """COCO's uncompressed run lengths: column by column, background first."""
    x, y, w, h = box
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = True
    flat = np.concatenate([[False], mask.flatten(order="F")])  # a run of length 0 where the mask begins at once
    starts = np.flatnonzero(np.diff(flat)).tolist()
    return {"size": [height, width], "counts": np.diff([0, *starts, mask.size]).tolist()}


@pytest.fixture
def tiny_coco(tmp_path: Path) -> Path:
    """A folder in COCO's layout with 12 training and 8 validation pictures (see `make_coco`)."""
    return make_coco(tmp_path / "tiny_coco")


def real_pictures() -> Path | None:
    """The folder of 80 real pictures of train2017 with their annotations, where this machine has it."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "coco-tiny"
    folder = Path(os.environ.get("FVLM_COCO_TINY", default))
    return folder if (folder / "annotations" / "instances_train2017.json").is_file() else None


@pytest.fixture(scope="session")
def real_coco() -> Path:
    """`real_pictures()`; skipped where there are none."""
    folder = real_pictures()
    if folder is None:
        pytest.skip("no real COCO pictures here; set FVLM_COCO_TINY to a folder that has some")
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tiny random detector, to be read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("pipeline"))
        return write_folder().resolve()


@pytest.fixture(scope="module")
def detector(model_folder: Path) -> Detector:
    """The detector of `model_folder`, anew for each file: it remembers the names that it has embedded."""
    return load_detector(model_folder)
