"""`impala.c`: what an Impala block is made of, `Stem` and `Residual`, as differentiable functions.

Compiled once by the machine's C compiler and kept on disk; without one, torch's own convolutions
serve, with the same results to float rounding. `EVO_SUBNETS_EAGER` (set to anything) leaves the
compiled library out, for comparisons.
"""

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_subnets import compiler

if TYPE_CHECKING:
    from agents.impala import ImpalaCNN

SOURCES = tuple(Path(__file__).with_name(name) for name in ("impala.c", "tiles.c", "impala.h"))
LANES, HALF = 16, 8
"""Outputs come in multiples of the first; inputs, for tiles, in multiples of the second."""


class Shape(ctypes.Structure):
    """Of a convolution: its input's height and width, and its channels."""

    _fields_ = (
        ("height", ctypes.c_long),
        ("width", ctypes.c_long),
        ("inputs", ctypes.c_long),
        ("outputs", ctypes.c_long),
    )


def fits(network: "ImpalaCNN", observations: Tensor) -> bool:
    """Whether the compiled blocks can compute this network's features, and nobody looks at how:
    no autocast, tracing or transforms."""
    return (
        type(observations) is Tensor
        and not observations.requires_grad
        and observations.ndim == 4
        and len(observations) > 0
        and observations.shape[1] == next(network.blocks.parameters()).shape[1]
        and all(each.dtype == torch.float32 for each in (observations, *network.parameters()))
        and all(each.device.type == "cpu" for each in (observations, *network.parameters()))
        and all(width % LANES == 0 for width in network.widths)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_tracing_state() is None
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and library() is not None
    )


def features(network: "ImpalaCNN", observations: Tensor) -> Tensor:
    """What `network(observations)` returns; see `fits`.

    Without gradients the observations are shared out to torch's number of threads. With them all is
    done on the calling thread: a caller with several gives each a part of the observations.
    """
    pictures = observations.permute(0, 2, 3, 1).contiguous()
    threads = min(torch.get_num_threads(), len(pictures))
    if torch.is_grad_enabled():
        x = _blocks(network, pictures)
    elif threads == 1:
        x = _blocks_alone(network, pictures)
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = pictures.tensor_split(threads)
            x = torch.cat(list(pool.map(lambda part: _blocks_alone(network, part), parts)))
    x = F.relu(x.permute(0, 3, 1, 2)).flatten(1)
    return F.relu(network.hidden(x))


def _blocks(network: "ImpalaCNN", pictures: Tensor) -> Tensor:
    """(batch, height, width, channels) to the same of the last block."""
    stem: Callable[..., Tensor] = Stem.apply
    residual: Callable[..., Tensor] = Residual.apply
    for convolution, *pairs in _layers(network):
        pictures = stem(pictures, *convolution)
        for pair in pairs:
            pictures = residual(pictures, *pair)
    return pictures


@torch.no_grad()  # a thread has a switch of its own
def _blocks_alone(network: "ImpalaCNN", pictures: Tensor) -> Tensor:
    """`_blocks` without gradients, and without the memory that they would need."""
    for convolution, *pairs in _layers(network):
        pictures = _stem(pictures, convolution, None)
        for pair in pairs:
            _residual(pictures, pair, None, pictures)
    return pictures


def _layers(network: "ImpalaCNN") -> Iterator[tuple[Any, Any, Any]]:
    """Of each block the weights and biases of its convolution and of its two residual blocks."""
    for block in network.blocks.children():
        layers: list[Any] = list(block.children())
        convolution, _, one, two = layers
        yield (
            (convolution.weight, convolution.bias),
            (one.first.weight, one.first.bias, one.second.weight, one.second.bias),
            (two.first.weight, two.first.bias, two.second.weight, two.second.bias),
        )


