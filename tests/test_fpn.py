"""Feature pyramid: shapes, norms, and P6 by hand."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef

from fvlm.detector.fpn import LEVELS, STRIDES, FeaturePyramid

CHANNELS = (8, 12, 16, 20)


def make_features(side: int = 128) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        f"C{i}": torch.randn(2, c, side // s, side // s)
        for i, (c, s) in enumerate(zip(CHANNELS, STRIDES[:4], strict=True), 2)
    }


def make_pyramid() -> Any:
    torch.manual_seed(1)
    return FeaturePyramid(CHANNELS, 6, norm_momentum=0.1, norm_eps=1e-4)


def test_every_level_has_its_stride_and_the_common_channels():
    outputs = make_pyramid()(make_features())
    assert list(outputs) == list(LEVELS)
    assert [tuple(x.shape) for x in outputs.values()] == [(2, 6, 128 // s, 128 // s) for s in STRIDES]


def test_convolutions_have_no_bias_and_each_level_has_a_norm_of_its_own():
    pyramid = make_pyramid()
    assert all(m.bias is None for m in pyramid.modules() if isinstance(m, torch.nn.Conv2d))
    assert len({id(norm) for norm in pyramid.norm}) == 5


def test_p6_is_a_convolution_of_p5_before_its_norm_padded_at_the_end_only():
    pyramid, features = make_pyramid().eval(), make_features()
    with torch.no_grad():
        pyramid.norm[3].running_mean.fill_(3.0)  # P5's norm: must not reach P6
        p5 = F.conv2d(pyramid.lateral[3](features["C5"]), pyramid.output[3].weight, padding=1)
        expected = F.conv2d(F.pad(p5, (0, 1, 0, 1)), pyramid.coarsest.weight, stride=2)
        torch.testing.assert_close(pyramid(features)["P6"], pyramid.norm[4](expected))


def test_coarse_levels_are_added_to_fine_ones_by_nearest_upsampling():
    pyramid, features = make_pyramid().eval(), make_features()
    with torch.no_grad():
        merged = pyramid.lateral[2](features["C4"]) + pyramid.lateral[3](features["C5"]).repeat_interleave(
            2, 2
        ).repeat_interleave(2, 3)
        torch.testing.assert_close(pyramid(features)["P4"], pyramid.norm[2](pyramid.output[2](merged)))


def test_initial_weights_have_the_variance_of_lecun_normal():
    pyramid: Any = FeaturePyramid((256,) * 4, 256, norm_momentum=0.1, norm_eps=1e-4)
    torch.testing.assert_close(pyramid.output[0].weight.std(), torch.tensor((256 * 9) ** -0.5), rtol=0.02, atol=0)


def test_merged_maps_are_not_kept_and_gradients_are_those_of_the_plain_pathway():
    features = {name: x.requires_grad_() for name, x in make_features().items()}
    pyramid = make_pyramid()
    merged: list[StorageWeakRef] = []
    for conv in pyramid.output:
        conv.register_forward_hook(lambda _, inputs, __: merged.append(StorageWeakRef(inputs[0].untyped_storage())))
    observed = []
    for thrifty in (True, False):
        pyramid.zero_grad()
        merged.clear()
        with nullcontext() if thrifty else patch("fvlm.detector.fpn.let_go"):
            outputs = list(pyramid(features).values())
        assert [storage.expired() for storage in merged] == [thrifty] * 4
        loss = torch.stack([(x.square() * (1 + x)).sum() for x in outputs]).sum()
        of_features = torch.autograd.grad(loss, list(features.values()), retain_graph=True)
        observed.append([*of_features, *torch.autograd.grad(loss, list(pyramid.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*observed, strict=True))
