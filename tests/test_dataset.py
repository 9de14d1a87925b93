import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fvlm.data.dataset import (
    TrainingPictures,
    ValidationPictures,
    check_pictures_exist,
    read_picture,
    training_batches,
)
from fvlm.data.order import epoch_order, samples_of_step, seed_of
from fvlm.errors import InputError
from fvlm.params import load_params

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "emoji.yaml"
TRAIN = dataclasses.replace(
    load_params(RECIPE).train,
    workers=0,
    batch_size=2,
    steps=5,
    scale_jitter=(0.5, 1.5),
    flip=0.5,
    max_boxes=100,
    seed=0,
)
PLAIN = dataclasses.replace(TRAIN, scale_jitter=(1.0, 1.0), flip=0.0)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def annotation(id, image_id, category_id, bbox, iscrowd=0):
    return {"id": id, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": iscrowd, "area": 1.0}


@pytest.fixture
def split(tmp_path):
    """Three pictures, the categories of COCO ids 90 and 17 in that order, and boxes of every awkward kind."""
    sizes = {30: (24, 32), 10: (32, 24), 20: (32, 32)}
    for image_id, size_hw in sizes.items():
        Image.fromarray(noise(*size_hw, seed=image_id)).save(tmp_path / f"{image_id:012d}.png")
    return {
        "images": [{"id": i, "file_name": f"{i:012d}.png", "height": h, "width": w} for i, (h, w) in sizes.items()],
        "annotations": [
            annotation(1, 30, 17, [4.0, 6.0, 8.0, 10.0]),
            annotation(2, 10, 90, [0.0, 0.0, 24.0, 32.0]),
            annotation(3, 30, 90, [1.0, 2.0, 30.0, 0.0]),  # COCO has such a box of no height
            annotation(4, 30, 90, [0.0, 0.0, 32.0, 24.0], iscrowd=1),
            annotation(5, 30, 90, [2.0, 2.0, 5.0, 5.0]),
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 17, "name": "cat"}],
    }


@pytest.fixture
def pictures(split, tmp_path):
    return TrainingPictures(split, tmp_path, TRAIN, canvas_size=32, mean=MEAN, std=STD)


def plain(split, folder, train=PLAIN):
    return TrainingPictures(split, folder, train, canvas_size=32, mean=MEAN, std=STD)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "1"])
def test_a_picture_of_any_mode_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("picture.jpg" if mode == "CMYK" else "picture.png")
    Image.fromarray(noise(6, 9)).convert(mode).save(path)
    image = read_picture(path)
    assert image.shape == (3, 6, 9)
    assert image.dtype == torch.uint8
    if mode in ("L", "LA"):
        assert torch.equal(image[0], image[2])


def test_channels_come_as_red_green_blue(tmp_path):
    Image.new("RGB", (2, 2), (250, 120, 10)).save(tmp_path / "p.png")
    assert read_picture(tmp_path / "p.png")[:, 0, 0].tolist() == [250, 120, 10]


