from dataclasses import replace

import pytest
import torch
from raw_world import made_up_coco, made_up_raw

from fvlm.errors import InputError
from fvlm.evaluation.raw import TENSOR_DTYPES, RawDetections
from fvlm.tensors import load_tensors, save_tensors


@pytest.fixture(scope="module")
def raw():
    return made_up_raw(made_up_coco(images=4))


def test_what_was_saved_is_loaded(raw, tmp_path):
    raw.save(tmp_path / "raw.safetensors")
    loaded = RawDetections.load(tmp_path / "raw.safetensors")
    for name, value in vars(raw).items():
        same = torch.equal(value, getattr(loaded, name)) if name in TENSOR_DTYPES else value == getattr(loaded, name)
        assert same, name


def test_an_image_owns_its_rows(raw):
    assert [raw.rows(i) for i in range(4)] == [slice(0, 25), slice(25, 50), slice(50, 75), slice(75, 100)]


def test_no_images_are_valid():
    assert len(made_up_raw(made_up_coco(images=0)).boxes) == 0


def test_columns_are_found_by_name_after_background(raw):
    assert raw.columns(["car", "person"]) == [0, 3, 1]
    with pytest.raises(InputError, match="no similarities to unicorn; run text and detect again"):
        raw.columns(["car", "unicorn"])


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda r: {"boxes": r.boxes[:-1]}, r"boxes: expected \(100, 4\) torch.float32 .* got \(99, 4\)"),
        (
            lambda r: {"vlm_similarity": r.vlm_similarity.float()},
            "vlm_similarity: expected .* torch.float16 .* torch.float32",
        ),
        (lambda r: {"names": r.names[:-1]}, r"detector_similarity: expected \(100, 80\) .* 80 names"),
        (lambda r: {"boxes": r.boxes.clone().fill_(float("nan"))}, "boxes: expected finite numbers"),
        (lambda r: {"offsets": torch.tensor([0, 50, 25, 75, 100])}, "offsets: expected a rise from 0 to 100"),
        (lambda r: {"offsets": torch.tensor([0, 25, 50, 75, 99])}, "offsets: expected a rise from 0 to 100"),
        (lambda r: {"image_ids": torch.tensor([1, 1, 2, 3])}, "image_ids: expected each image once"),
        (lambda r: {"category_ids": r.category_ids[1:]}, "category_ids: expected 80"),
        (lambda r: {"names": ("background", "car", *r.names[2:])}, "names: expected each class name once"),
        (lambda r: {"supervised": ("unicorn",)}, "supervised: not among the names: unicorn"),
        (lambda r: {"vlm_temperature": 0.0}, "vlm_temperature: expected a number > 0"),
    ],
)
def test_parts_that_do_not_fit_are_named(raw, tmp_path, change, finding):
    with pytest.raises(ValueError, match=finding):
        replace(raw, **change(raw))
    path = tmp_path / "raw.safetensors"  # and so are those of a file
    parts = {**vars(raw), **change(raw)}
    metadata = {name: value for name, value in parts.items() if name not in TENSOR_DTYPES}
    save_tensors(path, {name: parts[name] for name in TENSOR_DTYPES}, metadata)
    with pytest.raises(InputError, match=finding) as error:
        RawDetections.load(path)
    assert all(
        line.startswith(str(path)) and line.endswith("run detect again") for line in str(error.value).splitlines()
    )


def test_a_file_that_lacks_a_part_is_refused(raw, tmp_path):
    path = tmp_path / "raw.safetensors"
    raw.save(path)
    tensors, metadata = load_tensors(path, "", "")
    del tensors["offsets"], metadata["supervised"]
    save_tensors(path, tensors, metadata)
    with pytest.raises(InputError, match="raw detections without offsets, supervised; run detect again"):
        RawDetections.load(path)
