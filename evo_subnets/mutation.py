"""ξ as noise on a subnetwork: children as four numbers (Whitaker 2023, section 4.2)."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evo_subnets import engines
from evo_subnets.draws import CarryOut, Change, Draw, draw_plainly
from evo_subnets.streams import check_seed, chunk_size, derive_seed
from evo_subnets.subnetworks import (
    Include,
    Parameters,
    Params,
    Subnetwork,
    complement,
    included,
    staying,
    unit_of,
)


@dataclass(frozen=True)
class Mutation:
    """A child: θ + sigma (mean + N(seed)) where low <= u < high, θ elsewhere (Whitaker 2023,
    equations 4.2 and 4.3).

    `sigma` is in the weights' unit; a negative one mirrors the noise. `mean` is in units of sigma:
    the paper's μ is their product, so that a weaker child has a smaller one.
    """

    seed: int
    sigma: float
    low: float
    high: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not abs(self.sigma) < float("inf"):
            raise ValueError(f"sigma must be finite, got {self.sigma}")
        if not abs(self.mean) < float("inf"):
            raise ValueError(f"mean must be finite, got {self.mean}")
        _ = self.subnetwork  # checks the bounds

    @property
    def numbers(self) -> tuple[float, ...]:
        """As files hold it: seed, sigma, low and high, and the mean where there is one."""
        four = self.seed, self.sigma, self.low, self.high
        return (*four, self.mean) if self.mean else four

    @property
    def subnetwork(self) -> Subnetwork:
        """The weights that are perturbed."""
        return Subnetwork(self.seed, self.low, self.high)

    @property
    def density(self) -> float:
        """The expected fraction of the weights that are perturbed."""
        return self.subnetwork.density

    def mirrored(self) -> "Mutation":
        """The sibling with the opposite noise (Whitaker 2023, eq. 4.10)."""
        return replace(self, sigma=-self.sigma)

    def partner(self) -> "Mutation":
        """The sibling that perturbs all other weights (Whitaker 2023, eq. 4.9)."""
        low, high = complement(self.low, self.high)
        return replace(self, low=low, high=high)


def check_density(density: float) -> float:
    """The density itself; a ValueError where it is outside (0, 1]."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
    return density


