"""`impala.c`: what an Impala block is made of, `Stem` and `Residual`, as differentiable functions.

Compiled once by the machine's C compiler and kept on disk; without one, torch's own convolutions
serve, with the same results to float rounding.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evo_subnets import engines

SOURCES = (Path(__file__).with_name("impala.c"), engines.WINOGRAD)
LANES = 16
"""Channels come in multiples of this."""


class Shape(ctypes.Structure):
    """Of a convolution: its input's height and width, and its channels."""

    _fields_ = (
        ("height", ctypes.c_long),
        ("width", ctypes.c_long),
        ("inputs", ctypes.c_long),
        ("outputs", ctypes.c_long),
        ("kernel", ctypes.c_long),
    )


class Block(ctypes.Structure):
    """The weights of a block: of its convolution and of the four in its residual blocks."""

    _fields_ = (
        ("width", ctypes.c_long),
        ("weights", ctypes.c_void_p * 5),
        ("biases", ctypes.c_void_p * 5),
    )


class Network(ctypes.Structure):
    """The shape of a picture, and the blocks that it goes through."""

    _fields_ = (
        ("height", ctypes.c_long),
        ("width", ctypes.c_long),
        ("channels", ctypes.c_long),
        ("blocks", ctypes.c_long),
        ("block", ctypes.POINTER(Block)),
    )


class Impala(Protocol):
    """An `ImpalaCNN`, with the layers that it was built with."""

    widths: tuple[int, ...]
    blocks: nn.Sequential
    hidden: nn.Linear


def fits(network: Impala, observations: Tensor) -> bool:
    """Whether the compiled blocks can compute the features of this network: not under autocast and
    not while a compiler or a tracer looks on."""
    weights = [network.hidden.weight]
    weights += [each for layers in _layers(network) for layer in layers for each in layer]
    return (
        type(observations) is Tensor
        and not observations.requires_grad
        and observations.ndim == 4
        and len(observations) > 0
        and observations.shape[1] == weights[1].shape[1]
        and all(each.dtype == torch.float32 and each.is_cpu for each in (observations, *weights))
        and all(width % LANES == 0 for width in network.widths)
        and not engines.watched()
        and library() is not None
    )


def features(network: Impala, observations: Tensor) -> Tensor:
    """What `network(observations)` returns; see `fits`.

    Without gradients the observations are shared out to torch's number of threads. With them all is
    done on the calling thread: a caller with several gives each a part of the observations.
    """
    pictures = observations.permute(0, 2, 3, 1).contiguous()
    threads = min(torch.get_num_threads(), len(pictures))
    if torch.is_grad_enabled():
        x = _blocks(network, pictures)
    else:
        x = _without_gradients(network, pictures, threads)
    x = F.relu(x.permute(0, 3, 1, 2)).flatten(1)
    return F.relu(network.hidden(x))


def _blocks(network: Impala, pictures: Tensor) -> Tensor:
    """(batch, height, width, channels) to the same of the last block."""
    stem: Callable[..., Tensor] = Stem.apply
    residual: Callable[..., Tensor] = Residual.apply
    for convolution, *pairs in _layers(network):
        pictures = stem(pictures, *convolution)
        for pair in pairs:
            pictures = residual(pictures, *pair)
    return pictures


def _layers(network: Impala) -> Iterator[tuple[Any, Any, Any]]:
    """Of each block the weights and biases of its convolution and of its two residual blocks."""
    for block in network.blocks.children():
        layers: list[Any] = list(block.children())
        convolution, _, one, two = layers
        yield (
            (convolution.weight, convolution.bias),
            (one.first.weight, one.first.bias, one.second.weight, one.second.bias),
            (two.first.weight, two.first.bias, two.second.weight, two.second.bias),
        )


