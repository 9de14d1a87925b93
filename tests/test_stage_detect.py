import dataclasses
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image

from fvlm.data.dataset import ValidationPictures
from fvlm.detector.detector import FVLM, Regions
from fvlm.params import load_params
from fvlm.stages.detect import run_detector

DETECT = load_params(Path(__file__).resolve().parents[1] / "recipes" / "emoji.yaml").detect


class WholePictures:
    """Finds one region in each picture: all of it, with a similarity that is the mean of its canvas."""

    def detect(self, images, sizes_hw, text):
        return [
            Regions(
                proposals=torch.tensor([[0.0, 0.0, width, height]]),
                proposal_scores=torch.ones(1),
                boxes=torch.tensor([[0.0, 0.0, width, height]]),
                detector_similarity=image.mean().expand(1, len(text)),
                vlm_similarity=image.std().expand(1, len(text)),
            )
            for image, (height, width) in zip(images, sizes_hw, strict=True)
        ]


@pytest.fixture
def pictures(tmp_path):
    images = []
    for image_id, (height, width) in {7: (40, 60), 3: (64, 32), 9: (20, 20)}.items():
        name, rng = f"{image_id}.png", np.random.default_rng(image_id)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
    return ValidationPictures({"images": images}, tmp_path, canvas_size=64, mean=(0.5,) * 3, std=(0.3,) * 3)


def detected(pictures, **changes):
    detector = cast(FVLM, WholePictures())
    return run_detector(detector, pictures, torch.eye(2, 4), dataclasses.replace(DETECT, batch_size=2, **changes))


def test_boxes_are_in_pixels_of_the_stored_pictures_by_rising_id(pictures):
    raw = detected(pictures)
    assert raw["image_ids"].tolist() == [3, 7, 9]
    assert raw["image_sizes_hw"].tolist() == [[64, 32], [40, 60], [20, 20]]
    assert raw["offsets"].tolist() == [0, 1, 2, 3]
    whole = torch.tensor([[0.0, 0, 32, 64], [0, 0, 60, 40], [0, 0, 20, 20]])
    torch.testing.assert_close(raw["boxes"], whole)
    torch.testing.assert_close(raw["proposals"], whole)


def test_detections_do_not_depend_on_the_number_of_workers(pictures):
    alone, helped = detected(pictures), detected(pictures, workers=2)
    assert all(torch.equal(alone[name], helped[name]) for name in alone)