def quads(population_size: int, sigma: float, *, density: float, seed: int) -> list[Mutation]:
    """Children in fours that share a seed: a mutation, its partner, and the mirrors of both.

    Whitaker 2023, eq. 4.8 to 4.11. The partners perturb a fraction 1 - density, by a sigma that
    gives their noise the expected length of the others' (the same sigma at one half, the density
    of the paper's quads): so all four diverge from the parent about equally, whatever the density.
    At density 1 there is nothing left for partners, and a four is two mirrored pairs of different
    seeds instead.
    """
    if population_size < 4 or population_size % 4:
        raise ValueError(
            f"quads come in fours: population_size must be a multiple of 4, got {population_size}"
        )
    check_density(density)
    population = []
    for index in range(population_size // 4):
        child = Mutation(derive_seed(seed, index), sigma, 0.0, density)
        if density < 1:
            other = replace(child.partner(), sigma=sigma * math.sqrt(density / (1 - density)))
        else:
            other = replace(child, seed=derive_seed(seed, index, "dense"))
        population += [child, other, child.mirrored(), other.mirrored()]
    return population


def singles(population_size: int, sigma: float, *, density: float, seed: int) -> list[Mutation]:
    """Children that share nothing, each with noise on a fraction `density` (algorithm 1)."""
    if population_size < 1:
        raise ValueError(f"population_size must be at least 1, got {population_size}")
    check_density(density)
    return [
        Mutation(derive_seed(seed, index), sigma, 0.0, density) for index in range(population_size)
    ]


def materialize(
    parent: Mapping[str, Tensor],
    mutation: Mutation,
    *,
    out: Params | None = None,
    include: Include = None,
) -> Params:
    """The child's parameters, in the dtype and on the device of the parent, which is untouched.

    `out` is a work buffer, for example what an earlier call returned: its tensors are overwritten
    and it is returned. Parameters that are not mutated are the parent's own tensors, copied only
    where `out` already holds another tensor for them. `include`: see `subnetworks.Include`. Where
    `parent` comes from `parameters(module)`, padding rows of embeddings and what is zero in a
    sparse weight stay as they are, unless `include` names `Whole` parameters.
    """
    return materialize_siblings(
        parent, [mutation], outs=[{} if out is None else out], include=include
    )[0]


@torch.no_grad()
def materialize_siblings(
    parent: Mapping[str, Tensor],
    mutations: Sequence[Mutation],
    *,
    outs: Sequence[Params] | None = None,
    include: Include = None,
) -> list[Params]:
    """The children of mutations that share a seed, for hardly more than the price of one.

    One draw of u and of the noise serves all of them. `outs`: a work buffer for each.
    """
    seeds = {mutation.seed for mutation in mutations}
    if len(seeds) != 1:
        raise ValueError(f"siblings share one seed, got {len(seeds)} seeds")
    outs = [{} for _ in mutations] if outs is None else outs
    if len(outs) != len(mutations):
        raise ValueError(f"expected {len(mutations)} work buffers, got {len(outs)}")
    chosen = included(parent, include)
    names, fixed = set(chosen), staying(parent, chosen)
    ties = parent.ties if isinstance(parent, Parameters) else {}
    elements = Counter[torch.device]()
    for name in names:
        elements[parent[name].device] += parent[name].numel()
    ways = {device: fastest(device, count) for device, count in elements.items()}
    means = draw_plainly if any(mutation.mean for mutation in mutations) else None
    draws: dict[CarryOut, list[Draw]] = {way: [] for way in [means or way for way in ways.values()]}
    for name, weight in parent.items():
        if name in ties:
            continue
        if name in names:
            buffers = [_buffer(out, name, weight) for out in outs]
            way = means or ways[weight.device]
            draws[way] += _draws(name, weight, mutations, buffers, way, unit_of(chosen, name))
            continue
        for out in outs:
            held = out.get(name)
            if held is None or _same_memory(held, weight):
                out[name] = weight
            else:
                held.copy_(weight)
    for way, left in draws.items():
        way(left)
    for name, stays in fixed.items():
        for out in outs:
            torch.where(stays, parent[name], out[name], out=out[name])
    for name, first in ties.items():
        for out in outs:
            _tie(out, name, weight=parent[name], first=out[first], parent_first=parent[first])
    return list(outs)


def _tie(out: Params, name: str, *, weight: Tensor, first: Tensor, parent_first: Tensor) -> None:
    """Gives `name` the memory of `first`, as in the parent, or its values where it has its own."""
    if first.stride() != parent_first.stride():
        first = torch.empty_strided(
            first.shape, parent_first.stride(), dtype=first.dtype, device=first.device
        ).copy_(first)
    tied = first.as_strided(weight.shape, weight.stride(), first.storage_offset())
    held = out.get(name)
    if held is None or _same_memory(held, weight):
        out[name] = tied
    elif not _same_memory(held, tied):
        held.copy_(tied)


COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of weights whose children engines can draw, in float32."""


def fastest(device: torch.device, elements: int) -> CarryOut:
    """The fastest way there is to draw so many elements on this device; all give the same bits."""
    return engines.perturb(device, elements) or draw_plainly


def change_of(mutation: Mutation, unit: float = 1.0) -> Change:
    """What it does with the noise of its seed, in a parameter with this unit of sigma."""
    return Change(mutation.subnetwork.interval, mutation.sigma * unit, mutation.mean)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _buffer(out: Params, name: str, weight: Tensor) -> Tensor:
    held = out.get(name)
    if held is None or _same_memory(held, weight):
        out[name] = held = torch.empty_like(weight)
    elif (held.shape, held.dtype, held.device) != (weight.shape, weight.dtype, weight.device):
        raise ValueError(
            f"the work buffer of {name} is {tuple(held.shape)} {held.dtype} on {held.device}, the "
            f"parent is {tuple(weight.shape)} {weight.dtype} on {weight.device}: use another buffer"
        )
    return held


def _draws(
    name: str,
    weight: Tensor,
    mutations: Sequence[Mutation],
    outs: Sequence[Tensor],
    way: CarryOut,
    unit: float,
) -> list[Draw]:
    """The children of one parameter, to be drawn with those of others; none where the weights need
    a float32 copy, a part of them at a time: then they are drawn at once."""
    seed = mutations[0].seed
    changes = [change_of(each, unit) for each in mutations]
    if all(_is_plain(tensor) for tensor in (weight, *outs)):
        return [Draw(name, weight, outs, seed, changes)]
    way = way if weight.dtype in COMPILED_DTYPES else draw_plainly
    flat = weight.reshape(-1)  # elements are numbered row-major whatever the memory format
    flat_outs = [out.view(-1) if out.is_contiguous() else torch.empty_like(flat) for out in outs]
    wide, chunk = torch.promote_types(weight.dtype, torch.float32), chunk_size(weight.device)
    for start in range(0, flat.numel(), chunk):
        part = flat[start : start + chunk].to(wide)
        children = [torch.empty_like(part) for _ in mutations]
        way([Draw(name, part, children, seed, changes, start)])
        for child, flat_out in zip(children, flat_outs, strict=True):
            flat_out[start : start + chunk] = child
    for out, flat_out in zip(outs, flat_outs, strict=True):
        if not out.is_contiguous():
            out.copy_(flat_out.view(out.shape))
    return []


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_contiguous()
