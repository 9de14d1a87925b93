"""From raw similarities to boxes with names, and to the formats of others."""

import dataclasses
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from raw_world import EVALUATE, made_up_coco, made_up_raw

from fvlm.errors import InputError
from fvlm.evaluation.detections import detections_of
from fvlm.predict.detections import Detections, decide

NAMES = ("dog", "bus", "umbrella")


@pytest.fixture(scope="module")
def raw():
    return made_up_raw(made_up_coco(images=3))


def make(**changes):
    values: dict[str, Any] = {
        "boxes": torch.tensor([[1.0, 2, 11, 22], [0.12, 0.5, 3.5, 4.25]]),
        "scores": torch.tensor([0.75, 0.25]),
        "classes": torch.tensor([2, 0]),
        "vocabulary": NAMES,
        "size_hw": (30, 40),
    }
    return Detections(**values | changes)


NOTHING = {
    "boxes": torch.zeros(0, 4),
    "scores": torch.zeros(0),
    "classes": torch.zeros(0, dtype=torch.int64),
}


def test_they_are_what_the_pipeline_makes_of_the_same_similarities(raw):
    ids = dict(zip(raw.names[1:], raw.category_ids, strict=True))
    decided = decide(raw, EVALUATE, NAMES)
    ours = [
        entry
        for image_id, found in zip(raw.image_ids.tolist(), decided, strict=True)
        for entry in found.to_coco(image_id, ids)
    ]
    assert ours == detections_of(raw, NAMES, raw.image_ids.tolist(), EVALUATE)
    assert len(ours) > 10 and {ids[name] for name in NAMES} == {entry["category_id"] for entry in ours}


def test_all_names_compete_unless_some_are_named(raw):
    [first, *_] = decide(raw, EVALUATE)
    assert first.vocabulary == raw.names[1:] and first.size_hw == (256, 256)


def test_weights_and_thresholds_are_decided_without_the_network(raw):
    detector_only = decide(raw, dataclasses.replace(EVALUATE, alpha=0.0, beta=0.0), NAMES)[0]
    fused = decide(raw, EVALUATE, NAMES)[0]
    assert not torch.equal(detector_only.scores, fused.scores)
    above = decide(raw, dataclasses.replace(EVALUATE, score_threshold=0.4), NAMES)[0]
    assert 0 < len(above) < len(fused) and torch.equal(above.scores, fused.above(0.4).scores)


def test_a_name_without_similarities_is_said(raw):
    with pytest.raises(InputError, match="no similarities to zeppelin"):
        decide(raw, EVALUATE, ["dog", "zeppelin"])


def test_a_picture_in_which_nothing_was_found_gives_empty_tensors(raw):
    for found in decide(raw, dataclasses.replace(EVALUATE, score_threshold=1.0), NAMES):
        assert (len(found), found.names, found.boxes.shape) == (0, [], (0, 4))


def test_names_belong_to_boxes():
    found = make()
    assert found.names == ["umbrella", "dog"] and len(found) == 2
    assert found.above(0.5).names == ["umbrella"]


def test_coco_results_have_width_and_height_and_ids_from_1_or_those_given():
    first, second = make().to_coco(7)
    assert first == {"image_id": 7, "category_id": 3, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.75}
    assert second["bbox"] == [0.12, 0.5, 3.38, 3.75] and second["category_id"] == 1
    assert [entry["category_id"] for entry in make().to_coco(7, {"umbrella": 28, "dog": 18})] == [28, 18]
    assert make(**NOTHING).to_coco(7) == []
    with pytest.raises(InputError, match="got none for umbrella"):
        make().to_coco(7, {"dog": 18})


@pytest.mark.parametrize("count", [0, 2])
def test_supervisions_class_gets_arrays_and_names(monkeypatch, count):
    stand_in = types.ModuleType("supervision")
    stand_in.Detections = lambda **given: given  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", stand_in)
    given = (make() if count else make(**NOTHING)).to_supervision()
    assert given["xyxy"].shape == (count, 4) and given["xyxy"].dtype == np.float32
    assert given["confidence"].shape == given["class_id"].shape == given["data"]["class_name"].shape == (count,)
    assert given["data"]["class_name"].tolist() == ["umbrella", "dog"][:count]


def test_without_supervision_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match=r"^to_supervision: the package supervision is not installed; pip install"):
        make().to_supervision()