class Stem(torch.autograd.Function):
    """A 3x3 convolution and a 3x3 maximum pooling of stride 2, both with a border of one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        winner = x.new_empty(_pooled(x, weight), dtype=torch.uint8)
        out = _stem(x, (weight, bias), winner)
        ctx.save_for_backward(x, weight, winner)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, winner = ctx.saved_tensors
        shape, back = _shape(x, weight), ctx.needs_input_grad[0]
        input_gradient = torch.empty_like(x) if back else None
        turned = packed(turn(weight)) if back else None
        weights, bias = x.new_zeros(_packed_shape(weight)), x.new_zeros(shape.outputs)
        _call("impala_stem_backward", len(x), shape, x, turned, winner, gradient.contiguous(),
              input_gradient, weights, bias)  # fmt: skip
        return input_gradient, unpacked(weights, weight), bias


class Residual(torch.autograd.Function):
    """x + conv(relu(conv(relu(x)))), the convolutions 3x3 with a border of one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor
    ) -> Tensor:
        hidden, out = torch.empty_like(x), torch.empty_like(x)
        _residual(x, (first, first_bias, second, second_bias), hidden, out)
        ctx.save_for_backward(x, hidden, first, second)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, hidden, first, second = ctx.saved_tensors
        shape, out = _shape(x, first), torch.empty_like(x)
        firsts, seconds = (x.new_zeros(_packed_shape(weight)) for weight in (first, second))
        first_bias, second_bias = x.new_zeros(shape.outputs), x.new_zeros(shape.outputs)
        _call("impala_residual_backward", len(x), shape, x, hidden, gradient.contiguous(),
              packed(turn(first)), packed(turn(second)), out, firsts, first_bias, seconds,
              second_bias)  # fmt: skip
        return out, unpacked(firsts, first), first_bias, unpacked(seconds, second), second_bias


def _stem(x: Tensor, layer: tuple[Tensor, Tensor], winner: Tensor | None) -> Tensor:
    """`Stem`; `winner` is for the backward pass."""
    weight, bias = layer
    out = x.new_empty(_pooled(x, weight))
    _call("impala_stem", len(x), _shape(x, weight), x, packed(weight), bias, out, winner)
    return out


def _pooled(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    return len(x), (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2, len(weight)


def _residual(
    x: Tensor, pair: tuple[Tensor, Tensor, Tensor, Tensor], hidden: Tensor | None, out: Tensor
) -> None:
    """`Residual` into `out`, which may be x; `hidden` is for the backward pass."""
    first, first_bias, second, second_bias = pair
    weights = (packed(first), first_bias, packed(second), second_bias)
    _call("impala_residual", len(x), _shape(x, first), x, *weights, hidden, out)


def packed(weight: Tensor) -> Tensor:
    """(outputs, inputs, 3, 3) as impala.c reads it, in matrices of LANES columns."""
    outputs, inputs = weight.shape[:2]
    matrix = weight.detach().permute(2, 3, 1, 0).reshape(9, inputs * outputs)
    if in_tiles(weight):
        matrix = transform() @ matrix
    matrices, blocks, rows, lanes = _packed_shape(weight)
    return matrix.view(matrices, rows, blocks, lanes).transpose(1, 2).contiguous()


def unpacked(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of a weight, from that of what `packed` made of it."""
    outputs, inputs = like.shape[:2]
    matrix = gradient.transpose(1, 2).reshape(gradient.shape[0], -1)
    if in_tiles(like):
        matrix = transform().T @ matrix
    return matrix.view(3, 3, inputs, outputs).permute(3, 2, 0, 1).contiguous()


def turn(weight: Tensor) -> Tensor:
    """The weights of the convolution that takes the outputs' gradient to the inputs'."""
    return weight.detach().flip(2, 3).transpose(0, 1)


def in_tiles(weight: Tensor) -> bool:
    """Whether impala.c convolves with these weights in tiles."""
    return weight.shape[1] % HALF == 0


@cache
def transform() -> Tensor:
    """(36, 9): of the weights for tiles, G of Lavin and Gray 2016, section 4.3, along both axes."""
    rows = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]
    g = torch.tensor(rows, dtype=torch.float64) / 24
    return torch.kron(g, g).float()


def _packed_shape(weight: Tensor) -> tuple[int, int, int, int]:
    """Matrices, blocks of LANES outputs, rows, LANES."""
    outputs, inputs = weight.shape[:2]
    matrices, rows = (36, inputs) if in_tiles(weight) else (1, 9 * inputs)
    return matrices, outputs // LANES, rows, LANES


def _shape(x: Tensor, weight: Tensor) -> Shape:
    return Shape(x.shape[1], x.shape[2], weight.shape[1], weight.shape[0])


def _call(name: str, count: int, shape: Shape, *tensors: Tensor | None) -> None:
    compiled = library()
    assert compiled is not None
    assert all(each is None or each.is_contiguous() for each in tensors)
    pointers = [ctypes.c_void_p(None if each is None else each.data_ptr()) for each in tensors]
    getattr(compiled, name)(ctypes.c_long(count), shape, *pointers)


def library() -> ctypes.CDLL | None:
    """The compiled library, None where it cannot be had or is left out."""
    without = "no compiled Impala blocks: torch's convolutions serve, more slowly"
    return compiler.fast_library(SOURCES, without)