def test_exif_does_not_rotate_a_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: viewers turn it by 90 degrees
    Image.fromarray(noise(6, 9)).save(tmp_path / "p.jpg", exif=exif)
    assert read_picture(tmp_path / "p.jpg").shape == (3, 6, 9)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_picture_is_named_in_one_line(tmp_path, suffix, kept):
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(noise(60, 60)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(InputError) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path}: expected a whole JPEG or PNG picture")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_picture_a_folder_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "folder.jpg").mkdir()
    for name, said in (("text.jpg", "cannot be decoded"), ("folder.jpg", "cannot be decoded"), ("no.jpg", "not found")):
        with pytest.raises(InputError, match=said) as caught:
            read_picture(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_class_index_counts_the_categories_by_rising_id_from_1(split, tmp_path):
    pictures = plain(split, tmp_path)
    assert pictures.category_ids == [17, 90]
    by_id = {int(i): pictures[0, index] for index, i in enumerate(pictures.image_ids)}
    assert by_id[30].labels.tolist() == [1, 2]
    assert by_id[10].labels.tolist() == [2]


def test_boxes_are_xyxy_and_crowds_and_boxes_without_area_are_left_out(split, tmp_path):
    sample = plain(split, tmp_path)[0, 2]  # id 30, the last by id
    assert sample.boxes.tolist() == [[4, 6, 12, 16], [2, 2, 7, 7]]
    assert sample.boxes.dtype == torch.float32
    assert sample.labels.dtype == torch.int64


def test_the_order_of_categories_images_and_annotations_of_other_images_does_not_matter(split, tmp_path):
    shuffled = {
        "images": split["images"][::-1],
        "categories": split["categories"][::-1],
        "annotations": sorted(split["annotations"], key=lambda a: -a["image_id"]),
    }
    for index in range(3):
        for a, b in zip(plain(split, tmp_path)[4, index], plain(shuffled, tmp_path)[4, index], strict=True):
            assert torch.equal(a, b)


def test_a_picture_without_boxes_has_empty_targets(split, tmp_path):
    sample = plain(split, tmp_path)[0, 1]
    assert sample.boxes.shape == (0, 4)
    assert sample.labels.shape == (0,)
    nothing = plain({**split, "annotations": []}, tmp_path)[0, 0]
    assert nothing.boxes.shape == (0, 4)


def test_at_most_max_boxes_are_kept_after_the_invisible_ones_are_gone(split, tmp_path):
    for id in range(6, 12):
        split["annotations"].insert(0, annotation(id, 20, 17, [3.0, 3.0, 0.0, 9.0]))
    split["annotations"] += [annotation(id, 20, 90, [id, 3.0, 9.0, 9.0]) for id in range(12, 17)]
    sample = plain(split, tmp_path, dataclasses.replace(PLAIN, max_boxes=3))[0, 1]
    assert sample.boxes[:, 0].tolist() == [12, 13, 14]


def test_an_item_depends_on_seed_epoch_and_index_only(split, pictures, tmp_path):
    again = TrainingPictures(split, tmp_path, TRAIN, canvas_size=32, mean=MEAN, std=STD)
    other = TrainingPictures(split, tmp_path, dataclasses.replace(TRAIN, seed=1), canvas_size=32, mean=MEAN, std=STD)
    first = pictures[3, 1].image
    torch.manual_seed(99)
    assert torch.equal(again[3, 1].image, first)
    assert not torch.equal(again[4, 1].image, first)
    assert not torch.equal(other[3, 1].image, first)


def test_a_picture_of_another_size_than_its_annotations_say_is_refused(split, tmp_path):
    split["images"][0]["width"] = 33
    with pytest.raises(InputError, match="the annotations say 33 x 24 pixels, the picture has 32 x 24"):
        plain(split, tmp_path)[0, 2]
    with pytest.raises(InputError, match="33 x 24"):
        ValidationPictures(split, tmp_path, canvas_size=32, mean=MEAN, std=STD)[2]


def test_a_split_without_pictures_is_refused(split, tmp_path):
    with pytest.raises(InputError, match="holds no picture"):
        plain({**split, "images": [], "annotations": []}, tmp_path)


def test_missing_pictures_are_counted_and_named_before_the_work_starts(split, tmp_path):
    check_pictures_exist(split, tmp_path)
    (tmp_path / "000000000020.png").unlink()
    with pytest.raises(InputError, match=r"1 of 3 pictures not found \(000000000020.png\)"):
        check_pictures_exist(split, tmp_path)


def test_every_epoch_shows_every_picture_once_in_an_order_of_its_own():
    stream = [s for step in range(1, 36) for s in samples_of_step(step, image_count=7, batch_size=3, seed=5)]
    assert Counter(stream) == Counter((epoch, index) for epoch in range(15) for index in range(7))
    assert [epoch for epoch, _ in stream] == sorted(epoch for epoch, _ in stream)
    assert epoch_order(5, 0, 50).tolist() != epoch_order(5, 1, 50).tolist() != epoch_order(6, 1, 50).tolist()


def test_a_batch_may_be_larger_than_the_data():
    assert Counter(index for _, index in samples_of_step(2, image_count=2, batch_size=5, seed=0)) in (
        Counter({0: 3, 1: 2}),
        Counter({0: 2, 1: 3}),
    )


def test_seeds_of_neighbours_differ_and_fit_torch():
    seeds = {seed_of(0, "step", step) for step in range(100)} | {seed_of(0, "picture", 1, 2), seed_of(0, "picture", 12)}
    assert len(seeds) == 102
    assert all(0 <= seed < 2**63 for seed in seeds)


def flat(batches):
    return [t for images, targets in batches for t in (images, *(x for target in targets for x in target))]


def test_batches_do_not_depend_on_the_number_of_workers(pictures):
    alone = flat(training_batches(pictures, TRAIN, after_step=0))
    helped = flat(training_batches(pictures, dataclasses.replace(TRAIN, workers=2), after_step=0))
    assert len(alone) == 5 * (1 + 2 * 2)
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_batches_after_a_step_are_the_ones_that_would_have_followed(pictures):
    whole = list(training_batches(pictures, TRAIN, after_step=0))
    rest = list(training_batches(pictures, TRAIN, after_step=3))
    assert len(whole) == 5
    assert len(rest) == 2
    assert all(torch.equal(a, b) for a, b in zip(flat(whole[3:]), flat(rest), strict=True))
    assert list(training_batches(pictures, TRAIN, after_step=5)) == []


def test_the_shares_of_two_processes_by_rank_are_the_batch(pictures):
    whole = list(training_batches(pictures, TRAIN, after_step=3))
    shares = [list(training_batches(pictures, TRAIN, after_step=3, rank=rank, world_size=2)) for rank in (0, 1)]
    for (images, targets), first, second in zip(whole, *shares, strict=True):
        assert len(first[0]) == len(second[0]) == TRAIN.batch_size // 2
        assert torch.equal(torch.cat([first[0], second[0]]), images)
        assert all(torch.equal(a[0], b[0]) for a, b in zip([*first[1], *second[1]], targets, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_ends_a_run_with_one_line_also_from_a_worker(pictures, tmp_path, workers):
    (tmp_path / "000000000020.png").write_bytes(b"junk")
    with pytest.raises(InputError) as caught:
        list(training_batches(pictures, dataclasses.replace(TRAIN, workers=workers), after_step=0))
    assert "000000000020.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_validation_pictures_come_by_rising_id_with_their_stored_size(split, tmp_path):
    pictures = ValidationPictures(split, tmp_path, canvas_size=64, mean=MEAN, std=STD)
    samples = [pictures[index] for index in range(len(pictures))]
    assert [s.image_id for s in samples] == [10, 20, 30]
    assert [s.size_hw for s in samples] == [(32, 24), (32, 32), (24, 32)]
    assert [s.resized.size_hw for s in samples] == [(64, 48), (64, 64), (48, 64)]
