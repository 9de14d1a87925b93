"""Batch norms' outputs that are made again: the same numbers as of those that are kept, from less memory."""

import gc
from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from fvlm.detector import recompute
from fvlm.detector.recompute import let_go, normalise, read
from fvlm.training.parallel import SynchronizedBatchNorm

Chain = Callable[[nn.Module, Tensor, bool, list[nn.Conv2d]], list[Tensor]]


def thrifty(norm: nn.Module, x: Tensor, relu: bool, convs: list[nn.Conv2d]) -> list[Tensor]:
    y = normalise(norm, x, relu=relu)
    return [read(conv, y) for conv in convs]


def plain(norm: nn.Module, x: Tensor, relu: bool, convs: list[nn.Conv2d]) -> list[Tensor]:
    y = norm(x)
    y = F.relu(y) if relu else y
    return [conv(y) for conv in convs]


def make_parts(mode: str = "train", readers: int = 2) -> tuple[nn.BatchNorm2d, Tensor, list[nn.Conv2d]]:
    """A norm that has seen something, its input, and what reads its output."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, eps=1e-3, momentum=0.1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm(torch.randn(5, 6, 4, 4) + 1)
    norm.train(mode == "train").requires_grad_(mode != "frozen")
    return norm, 3 * torch.randn(2, 6, 9, 8) + 2, [nn.Conv2d(6, 4, 3) for _ in range(readers)]


def observe(chain: Chain, mode: str, relu: bool, dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    """Outputs, all gradients, and the norm's buffers."""
    norm, start, convs = make_parts(mode)
    start = start.contiguous(memory_format=layout).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        outputs = chain(norm, start.to(dtype), relu, convs)
        loss = torch.stack([(i + 1) * y.float().square().mean() for i, y in enumerate(outputs)]).sum()
    loss.backward()
    parameters = [*norm.parameters(), *(p for conv in convs for p in conv.parameters())]
    gradients = [p.grad for p in [start, *parameters] if p.grad is not None]
    return [y.detach() for y in outputs] + gradients + list(norm.buffers())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval", "frozen"])
def test_outputs_gradients_and_running_statistics_are_those_of_the_plain_chain(
    mode: str, relu: bool, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    found, expected = (observe(chain, mode, relu, dtype, layout) for chain in (thrifty, plain))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def kept(chain: Chain, relu: bool) -> int:
    """Bytes of the norm's output that live on when only the graph does, in sizes of that output."""
    norm, x, convs = make_parts()
    x = x.requires_grad_() * 1.0
    made: list[StorageWeakRef] = []
    norm.register_forward_hook(lambda *of: made.append(StorageWeakRef(of[-1].untyped_storage())))
    outputs = chain(norm, x, relu, convs)
    gc.collect()
    assert outputs
    return sum(not storage.expired() for storage in made)


@pytest.mark.parametrize("relu", [False, True])
def test_an_output_goes_when_its_readers_have_read_it(relu: bool) -> None:
    gc.collect()
    elsewhere = len(recompute._RECIPES)  # the memory estimate's fake tensors, which torch remembers
    assert kept(thrifty, relu) == 0
    assert kept(lambda norm, x, relu, convs: [c(F.relu_(norm(x))) for c in convs[:1]], relu=True) == 1
    assert len(recompute._RECIPES) == elsewhere


def test_several_readers_make_the_output_once_on_a_way_back_and_let_go_of_it_again() -> None:
    norm, x, convs = make_parts(readers=3)
    x.requires_grad_()
    with patch.object(recompute._Recipe, "use", autospec=True, side_effect=recompute._Recipe.use) as use:
        y = normalise(norm, x, relu=True)
        recipe = recompute._RECIPES[y]
        with patch.object(recipe, "make", wraps=recipe.make) as make:
            loss = torch.stack([read(conv, y).sum() for conv in convs]).sum()
            loss.backward(retain_graph=True)
            assert (make.call_count, use.call_count) == (1, 4)  # three convolutions and the ReLU
            assert recipe.made is None
            first = x.grad
            x.grad = None
            loss.backward()
            assert make.call_count == 2
    assert first is not None and x.grad is not None and torch.equal(first, x.grad)


def test_a_reader_of_something_else_keeps_what_it_reads() -> None:
    norm, x, [conv] = make_parts(readers=1)
    y = normalise(norm, x.requires_grad_())
    other = y * 2
    expected = torch.autograd.grad(conv(other).square().sum(), conv.weight)[0]
    assert torch.equal(torch.autograd.grad(read(conv, other).square().sum(), conv.weight)[0], expected)
    assert torch.equal(torch.autograd.grad(read(lambda z: conv(z * 2), y).square().sum(), conv.weight)[0], expected)


def test_without_gradients_nothing_is_remembered() -> None:
    norm, x, [conv] = make_parts(readers=1)
    with torch.no_grad():
        y = normalise(norm, x, relu=True)
        assert y not in recompute._RECIPES
        assert read(conv, y).grad_fn is None


def test_a_norm_over_several_processes_keeps_its_output() -> None:
    _, x, [conv] = make_parts(readers=1)
    synchronised = SynchronizedBatchNorm(6).eval()
    y = normalise(synchronised, x.requires_grad_(), relu=True)
    assert y not in recompute._RECIPES
    assert torch.equal(read(conv, y), conv(F.relu(synchronised(x))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_let_go_is_made_again_under_the_same_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3)
    source = torch.randn(2, 3, 9, 8)
    observed = []
    for go in (True, False):
        first.zero_grad()
        second.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            x = first(source)
            assert x.dtype == dtype
            if go:
                let_go(x, lambda: first(source))
            y = read(second, x)
        storage = StorageWeakRef(x.untyped_storage())
        del x
        assert storage.expired() == go
        y.float().square().sum().backward()
        observed.append([y.detach(), *(p.grad for module in (first, second) for p in module.parameters())])
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*observed, strict=True))


def test_what_needs_no_gradient_is_not_remembered() -> None:
    x = torch.randn(2, 3)
    let_go(x, lambda: x)
    assert x not in recompute._RECIPES
