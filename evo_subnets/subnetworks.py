"""φ: which weights of the parent are in a subnetwork (Whitaker 2023, section 3.2.1)."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from evo_subnets.files import parameters_of
from evo_subnets.streams import Interval, check_seed, chunk_size, in_double, uniform_levels
from evo_subnets.weights import padding_rows, places, weight_names

Params = dict[str, Tensor]
"""θ: a network's parameters by name, as `torch.func.functional_call` takes them."""


class Whole(tuple[str, ...]):
    """Names of parameters of which every element is mutated: zeros and padding rows as well.

    `Search(include=Whole(parameters(module).weights))` lets noise grow what a sparse parent lost.
    """


class Units(dict[str, float]):
    """Names of parameters that are mutated, and the unit of sigma in each: noise of sigma 0.1 has a
    standard deviation of a tenth of it. See `spreads`."""

    def __init__(self, units: Mapping[str, float]) -> None:
        super().__init__(units)
        wrong = [name for name, unit in self.items() if not 0 < unit < math.inf]
        if wrong:
            raise ValueError(f"a unit of sigma must be positive and finite; {wrong[0]} has none")


Include = Collection[str] | Callable[[str, Tensor], bool] | None
"""Which parameters are mutated: names (`Whole`: with every element; `Units`: by how much each), a
predicate of (name, parameter), or None for what `weights.py` calls weights."""


class Parameters(Params):
    """θ of a module, which knows what of it is mutated by default.

    What is asked first is remembered: take another one after the module's weights have changed.
    """

    def __init__(self, module: nn.Module) -> None:
        named = parameters_of(module)
        super().__init__({name: parameter.detach() for name, parameter in named.items()})
        self.module = module
        self.found: dict[str, Tensor | None] = {}

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """The names of those that are mutated by default (see `weights.py`)."""
        return tuple(name for name in weight_names(self.module) if name not in self.ties)

    def stays(self, name: str) -> Tensor | None:
        """A BoolTensor that broadcasts to a parameter, True where it stays as it is, or None.

        The padding row of an embedding stays, and of a weight what is zero, where not all is.
        """
        if name not in self.found:
            self.found[name] = self._staying(name)
        return self.found[name]

    def _staying(self, name: str) -> Tensor | None:
        if name not in self._kinds:
            return None
        weight = self[name]
        rows = None
        if (row := self._padding.get(name)) is not None:
            rows = torch.zeros(len(weight), 1, dtype=torch.bool, device=weight.device)
            rows[row] = True
        if weight.is_meta or not 0 < int(torch.count_nonzero(weight)) < weight.numel():
            return rows
        zeros = weight == 0
        if rows is not None:
            zeros |= rows
        return zeros if zeros.any() else None

    @cached_property
    def _kinds(self) -> frozenset[str]:
        return frozenset(place.name for place in places(self.module) if place.is_weight)

    @cached_property
    def _padding(self) -> dict[str, int]:
        return padding_rows(self.module)

    @cached_property
    def ties(self) -> dict[str, str]:
        """Parameters that are another's memory, transposed or not, though not the same object."""
        first: dict[tuple[int, int, int], str] = {}
        found = {}
        strided = {name: tensor for name, tensor in self.items() if tensor.layout == torch.strided}
        for name, tensor in strided.items():
            place = (
                tensor.untyped_storage().data_ptr(),
                int(tensor.storage_offset()),
                tensor.numel(),
            )
            if place[0] and tensor.numel() and first.setdefault(place, name) != name:
                found[name] = first[place]
        return found


def parameters(module: nn.Module) -> Parameters:
    """θ of a module: its parameters by name, detached, not copied.

    Names are those of what torch.compile or DataParallel is wrapped around, so that the same
    mutation is the same child.
    """
    return Parameters(module)


def weights(name: str, parameter: Tensor) -> bool:
    """True for floating-point parameters of two or more dimensions.

    What is a weight where nothing but tensors is known: of a plain mapping. See `weights.py` for
    what is known of a module's.
    """
    return parameter.ndim >= 2 and parameter.is_floating_point()


def included(params: Mapping[str, Tensor], include: Include = None) -> list[str] | Whole | Units:
    """The names of the parameters that `include` means, in the order of `params`."""
    if include is None:
        include = params.weights if isinstance(params, Parameters) else weights
    if callable(include):
        names = [name for name, parameter in params.items() if include(name, parameter)]
    else:
        chosen = set(include)
        unknown = sorted(chosen - set(params))
        if unknown:
            raise ValueError(f"there are no parameters {unknown}; there are {list(params)}")
        names = [name for name in params if name in chosen]
    if isinstance(params, Parameters) and params.ties:
        names = list(dict.fromkeys(params.ties.get(name, name) for name in names))
        if isinstance(include, Units):  # of a tied one that was named
            named = {params.ties.get(name, name): unit for name, unit in include.items()}
            include = Units({**named, **include})
    for name in names:
        if not params[name].is_floating_point():
            raise ValueError(
                f"{name} is {params[name].dtype}: only floating-point ones are mutated"
            )
    if not names:
        raise ValueError(
            "no parameter is to be mutated: by default those that are weights of layers, and not "
            f"frozen beside others that are trained; name some of {list(params)} with include"
        )
    return _like(include, names)


