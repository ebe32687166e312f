"""`philox.c` and `crops.c`, compiled on first need for this machine, kept for later processes.

A cold start must not cost what it saves. Networks are small at first: until a process has drawn
some millions of elements, and while no compiled library is on disk, the plain torch code of
`streams.py` serves, which gives the same bits. Then the C compiler runs once, for about a second.
Without a C compiler everything stays right, and slow. The environment variable
`EVO_SUBNETS_EAGER` (set to anything) leaves the compiled library out, for comparisons.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from evo_subnets.engines import compiler
from evo_subnets.engines.threads import share_out
from evo_subnets.streams import chunk_size, name_hash, normal, uniform_levels
from evo_subnets.subnetworks import Interval

COMPILE_AFTER = 8_000_000
"""Elements drawn by plain torch before a library that is not on disk is compiled.

As many as plain torch needs about as long for as the compiler (8.6 million and 0.55 s on two cores:
benchmarks/crossover.py): then no process waits more than twice as long as it would have at best,
whatever it goes on to draw. A library on disk is taken at once: to find and load it takes 3 ms, and
each draw is faster from a thousand elements on.
"""
CHUNK = 2**18
"""Elements that one thread takes at a time; a multiple of streams.TILE."""
SHARED_FROM = 2**19
"""Elements from which two threads are faster than one: half a million take one of them 1 ms."""
SOURCES = [Path(__file__).with_name(name) for name in ("philox.c", "crops.c")]
FLAGS = ["-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

_drawn = 0


class Key(ctypes.Structure):
    """What a draw depends on, besides the element and the stream."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("name", ctypes.c_uint64),
    )


class Recipe(ctypes.Structure):
    """An interval of u in units of 2**-24, and the factor of the noise."""

    _fields_ = (
        ("low", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("sigma", ctypes.c_float),
        ("unused", ctypes.c_uint32),
    )


def available(elements: int) -> bool:
    """Whether the compiled library shall draw the next `elements` elements."""
    global _drawn
    if os.environ.get("EVO_SUBNETS_EAGER"):
        return False
    _drawn += elements
    if _drawn < COMPILE_AFTER and not library_path().exists():
        return False
    return library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, None where it cannot be had."""
    without = "no compiled draws: children are built by plain torch, far more slowly"
    return compiler.library(SOURCES, FLAGS, without)


@cache
def library_path() -> Path:
    """Where it is kept."""
    return compiler.library_path(SOURCES, FLAGS)


@dataclass(frozen=True)
class Draw:
    """Siblings of one seed to be written into `outs`, one for each recipe.

    All tensors are contiguous, of one device, and hold the elements of the parameter `name` from
    `start` on. Compiled libraries take float32.
    """

    name: str
    parent: Tensor
    outs: Sequence[Tensor]
    seed: int
    recipes: Sequence[Recipe]
    start: int = 0


def perturb(draws: Iterable[Draw]) -> None:
    """Carries the draws out, shared by torch's number of threads where there is enough to do.

    Ask for all parameters at once, so that a small one does not keep the others waiting.
    """
    draws = list(draws)
    pieces = [piece for draw in draws for piece in _pieces(draw)]
    threads = min(torch.get_num_threads(), len(pieces))
    if threads == 1 or sum(draw.parent.numel() for draw in draws) < SHARED_FROM:
        for piece in pieces:
            piece()
    else:
        share_out(lambda piece: piece(), pieces, threads)


def draw_plainly(draws: Iterable[Draw]) -> None:
    """Carries the draws out by plain torch, on any device: what the compiled ones must give."""
    for draw in draws:
        parents, outs = draw.parent.view(-1), [out.view(-1) for out in draw.outs]
        chunk = chunk_size(parents.device)
        for first in range(0, parents.numel(), chunk):
            parent = parents[first : first + chunk]
            place = (draw.seed, draw.name, parent.numel(), draw.start + first, parent.device)
            levels, noise = uniform_levels(*place), normal(*place)
            for out, recipe in zip(outs, draw.recipes, strict=True):
                inside = Interval(recipe.low, recipe.width).contains(levels)
                changed = parent + noise * recipe.sigma
                out[first : first + chunk] = torch.where(inside, changed, parent)


def crops(
    pixels: Tensor,
    top: Tensor,
    left: Tensor,
    mirrored: Tensor,
    scale: Tensor,
    shift: Tensor,
    padding: int,
) -> Tensor:
    """(count, height, width, channels) float32: see `crops.c`.

    pixels: the same shape, uint8; top, left, mirrored: (count,) int64; scale, shift: (width,
    channels) float32. All are contiguous and on the CPU.
    """
    compiled = library()
    assert compiled is not None
    out = torch.empty(pixels.shape)
    row = torch.empty(scale.shape, dtype=torch.uint8)
    tensors = (pixels, out, top, left, mirrored, scale, shift, row)
    compiled.evo_crops(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        *map(ctypes.c_int64, (*pixels.shape, padding)),
    )
    return out


def _pieces(draw: Draw) -> Iterator[Callable[[], None]]:
    """Calls of the library for at most CHUNK elements each."""
    compiled = library()
    assert compiled is not None
    recipes = (Recipe * len(draw.recipes))(*draw.recipes)
    key = Key(draw.seed, name_hash(draw.name))
    for first in range(0, draw.parent.numel(), CHUNK):
        offset = 4 * first
        pointers = (ctypes.c_void_p * len(draw.outs))(
            *(out.data_ptr() + offset for out in draw.outs)
        )
        yield partial(
            compiled.evo_perturb,
            ctypes.c_void_p(draw.parent.data_ptr() + offset),
            pointers,
            recipes,
            ctypes.c_uint32(len(draw.outs)),
            ctypes.c_uint64(draw.start + first),
            ctypes.c_uint64(min(CHUNK, draw.parent.numel() - first)),
            key,
        )
