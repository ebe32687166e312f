"""How a parent moves, generation by generation: sigma, the children's step, its bounds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from evo_subnets.copies import copied
from evo_subnets.descendants import Moved
from evo_subnets.evolution import Child
from evo_subnets.inputs import batches_of
from evo_subnets.lineage import PLAIN, Lineage, Rule, Step, centred_ranks, weighted
from evo_subnets.mutation import Mutation
from evo_subnets.outputs import Outputs
from evo_subnets.roots import SQUARE, find_root
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.spread import Spread, spread_of
from evo_subnets.streams import derive_seed
from evo_subnets.trust_region import divergence, outputs_of, search_trust_region

NOTHING_KEPT = Run.none()
BATCH = 256
"""Inputs of a forward pass where divergences are measured."""
MEASURED, GAIN = 8, 0.5
"""Children of a generation's parent whose divergence corrects sigma, and how much of what they say:
a parent is a short step from the last, so that generations average what a few of them miss."""
MOST = 2.0
"""By which sigma grows or shrinks in a generation: a parent that is sure of everything would ask
for any noise."""
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


class Walk:
    """The parent as it moves: one copy of the weights, and a second one while a step is sought.

    A generation: the children of `search_of(g)` around `parent` are judged, `choose` makes a record
    of the step that they ask for, `take` moves the parent by it.
    """

    def __init__(
        self, module: nn.Module, moving: Moving, *, search: Search, inputs: Any, outputs: Outputs
    ) -> None:
        self.root, self.moving, self.search, self.outputs = module, moving, search, outputs
        # a loader that shuffles gives others each time
        self.inputs = None if inputs is None else list(batches_of(inputs, BATCH))
        self.moved = Moved(module, rule=moving.rule, include=search.include)
        self.root_outputs = None if inputs is None else self._answers(module)
        self.history: list[Generation] = []

    @property
    def parent(self) -> nn.Module:
        """Where it is now."""
        return self.moved.module

    @property
    def lineage(self) -> Lineage:
        """How it came there from the root."""
        return self.moved.lineage

    def search_of(self, number: int, *, run: Run = NOTHING_KEPT, name: str = "children") -> Search:
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
                    factor = float((target / few) ** (GAIN / SQUARE))
                    return before * min(max(factor, 1 / MOST), MOST)
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
        away = 0.0

        def gone(length: float) -> float:
            nonlocal away
            if not (away and self.moved.stretch(moved, length / away)):
                self.moved.write(replace(step, length=length), moved)
            away = length
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
        self.moved.take(generation.step)
        self.history.append(generation)


def from_record(record: dict[str, Any]) -> Generation:
    """A generation as `Walk.choose` wrote it."""
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
