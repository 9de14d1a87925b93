"""Drawn detections: where frames and labels come to lie."""

import numpy as np
import pytest
import torch

from fvlm.predict.detections import Detections
from fvlm.predict.drawing import COLOURS, MOST_LETTERS, SMALLEST_SIDE, _written, draw


def drawn(height, width, boxes, names=None):
    names = names or [f"thing {i}" for i in range(len(boxes))]
    found = Detections(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.linspace(0.9, 0.3, len(boxes)),
        classes=torch.arange(len(boxes)),
        vocabulary=tuple(names),
        size_hw=(height, width),
    )
    return draw(torch.full((3, height, width), 90, dtype=torch.uint8), found)


def where(image, colour):
    """(left, top, right, bottom) of the pixels of that colour."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    rows, columns = (np.array(image) == rgb).all(2).nonzero()
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_a_frame_lies_on_its_box_and_a_small_picture_is_enlarged():
    image = drawn(320, 160, [[40, 60, 120, 200]])
    assert image.size == (320, 640) and max(image.size) == SMALLEST_SIDE
    left, top, right, bottom = where(image, COLOURS[0])
    assert (left, right, bottom) == (80, 240, 400)
    assert top < 120  # the label, above the frame


def test_a_large_picture_keeps_its_size_and_nothing_found_leaves_it_as_it_is():
    image = drawn(700, 900, [])
    assert image.size == (900, 700) and (np.array(image) == 90).all()


@pytest.mark.parametrize("size_hw", [(1, 1), (50, 20_000), (5000, 3)])
def test_odd_sizes_are_drawn(size_hw):
    height, width = size_hw
    assert drawn(height, width, [[0, 0, width, height], [width, height, width, height]]).size >= (1, 1)


def test_labels_of_boxes_at_one_place_do_not_cover_each_other():
    image = drawn(640, 640, [[200, 200, 400, 400], [200, 200, 400, 400], [0, 0, 10, 10]])
    for colour in COLOURS[:2]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.array(image) == rgb).all(2).sum() > 800  # a whole label's ground; frames cover each other


def test_a_long_name_is_cut_and_one_in_letters_without_a_font_is_a_number():
    assert _written("dog", 3) == "dog" and _written("собака", 3) == "собака"
    assert _written("犬", 3) == "#4"
    assert len(_written("x" * 500, 0)) == MOST_LETTERS
