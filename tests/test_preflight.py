"""What is said before the first step: counts that are exact, and an estimate of memory against what is really kept."""

import dataclasses
import datetime
import re
from typing import Any
from unittest.mock import patch

import pytest
import torch
from two_processes import PARAMS, Scenes, build, text

from fvlm.compute import autocast
from fvlm.data.loading import training_batches
from fvlm.params import FreezeMode, Params, Precision
from fvlm.training.preflight import estimate_memory, estimate_step_s, out_of_memory, preflight, say_duration

CPU = torch.device("cpu")


def make_params(precision: Precision = "float32", **train: Any) -> Params:
    return dataclasses.replace(
        PARAMS,
        model=dataclasses.replace(PARAMS.model, image_size=64, fpn_channels=8, head_channels=8, head_fc_dim=16),
        train=dataclasses.replace(PARAMS.train, **{"batch_size": 4, "rois_per_image": 16, **train}),
        compute=dataclasses.replace(PARAMS.compute, precision=precision),
    )


@pytest.mark.parametrize(
    ("freeze", "precision"), [("all", "float32"), ("none", "float32"), ("norm_eval", "float32"), ("all", "bfloat16")]
)
def test_the_estimate_is_near_what_a_forward_pass_keeps(freeze: FreezeMode, precision: Precision) -> None:
    params, detector = make_params(precision), build(freeze).train()
    images, targets = next(training_batches(Scenes(), params.train, after_step=0, device=CPU))
    own = {tensor.untyped_storage().data_ptr() for tensor in [*detector.parameters(), *detector.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast(CPU, precision):
        detector.losses(images, targets, text(), params.train)
    measured = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    assert estimate_memory(detector, params).activations == pytest.approx(measured, rel=0.25)
    assert detector.training


def test_accumulation_and_processes_divide_the_activations() -> None:
    detector = build().train()
    one, passes = (estimate_memory(detector, make_params(accumulation=a)) for a in (1, 2))
    assert passes.activations == pytest.approx(one.activations / 2, rel=0.1)
    shared = make_params()
    shared = dataclasses.replace(shared, compute=dataclasses.replace(shared.compute, processes=4))
    of_four = estimate_memory(detector, shared).activations
    assert 1.1 * one.activations / 4 < of_four < 2 * one.activations / 4  # its norms keep what others make again


def test_it_says_what_trains_and_how_a_step_is_split() -> None:
    detector = build().train()
    said = preflight(detector, make_params(accumulation=2), CPU)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert f"{trained:,} parameters train" in said
    assert "a step is 4 pictures = 1 processes x 2 passes x 2, in float32" in said
    assert re.search(r"about \S+ GiB a process", said)


def tick(detector: Any, seconds: dict[str, float]) -> Any:
    """A clock that each part of the detector moves on."""
    clock = [0.0]

    def moved(name: str, forward: Any) -> Any:
        def run(*arguments: Any) -> Any:
            clock[0] += seconds[name]
            return forward(*arguments)

        return run

    for name in seconds:
        part = getattr(detector, name)
        part.forward = moved(name, part.forward)
    return patch("fvlm.training.preflight.time.perf_counter", side_effect=lambda: clock[0])


@pytest.mark.parametrize(
    ("freeze", "accumulation", "expected"),
    [
        ("all", 1, 2 * (1 + 3 * (10 + 100 + 1000))),  # four pictures, tried with two
        ("none", 1, 2 * 3 * (1 + 10 + 100 + 1000)),
        ("all", 2, 2 * (1 + 3 * (10 + 100 + 1000) + 2 * (10 + 1000))),
        ("all", 4, 4 * (1 + 3 * (10 + 100 + 1000) + 2 * (10 + 1000))),  # tried with one
    ],
)
def test_a_step_takes_three_forward_passes_of_what_trains_and_one_of_a_frozen_tower(
    freeze: FreezeMode, accumulation: int, expected: float
) -> None:
    detector = build(freeze)
    params = make_params(accumulation=accumulation, steps=7)
    params = dataclasses.replace(params, model=dataclasses.replace(params.model, freeze=freeze))
    with tick(detector, {"tower": 1.0, "fpn": 10.0, "rpn": 100.0, "box_head": 1000.0}):
        assert estimate_step_s(detector, params, CPU) == expected
        whole = datetime.timedelta(seconds=7 * expected)
        assert say_duration(detector, params, CPU) == (
            f"train: about {expected:.2g} s a step, {whole} h for 7 (estimated from a forward pass)"
        )


def test_the_timed_pass_changes_nothing_and_compiles_nothing() -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("compiled")

    detector = build("none").train()
    for part in (detector.tower, detector.fpn, detector.rpn, detector.box_head):
        part.compile(backend=never)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    random_state = torch.get_rng_state()
    assert estimate_step_s(detector, make_params(), CPU) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert detector.training and all(p.grad is None for p in detector.parameters())


def test_the_advice_for_too_little_memory_is_one_line_that_names_the_param() -> None:
    said = out_of_memory(make_params())
    assert "raise train.accumulation" in said and "\n" not in said
