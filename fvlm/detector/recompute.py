"""Tensors that are not kept for the way back, but made again on it: outputs of batch norms, and the pyramid's sums.

A batch norm keeps its input; what comes out, behind a ReLU or not, is kept a second time, by the layer that reads it.
Yet the output is scale * input + shift, channel by channel, with statistics that the norm keeps anyway. So it is let go
in the forward pass and made again when the way back asks for it: one pass over memory, beside a convolution's thousands
of operations a number. The pyramid's top-down sums are cheap in the same way: 1x1 convolutions of what the tower gave.

torch's `checkpoint` would run the norm itself again: it would take the statistics a second time, which costs more than
twice as much, and would move the running ones twice. Around the pyramid it would run the 3x3 convolutions again, too.
"""

import weakref
from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


class _Recipe:
    """Makes a tensor at the first of its uses on a way back, and lets go of it at the last."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make = make
        self.uses = self.left = 0
        self.made: Tensor | None = None

    def to_be_used(self) -> "_Recipe":
        self.uses += 1
        return self

    def use(self) -> Tensor:
        made = self.made
        if made is None:
            made, self.left = self.make(), self.uses
        self.left -= 1
        self.made = made if self.left else None
        return made


_RECIPES: MutableMapping[Tensor, _Recipe] = WeakTensorKeyDictionary()  # of the outputs that are alive


def normalise(norm: nn.Module, x: Tensor, *, relu: bool = False) -> Tensor:
    """`norm(x)`, or its ReLU; whoever then says `read(layer, output)` does not keep it.

    Args:
        norm: a batch norm in train or in eval mode.
        x: (N, C, H, W).

    Only `nn.BatchNorm2d` itself, run eagerly, is treated so. Norms over several processes keep their outputs, since
    they keep their statistics elsewhere; and what is compiled is left to the compiler, which finds the same by itself.
    """
    output = norm(x)
    if output.requires_grad and type(norm) is nn.BatchNorm2d and not torch.compiler.is_compiling():
        recipe = _Recipe(partial(_make, _affine(norm, output), x.detach(), relu))
        if relu:
            with _without(output, recipe):
                output = F.relu_(output)
        _RECIPES[output] = recipe
        return output
    return F.relu_(output) if relu else output  # the norm's way back reads its input alone


def let_go(x: Tensor, make: Callable[[], Tensor]) -> None:
    """Whoever then says `read(layer, x)` does not keep `x`, but has `make()` on the way back, under the same autocast.

    `make` gives `x`, bit for bit, from what is kept anyway; it must not hold `x` itself.
    """
    if not x.requires_grad or torch.compiler.is_compiling():
        return
    kind = x.device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    def make_again() -> Tensor:
        with torch.no_grad(), torch.autocast(kind, dtype, enabled=enabled):
            return make()

    _RECIPES[x] = _Recipe(make_again)


def read(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`layer(x)`; if `x` is of `normalise` or was `let_go`, it is made again on the way back instead of being kept."""
    recipe = None if torch.compiler.is_compiling() else _RECIPES.get(x)
    if recipe is None:
        return layer(x)
    with _without(x, recipe):
        return layer(x)


def _without(x: Tensor, recipe: _Recipe) -> torch.autograd.graph.saved_tensors_hooks:
    """Inside, an operator that wants to keep `x` keeps its recipe."""
    reference = weakref.ref(x)  # the operator keeps these hooks, and must not keep `x` with them

    def pack(tensor: Tensor) -> Tensor | _Recipe:
        alive = reference()
        return recipe.to_be_used() if alive is not None and tensor.is_set_to(alive) else tensor

    def unpack(kept: Tensor | _Recipe) -> Tensor:
        return kept.use() if isinstance(kept, _Recipe) else kept

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _affine(norm: nn.BatchNorm2d, output: Tensor) -> dict[str, Any]:
    """Arguments of `F.batch_norm` that make `output` of the same input, without taking statistics."""
    if not norm.training:
        return {
            "running_mean": norm.running_mean,
            "running_var": norm.running_var,
            "weight": norm.weight,
            "bias": norm.bias,
            "eps": norm.eps,
        }
    of_batch: Any = output.grad_fn  # torch keeps the batch's mean and 1 / standard deviation there
    scale = of_batch._saved_result2 * norm.weight.detach()
    shift = torch.addcmul(norm.bias.detach(), of_batch._saved_result1, scale, value=-1)
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return {"running_mean": zeros, "running_var": ones, "weight": scale, "bias": shift, "eps": 0.0}


@torch.no_grad()
def _make(affine: dict[str, Any], x: Tensor, relu: bool) -> Tensor:
    output = F.batch_norm(x, training=False, **affine)
    return F.relu_(output) if relu else output
