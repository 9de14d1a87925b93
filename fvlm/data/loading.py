"""Batches of pictures for training and detection, loaded by processes of their own.

Loader processes read, decode and crop; the process that trains or detects draws the canvases, on its device. Between
them go the crops as stored, uint8, packed into a few flat tensors:

- A canvas of 1024 pixels has 12.6 MB in float32; the part of a COCO picture that fills it has 1.2 MB at most. Each
  loader process keeps two batches in shared memory: of 64 pictures, under 160 MB, where canvases would take 1.6 GB.
- Each tensor that comes from a loader process keeps a file descriptor open in the receiving one, and many systems allow
  1,024: five for a batch, whatever its size, where a tensor for each picture and its boxes would be hundreds.

A batch is a function of the split, the seed and its step alone. Neither the number of loader processes nor that of
training processes changes a bit of it on a CPU. One loader serves the whole run, so that its processes live as long.

Measured by benchmarks/input_pipeline.py, which also has the alternatives that were tried.
"""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from ..params import Detect, Train
from .dataset import Sample, TrainingPictures, ValidationPictures, ValidationSample
from .order import samples_of_step
from .transforms import Crop, render

Packed = TypeVar("Packed")
Batch = tuple[Tensor, list[tuple[Tensor, Tensor]]]  # (N, 3, S, S) canvases and N targets (boxes, labels)


class ValidationBatch(NamedTuple):
    """N pictures to detect on."""

    images: Tensor  # (N, 3, S, S) float32 canvases
    image_ids: list[int]
    sizes_hw: list[tuple[int, int]]  # of the pictures on their canvases, pixels
    stored_hw: list[tuple[int, int]]  # of the stored pictures, pixels


class PackedCrops(NamedTuple):
    """Crops as two tensors, whatever their number and sizes."""

    pixels: Tensor  # (sum of h * w * 3,) uint8: row by row, a pixel's colours side by side as decoders give them
    layout: Tensor  # (N, 8) float64, on the CPU: h and w of the pixels, then Crop's size_hw, start_yx and step_yx


class PackedSamples(NamedTuple):
    """N training pictures, in five tensors."""

    crops: PackedCrops
    boxes: Tensor  # (sum of G, 4)
    labels: Tensor  # (sum of G,)
    counts: Tensor  # (N,) int64: G of each picture


class _PackedValidation(NamedTuple):
    crops: PackedCrops
    image_ids: list[int]
    stored_hw: list[tuple[int, int]]


