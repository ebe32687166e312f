"""A parameter's children as work to be carried out: by plain torch here, or by an engine."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evo_subnets.streams import Interval, chunk_size, normal, uniform_levels


@dataclass(frozen=True)
class Change:
    """What a sibling does with the common noise: sigma times it, inside an interval of u.

    Of a `mean`, in units of sigma, `draw_plainly` alone knows."""

    interval: Interval
    sigma: float
    mean: float = 0.0


@dataclass(frozen=True)
class Draw:
    """Siblings of one seed to be written into `outs`, one for each change.

    All tensors are contiguous, of one device, and hold the elements of the parameter `name` from
    `start` on, a multiple of streams.TILE. Engines take float32.
    """

    name: str
    parent: Tensor
    outs: Sequence[Tensor]
    seed: int
    changes: Sequence[Change]
    start: int = 0


CarryOut = Callable[[Iterable[Draw]], None]
"""What carries draws out: `draw_plainly`, or an engine with the same bits."""


def draw_plainly(draws: Iterable[Draw]) -> None:
    """Carries the draws out by plain torch, on any device: the bits that every engine must give."""
    for draw in draws:
        parents, outs = draw.parent.view(-1), [out.view(-1) for out in draw.outs]
        chunk = chunk_size(parents.device)
        for first in range(0, parents.numel(), chunk):
            parent = parents[first : first + chunk]
            count, start, device = parent.numel(), draw.start + first, parent.device
            levels = uniform_levels(draw.seed, draw.name, count=count, start=start, device=device)
            noise = normal(draw.seed, draw.name, count=count, start=start, device=device)
            for out, change in zip(outs, draw.changes, strict=True):
                shifted = noise + change.mean if change.mean else noise
                changed = parent + shifted * change.sigma
                inside = change.interval.contains(levels)
                out[first : first + chunk] = torch.where(inside, changed, parent)
