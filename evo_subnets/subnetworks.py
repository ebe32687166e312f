"""φ: which weights of the parent are in a subnetwork (Whitaker 2023, section 3.2.1)."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evo_subnets.streams import Interval, check_seed, chunk_size, uniform_levels

Params = dict[str, Tensor]
"""θ: a network's parameters by name, as `torch.func.functional_call` takes them."""
Include = Collection[str] | Callable[[str, Tensor], bool] | None
"""Which parameters are mutated: names, a predicate of (name, parameter), or None for `weights`."""


def parameters(module: nn.Module) -> Params:
    """θ of a module: its parameters by name, detached, not copied."""
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def weights(name: str, parameter: Tensor) -> bool:
    """True for floating-point parameters of two or more dimensions: no biases, no norms."""
    return parameter.ndim >= 2 and parameter.is_floating_point()


def included(params: Mapping[str, Tensor], include: Include = None) -> list[str]:
    """The names of the parameters that `include` means, in the order of `params`."""
    if include is None:
        include = weights
    if callable(include):
        names = [name for name, parameter in params.items() if include(name, parameter)]
    else:
        unknown = sorted(set(include) - set(params))
        if unknown:
            raise ValueError(f"there are no parameters {unknown}; there are {list(params)}")
        names = [name for name in params if name in include]
    for name in names:
        if not params[name].is_floating_point():
            raise ValueError(
                f"{name} is {params[name].dtype}: only floating-point ones are mutated"
            )
    if not names:
        raise ValueError(
            "no parameter is to be mutated: by default those with two or more dimensions are; "
            f"name some of {list(params)}"
        )
    return names


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

        Only parameters that `include` means have one (by default those with two or more
        dimensions).
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
