"""The evolution-strategy engine: mutate, evaluate, select (Whitaker 2023, algorithm 1)."""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import nn

from evo_subnets import files
from evo_subnets.ensemble import Ensemble
from evo_subnets.kinds import kind_of
from evo_subnets.mutation import Mutation
from evo_subnets.outputs import Outputs
from evo_subnets.recipes import WorkCopy, mutated
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import Include, parameters, unit_of
from evo_subnets.workers import Here, Workers

Fitness = Callable[[nn.Module], float | Sequence[float]]
"""A model to its fitness on validation data: a number, or one for each case (the return of each
episode, the score of each sample), whose mean it is. Higher is better. One that gives a number may
have a method `cases` that gives those."""


class PopulationError(ValueError):
    """More than half of a generation failed."""


HERE = Here()
NOTHING_KEPT = Run.none()


STRONGEST = 100.0
"""Of sigma, in units of the weights' root mean square, in the layer where it is largest."""


@dataclass(frozen=True)
class Child:
    """A mutation and its fitness; `reason` says why the evaluation failed, None where it did not.

    The fitness of a failed child is NaN.
    """

    mutation: Mutation
    fitness: float
    reason: str | None = None
    cases: tuple[float, ...] = ()
    """What the fitness is the mean of, case by case, where that is known."""

    @classmethod
    def judged(cls, mutation: Mutation, fitness: float | Sequence[float]) -> "Child":
        """One whose evaluation came to its end."""
        values = torch.as_tensor(fitness, dtype=torch.float64, device="cpu")
        cases = tuple(values.tolist()) if values.ndim == 1 else ()
        value = math.fsum(cases) / len(cases) if cases else float(values)
        return cls(mutation, value, "fitness is NaN" if math.isnan(value) else None, cases)

    @property
    def failed(self) -> bool:
        """Whether there is no fitness to compare."""
        return self.reason is not None or math.isnan(self.fitness)


class Evaluator:
    """A mutation to its child, evaluated; it can be pickled where the fitness can.

    Children are built one after the other into one copy of the module (in eval mode), which is
    what `fitness` gets: memory does not grow with the population, and `module` is left alone. Its
    buffers (BatchNorm's statistics) and all else are the parent's, whatever the fitness of another
    child has done to it. A child whose fitness raises or is NaN fails.
    """

    def __init__(self, module: nn.Module, fitness: Fitness, *, include: Include = None) -> None:
        self.fitness = fitness
        self.work = WorkCopy(module, include)

    def __call__(self, mutation: Mutation) -> Child:
        child = self.work.child(mutation)
        judged = getattr(self.fitness, "cases", self.fitness)
        try:
            return Child.judged(mutation, judged(child))
        except Exception as error:  # a failing child must not cost the generation
            return Child(mutation, math.nan, f"{type(error).__name__}: {error}")


def evaluate(
    module: nn.Module,
    mutations: Sequence[Mutation],
    *,
    fitness: Fitness,
    include: Include = None,
    on_child: Callable[[Child], None] | None = None,
    done: Sequence[Child] = (),
    workers: Workers = HERE,
) -> list[Child]:
    """The children of `module` with their fitness, in the order of `mutations`.

    What `fitness` gets: see `Evaluator`. A child that fails does not stop the others, until more
    than half of them have failed: a PopulationError then says why. `on_child` sees each child as
    it comes. `done`: children of an earlier, interrupted run, which are not evaluated again.

    `workers`: `Here()` evaluates in this process, `Ray(n)` in n others, with the same results (they
    use one thread each, and the number of threads can move a last digit). A worker that dies is
    replaced and its children are evaluated again; a child that kills its workers fails. The fitness
    travels there by cloudpickle, so it must hold no open files or environments, and its random
    numbers must come from seeds of its own. An OSError says that no Ray answers.
    """
    check_strength(module, mutations, include=include)
    evaluator = Evaluator(module, fitness, include=include)
    evaluated = partial(workers.map, evaluator, lost=lost_child)
    return gather(mutations, evaluated, on_child=on_child, done=done)


