"""Several processes that train one detector together: what they add up, and batch norm over all their images.

Each process takes its share of every batch. Losses have the whole batch's normalisers (`fvlm.detector.losses`), so the
processes' losses and gradients are simply added; and batch norms see all processes' images of a pass. So P processes
compute what one computes on the whole batch, but for the order of sums.

torch's `DistributedDataParallel` is not used: it averages, where sums are wanted, and hooks into `backward()`, which
does not run once a step here. One sum of all gradients after the last pass (80 MB for RN50's heads) costs milliseconds.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..detector.detector import FVLM


@dataclass(frozen=True)
class World:
    """The processes that train together: how many, and which of them this is. Rank 0 alone prints and writes."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """The sum of every process's `value`, the same in all of them; no gradient goes through it."""
        if self.size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value

    def add_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace each gradient by the sum of all processes'. Every process has gradients of the same parameters."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        total = self.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))


ALONE = World()


class _Total(torch.autograd.Function):
    """`World.total` with a gradient: every process's loss depends on every process's value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient


class SynchronizedBatchNorm(_BatchNorm):
    """Batch norm whose batch is that of all processes. Stands for `torch.nn.SyncBatchNorm`, which refuses the CPU.

    Mean and variance are summed one after the other: their difference of squares would lose digits.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        x = input.float()
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.new_tensor([x.numel() // x.shape[1]])  # the box head's differs from process to process
        total = _Total.apply(torch.cat([x.sum(dims), count]))
        mean, count = total[:-1] / total[-1], total[-1].detach()
        centred = x - mean.view(shape)
        variance = _Total.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


def synchronize_norms(detector: FVLM) -> None:
    """Make the batch norms that train see the images of all processes, in place; names in the state dict stay.

    A tower whose norms are frozen keeps them. To be called before the optimiser is built.
    """
    parts: list[nn.Module] = [detector.fpn, detector.rpn, detector.box_head]
    if detector.tower.mode == "none":
        parts.append(detector.tower)
    for part in parts:
        if next(part.parameters()).is_cuda:
            nn.SyncBatchNorm.convert_sync_batchnorm(part)
        else:
            _replace_norms(part)


def _replace_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            norm = SynchronizedBatchNorm(child.num_features, child.eps, child.momentum)
            for key, parameter in child.named_parameters(recurse=False):
                setattr(norm, key, parameter)
            for key, buffer in child.named_buffers(recurse=False):
                setattr(norm, key, buffer)
            setattr(module, name, norm.train(child.training))
        else:
            _replace_norms(child)
