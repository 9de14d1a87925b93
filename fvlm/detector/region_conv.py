"""A 3x3 convolution of 7x7 region features by the convolution theorem: 94 products instead of 441 (9 for each cell).

With one row and one column of zeros a 7x7 map is 8x8, and its convolution with a padding of 1 is a circular one: the
inverse Fourier transform of the product of two transforms. Of the 64 frequencies of a real map 4 are real and 30 are
complex, the other 30 their conjugates; a complex product is three real ones (Gauss). All three transforms are linear
and small, so each is one matrix product over all regions and channels at a time. The way back is the same three
matrices transposed. Rounding errors are those of a convolution, about 1e-6 of the result's deviation in float32.

The four convolutions of the box head are the largest part of a training step on a CPU. There oneDNN, which torch calls,
multiplies directly. cuDNN has fast algorithms of its own, so on a GPU the convolution is left to it.

Source: Mathieu et al., "Fast training of convolutional networks through FFTs" (2013); the form "transform, multiply,
transform back" with matrices is Lavin and Gray's, "Fast algorithms for convolutional neural networks" (2016).
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SIZE = 7  # cells of a region per side
PRODUCTS = 94  # 4 real frequencies and three products for each of 30 complex ones
CHUNK_FLOATS = 1 << 15  # regions * channels at a time: buffers of 12 MiB; 128 regions of the paper's head
MIN_REGIONS = 64  # below this the kernel's own transform costs more than is gained
MIN_CHANNELS = 128  # below this the regions' transforms do


def pays(convs: Sequence[nn.Conv2d], regions: Tensor) -> bool:
    """Whether `convolve` is faster than the layers themselves on `regions` (R, C, 7, 7).

    A compiled or exported graph keeps the layers: how many regions there are is not known then.
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if regions.device.type != "cpu" or regions.dtype != torch.float32 or len(regions) < MIN_REGIONS:
        return False
    return all(min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS for conv in convs)


def by_cell(regions: Tensor) -> Tensor:
    """(R, C, 7, 7) -> (1, C, 49, R), channels last in memory: the layout of `convolve`; norms do not mind it."""
    return regions.permute(2, 3, 0, 1).contiguous().flatten(0, 1)[None].permute(0, 3, 1, 2)


