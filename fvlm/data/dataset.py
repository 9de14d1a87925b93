"""Pictures and boxes of a COCO split, one by one: decoded, checked, cropped; `fvlm.data.loading` makes batches."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..params import Train
from .order import generator_of
from .transforms import Crop, fit, scale_jitter, visible

SHOWN_MISSING = 5  # missing files named in an error


class Sample(NamedTuple):
    """One training picture."""

    crop: Crop
    boxes: Tensor  # (G, 4) float32 xyxy, canvas pixels
    labels: Tensor  # (G,) int64 class_index, 1..K


class ValidationSample(NamedTuple):
    """One picture to detect on."""

    image_id: int
    crop: Crop
    stored_hw: tuple[int, int]  # size of the stored picture, pixels


def read_picture(path: str | os.PathLike[str]) -> Tensor:
    """Decode a picture file to (3, H, W) uint8 RGB, whatever its mode (grey, palette, CMYK; alpha is dropped).

    The EXIF orientation is ignored: COCO's boxes and sizes are those of the stored pixels.

    Raises:
        InputError: the file is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))  # convert() always copies
    except FileNotFoundError:
        raise InputError(f"{path}: picture not found; run `python -m fvlm download`, or mend data.root") from None
    except Exception as error:  # decoders raise anything at all on bytes that are not what they pass for
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: expected a whole JPEG or PNG picture, but it cannot be decoded ({reason}); obtain it again"
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)


def check_pictures_exist(split: dict[str, Any], image_dir: Path) -> None:
    """Raise InputError that names the first few pictures of `split` that `image_dir` lacks."""
    missing = [entry["file_name"] for entry in split["images"] if not (image_dir / entry["file_name"]).is_file()]
    if missing:
        shown = ", ".join(missing[:SHOWN_MISSING]) + (", ..." if len(missing) > SHOWN_MISSING else "")
        raise InputError(
            f"{image_dir}: {len(missing)} of {len(split['images'])} pictures not found ({shown}); "
            "run `python -m fvlm download`, or mend data.root"
        )


def _read_entry(path: Path, expected_hw: Sequence[int]) -> Tensor:
    image = read_picture(path)
    if image.shape[1:] != tuple(expected_hw):
        raise InputError(
            f"{path}: the annotations say {expected_hw[1]} x {expected_hw[0]} pixels, the picture has "
            f"{image.shape[2]} x {image.shape[1]}; their boxes would not fit, obtain matching files"
        )
    return image


class TrainingPictures(Dataset[Sample]):
    """The pictures of a training split, each drawn afresh in every epoch.

    An item depends on the split, the seed, the epoch and the index only. Boxes are kept as flat tensors: loader workers
    then share their memory, which they would not with a million Python dicts.

    Args:
        split: COCO instances dict; its categories, by rising id, are the classes 1..K.
        image_dir: the folder that the split's `file_name`s are relative to.
        train: scale_jitter, flip, max_boxes and seed are used.
        canvas_size: S, pixels.
        mean, std: the VLM's normalisation, for values in [0, 1].

    Raises:
        InputError: the split holds no picture.
    """

    def __init__(
        self,
        split: dict[str, Any],
        image_dir: Path,
        train: Train,
        *,
        canvas_size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        if not split["images"]:
            raise InputError("the training split holds no picture; check the annotations and splits.keep_empty")
        self.category_ids = sorted(category["id"] for category in split["categories"])
        self.image_dir = image_dir
        self.train = train
        self.canvas_size = canvas_size
        self.mean, self.std = tuple(mean), tuple(std)

        images = sorted(split["images"], key=lambda entry: entry["id"])
        self.file_names = np.array([entry["file_name"] for entry in images])
        self.image_ids = torch.tensor([entry["id"] for entry in images])
        self.sizes_hw = torch.tensor([(entry["height"], entry["width"]) for entry in images])

        place_of = {entry["id"]: place for place, entry in enumerate(images)}
        class_index_of = {category_id: i for i, category_id in enumerate(self.category_ids, start=1)}
        annotations = sorted(
            (a for a in split["annotations"] if not a.get("iscrowd", 0)),  # a crowd box is around many objects
            key=lambda a: place_of[a["image_id"]],
        )
        xywh = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        self.boxes = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], dim=1)
        self.labels = torch.tensor([class_index_of[a["category_id"]] for a in annotations], dtype=torch.int64)
        counts = torch.zeros(len(images), dtype=torch.int64)
        for annotation in annotations:
            counts[place_of[annotation["image_id"]]] += 1
        self.offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """`key` is (epoch, index). At most `train.max_boxes` boxes, the first in the file's order."""
        epoch, index = key
        stored = _read_entry(self.image_dir / str(self.file_names[index]), self.sizes_hw[index].tolist())
        of_image = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        crop, boxes = scale_jitter(
            stored,
            self.boxes[of_image],
            generator_of(self.train.seed, "picture", epoch, int(self.image_ids[index])),
            canvas_size=self.canvas_size,
            scale_range=self.train.scale_jitter,
            flip=self.train.flip,
        )
        kept = visible(boxes).nonzero()[:, 0][: self.train.max_boxes]
        return Sample(crop, boxes[kept], self.labels[of_image][kept])


class ValidationPictures(Dataset[ValidationSample]):
    """The pictures of a validation split by rising image id, at test-time size. Indices count from 0."""

    def __init__(
        self, split: dict[str, Any], image_dir: Path, *, canvas_size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        images = sorted(split["images"], key=lambda entry: entry["id"])
        self.file_names = np.array([entry["file_name"] for entry in images])
        self.image_ids = torch.tensor([entry["id"] for entry in images])
        self.sizes_hw = torch.tensor([(entry["height"], entry["width"]) for entry in images])
        self.image_dir = image_dir
        self.canvas_size = canvas_size
        self.mean, self.std = tuple(mean), tuple(std)

    def __len__(self) -> int:
        return len(self.file_names)

    def __getitem__(self, index: int) -> ValidationSample:
        height, width = self.sizes_hw[index].tolist()
        image = _read_entry(self.image_dir / str(self.file_names[index]), (height, width))
        return ValidationSample(int(self.image_ids[index]), fit(image, self.canvas_size), (height, width))
