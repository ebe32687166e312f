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
BATCH = 256
"""Inputs of a forward pass where divergences are measured."""
MEASURED, GAIN = 8, 0.5
"""Children of a generation's parent whose divergence corrects sigma, and how much of what they say:
a parent is a short step from the last, so that generations average what a few of them miss."""
HALVINGS = 12
"""Bisections that shorten a step which leads too far from the root."""

Recombine = Callable[[Sequence[float]], Sequence[float]]
"""The children's fitness (NaN: failed) to their weights in the step."""


@dataclass(frozen=True)
class Moving:
    """How a generation moves its parent. Divergences are in nats, on the inputs of `evolve`."""

    recombine: Recombine = field(default=centred_ranks)
    """Fitness to the weights of the children's noise: `centred_ranks` (OpenAI's evolution
    strategy), `log_weights` (CMA-ES's mean), `best_child` (it is the next parent)."""
    rule: Rule = PLAIN
    """What is made of the weighted sum: `Plain`, `Momentum` or `Adam`."""
    noise: float | None = 0.3
    """Divergence of the children from their parent: sigma is found for it before the first
    generation and corrected, from a few children, before every other; None: the search's sigma
    throughout."""
    step: float | None = 0.06
    """Divergence of the next parent from the last, for which the step's length is found; None: the
    weighted sum as it is."""
    drift: float | None = None
    """Divergence from the root that no step may lead beyond; None: no bound."""
    stop: bool = False
    """End with a generation whose children cannot be told apart."""

    def __post_init__(self) -> None:
        for name in ("noise", "step", "drift"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is a divergence above 0, or None, got {value}")


@dataclass(frozen=True)
class Generation:
    """What came of one generation."""

    sigma: float
    fitness: tuple[float, ...]
    """Of its children, NaN for those that failed."""
    spread: Spread | None
    """Whether the children could be told apart; None where their cases are not known."""
    step: Step
    divergence: float
    """Of the next parent from this generation's."""
    drift: float
    """Of the next parent from the root."""


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


class _Walk:
    """The parent as it moves: one copy of the weights, and a second one while a step is sought."""

    def __init__(
        self, module: nn.Module, moving: Moving, *, search: Search, inputs: Any, outputs: Outputs
    ) -> None:
        self.parent, self.moving, self.search, self.outputs = module, moving, search, outputs
        # a loader that shuffles gives others each time
        self.inputs = None if inputs is None else list(batches_of(inputs, BATCH))
        weights = parameters(module)
        self.names = included(weights, search.include)
        self.fixed = staying(weights, self.names)
        self.memories = {
            name: [torch.zeros_like(wide(weights[name])) for _ in range(moving.rule.memories)]
            for name in self.names
        }
        self.sums = {  # where the weights themselves cannot hold what is added up
            name: wide(weights[name])
            for name in self.names
            if torch.promote_types(weights[name].dtype, torch.float32) != weights[name].dtype
        }
        self.root_outputs = None if inputs is None else self._answers(module)
        self.lineage, self.history = Lineage(rule=moving.rule), list[Generation]()

    def search_of(self, number: int, run: Run, name: str) -> Search:
        """The search of a generation: with its sigma for the parent as it is."""
        if self.moving.noise is None:
            return self.search
        inputs, target = self.inputs, self.moving.noise
        assert inputs is not None
        before = self.history[-1].sigma if self.history else self.search.sigma
        measured = replace(
            self.search, sigma=before, seed=derive_seed(self.search.seed, "noise", number)
        )

        search = partial(
            search_trust_region, self.parent, inputs, search=measured, outputs=self.outputs
        )

        def sigma() -> float:
            if self.history and before is not None:
                few = search(sigmas=[before], children=MEASURED, target=math.inf).divergence
                if 0 < few < math.inf:
                    return float(before * (target / few) ** (GAIN / SQUARE))
            return search(target=target).sigma

        return replace(self.search, sigma=run.once(f"{name}: sigma {number}", sigma))

    def choose(self, children: Sequence[Child]) -> dict[str, Any]:
        """The step that the children's fitness asks for, as JSON."""
        fitness = [math.nan if child.failed else child.fitness for child in children]
        weights = self.moving.recombine(fitness)
        step = Step(weighted([child.mutation for child in children], weights))
        moved = copied(self.parent)
        length, divergence, drift = 1.0, 0.0, self._from_root(self.parent)
        if step.mutations:
            length, divergence, drift = self._bounded(step, moved)
        cases = [child.cases for child in children if child.cases and not child.failed]
        known = len(cases) > 1 and len({len(each) for each in cases}) == 1 and len(cases[0]) > 1
        spread = astuple(spread_of(cases)) if known else None
        return {
            "sigma": max(abs(child.mutation.sigma) for child in children),
            "fitness": fitness,
            "spread": spread,
            "step": [length, *(each.numbers for each in step.mutations)],
            "divergence": divergence,
            "drift": drift,
        }

    def _bounded(self, step: Step, moved: nn.Module) -> tuple[float, float, float]:
        """The step's length, and the divergence of where it leads from the parent and the root."""
        moving = self.moving
        here = None if self.inputs is None else self._answers(self.parent)

        def gone(length: float) -> float:
            self._write(replace(step, length=length), moved)
            if here is None:
                return 0.0
            return divergence(here, self._answers(moved), outputs=self.outputs)

        length = 1.0
        if moving.step is not None:
            start = self.history[-1].step.length if self.history else 1.0
            length = find_root(gone, moving.step, sigma=start or 1.0)
        found = gone(length)
        drift = self._from_root(moved)
        if moving.drift is not None and drift > moving.drift:
            low, high = 0.0, length
            for _ in range(HALVINGS):
                middle = (low + high) / 2
                gone(middle)
                low, high = (
                    (low, middle) if self._from_root(moved) > moving.drift else (middle, high)
                )
            length, found = low, gone(low)
            drift = self._from_root(moved)
        return length, found, drift

    def _from_root(self, module: nn.Module) -> float:
        if self.root_outputs is None:
            return 0.0
        return divergence(self.root_outputs, self._answers(module), outputs=self.outputs)

    def _answers(self, module: nn.Module) -> Tensor:
        return outputs_of(module, self.inputs, outputs=self.outputs)

    def take(self, generation: Generation) -> None:
        """Moves the parent."""
        moved = copied(self.parent)
        self._write(generation.step, moved, keep=True)
        self.parent, self.lineage = moved, self.lineage.then(generation.step)
        self.history.append(generation)

    @torch.no_grad()
    def _write(self, step: Step, moved: nn.Module, *, keep: bool = False) -> None:
        """Gives `moved` the weights behind a step; memories and sums move along only if asked."""
        old, new, number = parameters(self.parent), parameters(moved), len(self.lineage.steps) + 1
        for name in self.names:
            total = self.sums[name] if name in self.sums else wide(old[name])
            memories = self.memories[name]
            if not keep:
                total, memories = total.clone(), [memory.clone() for memory in memories]
            add_step(
                name, total, memories=memories, step=step, rule=self.moving.rule, number=number,
                unit=unit_of(self.names, name),
            )  # fmt: skip
            new[name].copy_(total.view(new[name].shape))
        for name, stays in self.fixed.items():
            torch.where(stays, old[name], new[name], out=new[name])


def _from_record(record: dict[str, Any]) -> Generation:
    length, *mutations = record["step"]
    spread = record["spread"]
    return Generation(
        record["sigma"],
        tuple(record["fitness"]),
        None if spread is None else Spread(*spread),
        Step(tuple(Mutation(*numbers) for numbers in mutations), length),
        record["divergence"],
        record["drift"],
    )