def _without_gradients(network: Impala, pictures: Tensor, threads: int) -> Tensor:
    """`_blocks` in one call of the library a thread, without what gradients would need."""
    tensors: list[Tensor] = []  # kept while pointers to them are in use
    blocks = (Block * len(network.widths))()
    for block, width, layers in zip(blocks, network.widths, _layers(network), strict=True):
        flat = [tensor.contiguous() for layer in layers for tensor in layer]
        tensors += flat
        block.width = width
        block.weights[:] = [tensor.data_ptr() for tensor in flat[0::2]]
        block.biases[:] = [tensor.data_ptr() for tensor in flat[1::2]]
    count, height, width, _ = pictures.shape
    described = Network(*pictures.shape[1:], len(blocks), blocks)
    packed, scratch_size = _packed(network, described)
    for _ in network.widths:
        height, width = (height + 1) // 2, (width + 1) // 2
    out = pictures.new_empty(count, height, width, network.widths[-1])

    def share(index: int) -> None:
        some, to = (each.tensor_split(threads)[index] for each in (pictures, out))
        _call("impala_blocks", len(some), described, packed, _scratch(scratch_size), some, to)

    engines.share_out(share, range(threads), threads=threads)
    return out


_packed_weights: WeakKeyDictionary[Impala, tuple[Tensor, Tensor]] = WeakKeyDictionary()
_lock = threading.Lock()
_own = threading.local()


def _packed(network: Impala, described: Network) -> tuple[Tensor, int]:
    """The network's packed weights, and the floats that a thread needs besides.

    They are packed anew when the weights are others, bit by bit, than those of the last time.
    """
    sizes = [ctypes.c_long() for _ in range(3)]
    _call("impala_sizes", described, *map(ctypes.byref, sizes))
    packed_size, weights_size, scratch_size = (size.value for size in sizes)
    with _lock:
        kept = _packed_weights.get(network)
    if kept is None or len(kept[0]) != packed_size or not _call("impala_same", described, kept[1]):
        kept = torch.empty(packed_size), torch.empty(weights_size)
        _call("impala_pack", described, *kept)
        with _lock:
            _packed_weights[network] = kept
    return kept[0], scratch_size


def _scratch(size: int) -> Tensor:
    """At least so many floats of this thread's."""
    kept: Tensor | None = getattr(_own, "scratch", None)
    if kept is None or len(kept) < size:
        kept = _own.scratch = torch.empty(size)
    return kept


class Stem(torch.autograd.Function):
    """A 3x3 convolution and a 3x3 maximum pooling of stride 2, both with a border of one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        shape = _shape(x, weight)
        pooled = (len(x), (shape.height + 1) // 2, (shape.width + 1) // 2, shape.outputs)
        out, winner = x.new_empty(pooled), x.new_empty(pooled, dtype=torch.uint8)
        _call("impala_stem", len(x), shape, x, weight.contiguous(), bias, out, winner)
        ctx.save_for_backward(x, weight, winner)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, winner = ctx.saved_tensors
        back = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        weights, bias = _empty(weight), x.new_zeros(len(weight))
        _call("impala_stem_backward", len(x), _shape(x, weight), x, weight.contiguous(), winner,
              gradient.contiguous(), back, weights, bias)  # fmt: skip
        return back, weights, bias


class Residual(torch.autograd.Function):
    """x + conv(relu(conv(relu(x)))), the convolutions 3x3 with a border of one."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor
    ) -> Tensor:
        hidden, out = torch.empty_like(x), torch.empty_like(x)
        _call("impala_residual", len(x), _shape(x, first), x, first.contiguous(), first_bias,
              second.contiguous(), second_bias, hidden, out)  # fmt: skip
        ctx.save_for_backward(x, hidden, first, second)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        x, hidden, first, second = ctx.saved_tensors
        back, firsts, seconds = torch.empty_like(x), _empty(first), _empty(second)
        first_bias, second_bias = x.new_zeros(len(first)), x.new_zeros(len(second))
        _call("impala_residual_backward", len(x), _shape(x, first), x, hidden,
              gradient.contiguous(), first.contiguous(), second.contiguous(), back, firsts,
              first_bias, seconds, second_bias)  # fmt: skip
        return back, firsts, first_bias, seconds, second_bias


def _empty(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _shape(x: Tensor, weight: Tensor) -> Shape:
    return Shape(x.shape[1], x.shape[2], weight.shape[1], weight.shape[0], weight.shape[2])


def _call(name: str, *arguments: Any) -> int:
    compiled = library()
    assert compiled is not None
    result: int = getattr(compiled, name)(*map(_as_c, arguments))
    return result


def _as_c(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p()
    if isinstance(argument, Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_long(argument) if isinstance(argument, int) else argument


def library() -> ctypes.CDLL | None:
    """The compiled library, None where it cannot be had or is left out."""
    without = "no compiled Impala blocks: torch's convolutions serve, more slowly"
    return engines.library(SOURCES, without)
