"""Generations: ask, evaluate, recombine, step, repeat."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from evo_subnets import files
from evo_subnets.copies import copied
from evo_subnets.descendants import Descendant, Descendants, Moved, lost_descendant
from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import (
    Child,
    Evolution,
    Fitness,
    check_strength,
    gather,
    keep_child,
    kept_children,
    select,
    show_fitness,
)
from evo_subnets.kinds import kind_of
from evo_subnets.lineage import Lineage, Step, weighted
from evo_subnets.mutation import Mutation
from evo_subnets.options import described
from evo_subnets.outputs import Outputs
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import Include, parameters
from evo_subnets.walk import Generation, Moving, Walk, from_record
from evo_subnets.workers import Here, Workers

HERE = Here()
NOTHING_KEPT = Run.none()


class Judge(Protocol):
    """Children of a parent, which a lineage has led to, to their fitness in a generation. `name`:
    under which the run keeps them."""

    def __call__(
        self,
        parent: nn.Module,
        mutations: Sequence[Mutation],
        *,
        lineage: Lineage,
        generation: int,
        name: str,
    ) -> list[Child]: ...


class Evolved(Evolution):
    """An `Evolution` around the last generation's parent, and where its children moved it."""

    def __init__(
        self,
        parent: nn.Module,
        search: Search,
        *,
        root: nn.Module,
        lineage: Lineage,
        outputs: Outputs | None = None,
    ) -> None:
        super().__init__(parent, search, outputs=outputs)
        self.root = root
        """The first parent."""
        self.lineage = lineage
        """From the root to the evolved parent."""
        self.history: list[Generation] = []
        self.evolved: nn.Module = parent
        self.confirmed: list[Child] = []
        """The fittest children, judged again on cases that had no part in their selection; their
        fitness is the mean of all cases. Where there are any, the elites are chosen from them."""

    @property
    def elites(self) -> list[Child]:
        """The fittest children, at most `ensemble_size`, none that failed."""
        alive = [child for child in self.confirmed if not child.failed]
        if not alive:
            return super().elites
        k = min(self.search.ensemble_size, len(alive))
        return select(alive, k, seed=self.search.seed)

    def models(self) -> dict[str, nn.Module]:
        """What came of it, by name; which is best is validation's to say, not the test's."""
        elites = self.elites
        found: dict[str, nn.Module] = {"best child": self.model(elites[0])}
        if len(elites) > 1:
            found[f"ensemble of {len(elites)}"] = self.ensemble
            found[f"soup of {len(elites)}"] = self.soup()
        if self.lineage.steps:
            found["evolved parent"] = self.evolved
            found[f"{self.search.ensemble_size} around the evolved parent"] = self.around()
        if len(self.lineage.steps) > 1:
            passed = self.passed()
            found[f"last {len(passed.members)} parents"] = passed
        return found

    def controls(self) -> dict[str, nn.Module]:
        """What chance comes to with the same noise, by name: as many children of the last
        generation, but any, and a walk of the same steps, each recipe's sign drawn."""
        found: dict[str, nn.Module] = {}
        alike = [replace(child, fitness=0.0) for child in self.children if not child.failed]
        size, seed = len(self.elites), derive_seed(self.search.seed, "control")
        if size < len(alike):
            random = select(alike, size, seed=seed)
            name = f"{size} random children" if size > 1 else "random child"
            found[name] = self._ensemble(random) if size > 1 else self.model(random[0])
        if self.lineage.steps:
            walked = copied(self.root)
            self.lineage.at_random(seed=seed).replay(
                parameters(self.root), out=parameters(walked), include=self.search.include
            )
            found["random walk"] = walked
        return found

    def soup(self) -> nn.Module:
        """One network: the mean of the elites' weights (Wortsman et al. 2022)."""
        elites = self.elites
        mean = weighted([child.mutation for child in elites], [1 / len(elites)] * len(elites))
        return stepped(self.module, Step(mean), include=self.search.include)

    def passed(self, members: int | None = None) -> Ensemble:
        """An ensemble of the parents that the last steps led to, the evolved one among them, by
        default `ensemble_size`: the checkpoints of the lineage."""
        moved = Moved(self.root, rule=self.lineage.rule, include=self.search.include)
        latest: deque[nn.Module] = deque(maxlen=members or self.search.ensemble_size)
        for step in self.lineage.steps:
            moved.take(step)
            latest.append(moved.module)
        return Ensemble(list(latest), outputs=self.outputs)

    def around(self, members: int | None = None) -> Ensemble:
        """An ensemble of unselected children of the evolved parent, by default `ensemble_size`."""
        mutations = self.search.mutations(self.generation)[: members or self.search.ensemble_size]
        return Ensemble.from_mutations(
            self.evolved, mutations, outputs=self.outputs, include=self.search.include
        )


