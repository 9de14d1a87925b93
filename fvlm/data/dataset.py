"""Pictures and boxes of a COCO split, as the detector takes them."""

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from ..params import Train
from .order import generator_of, samples_of_step
from .transforms import Resized, resize_to_canvas, scale_jitter, visible

SHOWN_MISSING = 5  # missing files named in an error


class Sample(NamedTuple):
    """One training picture."""

    image: Tensor  # (3, S, S) float32 canvas
    boxes: Tensor  # (G, 4) float32 xyxy, canvas pixels
    labels: Tensor  # (G,) int64 class_index, 1..K


class ValidationSample(NamedTuple):
    """One picture to detect on."""

    image_id: int
    resized: Resized
    size_hw: tuple[int, int]  # of the stored picture, pixels


Batch = tuple[Tensor, list[tuple[Tensor, Tensor]]]  # (N, 3, S, S) and N targets (boxes, labels)


def read_picture(path: str | os.PathLike[str]) -> Tensor:
    """Decode a picture file to (3, H, W) uint8 RGB, whatever its mode (grey, palette, CMYK; alpha is dropped).

    The EXIF orientation is ignored: COCO's boxes and sizes are those of the stored pixels.

    Raises:
        InputError: the file is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path}: picture not found; run `python -m fvlm download`, or mend data.root") from None
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        # Pillow's plugins raise all of these for broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: expected a whole JPEG or PNG picture, but it cannot be decoded ({reason}); obtain it again"
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


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
        image, boxes = scale_jitter(
            stored,
            self.boxes[of_image],
            generator_of(self.train.seed, "picture", epoch, int(self.image_ids[index])),
            canvas_size=self.canvas_size,
            scale_range=self.train.scale_jitter,
            flip=self.train.flip,
            mean=self.mean,
            std=self.std,
        )
        kept = visible(boxes).nonzero()[:, 0][: self.train.max_boxes]
        return Sample(image, boxes[kept], self.labels[of_image][kept])


class _ErrorsAsItems(Dataset[Sample | InputError]):
    """Hand an InputError out as the item: a worker process would wrap it in a traceback of many lines."""

    def __init__(self, pictures: Dataset[Sample]) -> None:
        self.pictures = pictures

    def __getitem__(self, key: tuple[int, int]) -> Sample | InputError:
        try:
            return self.pictures[key]
        except InputError as error:
            return error


def _collate(items: list[Sample | InputError]) -> Batch | InputError:
    samples = []
    for item in items:
        if isinstance(item, InputError):
            return item
        samples.append(item)
    return torch.stack([s.image for s in samples]), [(s.boxes, s.labels) for s in samples]


def training_batches(
    pictures: Dataset[Sample], train: Train, *, after_step: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """The batches of steps `after_step` + 1 to `train.steps`, the same for every `train.workers`.

    Of `world_size` processes each gets its share of every batch; by rank and end to end they are the batch.

    Raises:
        InputError: a picture is missing, broken, or of another size than its annotations say.
    """
    image_count = len(pictures)  # type: ignore[arg-type]  # torch's Dataset declares no length
    share = train.batch_size // world_size
    own = slice(rank * share, (rank + 1) * share)
    samples = (  # made as they are needed: a long run has millions
        samples_of_step(step, image_count=image_count, batch_size=train.batch_size, seed=train.seed)[own]
        for step in range(after_step + 1, train.steps + 1)
    )
    loader = DataLoader(
        _ErrorsAsItems(pictures),
        batch_sampler=samples,
        num_workers=train.workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


class ValidationPictures(Dataset[ValidationSample]):
    """The pictures of a validation split by rising image id, at test-time size. Indices count from 0."""

    def __init__(
        self, split: dict[str, Any], image_dir: Path, *, canvas_size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.images = sorted(split["images"], key=lambda entry: entry["id"])
        self.image_dir = image_dir
        self.canvas_size = canvas_size
        self.mean, self.std = tuple(mean), tuple(std)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ValidationSample:
        entry = self.images[index]
        size_hw = (entry["height"], entry["width"])
        image = _read_entry(self.image_dir / entry["file_name"], size_hw)
        return ValidationSample(entry["id"], resize_to_canvas(image, self.canvas_size, self.mean, self.std), size_hw)
