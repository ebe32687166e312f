"""The evolution-strategy engine: mutate, evaluate, select (Whitaker 2023, algorithm 1)."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from evo_subnets.ensemble import Ensemble
from evo_subnets.mutation import Mutation, check_density, materialize, quads
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import Include, Params, included, parameters
from evo_subnets.workers import Here, Workers

Fitness = Callable[[nn.Module], float]
"""A model to its fitness on validation data. Higher is better."""
Mapper = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[int, Any]]]
"""Work and items to (index of an item, its result) as they come, in any order.

`map` of `workers.Here()` and `workers.Ray(4)`, for example.
"""

Sampler = Callable[[int, float, float, int], list[Mutation]]
"""population_size, sigma, density and seed to mutations: `quads`, `independent`, or another."""


class PopulationError(ValueError):
    """More than half of a generation failed."""


@dataclass(frozen=True)
class Child:
    """A mutation and its fitness; `reason` says why the evaluation failed, None where it did not.

    The fitness of a failed child is NaN.
    """

    mutation: Mutation
    fitness: float
    reason: str | None = None

    @classmethod
    def judged(cls, mutation: Mutation, fitness: float) -> "Child":
        """One whose evaluation came to its end."""
        value = float(fitness)
        return cls(mutation, value, "fitness is NaN" if math.isnan(value) else None)

    @property
    def failed(self) -> bool:
        """Whether there is no fitness to compare."""
        return self.reason is not None or math.isnan(self.fitness)


class Evaluator:
    """A mutation to its child, evaluated; it can be pickled where the fitness can.

    Children are built one after the other into one copy of the module (in eval mode), which is
    what `fitness` gets: memory does not grow with the population, and `module` is left alone. Its
    buffers (BatchNorm's statistics) are the parent's; a fitness that re-estimates them is free to.
    A child whose fitness raises or is NaN fails.
    """

    def __init__(self, module: nn.Module, fitness: Fitness, include: Include = None) -> None:
        self.module, self.fitness = module, fitness
        self.names = included(parameters(module), include)

    def __call__(self, mutation: Mutation) -> Child:
        work = self._build(mutation, self._work)
        try:
            return Child.judged(mutation, self.fitness(work))
        except Exception as error:  # a failing child must not cost the generation
            return Child(mutation, math.nan, f"{type(error).__name__}: {error}")

    def _build(self, mutation: Mutation, work: nn.Module) -> nn.Module:
        # parameters are asked for each time: a fitness that moves the module makes them others
        materialize(self._weights, mutation, parameters(work), self.names)
        with torch.no_grad():
            for own, buffer in zip(work.buffers(), self.module.buffers(), strict=True):
                own.copy_(buffer)
        return work.eval()

    @cached_property
    def _work(self) -> nn.Module:
        return copy.deepcopy(self.module)

    @cached_property
    def _weights(self) -> Params:
        return parameters(self.module)


def evaluate(
    module: nn.Module,
    mutations: Sequence[Mutation],
    fitness: Fitness,
    include: Include = None,
    on_child: Callable[[Child], None] | None = None,
    done: Sequence[Child] = (),
    workers: Workers = Here(),
) -> list[Child]:
    """The children of `module` with their fitness, in the order of `mutations`.

    What `fitness` gets: see `Evaluator`. A child that fails does not stop the others, until more
    than half of them have failed: a PopulationError then says why. `on_child` sees each child as
    it comes. `done`: children of an earlier, interrupted run, which are not evaluated again.

    `workers`: where children are evaluated, with the same results. On others than `Here()` a child
    that kills its workers fails.
    """
    evaluated = partial(workers.map, Evaluator(module, fitness, include), lost=lost_child)
    return gather(mutations, evaluated, on_child, done)


def gather(
    mutations: Sequence[Mutation],
    evaluated: Callable[[Sequence[Mutation]], Iterator[tuple[int, Child]]],
    on_child: Callable[[Child], None] | None = None,
    done: Sequence[Child] = (),
) -> list[Child]:
    """The children of `mutations`, in their order: those that are `done`, and else `evaluated`.

    A PopulationError stops it as soon as more than half have failed. `on_child` sees each child,
    those that are done first.
    """
    known = {child.mutation: child for child in done}
    children = {i: known[mutation] for i, mutation in enumerate(mutations) if mutation in known}
    missing = [i for i in range(len(mutations)) if i not in children]
    coming = evaluated([mutations[i] for i in missing])
    failed = []
    try:
        for i, child in chain(list(children.items()), ((missing[j], child) for j, child in coming)):
            children[i] = child
            if on_child is not None:
                on_child(child)
            if child.failed:
                failed.append(child.reason or "fitness is NaN")
            if 2 * len(failed) > len(mutations):
                reason = " ".join(Counter(failed).most_common(1)[0][0].split())
                raise PopulationError(
                    f"more than half of the children failed, {len(failed)} of {len(mutations)} "
                    f"so far, most often with: {reason}"
                )
    finally:
        if isinstance(coming, Generator):
            coming.close()  # its workers end with it
    return [children[i] for i in range(len(mutations))]


def lost_child(mutation: Mutation) -> Child:
    """A child that failed because every worker that evaluated it died."""
    return Child(mutation, math.nan, "its worker died")


def select(children: Sequence[Child], k: int) -> list[Child]:
    """The k fittest children, best first, ties in the order given.

    Failed children come last: they are chosen only where k exceeds the number of the others.
    """
    if not 1 <= k <= len(children):
        raise ValueError(f"k must be in 1..{len(children)}, the number of children, got {k}")
    return sorted(children, key=lambda child: (child.failed, -child.fitness))[:k]


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
        sample: Sampler = quads,
    ) -> None:
        if ensemble_size < 1:
            raise ValueError(f"ensemble_size must be at least 1, got {ensemble_size}")
        check_density(density)
        self.module, self.include, self.sample = module, include, sample
        self.population_size, self.ensemble_size = population_size, ensemble_size
        self.sigma, self.density, self.seed = sigma, density, seed
        self.generation = 0
        self.children: list[Child] = []

    def ask(self) -> list[Mutation]:
        """The mutations of the next generation."""
        seed = self.seed if self.generation == 0 else derive_seed(self.seed, "g", self.generation)
        mutations = self.sample(self.population_size, self.sigma, self.density, seed)
        self.generation += 1
        return mutations

    def tell(self, children: Sequence[Child]) -> None:
        """Adds evaluated children, in any number and order."""
        self.children += children

    @property
    def elites(self) -> list[Child]:
        """The fittest children so far, at most `ensemble_size`, none that failed."""
        alive = [child for child in self.children if not child.failed]
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
    workers: Workers = Here(),
    sample: Sampler = quads,
) -> Evolution:
    """One generation of children, evaluated; the result has `.children`, `.elites`, `.ensemble`.

    `workers`: where they are evaluated. Take `sigma` from `search_trust_region`: what is small for
    one network destroys another.
    """
    if ensemble_size > population_size:
        raise ValueError(
            "ensemble_size must not exceed population_size, "
            f"got {ensemble_size} > {population_size}"
        )
    evolution = Evolution(
        module, population_size, ensemble_size, sigma, density, seed, include, sample
    )
    children = evaluate(
        module,
        evolution.ask(),
        fitness,
        include,
        on_child,
        workers=workers,
    )
    evolution.tell(children)
    return evolution
