"""Convolutions of many pictures on a CPU with a quarter of the products: `winograd.h`, compiled.

The same convolution to float rounding, which grows somewhat: to 1e-5 of the spread of results, 1e-4
for the gradients of 5 x 5 kernels; what is not finite spoils its tile of 4 x 4. All is done on the
calling thread.
"""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evo_subnets.engines import compiler

SOURCES = tuple(Path(__file__).with_name(name) for name in ("winograd.c", "winograd.h"))
KERNELS = (3, 5)
OUT = 4
"""Rows and columns of a tile of results."""
LANES = 8
"""Channels come in multiples of this."""


class Shape(ctypes.Structure):
    """Of a convolution: its results' height and width, its channels, its kernel's rows."""

    _fields_ = tuple(
        (name, ctypes.c_long) for name in ("height", "width", "inputs", "outputs", "kernel")
    )


class Convolution(torch.autograd.Function):
    """conv2d(pictures, weight, bias, padding=padding) with its gradients."""

    @staticmethod
    def forward(
        ctx: Any, pictures: Tensor, weight: Tensor, bias: Tensor | None, padding: int
    ) -> Tensor:
        ctx.save_for_backward(pictures, weight)
        ctx.padding = padding
        return convolve(pictures, weight, bias, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pictures, weight = ctx.saved_tensors
        for_pictures, for_weight, for_bias, _ = ctx.needs_input_grad
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        r, padding = weight.shape[-1], ctx.padding
        return (
            convolve(gradient, weight, None, r - 1 - padding, turned=True)
            if for_pictures
            else None,
            weight_gradient(pictures, gradient, r, padding) if for_weight else None,
            gradient.sum((0, 2, 3)) if for_bias else None,
            None,
        )


def convolve(
    pictures: Tensor, weight: Tensor, bias: Tensor | None, padding: int, *, turned: bool = False
) -> Tensor:
    """What `conv2d` returns, channels last.

    pictures: (count, channels, height, width), channels last; weight: (outputs, channels, r, r), or
    `turned` (channels, outputs, r, r), which takes a gradient of the outputs to one of the inputs.
    """
    r = weight.shape[-1]
    outputs = weight.shape[1 if turned else 0]
    out = torch.empty(
        (len(pictures), outputs, *output_size(pictures, r, padding)),
        memory_format=torch.channels_last,
    )
    _call("winograd_convolve", pictures, out, padding, r, pictures, weight.contiguous(),
          ctypes.c_int(turned), None if bias is None else bias.contiguous(), out)  # fmt: skip
    return out


def weight_gradient(pictures: Tensor, gradient: Tensor, r: int, padding: int) -> Tensor:
    """(outputs, channels, r, r): the gradient of a loss, from that of the convolution's result."""
    weights = torch.empty(gradient.shape[1], pictures.shape[1], r, r)
    _call("winograd_weight_gradient", pictures, gradient, padding, r, pictures, gradient, weights)
    return weights


def output_size(pictures: Tensor, r: int, padding: int) -> tuple[int, int]:
    height, width = pictures.shape[2:]
    return height + 2 * padding - r + 1, width + 2 * padding - r + 1


def tiles(pictures: Tensor, r: int, padding: int) -> tuple[int, int]:
    """Rows and columns of tiles in a picture."""
    height, width = output_size(pictures, r, padding)
    return -(-height // OUT), -(-width // OUT)


def _call(
    name: str, pictures: Tensor, results: Tensor, padding: int, r: int, *arguments: Any
) -> None:
    compiled = library()
    assert compiled is not None
    count, channels, height, width = pictures.shape
    _, outputs, *size = results.shape
    numbers = map(ctypes.c_long, (height, width, padding))
    shape = Shape(*size, channels, outputs, r)
    if not getattr(compiled, name)(ctypes.c_long(count), shape, *numbers, *map(_as_c, arguments)):
        raise MemoryError(f"no memory for {count} pictures of {channels}x{height}x{width}")


def _as_c(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p()
    return ctypes.c_void_p(argument.data_ptr()) if isinstance(argument, Tensor) else argument


def library() -> ctypes.CDLL | None:
    """The compiled library, None where it cannot be had."""
    without = "no compiled convolutions: torch's serve, more slowly"
    return compiler.fast_library(SOURCES, without)