def _like(include: Include, names: list[str]) -> list[str] | Whole | Units:
    """Names as what `include` is: `Whole`, `Units`, or a list."""
    if isinstance(include, Units):
        return Units({name: include[name] for name in names})
    return Whole(names) if isinstance(include, Whole) else names


def unit_of(include: Include, name: str) -> float:
    """Of sigma in a parameter; one where `include` says nothing of it."""
    return include[name] if isinstance(include, Units) else 1.0


def spreads(module: nn.Module, include: Include = None) -> Units:
    """Units in which sigma is a fraction of the standard deviation of each parameter's own weights,
    zeros of a sparse one left out: `Search(include=spreads(module))`.

    They are those of this module, and stay so while a parent moves. A ValueError names a parameter
    whose weights are all the same, and refuses `Whole`, which has no units.
    """
    if isinstance(include, Whole):
        raise ValueError("Whole parameters have no units: give spreads the names alone")
    params = parameters(module)
    found = {}
    for name in included(params, include):
        values, stays = in_double(params[name]), params.stays(name)
        values = values if stays is None else values[~stays.to(values.device).expand_as(values)]
        found[name] = float(values.std(correction=0))
    same = [name for name, spread in found.items() if not 0 < spread < math.inf]
    if same:
        raise ValueError(f"the weights of {same[0]} have no spread: leave it out of include")
    return Units(found)


def staying(params: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """By the name of an included parameter, where mutations leave it (see `Parameters.stays`).

    Empty for `Whole` names, and for a plain mapping, of which nothing is known.
    """
    if not isinstance(params, Parameters) or isinstance(names, Whole):
        return {}
    return {name: stays for name in names if (stays := params.stays(name)) is not None}


@dataclass(frozen=True)
class Subnetwork:
    """A subnetwork as a recipe: the weights with low <= u < high, of one draw of u a weight.

    The draws are made per parameter, so the density holds in every layer. `low > high` means the
    interval that wraps around 1, which is how an inner part has a complement.
    """

    seed: int
    low: float
    high: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not (0 <= self.low <= 1 and 0 <= self.high <= 1):
            raise ValueError(
                f"a subnetwork's bounds must be in [0, 1], got low={self.low}, high={self.high}"
            )

    @property
    def density(self) -> float:
        """The expected fraction of the weights that are in the subnetwork."""
        return self.high - self.low if self.low <= self.high else 1 - self.low + self.high

    @property
    def interval(self) -> Interval:
        """The interval in the draw's own units."""
        return Interval.of(self.low, self.high)

    def complement(self) -> "Subnetwork":
        """All other weights (Whitaker 2023, section 3.2.2: the anti-mask M' = 1 - M)."""
        return Subnetwork(self.seed, *complement(self.low, self.high))

    def mask(self, params: Mapping[str, Tensor], include: Include = None) -> dict[str, Tensor]:
        """BoolTensors of the parameters' shapes, True where a weight is in the subnetwork.

        Only parameters that `include` means have one (by default those that are weights).
        """
        interval = self.interval
        masks = {}
        for name in included(params, include):
            parameter = params[name]
            mask = torch.empty(parameter.numel(), dtype=torch.bool, device=parameter.device)
            chunk = chunk_size(parameter.device)
            for start in range(0, parameter.numel(), chunk):
                part = mask[start : start + chunk]
                levels = uniform_levels(
                    self.seed, name, count=part.numel(), start=start, device=parameter.device
                )
                part.copy_(interval.contains(levels))
            masks[name] = mask.view(parameter.shape)
        return masks


def complement(low: float, high: float) -> tuple[float, float]:
    """The bounds of all u outside [low, high)."""
    if (low, high) == (0, 1):
        return 0.0, 0.0
    if low == high:
        return 0.0, 1.0
    return (0.0 if high == 1 else high), (1.0 if low == 0 else low)


def parts(seed: int, k: int) -> list[Subnetwork]:
    """k disjoint subnetworks of density 1 / k that together are the whole parent."""
    if k < 1:
        raise ValueError(f"a parent is cut into at least one part, got k={k}")
    return [Subnetwork(seed, i / k, (i + 1) / k) for i in range(k)]


def halves(seed: int) -> list[Subnetwork]:
    """A random half of the parent and the other half (Whitaker 2023, neural partitioning)."""
    return parts(seed, 2)
