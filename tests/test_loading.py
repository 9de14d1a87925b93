import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fvlm.data.dataset import TrainingPictures, ValidationPictures
from fvlm.data.loading import (
    _loaded,
    _pack_samples,
    _pack_validation,
    pack_crops,
    training_batches,
    unpack_crops,
    validation_batches,
)
from fvlm.data.order import samples_of_step
from fvlm.data.transforms import render
from fvlm.errors import InputError
from fvlm.params import load_params

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PARAMS = load_params(Path(__file__).resolve().parents[1] / "recipes" / "emoji.yaml")
TRAIN = dataclasses.replace(
    PARAMS.train, workers=0, batch_size=4, steps=5, scale_jitter=(0.5, 2.0), flip=0.5, max_boxes=100, seed=0
)
DETECT = dataclasses.replace(PARAMS.detect, workers=0, batch_size=2)
CPU = torch.device("cpu")


@pytest.fixture
def split(tmp_path):
    """Five pictures of several sizes with 0 to 4 boxes."""
    images: list[dict] = []
    annotations: list[dict] = []
    for image_id, (height, width) in {10: (32, 24), 20: (32, 32), 30: (24, 32), 40: (50, 70), 50: (9, 64)}.items():
        name = f"{image_id:012d}.png"
        pixels = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for i in range(image_id // 10 - 1):
            bbox = [1.0 * i, 0.0, width - 5.0, height - 2.0]
            annotations.append({"id": len(annotations), "image_id": image_id, "category_id": 17 + i % 2, "bbox": bbox})
    return {"images": images, "annotations": annotations, "categories": [{"id": 17}, {"id": 18}]}


@pytest.fixture
def pictures(split, tmp_path):
    return TrainingPictures(split, tmp_path, TRAIN, canvas_size=32, mean=MEAN, std=STD)


@pytest.fixture
def validation(split, tmp_path):
    return ValidationPictures(split, tmp_path, canvas_size=32, mean=MEAN, std=STD)


def batches(pictures, *, after_step=0, rank=0, world_size=1, **changes):
    train = dataclasses.replace(TRAIN, **changes)
    return list(training_batches(pictures, train, after_step=after_step, device=CPU, rank=rank, world_size=world_size))


def flat(batches):
    return [t for images, targets in batches for t in (images, *(x for target in targets for x in target))]


def assert_equal(batches, others):
    assert all(torch.equal(a, b) for a, b in zip(flat(batches), flat(others), strict=True))


def test_a_batch_holds_the_canvases_and_targets_of_its_samples_in_order(pictures):
    images, targets = batches(pictures)[1]
    assert images.shape == (4, 3, 32, 32)
    assert images.dtype == torch.float32
    keys = samples_of_step(2, image_count=5, batch_size=4, seed=0)
    assert len(targets) == len(keys)
    for image, (boxes, labels), key in zip(images, targets, keys, strict=True):
        sample = pictures[key]
        assert torch.equal(image, render([sample.crop], 32, MEAN, STD)[0])
        assert torch.equal(boxes, sample.boxes)
        assert torch.equal(labels, sample.labels)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(pictures, workers):
    assert_equal(batches(pictures), batches(pictures, workers=workers))


def test_batches_do_not_depend_on_chance_elsewhere(pictures):
    first = batches(pictures)
    torch.manual_seed(5)
    assert_equal(first, batches(pictures))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_each_batch_in_contiguous_parts(pictures, world_size):
    shares = [batches(pictures, rank=rank, world_size=world_size, workers=rank % 2) for rank in range(world_size)]
    for step, (images, targets) in enumerate(batches(pictures)):
        of_step = [share[step] for share in shares]
        assert all(len(part) == 4 // world_size for part, _ in of_step)
        joined = torch.cat([part for part, _ in of_step]), [t for _, part in of_step for t in part]
        assert_equal([(images, targets)], [joined])


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(pictures):
    with pytest.raises(InputError, match=r"train\.batch_size: expected a multiple of the 3 processes .* got 4"):
        batches(pictures, world_size=3)


def test_batches_after_a_step_are_the_ones_that_would_have_followed(pictures):
    whole, rest = batches(pictures), batches(pictures, after_step=3)
    assert len(whole) == 5
    assert len(rest) == 2
    assert_equal(whole[3:], rest)
    assert batches(pictures, after_step=5) == []


def test_a_batch_without_any_box_has_empty_targets(split, tmp_path):
    pictures = TrainingPictures({**split, "annotations": []}, tmp_path, TRAIN, canvas_size=32, mean=MEAN, std=STD)
    for boxes, labels in batches(pictures)[0][1]:
        assert boxes.shape == (0, 4)
        assert labels.shape == (0,)


def test_crops_survive_packing(pictures):
    crops = [pictures[epoch, index].crop for epoch in range(4) for index in range(5)]
    packed = pack_crops(crops)
    assert packed.pixels.numel() == sum(crop.pixels.numel() for crop in crops)
    for crop, again in zip(crops, unpack_crops(packed, CPU), strict=True):
        assert torch.equal(again.pixels, crop.pixels)
        assert again[1:] == crop[1:]
        assert all(type(side) is int for side in again.size_hw)


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return 1
    return sum(map(tensors_in, value)) if isinstance(value, (tuple, list)) else 0


def test_a_large_batch_comes_from_a_worker_in_as_few_tensors_as_a_small_one(pictures, validation):
    """Each holds a file descriptor; a system that allows 1,024 would end a run with many workers."""
    for count in (1, 60):
        assert tensors_in(_pack_samples([pictures[0, i % 5] for i in range(count)])) == 5
        assert tensors_in(_pack_validation([validation[i % 5] for i in range(count)])) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_ends_a_run_with_one_line_also_from_a_worker(pictures, validation, tmp_path, workers):
    (tmp_path / "000000000020.png").write_bytes(b"junk")
    for run in (
        lambda: batches(pictures, workers=workers),
        lambda: list(validation_batches(validation, dataclasses.replace(DETECT, workers=workers), device=CPU)),
    ):
        with pytest.raises(InputError) as caught:
            run()
        assert "000000000020.png" in str(caught.value)
        assert "\n" not in str(caught.value)


class Killed(torch.utils.data.Dataset):
    """Its loader process is killed, as the system does when memory is short."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_ends_a_run_with_one_line_that_says_what_to_do():
    with pytest.raises(InputError, match=r"ended before its time .*/dev/shm.* lower detect\.workers") as caught:
        list(_loaded(Killed(), [[0]], list, CPU, 1, "detect.workers"))
    assert "\n" not in str(caught.value)


class Faulty(torch.utils.data.Dataset):
    """Every item raises a RuntimeError that says `message`."""

    def __init__(self, message):
        self.message = message

    def __getitem__(self, index):
        raise RuntimeError(self.message)


def test_a_worker_that_finds_no_shared_memory_ends_a_run_in_the_same_way():
    full = Faulty("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")
    with pytest.raises(InputError, match=r"No space left .* lower train\.workers") as caught:
        list(_loaded(full, [[0]], list, CPU, 1, "train.workers"))
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_worker_keeps_its_traceback():
    wrapped = "Caught RuntimeError in DataLoader worker process 0.\nTraceback ...\nRuntimeError: a mistake of ours"
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        list(_loaded(Faulty(wrapped), [[0]], list, CPU, 0, "train.workers"))  # as torch passes it on


class Interrupts(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_workers_leave_interrupts_to_the_process_that_they_serve():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without it
    try:
        assert list(_loaded(Interrupts(), [[0]], list, CPU, 1, "train.workers")) == [[True]]
        assert list(_loaded(Interrupts(), [[0]], list, CPU, 0, "train.workers")) == [[False]]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("on_cuda", [True, False])
def test_memory_is_pinned_for_cuda_devices_only(monkeypatch, on_cuda):
    seen = {}
    monkeypatch.setattr("fvlm.data.loading.DataLoader", lambda *_, **options: seen.update(options) or [])
    list(_loaded(Killed(), [[0]], list, torch.device("cuda" if on_cuda else "cpu"), 0, "train.workers"))
    assert seen["pin_memory"] is on_cuda


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_batches_hold_every_picture_once_by_rising_id(validation, workers):
    found = list(validation_batches(validation, dataclasses.replace(DETECT, workers=workers), device=CPU))
    assert [batch.image_ids for batch in found] == [[10, 20], [30, 40], [50]]
    assert [size for batch in found for size in batch.stored_hw] == [(32, 24), (32, 32), (24, 32), (50, 70), (9, 64)]
    assert [size for batch in found for size in batch.sizes_hw] == [(32, 24), (32, 32), (24, 32), (23, 32), (4, 32)]
    images = torch.cat([batch.images for batch in found])
    assert torch.equal(images, render([validation[i].crop for i in range(5)], 32, MEAN, STD))


def test_no_validation_pictures_give_no_batches(split, tmp_path):
    nothing = ValidationPictures({**split, "images": []}, tmp_path, canvas_size=32, mean=MEAN, std=STD)
    assert list(validation_batches(nothing, DETECT, device=CPU)) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 1])
def test_canvases_drawn_on_a_gpu_equal_those_of_the_cpu(pictures, workers):
    train = dataclasses.replace(TRAIN, workers=workers)
    on_gpu = list(training_batches(pictures, train, after_step=0, device=torch.device("cuda")))
    for found, expected in zip(flat(on_gpu), flat(batches(pictures)), strict=True):
        assert found.is_cuda
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-3)
