"""The evolution-strategy engine: mutate, evaluate, select (Whitaker 2023, algorithm 1)."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from evo_subnets.ensemble import Ensemble
from evo_subnets.mutation import Mutation, check_density, materialize, quads
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import Include, included, parameters

Fitness = Callable[[nn.Module], float]
"""A model to its fitness on validation data. Higher is better."""


@dataclass(frozen=True)
class Child:
    """A mutation and its fitness; `reason` says why the evaluation failed, None where it did not.

    The fitness of a failed child is NaN.
    """

    mutation: Mutation
    fitness: float
    reason: str | None = None


def evaluate(
    module: nn.Module,
    mutations: Sequence[Mutation],
    fitness: Fitness,
    include: Include = None,
    on_child: Callable[[Child], None] | None = None,
) -> list[Child]:
    """The children of `module` with their fitness, in the order of `mutations`.

    Children are built one after the other into one copy of the module (in eval mode), which is
    what `fitness` gets: memory does not grow with the population, and `module` is left alone. Its
    buffers (BatchNorm's statistics) are the parent's; a fitness that re-estimates them is free to.
    A child whose fitness raises or is NaN fails, and the others go on.
    """
    work = copy.deepcopy(module)
    parent, child_parameters = parameters(module), parameters(work)
    names = included(parent, include)
    buffers = dict(module.named_buffers())
    children = []
    for mutation in mutations:
        materialize(parent, mutation, child_parameters, names)
        with torch.no_grad():
            for name, buffer in work.named_buffers():
                buffer.copy_(buffers[name])
        work.eval()
        try:
            value = float(fitness(work))
            reason = "fitness is NaN" if math.isnan(value) else None
        except Exception as error:  # a failing child must not cost the generation
            value, reason = math.nan, f"{type(error).__name__}: {error}"
        child = Child(mutation, value, reason)
        children.append(child)
        if on_child is not None:
            on_child(child)
    return children


def select(children: Sequence[Child], k: int) -> list[Child]:
    """The k fittest children, best first, ties in the order given.

    Failed children come last: they are chosen only where k exceeds the number of the others.
    """
    if not 1 <= k <= len(children):
        raise ValueError(f"k must be in 1..{len(children)}, the number of children, got {k}")
    return sorted(children, key=lambda child: (_failed(child), -child.fitness))[:k]


def _failed(child: Child) -> bool:
    return child.reason is not None or math.isnan(child.fitness)


class Evolution:
    """A population around one parent: `ask` for mutations, `tell` their children, take the best.

        evolution = Evolution(module, population_size=16, ensemble_size=8, sigma=0.01)
        evolution.tell(evaluate(module, evolution.ask(), fitness))
        ensemble = evolution.ensemble

    Every further `ask` gives another generation of the same parent, to choose from more children.
    """

    def __init__(
        self,
        module: nn.Module,
        population_size: int = 16,
        ensemble_size: int = 8,
        sigma: float = 0.01,
        density: float = 0.5,
        seed: int = 0,
        include: Include = None,
    ) -> None:
        if ensemble_size < 1:
            raise ValueError(f"ensemble_size must be at least 1, got {ensemble_size}")
        check_density(density)
        self.module, self.include = module, include
        self.population_size, self.ensemble_size = population_size, ensemble_size
        self.sigma, self.density, self.seed = sigma, density, seed
        self.generation = 0
        self.children: list[Child] = []

    def ask(self) -> list[Mutation]:
        """The mutations of the next generation, in quads."""
        seed = self.seed if self.generation == 0 else derive_seed(self.seed, "g", self.generation)
        mutations = quads(self.population_size, self.sigma, self.density, seed)
        self.generation += 1
        return mutations

    def tell(self, children: Sequence[Child]) -> None:
        """Adds evaluated children, in any number and order."""
        self.children += children

    @property
    def elites(self) -> list[Child]:
        """The fittest children so far, at most `ensemble_size`, none that failed."""
        alive = [child for child in self.children if not _failed(child)]
        if not alive:
            reasons = {child.reason for child in self.children}
            raise ValueError(f"no child can be chosen: all {len(self.children)} failed ({reasons})")
        return select(alive, min(self.ensemble_size, len(alive)))

    def model(self, child: Child) -> nn.Module:
        """A child as a module of its own."""
        only = Ensemble.from_mutations(self.module, [child.mutation], include=self.include)
        return only.members[0]

    @property
    def ensemble(self) -> Ensemble:
        """The elites as one model."""
        mutations = [child.mutation for child in self.elites]
        return Ensemble.from_mutations(self.module, mutations, include=self.include)


def evolve(
    module: nn.Module,
    fitness: Fitness,
    population_size: int = 16,
    ensemble_size: int = 8,
    sigma: float = 0.01,
    density: float = 0.5,
    seed: int = 0,
    include: Include = None,
    on_child: Callable[[Child], None] | None = None,
) -> Evolution:
    """One generation of children, evaluated; the result has `.children`, `.elites`, `.ensemble`.

    Take `sigma` from `search_trust_region`: what is small for one network destroys another.
    """
    if ensemble_size > population_size:
        raise ValueError(
            "ensemble_size must not exceed population_size, "
            f"got {ensemble_size} > {population_size}"
        )
    evolution = Evolution(module, population_size, ensemble_size, sigma, density, seed, include)
    evolution.tell(evaluate(module, evolution.ask(), fitness, include, on_child))
    return evolution
