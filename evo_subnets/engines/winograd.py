"""Convolutions of many pictures on a CPU with a quarter of the products.

Winograd's minimal filtering (Lavin and Gray 2016, arXiv 1509.09308, section 4): an output tile of
4 x 4 is taken from t x t inputs, t = 4 + r - 1 for an r x r kernel, by t * t products for each pair
of channels instead of 16 * r * r; gradients likewise. The same convolution to float rounding, which
grows somewhat: to 1e-5 of their spread, 1e-4 for the gradients of 5 x 5 kernels; what is not finite
spoils its tile. Products are torch's; `winograd.c` is compiled on first need.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evo_subnets.engines import compiler

SOURCE = Path(__file__).with_name("winograd.c")
OUT = 4
"""Rows and columns of an output tile."""
POINTS = (0.0, 1.0, -1.0, 2.0, -0.5, -2.0, 0.5)
"""Where polynomials are evaluated, besides infinity: small ones round least."""
KERNELS = (3, 5)
LANES = 8
"""Channels come in multiples of this."""
GAP = 16
"""Floats between two matrices, lest all of a tile's values fall on the same line of the cache."""
CHUNK_BYTES, CHUNK_TILES = 2**21, 64
"""What is in work at once: so much that a core's cache holds it, but no fewer tiles."""


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
        turned = weight.flip(2, 3).transpose(0, 1)
        return (
            convolve(gradient, turned, None, r - 1 - padding) if for_pictures else None,
            weight_gradient(pictures, gradient, r, padding) if for_weight else None,
            gradient.sum((0, 2, 3)) if for_bias else None,
            None,
        )