def gather(
    mutations: Sequence[Mutation],
    evaluated: Callable[[Sequence[Mutation]], Iterator[tuple[int, Child]]],
    *,
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
    failed = []
    with contextlib.closing(_results(evaluated, [mutations[i] for i in missing])) as coming:
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
    return [children[i] for i in range(len(mutations))]


def _results(
    evaluated: Callable[[Sequence[Mutation]], Iterator[tuple[int, Child]]],
    mutations: Sequence[Mutation],
) -> Generator[tuple[int, Child], None, None]:
    """What `evaluated` gives; closed, it ends the processes that are still at work."""
    yield from evaluated(mutations)


def lost_child(mutation: Mutation) -> Child:
    """A child that failed because every worker that evaluated it died."""
    return Child(mutation, math.nan, "its worker died")


def check_strength(
    module: nn.Module, mutations: Sequence[Mutation], *, include: Include = None
) -> None:
    """A ValueError where the noise is so strong that nothing of the parent would be left."""
    names, weights = mutated(module, include), parameters(module)
    # on the CPU, because not every device has float64
    sizes = [
        torch.linalg.vector_norm(weights[name].detach(), dtype=torch.float32).cpu().double()
        / math.sqrt(weights[name].numel())
        / unit_of(names, name)
        for name in names
    ]
    largest = max((size.item() for size in sizes), default=0.0)
    sigma = max((abs(mutation.sigma) for mutation in mutations), default=0.0)
    if 0 < STRONGEST * largest < sigma:
        raise ValueError(
            f"sigma {sigma:g} is {sigma / largest:.3g} times the root mean square of the parent's "
            f"largest weights, {largest:.3g}: nothing of the parent would be left; take a sigma of "
            "search_trust_region's size"
        )


def select(children: Sequence[Child], k: int, *, seed: int = 0) -> list[Child]:
    """The k fittest children, best first.

    Children of equal fitness are ordered by chance, which `seed` and their recipes alone decide. Of
    a child and its mirror only the better one counts, for their noise would cancel; the other one,
    and then failed children, are chosen only where k exceeds the number of the rest.
    """
    if not 1 <= k <= len(children):
        raise ValueError(f"k must be in 1..{len(children)}, the number of children, got {k}")

    def rank(child: Child) -> tuple[bool, float, int]:
        value = 0.0 if child.failed else -child.fitness
        return child.failed, value, derive_seed(seed, "tie", *map(repr, child.mutation.numbers))

    first: list[Child] = []
    mirrors: list[Child] = []
    seen: set[Mutation] = set()
    for child in sorted(children, key=rank):
        (mirrors if child.mutation.mirrored() in seen else first).append(child)
        seen.add(child.mutation)
    alive = [child for child in (*first, *mirrors) if not child.failed]
    return [*alive, *(child for child in (*first, *mirrors) if child.failed)][:k]


class Evolution:
    """A population around one parent: `ask` for mutations, `tell` their children, take the best.

        evolution = Evolution(module, search)
        evolution.tell(evaluate(module, evolution.ask(), fitness=fitness))
        ensemble = evolution.ensemble

    Every further `ask` gives another generation of the same parent, to choose from more children.
    """

    def __init__(
        self, module: nn.Module, search: Search, *, outputs: Outputs | None = None
    ) -> None:
        search.mutations()  # a search whose sigma is not known is refused now
        self.module, self.search, self.outputs = module, search, kind_of(module, outputs)
        self.generation = 0
        self.children: list[Child] = []

    def ask(self) -> list[Mutation]:
        """The mutations of the next generation."""
        mutations = self.search.mutations(self.generation)
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
        k = min(self.search.ensemble_size, len(alive))
        return select(alive, k, seed=self.search.seed)

    def model(self, child: Child) -> nn.Module:
        """A child as a module of its own."""
        return self._ensemble([child]).members[0]

    @property
    def ensemble(self) -> Ensemble:
        """The elites as one model."""
        return self._ensemble(self.elites)

    def _ensemble(self, children: Sequence[Child]) -> Ensemble:
        mutations = [child.mutation for child in children]
        return Ensemble.from_mutations(
            self.module, mutations, outputs=self.outputs, include=self.search.include
        )


def keep_child(run: Run, child: Child, *, name: str = "children") -> None:
    """Writes a child into the run's journal, at once."""
    recipe = " ".join(map(repr, child.mutation.numbers))
    cases = {"cases": child.cases} if child.cases else {}
    run.record(name, recipe, {"fitness": child.fitness, "reason": child.reason, **cases})


def kept_children(run: Run, *, name: str = "children") -> list[Child]:
    """The children that an earlier part of the run has kept."""
    children = []
    for recipe, record in run.records(name).items():
        try:
            seed, *numbers = recipe.split(" ")
            mutation = Mutation(int(seed), *map(float, numbers))
            cases = tuple(map(float, record.get("cases", ())))
            children.append(Child(mutation, float(record["fitness"]), record["reason"], cases))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise files.StorageError(
                f"{run.folder}: {name} of the journal holds no children ({error}); --overwrite "
                "starts afresh"
            ) from None
    return children


def show_fitness(run: Run, children: Sequence[Child], *, generation: int = 0) -> None:
    """The distribution of a generation's fitness in TensorBoard."""
    fitness = [child.fitness for child in children if not child.failed]
    run.histogram("children/fitness", fitness, generation)
