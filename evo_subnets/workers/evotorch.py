"""The same evaluation in other processes, through EvoTorch on Ray."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from evotorch import SolutionBatch
from evotorch.algorithms import SearchAlgorithm
from torch import Tensor, nn

from evo_subnets.descendants import Descendant, Descendants, lost_descendant
from evo_subnets.evolution import Child, Evolution, Fitness, gather
from evo_subnets.generations import Evolved, check_moving
from evo_subnets.kinds import kind_of
from evo_subnets.lineage import Lineage
from evo_subnets.mutation import Mutation
from evo_subnets.outputs import Outputs
from evo_subnets.search import Search
from evo_subnets.subnetworks import Include
from evo_subnets.walk import Moving, Walk, from_record
from evo_subnets.workers.crew import Crew
from evo_subnets.workers.here import Here
from evo_subnets.workers.ray import Ray

LARGEST_SEED = 2**53 - 1
"""That a float64 holds exactly, with all smaller ones."""


def to_rows(mutations: Sequence[Mutation]) -> Tensor:
    """(mutations, 4) float64: seed, sigma, low, high.

    A ValueError refuses seeds from 2**53 on, which would be rounded; `derive_seed` gives none.
    """
    for mutation in mutations:
        if mutation.seed > LARGEST_SEED:
            raise ValueError(f"a row holds seeds below 2**53 exactly, got {mutation.seed}")
        if mutation.mean:
            raise ValueError(f"a row of four numbers holds no mean, got one of {mutation.mean}")
    rows = [(one.seed, one.sigma, one.low, one.high) for one in mutations]
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def from_rows(rows: Tensor) -> list[Mutation]:
    """The mutations of (mutations, 4) rows. A ValueError refuses what is none."""
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"expected rows of seed, sigma, low, high, got shape {tuple(rows.shape)}")
    mutations = []
    for seed, sigma, low, high in rows.tolist():
        if not (0 <= seed <= LARGEST_SEED and seed == int(seed)):
            raise ValueError(f"the seed of a row must be an integer in 0..2**53 - 1, got {seed}")
        mutations.append(Mutation(int(seed), sigma, low, high))
    return mutations


class MutationProblem(Crew):
    """The search for fit children of `module`, to EvoTorch: solutions are rows, see `to_rows`.

    `fitness`, `include`: as in `evaluate`. `workers`: those of `Ray` stay for all batches, until
    `close`. Solutions are children of the module, moved by `lineage`, and judged as those of
    `generation` where that is a number (see `Descendant`): this is what workers are sent.
    `children` are those of the last batch, with the reasons of those that failed, whose evaluation
    is -inf. `on_child` sees each as it comes. A PopulationError stops a batch most of which fails.
    """

    def __init__(
        self,
        module: nn.Module,
        fitness: Fitness,
        *,
        include: Include = None,
        on_child: Callable[[Child], None] | None = None,
        workers: Here | Ray = Here(),
    ) -> None:
        work = Descendants(module, fitness, include=include)
        options: dict[str, Any] = asdict(workers)  # none where it is this process
        super().__init__(work, **options, lost=lost_descendant, solution_length=4)
        self.module, self.include, self.on_child = module, include, on_child
        self.children: list[Child] = []
        self.lineage = Lineage()
        self.generation: int | None = None

    def batch(self, mutations: Sequence[Mutation]) -> SolutionBatch:
        """The mutations as EvoTorch's solutions, not evaluated yet."""
        batch = SolutionBatch(self, len(mutations), empty=True)
        batch.set_values(to_rows(mutations))
        return batch

    def _evaluate_all(self, batch: SolutionBatch) -> None:
        def evaluated(mutations: Sequence[Mutation]) -> Iterator[tuple[int, Child]]:
            return self.results(
                [Descendant(self.lineage, each, self.generation) for each in mutations]
            )

        self.children = gather(from_rows(batch.values), evaluated, on_child=self.on_child)
        fitness = [-math.inf if child.failed else child.fitness for child in self.children]
        batch.set_evals(torch.tensor(fitness, dtype=torch.float64))

    def generate_values(self, num_solutions: int) -> Tensor:
        """EvoTorch asks here for recipes drawn at random: a ValueError says what to do instead."""
        raise ValueError(
            "a recipe is not drawn at random: give batch() mutations, for example those of quads()"
        )

    @property
    def _nonserialized_attribs(self) -> list[str]:
        return ["module", "include", "on_child", "children", "lineage"]


class SubnetworkSearch(SearchAlgorithm):  # type: ignore[misc]
    """`Evolution` as an algorithm of EvoTorch's: a step is ask, evaluate, tell.

    With `moving`, a step is a generation of `evolve` and moves the parent, to the same bits; the
    divergences that bound it are measured on `inputs`, and the problem's children are those of the
    moved parent. `evolution` has the `elites` and the `ensemble`, whose kind of outputs is
    `outputs`; moving, it is an `Evolved` of the last generation. Of the status, `best_fitness` and
    `elites` are of all children of the parent so far, `mean_fitness` (of those that did not fail)
    and `failed` (how many did) of the last generation; `sigma`, `divergence` and `drift` are there
    where the parent moves.
    """

    def __init__(
        self,
        problem: MutationProblem,
        search: Search,
        *,
        moving: Moving | None = None,
        inputs: Any = None,
        outputs: Outputs | None = None,
    ) -> None:
        if search.include != problem.include:
            raise ValueError(
                f"the problem mutates {problem.include}, the search {search.include}: give both "
                "the same include"
            )
        if moving is None and inputs is not None:
            raise ValueError("inputs are for divergences, which bound a parent that moves: moving=")
        self.outputs = kind_of(problem.module, outputs)
        check_moving(moving, search, generations=1, inputs=inputs)
        self._walk: Walk | None = None
        self.evolution: Evolution
        found: dict[str, Callable[[], Any]] = {}
        if moving is None:
            self.evolution = Evolution(problem.module, search, outputs=self.outputs)
        else:
            self._walk = walk = Walk(
                problem.module, moving, search=search, inputs=inputs, outputs=self.outputs
            )
            for name in ("sigma", "divergence", "drift"):
                found[name] = partial(lambda name: getattr(walk.history[-1], name), name)
        super().__init__(
            problem,
            best_fitness=lambda: self.evolution.elites[0].fitness,
            mean_fitness=self._mean_fitness,
            failed=lambda: sum(child.failed for child in problem.children),
            elites=lambda: self.evolution.elites,
            **found,
        )

    def _step(self) -> None:
        walk = self._walk
        if walk is not None:
            self.evolution = self._generation(walk)
        batch = self.problem.batch(self.evolution.ask())
        self.problem.evaluate(batch)
        self.evolution.tell(self.problem.children)
        if walk is not None:
            walk.take(from_record(walk.choose(self.evolution.children)))
            assert isinstance(self.evolution, Evolved)
            self.evolution.lineage, self.evolution.history = walk.lineage, walk.history
            self.evolution.evolved = walk.parent

    def _generation(self, walk: Walk) -> Evolved:
        """Of children around the parent as it is now."""
        number = len(walk.history)
        found = Evolved(
            walk.parent,
            walk.search_of(number),
            root=self.problem.module,
            lineage=walk.lineage,
            outputs=self.outputs,
        )
        found.generation = number
        self.problem.lineage, self.problem.generation = walk.lineage, number
        return found

    def _mean_fitness(self) -> float:
        alive = [child.fitness for child in self.problem.children if not child.failed]
        return math.fsum(alive) / len(alive)
