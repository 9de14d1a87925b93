"""Convolutions of regions by the convolution theorem: torch's numbers, gradients and rounding, from fewer products."""

import copy
import re
from collections.abc import Iterator
from typing import cast
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fvlm.detector import region_conv
from fvlm.detector.box_head import BoxHead
from fvlm.detector.region_conv import PRODUCTS, SIZE, by_cell, by_region, convolve, pays, transforms


@pytest.fixture
def small_parts() -> Iterator[None]:
    """Parts of a few regions, the last one shorter."""
    with patch.object(region_conv, "CHUNK_FLOATS", 24):
        yield


def make_conv(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, 3, padding=1, dtype=dtype)


def make_regions(count: int, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, channels, SIZE, SIZE, dtype=dtype, generator=torch.Generator().manual_seed(1))


def by_theorem(conv: nn.Conv2d, regions: Tensor) -> Tensor:
    return by_region(convolve(conv, by_cell(regions)))


@pytest.mark.parametrize(("regions", "inputs", "outputs"), [(1, 1, 1), (3, 2, 5), (14, 6, 4)])
def test_output_and_gradients_are_those_of_the_layer(small_parts: None, regions: int, inputs: int, outputs: int):
    conv = make_conv(inputs, outputs, torch.float64)
    x = make_regions(regions, inputs, torch.float64).requires_grad_()
    of = [x, *conv.parameters()]
    expected, found = conv(x), by_theorem(conv, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    upstream = torch.randn_like(expected)
    pairs = zip(torch.autograd.grad(found, of, upstream), torch.autograd.grad(expected, of, upstream), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_tap_reads_the_neighbour_that_torch_s_tap_reads():
    conv = make_conv(1, 1, torch.float64)
    conv.load_state_dict({"weight": torch.zeros(1, 1, 3, 3), "bias": torch.zeros(1)})
    conv.weight.data[0, 0, 1, 2] = 1  # reads the cell to the right
    x = make_regions(1, 1, torch.float64)
    y = by_theorem(conv, x)[0, 0]
    torch.testing.assert_close(y[:, :-1], x[0, 0, :, 1:])
    torch.testing.assert_close(y[:, -1], torch.zeros(SIZE).double(), rtol=0, atol=1e-14)


def test_there_are_94_products_and_a_matrix_for_each_side():
    of_cells, of_taps, back = transforms(torch.float64)
    assert of_cells.shape == (PRODUCTS, 49) and of_taps.shape == (PRODUCTS, 9) and back.shape == (49, PRODUCTS)
    torch.testing.assert_close(back[:, 0] * 64, torch.ones(49).double())  # frequency 0: where the bias goes


def test_rounding_in_float32_is_that_of_a_convolution():
    conv, x = make_conv(128, 128, torch.float32), make_regions(64, 128)
    exact = copy.deepcopy(conv).double()(x.double())
    ours = (by_theorem(conv, x).double() - exact).square().mean().sqrt() / exact.std()
    theirs = (conv(x).double() - exact).square().mean().sqrt() / exact.std()
    assert ours < 1e-6 and ours < 4 * theirs


def test_the_layouts_are_each_other_s_way_back():
    x = make_regions(5, 3)
    cells = by_cell(x)
    assert cells.shape == (1, 3, 49, 5) and cells.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(by_region(cells), x, rtol=0, atol=0)


def test_only_input_and_kernel_are_kept_for_the_way_back():
    conv, x = make_conv(3, 4, torch.float32), by_cell(make_regions(5, 3)).requires_grad_()
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        convolve(conv, x)
    assert kept == [x.data_ptr(), conv.weight.data_ptr()]


def test_it_gives_the_same_bits_wherever_its_memory_lies():
    conv, regions = make_conv(128, 128, torch.float32), make_regions(300, 128)
    observed, elsewhere = [], []
    for size in (1, 1000, 1 << 22):
        conv.zero_grad()
        elsewhere.append(torch.empty(size))
        x = regions.clone().requires_grad_()
        y = by_theorem(conv, x)
        y.square().sum().backward()
        observed.append([y.detach(), x.grad, *(p.grad for p in conv.parameters())])
    for other in observed[1:]:
        assert all(torch.equal(cast(Tensor, a), cast(Tensor, b)) for a, b in zip(observed[0], other, strict=True))


def test_an_estimate_or_an_inference_before_training_leaves_nothing_behind():
    region_conv._matrices.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert convolve(make_conv(2, 3, torch.float32), by_cell(torch.empty(4, 2, 7, 7))).shape == (1, 3, 49, 4)
    conv, x = make_conv(2, 3, torch.float32), make_regions(4, 2)
    with torch.inference_mode():
        expected = by_theorem(conv, x)
    y = by_theorem(conv, x.requires_grad_())
    y.sum().backward()
    assert torch.equal(y, expected) and x.grad is not None and x.grad.isfinite().all()


def test_regions_that_need_no_gradient_get_none():
    conv = make_conv(2, 3, torch.float32)
    x = make_regions(4, 2)
    by_theorem(conv, x).square().sum().backward()
    found = [p.grad for p in conv.parameters()]
    conv.zero_grad()
    conv(x).square().sum().backward()
    for a, p in zip(found, conv.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def test_it_pays_for_many_wide_regions_on_a_cpu():
    conv = make_conv(128, 128, torch.float32)
    regions = make_regions(64, 128)
    assert pays([conv], regions)
    assert not pays([conv], regions[:63])
    assert not pays([conv], regions.bfloat16())
    assert not pays([conv], regions.to("meta"))
    assert not pays([conv, make_conv(128, 127, torch.float32)], regions)
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays([conv], regions)


def make_head(mode: str) -> BoxHead:
    torch.manual_seed(0)
    return BoxHead(128, 128, 16, 8, norm_momentum=0.1, norm_eps=1e-4).train(mode == "train")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_wide_head_s_outputs_gradients_and_statistics_are_those_of_its_layers(mode: str):
    regions = make_regions(70, 128)
    observed = []
    for fast in (True, False):
        head, x = make_head(mode), regions.clone().requires_grad_()
        many = region_conv.MIN_REGIONS if fast else len(regions) + 1
        with (
            patch.object(region_conv, "MIN_REGIONS", many),
            patch.object(region_conv, "convolve", side_effect=convolve) as called,
        ):
            embeddings, deltas = head(x)
        assert called.call_count == (4 if fast else 0)
        (embeddings.square().mean() + 1e3 * deltas.square().mean()).backward()
        gradients = {name: p.grad for name, p in head.named_parameters()}
        observed.append([embeddings, deltas, x.grad, *gradients.values(), *head.buffers()])
        names = ["embeddings", "deltas", "pooled", *gradients, *dict(head.named_buffers())]
    for name, a, b in zip(names, *observed, strict=True):
        if mode == "train" and re.fullmatch(r"(convs\.\d|fc)\.bias", name):
            continue  # before a norm over the batch its gradient is rounding and nothing else
        scale = b.detach().abs().max().item()
        assert (a - b).abs().max() <= 1e-3 * scale, name


def test_an_exported_head_keeps_its_convolutions():
    head = make_head("eval")
    graph = torch.export.export(head, (make_regions(64, 128),)).graph
    called = [str(node.target) for node in graph.nodes]
    assert sum("conv2d" in name for name in called) == 4