def evolve(
    module: nn.Module,
    fitness: Fitness,
    *,
    search: Search,
    generations: int = 1,
    moving: Moving | None = None,
    inputs: Any = None,
    outputs: Outputs | None = None,
    again: int = 0,
    on_child: Callable[[Child], None] | None = None,
    run: Run = NOTHING_KEPT,
    workers: Workers = HERE,
) -> Evolved:
    """Generations of children, evaluated; the result has `.children` and `.elites` of the last one,
    `.ensemble`, the `.evolved` parent and its `.lineage`, and the `.history` of generations.

    One generation, and no `moving`, leaves the parent where it is. Else every generation moves it
    by what its children's fitness says (see `Moving`), and the divergences that bound this are
    measured on `inputs`. A fitness with a method `in_generation(g)` is asked for that of each
    generation, so that random numbers are common within it and fresh in the next. `again`: so many
    of the last generation's fittest children are judged once more, on fresh cases, before the
    elites are chosen among them by the mean of both.

    Take the search from `search_trust_region`: a sigma that is small for one network destroys
    another. `run` keeps every child and step, so that the same call goes on where an earlier one
    was stopped, to the same bits; `workers`: where children are evaluated, see `evaluate`; they
    stay through all generations, and are sent the weights once, then lineages. Memory: two copies
    of the weights beside the module's own, however many generations there are.
    """
    moving = check_moving(moving, search, generations=generations, inputs=inputs, again=again)
    if again and not hasattr(fitness, "in_generation"):
        raise ValueError(
            "judged again, this fitness would say the same: give it a method in_generation(g) that "
            "returns a fitness with fresh cases, or take again=0"
        )
    about = {"generations": generations, "moving": described(moving)} if moving else {}
    about |= {"again": again} if again else {}
    parent = files.fingerprint(files.state_of(module))
    run.ask("evolve", {**search.about(), "parent": parent, **about})
    with judging(
        module, fitness, search=search, on_child=on_child, run=run, workers=workers
    ) as judge:
        evolved = move(
            module,
            judge,
            search=search,
            generations=generations,
            moving=moving,
            inputs=inputs,
            outputs=outputs,
            again=again,
            run=run,
        )
    show_fitness(run, evolved.children, generation=evolved.generation - 1)
    return evolved


@contextmanager
def judging(
    root: nn.Module,
    fitness: Fitness,
    *,
    search: Search,
    shown: str = "fitness {:.4g}",
    on_child: Callable[[Child], None] | None = None,
    run: Run = NOTHING_KEPT,
    workers: Workers = HERE,
) -> Iterator[Judge]:
    """What judges children by their fitness, by the same workers until the block ends. The run
    keeps them, and its bar says what is `shown` of the last."""
    descendants = Descendants(root, fitness, include=search.include)
    with workers.kept(descendants, most=search.population_size, lost=lost_descendant) as mapped:

        def judge(
            parent: nn.Module,
            mutations: Sequence[Mutation],
            *,
            lineage: Lineage,
            generation: int,
            name: str,
        ) -> list[Child]:
            def evaluated(missing: Sequence[Mutation]) -> Iterator[tuple[int, Child]]:
                return mapped([Descendant(lineage, each, generation) for each in missing])

            check_strength(parent, mutations, include=search.include)
            with descendants.knowing(lineage, parent), run.bar(name, len(mutations)) as advance:

                def told(child: Child) -> None:
                    keep_child(run, child, name=name)
                    advance(1, shown.format(child.fitness))
                    if on_child is not None:
                        on_child(child)

                done = kept_children(run, name=name)
                return gather(mutations, evaluated, on_child=told, done=done)

        yield judge


def move(
    module: nn.Module,
    judge: Judge,
    *,
    search: Search,
    generations: int = 1,
    moving: Moving | None = None,
    inputs: Any = None,
    outputs: Outputs | None = None,
    again: int = 0,
    run: Run = NOTHING_KEPT,
    name: str = "children",
    on_generation: Callable[[Generation], None] | None = None,
) -> Evolved:
    """`evolve` for children that are judged in another way, for example all at once in a game.

    `name`: of the population, where a run has several; `on_generation` sees each generation.
    """
    moving = check_moving(moving, search, generations=generations, inputs=inputs, again=again)
    outputs = kind_of(module, outputs)
    if moving is None:
        evolved = Evolved(module, search, root=module, lineage=Lineage(), outputs=outputs)
        judged = partial(judge, module, lineage=Lineage())
        evolved.tell(judged(evolved.ask(), generation=0, name=name))
        _confirm(evolved, judged, again, generation=1, name=name)
        return evolved
    walk = Walk(module, moving, search=search, inputs=inputs, outputs=outputs)
    found: Evolved | None = None
    for number in range(generations):
        found = None  # of the last generation, whose parent goes before another copy is made
        found = _generation(walk, judge, number=number, run=run, name=name)
        generation = walk.history[-1]
        run.forget(f"{name} of generation {number - 1}")  # what is needed of it is in its step
        show_generation(run, generation, number=number)
        if on_generation is not None:
            on_generation(generation)
        blind = generation.spread is not None and not generation.spread.told_apart
        if moving.stop and blind:
            break
    assert found is not None
    evolved = found
    judged = partial(judge, evolved.module, lineage=evolved.lineage)
    if not evolved.children:  # an earlier part of the run has judged them
        number = len(walk.history) - 1
        mutations = evolved.search.mutations(number)
        evolved.tell(judged(mutations, generation=number, name=_kept(name, number)))
    _confirm(evolved, judged, again, generation=generations, name=name)
    show_history(run, walk.history)
    evolved.lineage, evolved.history, evolved.evolved = walk.lineage, walk.history, walk.parent
    return evolved


