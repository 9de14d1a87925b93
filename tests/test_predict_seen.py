"""A picture that was seen once can be compared with any names: what a new inference would give, to the last bit."""

import dataclasses

import pytest
import torch
from small_model import noise

from fvlm.errors import InputError
from fvlm.evaluation.raw import TENSOR_DTYPES
from fvlm.predict import detector as module


@pytest.mark.parametrize("size", [(40, 60), (90, 91), (1, 1)])
def test_what_was_seen_compared_with_names_is_what_the_network_says_of_them(detector, size):
    picture = noise(*size)
    seen = detector.see(picture)
    for names in (["dog"], ["dog", "red bus", "a zebra that walks"], [*detector.record.names[1:]]):
        ours, theirs = detector.compare(seen, names), detector.raw(picture, names)
        for field in TENSOR_DTYPES:
            assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
        for field in ("names", "category_ids", "supervised", "detector_temperature", "vlm_temperature"):
            assert getattr(ours, field) == getattr(theirs, field)
    assert detector.compare(seen, ["dog", "cat"], supervised=["cat"]).supervised == ("cat",)


def test_what_is_seen_has_unit_embeddings_and_says_its_size(detector):
    seen = detector.see(noise(40, 60))
    for embeddings in (seen.detector, seen.vlm):
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))
    tensors = [value for value in dataclasses.astuple(seen) if isinstance(value, torch.Tensor)]
    assert seen.bytes == sum(4 * tensor.numel() for tensor in tensors)
    assert seen.size_hw == (40, 60)
    with pytest.raises(InputError, match="not found"):
        detector.see("no.jpg")


def test_remembered_words_are_bounded_and_the_models_own_stay(detector, monkeypatch):
    own = len(detector.record.names) - 1
    monkeypatch.setattr(module, "MOST_REMEMBERED", own + 3)
    before = detector.embed(["first"])
    for start in range(0, 12, 4):
        detector.embed([f"word {start + i}" for i in range(4)])
        assert own <= len(detector._embedding_of) <= own + 3 + 4
    assert "first" not in detector._embedding_of
    assert torch.equal(detector.embed(["first"]), before)
