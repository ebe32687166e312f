"""What population is drawn around a parent, in one object that everything takes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

from evo_subnets.mutation import Mutation, check_density, quads
from evo_subnets.options import described
from evo_subnets.streams import check_seed, derive_seed
from evo_subnets.subnetworks import Include


class Sampler(Protocol):
    """A population of mutations: `quads`, `singles`, or one's own."""

    def __call__(
        self, population_size: int, sigma: float, *, density: float, seed: int
    ) -> list[Mutation]: ...


@dataclass(frozen=True)
class Search:
    """A population: how it is drawn, how large it is, how many of it are kept.

    `trust_region.search_trust_region` gives the same object with its sigma found; `evolve`, the
    methods and EvoTorch's `SubnetworkSearch` take it.
    """

    population_size: int = 16
    """Children of a generation."""
    ensemble_size: int = 8
    """Children that are kept."""
    sigma: float | None = None
    """Standard deviation of the noise, in the weights' unit; None: not found yet."""
    density: float = 0.5
    """Fraction of the weights that a mutation perturbs (of quads, every other one perturbs the
    other weights, by noise of the same length: see `mutation.quads`)."""
    seed: int = 0
    """Of all that is drawn."""
    sampler: Sampler = field(default=quads)
    """What draws the population."""
    include: Include = None
    """Which parameters are mutated; None: those that are weights."""
    mean: float = 0.0
    """Of the noise, in units of sigma: the paper's μ is their product (eq. 4.2). Mirrors have the
    opposite one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        check_density(self.density)
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be positive and finite, got {self.sigma}")
        if not math.isfinite(self.mean):
            raise ValueError(f"mean must be finite, got {self.mean}")
        if self.population_size < 1:
            raise ValueError(f"population_size must be at least 1, got {self.population_size}")
        if not 1 <= self.ensemble_size <= self.population_size:
            raise ValueError(
                f"ensemble_size must be in 1..{self.population_size} (population_size), got "
                f"{self.ensemble_size}"
            )
        drawn = self._drawn(
            1.0, self.seed, density=self.density
        )  # the sampler refuses what it cannot make
        if len(drawn) != self.population_size:
            raise ValueError(
                f"the sampler must give population_size mutations, {self.population_size}, got "
                f"{len(drawn)}"
            )

    def mutations(self, generation: int = 0) -> list[Mutation]:
        """The mutations of generation 0, 1, ...; a ValueError where sigma is not known."""
        if self.sigma is None:
            raise ValueError(
                "this search has no sigma: take search_trust_region(module, inputs, "
                "search=search).search, or give one"
            )
        seed = derive_seed(self.seed, "g", generation) if generation else self.seed
        return self._drawn(self.sigma, seed, density=self.density)

    def measured(self, sigma: float, density: float) -> Iterator[Mutation]:
        """Children of another strength as this search draws them, without end, none of its own.

        A mirror is left out: over seeds it is what it mirrors.
        """
        for number in count():
            seed = derive_seed(self.seed, "measured", number)
            drawn = set[Mutation]()
            for mutation in self._drawn(sigma, seed, density=density):
                if mutation.mirrored() not in drawn:
                    drawn.add(mutation)
                    yield mutation

    def about(self) -> dict[str, Any]:
        """What the population depends on, as JSON."""
        found: dict[str, Any] = described(self)
        return found

    def _drawn(self, sigma: float, seed: int, *, density: float) -> list[Mutation]:
        drawn = self.sampler(self.population_size, sigma, density=density, seed=seed)
        return [replace(each, mean=self.mean) for each in drawn] if self.mean else drawn
