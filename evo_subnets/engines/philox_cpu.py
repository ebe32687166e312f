"""`philox.c`, compiled on first need for this machine, kept for later processes.

A cold start must not cost what it saves. Networks are small at first: until a process has drawn
some millions of elements, and while no compiled library is on disk, the plain torch code of
`draws.py` serves, which gives the same bits. Then the C compiler runs once, for about a second.
Without a C compiler everything stays right, and slow.
"""

import ctypes
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path

import torch

from evo_subnets.draws import Draw
from evo_subnets.engines import compiler
from evo_subnets.engines.philox import Key, Recipe
from evo_subnets.engines.threads import share_out

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
SOURCE = Path(__file__).with_name("philox.c")

_drawn = 0


def available(device: torch.device, elements: int) -> bool:
    """Whether the compiled library shall draw the next `elements` elements."""
    global _drawn
    assert device.type == "cpu"
    _drawn += elements
    if _drawn < COMPILE_AFTER and not library_path().exists():
        return False
    return library() is not None


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library, None where it cannot be had."""
    without = "no compiled draws: children are built by plain torch, far more slowly"
    return compiler.library([SOURCE], compiler.EXACT, without)


@cache
def library_path() -> Path:
    """Where it is kept."""
    return compiler.library_path([SOURCE], compiler.EXACT)


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


def _pieces(draw: Draw) -> Iterator[Callable[[], None]]:
    """Calls of the library for at most CHUNK elements each."""
    compiled = library()
    assert compiled is not None
    recipes = (Recipe * len(draw.changes))(*map(Recipe.of, draw.changes))
    key = Key.of(draw)
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