def _generation(walk: Walk, judge: Judge, *, number: int, run: Run, name: str) -> Evolved:
    """The children around the parent as it was, which the walk's last step has moved."""
    now, lineage = walk.search_of(number, run=run, name=name), walk.lineage
    evolved = Evolved(walk.parent, now, root=walk.root, lineage=lineage, outputs=walk.outputs)
    evolved.generation = number
    mutations = evolved.ask()

    def chosen() -> dict[str, Any]:
        kept = _kept(name, number)
        evolved.tell(
            judge(evolved.module, mutations, lineage=lineage, generation=number, name=kept)
        )
        return walk.choose(evolved.children)

    walk.take(from_record(run.once(f"{name}: step {number}", chosen)))
    return evolved


def _kept(name: str, number: int) -> str:
    """Under which a run keeps a generation's children."""
    return f"{name} of generation {number}"


def check_moving(
    moving: Moving | None, search: Search, *, generations: int, inputs: Any, again: int = 0
) -> Moving | None:
    """How the parent moves; a ValueError where generations cannot be had."""
    if generations < 1:
        raise ValueError(f"generations must be at least 1, got {generations}")
    if again and not search.ensemble_size <= again <= search.population_size:
        raise ValueError(
            f"again must be 0, or between ensemble_size and population_size, "
            f"{search.ensemble_size} and {search.population_size}, got {again}"
        )
    moving = Moving() if moving is None and generations > 1 else moving
    if moving is None or moving.noise is None:
        search.mutations()  # a search whose sigma is not known is refused now
    if moving is not None and inputs is None and (moving.noise or moving.step or moving.drift):
        raise ValueError(
            "generations are bounded by divergences, which are measured on inputs: give inputs="
        )
    return moving


def _confirm(
    evolved: Evolved, judged: Callable[..., list[Child]], again: int, *, generation: int, name: str
) -> None:
    """Judges the fittest once more, on the cases of a generation that there was not."""
    alive = [child for child in evolved.children if not child.failed]
    if not (again and alive):
        return
    first = select(alive, min(again, len(alive)), seed=evolved.search.seed)
    mutations = [child.mutation for child in first]
    second = judged(mutations, generation=generation, name=f"{name} judged again")
    evolved.confirmed = [_both(*each) for each in zip(first, second, strict=True)]


def _both(first: Child, second: Child) -> Child:
    """A child, with the mean of what two judgements say."""
    if second.failed:
        return second
    cases = (*first.cases, *second.cases)
    if first.cases and second.cases:
        return Child.judged(first.mutation, cases)
    return Child.judged(first.mutation, (first.fitness + second.fitness) / 2)


def stepped(module: nn.Module, step: Step, *, include: Include = None) -> nn.Module:
    """A copy of a module that is one step further."""
    moved = Moved(module, include=include)
    moved.take(step)
    return moved.module


QUANTILES = {"lowest": 0.0, "25": 0.25, "median": 0.5, "75": 0.75, "highest": 1.0}


def quantiles(generation: Generation) -> dict[str, float]:
    """Of the fitness of the children that did not fail."""
    alive = [value for value in generation.fitness if not math.isnan(value)]
    levels = torch.tensor(list(QUANTILES.values()), dtype=torch.float64)
    found = torch.quantile(torch.tensor(alive, dtype=torch.float64), levels).tolist()
    return dict(zip(QUANTILES, found, strict=True))


def show_generation(run: Run, generation: Generation, *, number: int) -> None:
    """A generation's curves in TensorBoard."""
    for name, value in quantiles(generation).items():
        run.scalar(f"generations/fitness_{name}", value, number)
    for name in ("sigma", "divergence", "drift"):
        run.scalar(f"generations/{name}", getattr(generation, name), number)
    run.scalar("generations/step_length", generation.step.length, number)
    if generation.spread is not None:
        run.scalar("generations/true_spread", generation.spread.children, number)
        run.scalar("generations/spread_error", generation.spread.error, number)


def show_history(run: Run, history: Sequence[Generation]) -> None:
    """All generations as one picture in TensorBoard: fitness, divergences, strengths."""
    if run.folder is None or not history:
        return
    fitness = [quantiles(each) for each in history]
    panels: dict[str, dict[str, list[float]]] = {
        "fitness of the children": {name: [each[name] for each in fitness] for name in QUANTILES},
        "divergence, nats": {
            "from the last parent": [each.divergence for each in history],
            "from the first": [each.drift for each in history],
        },
        "sigma": {"of the children": [each.sigma for each in history]},
        "length of the step": {"of the weighted sum": [each.step.length for each in history]},
    }
    run.curves("generations", panels, over="generation", band=("25", "75"))