def training_batches(
    pictures: TrainingPictures,
    train: Train,
    *,
    after_step: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """The batches of steps `after_step` + 1 to `train.steps` on `device`, the same for every `train.workers`.

    Of each global batch of `train.batch_size`, process `rank` of `world_size` gets its contiguous share: together the
    processes see what one process alone would.

    Raises:
        InputError: a picture is missing, broken, or of another size than its annotations say; the processes cannot
            share a batch evenly; a loader process was killed.
    """
    for packed in packed_training_batches(
        pictures, train, after_step=after_step, device=device, rank=rank, world_size=world_size
    ):
        crops = unpack_crops(packed.crops, device)
        images = render(crops, pictures.canvas_size, pictures.mean, pictures.std)
        boxes, labels = (tensor.to(device, non_blocking=True) for tensor in (packed.boxes, packed.labels))
        counts = packed.counts.tolist()
        yield images, list(zip(boxes.split(counts), labels.split(counts), strict=True))


def packed_training_batches(
    pictures: TrainingPictures, train: Train, *, after_step: int, device: torch.device, rank: int, world_size: int
) -> Iterator[PackedSamples]:
    """What `training_batches` draws from, still on the CPU: all that loader processes do."""
    if train.batch_size % world_size:
        raise InputError(
            f"params.yaml: train.batch_size: expected a multiple of the {world_size} processes that share a batch, "
            f"got {train.batch_size}"
        )
    share = train.batch_size // world_size
    samples = (  # made as they are needed: a long run has millions
        samples_of_step(step, image_count=len(pictures), batch_size=train.batch_size, seed=train.seed)[
            rank * share : (rank + 1) * share
        ]
        for step in range(after_step + 1, train.steps + 1)
    )
    return _loaded(pictures, samples, _pack_samples, device, train.workers, "train.workers")


def validation_batches(
    pictures: ValidationPictures, detect: Detect, *, device: torch.device
) -> Iterator[ValidationBatch]:
    """All pictures by rising id, `detect.batch_size` at a time, the same for every `detect.workers`.

    Raises:
        InputError: as `training_batches`.
    """
    places = list(range(len(pictures)))
    batches = (places[first : first + detect.batch_size] for first in places[:: detect.batch_size])
    for packed in _loaded(pictures, batches, _pack_validation, device, detect.workers, "detect.workers"):
        crops = unpack_crops(packed.crops, device)
        images = render(crops, pictures.canvas_size, pictures.mean, pictures.std)
        yield ValidationBatch(images, packed.image_ids, [crop.size_hw for crop in crops], packed.stored_hw)


def pack_crops(crops: Sequence[Crop]) -> PackedCrops:
    """For the way from a loader process: see `PackedCrops`."""
    layout = [(*crop.pixels.shape[1:], *crop.size_hw, *crop.start_yx, *crop.step_yx) for crop in crops]
    pixels = torch.cat([crop.pixels.permute(1, 2, 0).reshape(-1) for crop in crops])
    return PackedCrops(pixels, torch.tensor(layout, dtype=torch.float64))


def unpack_crops(packed: PackedCrops, device: torch.device) -> list[Crop]:
    """What `pack_crops` was given, with the pixels on `device`: one transfer for all."""
    layout = packed.layout.tolist()
    sizes = [int(height) * int(width) * 3 for height, width, *_ in layout]
    crops = []
    for pixels, (height, width, *rest) in zip(
        packed.pixels.to(device, non_blocking=True).split(sizes), layout, strict=True
    ):
        shown_height, shown_width, start_y, start_x, step_y, step_x = rest
        crops.append(
            Crop(
                pixels.view(int(height), int(width), 3).permute(2, 0, 1),
                (int(shown_height), int(shown_width)),
                (start_y, start_x),
                (step_y, step_x),
            )
        )
    return crops


def _pack_samples(samples: list[Sample]) -> PackedSamples:
    return PackedSamples(
        pack_crops([sample.crop for sample in samples]),
        torch.cat([sample.boxes for sample in samples]),
        torch.cat([sample.labels for sample in samples]),
        torch.tensor([len(sample.labels) for sample in samples]),
    )


def _pack_validation(samples: list[ValidationSample]) -> _PackedValidation:
    return _PackedValidation(
        pack_crops([sample.crop for sample in samples]),
        [sample.image_id for sample in samples],
        [sample.stored_hw for sample in samples],
    )


class _ErrorsAsItems(Dataset[Any]):
    """Hand an InputError out as the item: a loader process would wrap it in a traceback of many lines."""

    def __init__(self, pictures: Dataset[Any]) -> None:
        self.pictures = pictures

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.pictures[key]
        except InputError as error:
            return error


class _Collate:
    """`pack` of a batch's items, or the first InputError among them."""

    def __init__(self, pack: Callable[[list[Any]], Any]) -> None:
        self.pack = pack

    def __call__(self, items: list[Any]) -> Any:
        errors = [item for item in items if isinstance(item, InputError)]
        return errors[0] if errors else self.pack(items)


def _loaded(
    pictures: Dataset[Any],
    batches: Iterable[list[Any]],
    pack: Callable[[list[Any]], Packed],
    device: torch.device,
    workers: int,
    workers_param: str,
) -> Iterator[Packed]:
    """The packed items of each of `batches`, in that order, loaded by `workers` processes (0: by this one).

    Each process loads whole batches, two ahead of the one that is used. For a CUDA device they come in pinned memory.
    """
    loader = DataLoader(
        _ErrorsAsItems(pictures),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_Collate(pack),
        pin_memory=device.type == "cuda",
        worker_init_fn=_leave_interrupts_to_the_parent,
    )
    try:
        for batch in loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch
    except RuntimeError as error:
        said = str(error).strip().splitlines()[-1]
        if "DataLoader worker (pid" not in said and "shared memory" not in said:
            raise  # a mistake of ours in a loader process, with its traceback
        raise InputError(
            f"a process that loads pictures ended before its time ({said}); "
            f"it needs memory, and space in /dev/shm, for a few batches: free some, or lower {workers_param}"
        ) from None


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; each loader process would print a traceback before it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
