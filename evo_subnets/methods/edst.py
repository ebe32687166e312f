"""EDST ensembles: many sparse networks out of one training (Liu et al. 2022, algorithm 1)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from evo_subnets.bindings import Snapshots, Together
from evo_subnets.methods.dst import check_sparse, first_masks, with_looking
from evo_subnets.methods.result import HERE, NOTHING_KEPT, Build, Result, begin, train_members
from evo_subnets.methods.sparse import finished
from evo_subnets.options import refuse_idle
from evo_subnets.rewiring import Distribution, Rewired, Rewiring
from evo_subnets.runs import Run
from evo_subnets.streams import check_seed, derive_seed
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune
from evo_subnets.workers import Workers

Rates = tuple[float, float, float]


@dataclass(frozen=True)
class Phases:
    """A schedule: a rate while exploring, then, in each refinement, one for each half."""

    exploration: float
    """Part of the budget that explores."""
    refinements: int
    """That share out the rest."""
    rates: Rates

    def __call__(self, progress: float) -> float:
        if progress < self.exploration:
            return self.rates[0]
        place = (progress - self.exploration) / (1 - self.exploration) * self.refinements
        return self.rates[1 if place % 1.0 < 0.5 else 2]

    def ends(self, epochs: int) -> list[float]:
        """In epochs, of each refinement; the last is the training's."""
        length = (1 - self.exploration) * epochs / self.refinements
        found = [self.exploration * epochs + length * n for n in range(1, self.refinements)]
        return [*found, float(epochs)]


@dataclass(frozen=True)
class EDST:
    """One dynamic sparse training that explores at a large rate, then refines again and again; each
    refinement leaves a network, and most of its connections are rewired before the next."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "builder"
    selects: ClassVar[bool] = False

    ensemble_size: int = 3
    """Networks: refinements."""
    sparsity: float = 0.8
    """Fraction of all weights that are out."""
    exploration: float = 1 / 3
    """Part of the epochs that explores (150 of 450 in the paper); refinements share out the rest.
    """
    rates: Rates = (0.1, 0.01, 0.001)
    """Learning rates: of the exploration, and of each half of a refinement."""
    escape: float = 0.8
    """q: of a layer's connections, those that are rewired between refinements."""
    distribution: Distribution = "erk"
    """How sparsity is shared out among layers (see `rewiring.layer_densities`)."""
    rewiring: Rewiring = Rewiring()
    """When and how connections move otherwise."""
    tuning: Tuning = Tuning(16)
    """Of the whole training; its rates are `rates`."""
    seed: int = 0
    """Of initial weights, connections, the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "rates", tuple(self.rates))
        check_sparse(self.ensemble_size, self.sparsity)
        refuse_idle(self.tuning, ("schedule",), because="phases with rates of their own (rates)")
        if not 0 <= self.exploration < 1 or not 0 <= self.escape <= 1:
            raise ValueError(
                "exploration must be in [0, 1) and escape in [0, 1], got "
                f"{self.exploration} and {self.escape}"
            )
        if (1 - self.exploration) * self.tuning.epochs < self.ensemble_size - 1e-9:
            raise ValueError(
                f"{self.ensemble_size} refinements of an epoch each do not fit behind an "
                f"exploration of {self.exploration:.3g} of {self.tuning.epochs} epochs: take fewer "
                "members, more epochs or less exploration"
            )

    @property
    def phases(self) -> Phases:
        """The schedule."""
        return Phases(self.exploration, self.ensemble_size, self.rates)

    def __call__(
        self, build: Build, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The networks that one training of what `build` makes leaves behind."""
        begin(run, self, start=build)
        tuning, phases = replace(self.tuning, schedule=self.phases), self.phases
        steps, ends = tuning.steps(task.train), phases.ends(tuning.epochs)
        first = derive_seed(self.seed, "network", 0)
        dense = build(first)
        masks = first_masks(dense, self.sparsity, distribution=self.distribution, seed=first)
        self.rewiring.every(steps)

        def train(
            index: int, checkpoint: Path | None, on_epoch: Callable[[int, float], None]
        ) -> nn.Module:
            network = build(first)
            rewired = Rewired(
                network, masks, rewiring=self.rewiring, steps=steps, restarts=ends[:-1],
                escape=self.escape, seed=derive_seed(self.seed, "rewiring", 0),
            )  # fmt: skip
            tickets = Snapshots(network, ends)
            tune(
                network, task, tuning=tuning, seed=derive_seed(self.seed, "tuning", 0),
                binding=Together(tickets, rewired), on_epoch=on_epoch, checkpoint=checkpoint,
            )  # fmt: skip
            return nn.ModuleList(tickets.models())

        (tickets,) = train_members(train, [tuning], what="edst", run=run, workers=workers)
        networks = list(tickets)  # type: ignore[call-overload]
        result = finished(networks, [masks] * len(networks), parent=dense, task=task, tuning=tuning)
        density, epochs = result.inference / len(networks), tuning.epochs * tuning.bagging
        once = replace(result, epochs=epochs, training=epochs * density)
        return with_looking(once, self.rewiring, density=density, steps=steps)