def by_region(cells: Tensor) -> Tensor:
    """(1, C, 49, R) -> (R, C, 7, 7): the way back, a view."""
    return cells[0].permute(2, 0, 1).unflatten(2, (SIZE, SIZE))


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv`, 3x3 with a padding of 1 and a bias, of 7x7 regions.

    Args:
        conv: C to K channels.
        x: (1, C, 49, R), as `by_cell` gives it.

    Returns:
        (1, K, 49, R), in the same layout.
    """
    return _Convolution.apply(x, conv.weight, conv.bias)


def transforms(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of a region's cells (94, 49), of a kernel's taps (94, 9), and of the products, back to cells (49, 94).

    In row-major order of cells and taps. y = back @ ((of_taps @ kernel) * (of_cells @ x)) is the convolution as torch
    means it: cell i gets tap k times cell i + k - 1.
    """
    of_cells, of_taps, back = (torch.tensor(matrix, dtype=dtype) for matrix in _matrices())
    return of_cells, of_taps, back


@functools.cache
def _matrices() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """`transforms`, kept as arrays: a tensor remembers the mode it was first made in, inference's or an estimate's."""
    period = SIZE + 1
    frequency = np.arange(period)
    turn = 2j * np.pi / period
    along_cells = np.exp(-turn * np.outer(frequency, np.arange(SIZE)))  # (8, 7)
    along_taps = np.exp(turn * np.outer(frequency, [-1, 0, 1]))  # (8, 3)
    cells, taps = np.kron(along_cells, along_cells), np.kron(along_taps, along_taps)  # (64, 49), (64, 9)
    inverse = cells.conj().T / period**2  # (49, 64)

    of_cells, of_taps, back = [], [], []
    for row in range(period):
        for column in range(period):
            here = row * period + column
            conjugate = (-row % period) * period + (-column % period)
            a, b = cells[here].real, cells[here].imag
            c, d = taps[here].real, taps[here].imag
            real, imaginary = inverse[:, here].real, inverse[:, here].imag
            if here == conjugate:
                of_cells.append(a)
                of_taps.append(c)
                back.append(real)
            elif here < conjugate:
                # (a + ib)(c + id) = (s - v) + i(s + u) with s = (a + b) c, u = a (d - c), v = b (c + d)
                of_cells += [a + b, a, b]
                of_taps += [c, d - c, c + d]
                back += [2 * (real - imaginary), -2 * imaginary, -2 * real]
    return np.stack(of_cells), np.stack(of_taps), np.stack(back, axis=1)


class _Convolution(torch.autograd.Function):
    """Keeps its input and its kernel alone; what is transformed is transformed again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        of_cells, _, back = transforms(x.dtype)
        source, kernel = _rows(x), _transformed(weight)
        y = source.new_empty(SIZE**2, source.shape[1], len(weight))
        inputs, products = _Buffer(source, weight), _Buffer(source, weight)
        for part in inputs.parts:
            product = torch.bmm(inputs.put(of_cells, source[:, part]), kernel, out=products.of(part, len(weight)))
            product[0] += bias * (SIZE + 1) ** 2  # the frequency 0, which goes to all cells alike
            torch.mm(back, product.flatten(1), out=y[:, part].flatten(1))
        return y[None].permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        of_cells, of_taps, back = transforms(x.dtype)
        source, of_y, kernel = _rows(x), _rows(gradient), _transformed(weight)
        of_x = torch.empty_like(source) if ctx.needs_input_grad[0] else None
        of_kernel, of_bias = torch.zeros_like(kernel), torch.zeros_like(weight[:, 0, 0, 0])
        inputs, products = _Buffer(source, weight), _Buffer(source, weight)
        for part in inputs.parts:
            of_product = products.put(back.T, of_y[:, part])
            of_bias += of_product[0].sum(0) * (SIZE + 1) ** 2
            of_kernel.baddbmm_(inputs.put(of_cells, source[:, part]).mT, of_product)
            if of_x is not None:
                of_input = torch.bmm(of_product, kernel.mT, out=inputs.of(part, weight.shape[1]))
                torch.mm(of_cells.T, of_input.flatten(1), out=of_x[:, part].flatten(1))
        of_weight = (of_taps.T @ of_kernel.flatten(1)).view(3, 3, *of_kernel.shape[1:]).permute(3, 2, 0, 1)
        return None if of_x is None else of_x[None].permute(0, 3, 1, 2), of_weight, of_bias


class _Buffer:
    """Memory for one transform of some regions at a time: fresh memory for each part would cost a fifth of the time."""

    def __init__(self, source: Tensor, weight: Tensor) -> None:
        regions, widest = source.shape[1], max(weight.shape[:2])
        step = max(1, min(regions, CHUNK_FLOATS // widest))
        self.parts = [slice(start, min(start + step, regions)) for start in range(0, regions, step)]
        self._memory = source.new_empty(PRODUCTS * step * widest)

    def of(self, part: slice, channels: int) -> Tensor:
        """(94, r, channels) for the r regions of a part; what was in it is lost."""
        shape = (PRODUCTS, part.stop - part.start, channels)
        return self._memory[: math.prod(shape)].view(shape)

    def put(self, matrix: Tensor, values: Tensor) -> Tensor:
        """(94, 49) of (49, r, channels) -> (94, r, channels)."""
        out = self._memory[: len(matrix) * values[0].numel()].view(len(matrix), *values.shape[1:])
        torch.mm(matrix, values.flatten(1), out=out.flatten(1))
        return out


def _transformed(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) -> (94, C, K)."""
    taps = weight.permute(2, 3, 1, 0)
    return (transforms(weight.dtype)[1] @ taps.reshape(9, -1)).view(PRODUCTS, *taps.shape[2:])


def _rows(x: Tensor) -> Tensor:
    """(1, C, 49, R) -> (49, R, C), contiguous."""
    return x[0].permute(1, 2, 0).contiguous()
