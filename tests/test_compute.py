"""What a stage does to its process before it computes."""

import dataclasses

import pytest
import torch

from fvlm.compute import set_up
from fvlm.params import load_params


@pytest.fixture(autouse=True)
def settings_of_torch():
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def test_algorithms_are_deterministic_and_new_memory_is_not_written_twice():
    compute = dataclasses.replace(load_params("recipes/emoji.yaml").compute, device="cpu", threads=1)
    assert set_up(compute) == torch.device("cpu")
    assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
