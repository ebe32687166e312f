"""One network that is taught by an ensemble (Hinton, Vinyals and Dean 2015)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_subnets.ensemble import Ensemble
from evo_subnets.inputs import device_of, moved
from evo_subnets.methods.independent import Independent
from evo_subnets.methods.result import HERE, NOTHING_KEPT, Build, Result, begin, train_members
from evo_subnets.metrics import count_parameters
from evo_subnets.outputs import Classes
from evo_subnets.runs import Run
from evo_subnets.schedules import Constant
from evo_subnets.streams import check_seed, derive_seed
from evo_subnets.task import Batch, Data, Task
from evo_subnets.tuning import Tuning, tune
from evo_subnets.workers import Workers


@dataclass(frozen=True)
class Lessons:
    """Training data whose targets are the labels and, behind them, what a teacher says of each
    sample as the student sees it, augmented: (samples, 1 + classes)."""

    data: Data
    teacher: nn.Module

    @property
    def input_bytes(self) -> int | None:
        """Of the data."""
        return self.data.input_bytes

    def steps(self, batch_size: int | None) -> int:
        """Of the data."""
        return self.data.steps(batch_size)

    def training(self, batch_size: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """A pass in a new order, with the teacher's word."""
        return self._told(self.data.training(batch_size, generator))

    def in_order(self, batch_size: int | None) -> Iterator[Batch]:
        """A pass in the same order as every time, with the teacher's word."""
        return self._told(self.data.in_order(batch_size))

    def bag(self, fraction: float, seed: int) -> "Lessons":
        """Of a sample of the data."""
        return replace(self, data=self.data.bag(fraction, seed))

    def _told(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        device = device_of(self.teacher)
        for inputs, labels in batches:
            with torch.no_grad():
                said = self.teacher(moved(inputs, device)).float()
            yield inputs, torch.cat([labels.to(device)[:, None].to(said.dtype), said], dim=1)


def distil(
    student: nn.Module,
    task: Task,
    *,
    teacher: Ensemble,
    tuning: Tuning,
    temperature: float = 2.0,
    labels: float = 0.1,
    seed: int = 0,
    **how: Any,
) -> None:
    """Trains `student` in place to say what the teacher says, an ensemble of whatever kind.

    The loss is `labels` of the cross-entropy with the labels, and the rest of T² KL(teacher |
    student), both softened by the temperature T. `how`: as `tune` takes it. Classes alone.
    """
    if not isinstance(task.outputs, Classes) or task.outputs != Classes() or task.loss is not None:
        raise ValueError("distillation softens probabilities of classes: it takes no other task")
    if not 0 < temperature < float("inf") or not 0 <= labels <= 1:
        raise ValueError(
            f"temperature must be positive and labels in [0, 1], got {temperature} and {labels}"
        )

    def loss(found: Any, targets: Tensor) -> Tensor:
        outputs, said = task.outputs.tensor(found), targets[:, 1:]
        soft = F.kl_div(
            (outputs / temperature).log_softmax(1), (said / temperature).log_softmax(1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        hard = F.cross_entropy(outputs, targets[:, 0].long())
        return labels * hard + (1 - labels) * temperature**2 * soft

    lessons = Task(Lessons(task.train, teacher), loss=loss)
    tune(student, lessons, tuning=tuning, seed=seed, **how)


@dataclass(frozen=True)
class Distillation:
    """A student of independent networks: what people deploy. `distil` takes any other ensemble."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "builder"
    selects: ClassVar[bool] = False

    teachers: int = 4
    """Networks of the teaching ensemble."""
    temperature: float = 2.0
    """Softens the probabilities of both."""
    labels: float = 0.1
    """Weight of the cross-entropy with the labels."""
    tuning: Tuning = Tuning(16, Constant(0.001), "adam")
    """Of each teacher, and of the student."""
    seed: int = 0
    """Of initial weights, the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.teachers < 1:
            raise ValueError(f"teachers must be at least 1, got {self.teachers}")

    @property
    def ensemble_size(self) -> int:
        """One network."""
        return 1

    def __call__(
        self, build: Build, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The student, a network that `build` makes."""
        begin(run, self, start=build)
        learned = Independent(
            self.teachers, self.tuning, derive_seed(self.seed, "teachers")
        )(build, task, run=run.part("teachers"), workers=workers)  # fmt: skip

        def train(
            index: int, checkpoint: Path | None, on_epoch: Callable[[int, float], None]
        ) -> nn.Module:
            student = build(derive_seed(self.seed, "student"))
            distil(
                student, task, teacher=learned.ensemble, tuning=self.tuning,
                temperature=self.temperature, labels=self.labels,
                seed=derive_seed(self.seed, "tuning", 0), on_epoch=on_epoch, checkpoint=checkpoint,
            )  # fmt: skip
            return student

        (student,) = train_members(train, [self.tuning], what="student", run=run, workers=workers)
        epochs = learned.epochs + self.tuning.epochs * self.tuning.bagging
        asked = self.teachers * self.tuning.epochs * self.tuning.bagging / 3  # forward alone
        ensemble = Ensemble([student], outputs=task.outputs)
        return Result(ensemble, epochs, epochs + asked, 1.0, count_parameters(student))
