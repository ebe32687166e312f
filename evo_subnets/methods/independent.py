"""Networks trained from scratch: what every low-cost ensemble is compared with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from evo_subnets.ensemble import Ensemble
from evo_subnets.methods.result import (
    HERE,
    NOTHING_KEPT,
    Build,
    Result,
    begin,
    train_members,
)
from evo_subnets.metrics import count_parameters
from evo_subnets.runs import Run
from evo_subnets.schedules import Constant
from evo_subnets.streams import check_seed, derive_seed
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune
from evo_subnets.workers import Workers


@dataclass(frozen=True)
class Independent:
    """Networks that share nothing, each trained with the whole budget.

    One is the independent model, more are a deep ensemble (Lakshminarayanan et al. 2017).
    """

    starts_from: ClassVar[Literal["parent", "builder"]] = "builder"
    selects: ClassVar[bool] = False

    ensemble_size: int = 1
    """Networks."""
    tuning: Tuning = Tuning(16, Constant(0.001), "adam")
    """Of each of them."""
    seed: int = 0
    """Of initial weights, the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.ensemble_size < 1:
            raise ValueError(f"ensemble_size must be at least 1, got {self.ensemble_size}")

    def __call__(
        self, build: Build, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The networks that `build` makes, trained."""
        begin(run, self, start=build)
        return _trained(self, self.tuning, build, task, run, workers)


@dataclass(frozen=True)
class Bagging:
    """Networks that each see a sample of the data (Breiman 1996; Whitaker 2023, table 5.1)."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "builder"
    selects: ClassVar[bool] = False

    ensemble_size: int = 8
    """Networks."""
    fraction: float = 0.9
    """Part of the training data that each sees."""
    tuning: Tuning = Tuning(2, Constant(0.001), "adam")
    """Of each of them."""
    seed: int = 0
    """Of initial weights, the samples and their order, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.ensemble_size < 1:
            raise ValueError(f"ensemble_size must be at least 1, got {self.ensemble_size}")
        if self.tuning.bagging != 1:
            raise ValueError("fraction says how much data each network sees: leave bagging out")
        replace(self.tuning, bagging=self.fraction)  # refuses a fraction that is none

    def __call__(
        self, build: Build, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The networks that `build` makes, trained on samples."""
        begin(run, self, start=build)
        bagged = replace(self.tuning, bagging=self.fraction)
        return _trained(self, bagged, build, task, run, workers)


def _trained(
    method: Independent | Bagging,
    tuning: Tuning,
    build: Build,
    task: Task,
    run: Run,
    workers: Workers,
) -> Result:
    def train(
        index: int, checkpoint: Path | None, on_epoch: Callable[[int, float], None]
    ) -> nn.Module:
        network = build(derive_seed(method.seed, "network", index))
        tune(
            network, task, tuning=tuning, seed=derive_seed(method.seed, "tuning", index),
            on_epoch=on_epoch, checkpoint=checkpoint,
        )  # fmt: skip
        return network

    tunings = [tuning] * method.ensemble_size
    what = type(method).__name__.lower()
    networks = train_members(train, tunings, what=what, run=run, workers=workers)
    epochs = method.ensemble_size * tuning.epochs * tuning.bagging
    kept = sum(map(count_parameters, networks))
    ensemble = Ensemble(networks, outputs=task.outputs)
    return Result(ensemble, epochs, epochs, float(len(networks)), kept)
