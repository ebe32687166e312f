"""Many networks, or their mean, out of one training: snapshots, fast geometric ensembles, SWA."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from evo_subnets.bindings import Averaged, Binding, Snapshots
from evo_subnets.copies import copied
from evo_subnets.ensemble import Ensemble
from evo_subnets.methods.result import HERE, NOTHING_KEPT, Build, Result, begin, train_members
from evo_subnets.metrics import count_parameters
from evo_subnets.options import refuse_idle
from evo_subnets.prediction import reestimate_norms
from evo_subnets.runs import Run
from evo_subnets.schedules import Constant, Restarts, Triangles
from evo_subnets.streams import check_seed, derive_seed
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune
from evo_subnets.workers import Workers


@dataclass(frozen=True)
class Snapshot:
    """The networks at the ends of the cycles of one training, whose rate falls to zero by a cosine
    and starts again (Huang et al. 2017)."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "builder"
    selects: ClassVar[bool] = False

    ensemble_size: int = 4
    """Networks: cycles."""
    rate: float = 0.1
    """Learning rate that each cycle begins with."""
    tuning: Tuning = Tuning(16)
    """Of the whole training; its rates are the cycles'."""
    seed: int = 0
    """Of initial weights, the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        _check(self.ensemble_size, self.tuning)
        if self.ensemble_size > self.tuning.epochs:
            raise ValueError(
                f"{self.ensemble_size} cycles of an epoch at least do not fit into "
                f"{self.tuning.epochs} epochs: take fewer members or more epochs"
            )

    @property
    def schedule(self) -> Restarts:
        """Of the training."""
        return Restarts(self.rate, self.ensemble_size)

    def __call__(
        self, build: Build, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The networks that one training of what `build` makes passes through."""
        begin(run, self, start=build)
        epochs, size = self.tuning.epochs, self.ensemble_size
        ends = [epochs * (number + 1) / size for number in range(size - 1)] + [float(epochs)]

        def start() -> nn.Module:
            return build(derive_seed(self.seed, "network", 0))

        return _passed(self, start, self.schedule, ends, task, run, workers)


@dataclass(frozen=True)
class FastGeometric:
    """The networks where the rate of a parent's further training is low, between which it is high
    for a short while (Garipov et al. 2018, section 4)."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "parent"
    selects: ClassVar[bool] = False

    ensemble_size: int = 4
    """Networks: cycles."""
    rates: tuple[float, float] = (0.05, 0.0005)
    """Highest and lowest learning rate."""
    tuning: Tuning = Tuning(8)
    """Of the further training, which ends with the last network; its rates are the cycles'."""
    seed: int = 0
    """Of the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "rates", tuple(self.rates))
        _check(self.ensemble_size, self.tuning)

    @property
    def schedule(self) -> Triangles:
        """Of the further training: it ends in the middle of the last cycle."""
        high, low = self.rates
        return Triangles(high, low, self.ensemble_size - 0.5)

    def __call__(
        self, parent: nn.Module, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The networks that `parent`'s further training passes through."""
        begin(run, self, start=parent)
        cycle = self.tuning.epochs / self.schedule.cycles
        middles = [(number + 0.5) * cycle for number in range(self.ensemble_size - 1)]
        ends = [*middles, float(self.tuning.epochs)]
        return _passed(self, partial(copied, parent), self.schedule, ends, task, run, workers)


@dataclass(frozen=True)
class SWA:
    """One network: the mean of a parent's weights and those that it passes through while it is
    trained on at a high rate (Izmailov et al. 2018, algorithm 1)."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "parent"
    selects: ClassVar[bool] = False

    every: float = 1.0
    """Epochs between two weights that are averaged (the cycle length c)."""
    tuning: Tuning = Tuning(8, Constant(0.05))
    """Of the further training."""
    seed: int = 0
    """Of the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if not 0 < self.every <= self.tuning.epochs:
            raise ValueError(
                f"every must be above 0 and at most the epochs, {self.tuning.epochs}, got "
                f"{self.every}: nothing would be averaged"
            )

    @property
    def ensemble_size(self) -> int:
        """One network."""
        return 1

    def __call__(
        self, parent: nn.Module, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The mean network, its BatchNorm statistics estimated anew."""
        begin(run, self, start=parent)
        epochs = self.tuning.epochs
        at = [number * self.every for number in range(int(epochs / self.every + 1e-9) + 1)]

        def train(
            index: int, checkpoint: Path | None, on_epoch: Callable[[int, float], None]
        ) -> nn.Module:
            network = copied(parent)
            mean = Averaged(network, at)
            _tuned(self, self.tuning, network, task, mean, on_epoch, checkpoint)
            return mean.model()

        (mean,) = train_members(train, [self.tuning], what="swa", run=run, workers=workers)
        reestimate_norms(mean, task.train)
        passed = epochs * self.tuning.bagging
        ensemble = Ensemble([mean], outputs=task.outputs)
        return Result(ensemble, passed, passed, 1.0, count_parameters(mean))


def _check(ensemble_size: int, tuning: Tuning) -> None:
    if ensemble_size < 1:
        raise ValueError(f"ensemble_size must be at least 1, got {ensemble_size}")
    refuse_idle(tuning, ("schedule",), because="cycles with rates of their own")


def _passed(
    method: Any,
    start: Callable[[], nn.Module],
    schedule: Any,
    ends: Sequence[float],
    task: Task,
    run: Run,
    workers: Workers,
) -> Result:
    """The networks at the epochs `ends` of one training."""
    tuning = replace(method.tuning, schedule=schedule)
    if len(ends) > (steps := tuning.steps(task.train)):
        raise ValueError(
            f"{len(ends)} networks out of {steps} training steps would not all be others: take "
            "fewer members or more epochs"
        )

    def train(
        index: int, checkpoint: Path | None, on_epoch: Callable[[int, float], None]
    ) -> nn.Module:
        network = start()
        passed = Snapshots(network, ends)
        _tuned(method, tuning, network, task, passed, on_epoch, checkpoint)
        return nn.ModuleList(passed.models())

    what = type(method).__name__.lower()
    (found,) = train_members(train, [tuning], what=what, run=run, workers=workers)
    networks: list[nn.Module] = list(found)  # type: ignore[call-overload]
    epochs, kept = tuning.epochs * tuning.bagging, sum(map(count_parameters, networks))
    ensemble = Ensemble(networks, outputs=task.outputs)
    return Result(ensemble, epochs, epochs, float(len(networks)), kept)


def _tuned(
    method: Any,
    tuning: Tuning,
    network: nn.Module,
    task: Task,
    binding: Binding,
    on_epoch: Callable[[int, float], None],
    checkpoint: Path | None,
) -> None:
    tune(
        network, task, tuning=tuning, seed=derive_seed(method.seed, "tuning", 0), binding=binding,
        on_epoch=on_epoch, checkpoint=checkpoint,
    )  # fmt: skip