def convolve(pictures: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    """What `conv2d` returns, channels last.

    pictures: (count, channels, height, width), channels last; weight: (outputs, channels, r, r).
    """
    outputs, channels, r, _ = weight.shape
    back, kernel, forth = matrices(r)
    weights = torch.kron(kernel, kernel) @ weight.permute(2, 3, 1, 0).reshape(r * r, -1)
    weights = weights.view(-1, channels, outputs)
    bias = torch.zeros(outputs) if bias is None else bias.contiguous()
    result = torch.empty(
        (len(pictures), outputs, *output_size(pictures, r, padding)),
        memory_format=torch.channels_last,
    )
    cut = Cut.of(pictures, r, padding, channels + outputs)
    taken, made = cut.workspace(channels), cut.workspace(outputs)
    for some, out in cut.chunks(pictures, result):
        taken_apart = cut.take_apart(some, forth, padding, taken)
        torch.bmm(taken_apart, weights, out=cut.matrices(made, len(out), outputs))
        _call("winograd_put_together", cut.tiling(made, len(out)), _picture(out), back, bias,
              made, out)  # fmt: skip
    return result


def weight_gradient(pictures: Tensor, gradient: Tensor, r: int, padding: int) -> Tensor:
    """(outputs, channels, r, r): the gradient of a loss, from that of the convolution's result."""
    channels, outputs = pictures.shape[1], gradient.shape[1]
    back, kernel, forth = matrices(r)
    spread = back.T.contiguous()
    cut = Cut.of(pictures, r, padding, channels + outputs)
    taken, made = cut.workspace(channels), cut.workspace(outputs)
    total = torch.zeros(cut.t * cut.t, channels, outputs)
    for some, out in cut.chunks(pictures, gradient):
        inputs = cut.take_apart(some, forth, padding, taken)
        total.baddbmm_(inputs.transpose(1, 2), cut.take_apart(out, spread, 0, made))
    folded = torch.kron(kernel, kernel).T @ total.view(cut.t * cut.t, -1)
    return folded.view(r, r, channels, outputs).permute(3, 2, 0, 1)


@dataclass(frozen=True)
class Cut:
    """How pictures are cut in tiles, and how many are in work at once."""

    t: int
    rows: int
    columns: int
    pictures: int

    @classmethod
    def of(cls, pictures: Tensor, r: int, padding: int, channels: int) -> "Cut":
        """Of a convolution's input; channels: in and out."""
        t = OUT + r - 1
        rows, columns = tiles(pictures, r, padding)
        fit = CHUNK_BYTES // (4 * t * t * channels * rows * columns)
        least = -(-CHUNK_TILES // (rows * columns))
        return cls(t, rows, columns, min(max(fit, least), len(pictures)))

    def chunks(self, *pictures: Tensor) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(torch.split(each, self.pictures) for each in pictures), strict=True)

    def workspace(self, channels: int) -> Tensor:
        """(t * t, floats) for the `matrices` of a chunk."""
        return torch.empty(self.t**2, self.pictures * self.rows * self.columns * channels + GAP)

    def matrices(self, workspace: Tensor, count: int, channels: int) -> Tensor:
        """(t * t, tiles, channels) of `count` pictures, in the workspace."""
        tiles = count * self.rows * self.columns
        return workspace[:, : tiles * channels].view(self.t**2, tiles, channels)

    def tiling(self, workspace: Tensor, count: int) -> "Tiling":
        return Tiling(self.t, count, self.rows, self.columns, workspace.stride(0))

    def take_apart(
        self, pictures: Tensor, matrix: Tensor, padding: int, workspace: Tensor
    ) -> Tensor:
        """The `matrices` of pictures: matrix @ tile @ matrix.T of every tile."""
        count, channels = pictures.shape[:2]
        _call("winograd_take_apart", self.tiling(workspace, count), matrix.shape[1],
              _picture(pictures), padding, matrix, pictures, workspace)  # fmt: skip
        return self.matrices(workspace, count, channels)


@cache
def matrices(r: int) -> tuple[Tensor, Tensor, Tensor]:
    """(OUT, t), (t, r) and (t, t) float32: A^T, G and B^T of Lavin and Gray, by Toom and Cook.

    The correlation of d, of t values, with g, of r, is A^T ((G g) * (B^T d)): polynomials are
    multiplied by evaluating them at t points, and interpolation is turned around.
    """
    t = OUT + r - 1

    def evaluation(size: int) -> Tensor:
        powers = [[point**power for power in range(size)] for point in POINTS[: t - 1]]
        infinity = [0.0] * (size - 1) + [1.0]
        return torch.tensor([*powers, infinity], dtype=torch.float64)

    found = evaluation(OUT).T, evaluation(r), torch.linalg.inv(evaluation(t)).T
    return tuple(each.float().contiguous() for each in found)  # type: ignore[return-value]


def output_size(pictures: Tensor, r: int, padding: int) -> tuple[int, int]:
    height, width = pictures.shape[2:]
    return height + 2 * padding - r + 1, width + 2 * padding - r + 1


def tiles(pictures: Tensor, r: int, padding: int) -> tuple[int, int]:
    """Rows and columns of tiles in a picture."""
    height, width = output_size(pictures, r, padding)
    return -(-height // OUT), -(-width // OUT)


class Tiling(ctypes.Structure):
    """How tiles lie in pictures and in the matrices of products: see `winograd.c`."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("t", "count", "rows", "columns", "stride"))


class Picture(ctypes.Structure):
    """The shape of a picture."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("height", "width", "channels"))


def _picture(pictures: Tensor) -> Picture:
    _, channels, height, width = pictures.shape
    return Picture(height, width, channels)


def _call(name: str, *arguments: Tensor | ctypes.Structure | int) -> None:
    compiled = library()
    assert compiled is not None
    getattr(compiled, name)(*map(_as_c, arguments))


def _as_c(argument: Tensor | ctypes.Structure | int) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def library() -> ctypes.CDLL | None:
    """The compiled library, None where it cannot be had or is left out."""
    without = "no compiled convolutions: torch's serve, more slowly"
    return compiler.fast_library((SOURCE,), without)
