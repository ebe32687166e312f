"""Generations: ask, evaluate, recombine, step, repeat."""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from evo_subnets import files
from evo_subnets.copies import copied
from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import (
    Child,
    Evolution,
    Fitness,
    evaluate,
    keep_child,
    kept_children,
    select,
    show_fitness,
)
from evo_subnets.inputs import batches_of
from evo_subnets.kinds import kind_of
from evo_subnets.lineage import PLAIN, Lineage, Rule, Step, add_step, centred_ranks, weighted, wide
from evo_subnets.mutation import Mutation
from evo_subnets.options import described
from evo_subnets.outputs import Outputs
from evo_subnets.roots import SQUARE, find_root
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.spread import Spread, spread_of
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import Include, included, parameters, staying, unit_of
from evo_subnets.trust_region import divergence, outputs_of, search_trust_region
from evo_subnets.workers import Here, Workers

HERE = Here()
NOTHING_KEPT = Run.none()

class Judge(Protocol):
    """Children of a parent to their fitness. `name`: under which the run keeps them."""

    def __call__(
        self, parent: nn.Module, mutations: Sequence[Mutation], *, generation: int, name: str
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
    on_child: Callable[[Child], None] | None = None,
    run: Run = NOTHING_KEPT,
    workers: Workers = HERE,
) -> Evolved:
    """Generations of children, evaluated; the result has `.children` and `.elites` of the last one,
    `.ensemble`, the `.evolved` parent and its `.lineage`, and the `.history` of generations.

    One generation, and no `moving`, leaves the parent where it is. Else every generation moves it
    by what its children's fitness says (see `Moving`), and the divergences that bound this are
    measured on `inputs`. A fitness with a method `in_generation(g)` is asked for that of each
    generation, so that random numbers are common within it and fresh in the next.

    Take the search from `search_trust_region`: a sigma that is small for one network destroys
    another. `run` keeps every child and step, so that the same call goes on where an earlier one
    was stopped, to the same bits; `workers`: where children are evaluated, see `evaluate`. Memory:
    two copies of the weights beside the module's own, however many generations there are.
    """

    def judge(
        parent: nn.Module, mutations: Sequence[Mutation], *, generation: int, name: str
    ) -> list[Child]:
        fresh = getattr(fitness, "in_generation", None)
        with run.bar(name, len(mutations)) as advance:

            def told(child: Child) -> None:
                keep_child(run, child, name=name)
                advance(1, f"fitness {child.fitness:.4g}")
                if on_child is not None:
                    on_child(child)

            return evaluate(
                parent,
                mutations,
                fitness=fitness if fresh is None else fresh(generation),
                include=search.include,
                on_child=told,
                done=kept_children(run, name=name),
                workers=workers,
            )

    moving = _checked(moving, search, generations=generations, inputs=inputs)
    about = {"generations": generations, "moving": described(moving)} if moving else {}
    parent = files.fingerprint(files.state_of(module))
    run.ask("evolve", {**search.about(), "parent": parent, **about})
    evolved = move(
        module,
        judge,
        search=search,
        generations=generations,
        moving=moving,
        inputs=inputs,
        outputs=outputs,
        run=run,
    )
    show_fitness(run, evolved.children, generation=evolved.generation - 1)
    return evolved


def move(
    module: nn.Module,
    judge: Judge,
    *,
    search: Search,
    generations: int = 1,
    moving: Moving | None = None,
    inputs: Any = None,
    outputs: Outputs | None = None,
    run: Run = NOTHING_KEPT,
    name: str = "children",
    on_generation: Callable[[Generation], None] | None = None,
) -> Evolved:
    """`evolve` for children that are judged in another way, for example all at once in a game.

    `name`: of the population, where a run has several; `on_generation` sees each generation.
    """
    moving = _checked(moving, search, generations=generations, inputs=inputs)
    outputs = kind_of(module, outputs)
    if moving is None:
        evolved = Evolved(module, search, root=module, lineage=Lineage(), outputs=outputs)
        evolved.tell(judge(module, evolved.ask(), generation=0, name=name))
        return evolved
    walk = _Walk(module, moving, search=search, inputs=inputs, outputs=outputs)
    for number in range(generations):
        now = walk.search_of(number, run, name)
        evolved = Evolved(walk.parent, now, root=module, lineage=walk.lineage, outputs=outputs)
        evolved.generation = number
        mutations, kept = evolved.ask(), f"{name} of generation {number}"
        judged = partial(judge, evolved.module, mutations, generation=number, name=kept)

        chosen = partial(_chosen, evolved, judged, walk)
        generation = _from_record(run.once(f"{name}: step {number}", chosen))
        walk.take(generation)
        run.forget(f"{name} of generation {number - 1}")  # what is needed of it is in its step
        show_generation(run, generation, number=number)
        if on_generation is not None:
            on_generation(generation)
        blind = generation.spread is not None and not generation.spread.told_apart
        if moving.stop and blind:
            break
    if not evolved.children:  # an earlier part of the run has judged them
        evolved.tell(judged())
    evolved.lineage, evolved.history, evolved.evolved = walk.lineage, walk.history, walk.parent
    return evolved


def _checked(
    moving: Moving | None, search: Search, *, generations: int, inputs: Any
) -> Moving | None:
    """How the parent moves; a ValueError where generations cannot be had."""
    if generations < 1:
        raise ValueError(f"generations must be at least 1, got {generations}")
    moving = Moving() if moving is None and generations > 1 else moving
    if moving is None or moving.noise is None:
        search.mutations()  # a search whose sigma is not known is refused now
    if moving is not None and inputs is None and (moving.noise or moving.step or moving.drift):
        raise ValueError(
            "generations are bounded by divergences, which are measured on inputs: give inputs="
        )
    return moving


def _chosen(evolved: Evolved, judged: Callable[[], list[Child]], walk: "_Walk") -> dict[str, Any]:
    evolved.tell(judged())
    return walk.choose(evolved.children)


def stepped(module: nn.Module, step: Step, *, include: Include = None) -> nn.Module:
    """A copy of a module that is one step further."""
    moved = copied(module)
    Lineage((step,)).replay(parameters(module), out=parameters(moved), include=include)
    return moved


def show_generation(run: Run, generation: Generation, *, number: int) -> None:
    """A generation's curves in TensorBoard."""
    alive = [value for value in generation.fitness if not math.isnan(value)]
    levels = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    quantiles = torch.quantile(torch.tensor(alive, dtype=torch.float64), levels).tolist()
    for name, value in zip(("lowest", "25", "median", "75", "highest"), quantiles, strict=True):
        run.scalar(f"generations/fitness_{name}", value, number)
    for name in ("sigma", "divergence", "drift"):
        run.scalar(f"generations/{name}", getattr(generation, name), number)
    run.scalar("generations/step_length", generation.step.length, number)
    if generation.spread is not None:
        run.scalar("generations/true_spread", generation.spread.children, number)
        run.scalar("generations/spread_error", generation.spread.error, number)


