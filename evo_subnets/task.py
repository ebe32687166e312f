"""What is learned from: data in passes, the loss, and what fitness means."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from evo_subnets.inputs import Inputs, batches_of, seeded
from evo_subnets.outputs import CLASSES, Outputs

Batch = tuple[Inputs, Tensor]
Loss = Callable[[Any, Tensor], Tensor]
"""What the network returned and the targets of a batch to the mean loss, a tensor of one number."""
Metric = Callable[[Tensor, Tensor], float]
"""Outputs and targets of all samples to a number; higher is better."""


@runtime_checkable
class Data(Protocol):
    """Samples in passes; `data.Images` is one, `Stream` makes one of any iterable."""

    @property
    def input_bytes(self) -> int | None:
        """Of all inputs as networks take them; None where that is not known before they come."""

    def steps(self, batch_size: int | None) -> int:
        """Batches of a pass."""

    def training(self, batch_size: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """A pass in a new order."""

    def in_order(self, batch_size: int | None) -> Iterator[Batch]:
        """A pass in the same order as every time, nothing augmented."""

    def bag(self, fraction: float, seed: int) -> "Data":
        """A sample of the samples, drawn without replacement."""


class Stream:
    """Any iterable of (inputs, targets) batches, for example a `torch.utils.data.DataLoader`.

    Its own order and batch size are taken as they are. What it draws from torch's global generator,
    as a loader that shuffles does, is seeded for every pass: training sees new orders that depend
    on the seed alone, every other pass the same one. A ValueError where it cannot be passed through
    again.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        if isinstance(batches, Iterator):
            raise ValueError(
                f"a {type(batches).__name__} can be passed through only once: give a list, a "
                "DataLoader, or an object whose __iter__ begins anew"
            )
        self.batches = batches
        self.input_bytes: int | None = None
        self._steps: int | None = None

    def steps(self, batch_size: int | None) -> int:
        """As many as it says, or as were counted in one pass."""
        self._check(batch_size)
        if self._steps is None:
            length = getattr(self.batches, "__len__", None)
            self._steps = length() if length else sum(1 for _ in seeded(self.batches, 0))
            if not self._steps:
                raise ValueError("there is nothing to learn from: the data has no batches")
        return self._steps

    def training(self, batch_size: int | None, generator: torch.Generator) -> Iterator[Batch]:
        """As it comes: a loader shuffles itself."""
        self._check(batch_size)
        return self._pass(int(torch.randint(2**62, (), generator=generator)))

    def in_order(self, batch_size: int | None) -> Iterator[Batch]:
        """As it comes."""
        self._check(batch_size)
        return self._pass(0)

    def _pass(self, seed: int) -> Iterator[Batch]:
        for batch in seeded(self.batches, seed):
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    f"data comes in batches of (inputs, targets), got a {type(batch).__name__}"
                    + (f" of {len(batch)}" if isinstance(batch, tuple | list) else "")
                )
            yield batch[0], batch[1]

    def bag(self, fraction: float, seed: int) -> Data:
        """Refused: which samples come is the stream's own."""
        raise ValueError(
            "a sample of the data can be drawn only of data in memory (data.Images), not of a "
            "stream: leave bagging at 1, or give each member a loader of its own"
        )

    def _check(self, batch_size: int | None) -> None:
        if batch_size is not None:
            raise ValueError(
                "batch_size has no effect on a loader, whose batches have a size already: leave it "
                "out, or make the loader's another"
            )


@dataclass(frozen=True, eq=False)
class Task:
    """What methods know of data: what to train on, what to select on, and what is good.

    `train`, `validation`: any iterable of (inputs, targets), a DataLoader, or `data.Images`, which
    is in memory and faster. `outputs`: the kind of the network's outputs, by default logits of
    classes, which decides the loss that is descended and the metric that selection wants high;
    `loss` and `metric` are others. There is no test data here: selection must not see it.
    """

    train: Any
    validation: Any = None
    loss: Loss | None = None
    metric: Metric | None = None
    outputs: Outputs = CLASSES

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", as_data(self.train))
        if self.validation is not None:
            object.__setattr__(self, "validation", as_data(self.validation))

    @property
    def selection(self) -> Data:
        """The validation data; a ValueError where there is none."""
        if self.validation is None:
            raise ValueError("this method selects by validation data: give Task(..., validation=)")
        found: Data = self.validation
        return found

    def loss_of(self, found: Any, targets: Tensor) -> Tensor:
        """The loss of what the network returned for a batch."""
        if self.loss is not None:
            loss = self.loss(found, targets)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                shape = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss)
                raise ValueError(f"a loss is one number, the mean over a batch, got {shape}")
            return loss
        return self.outputs.loss(self.outputs.tensor(found), targets)

    def metric_of(self, outputs: Tensor, targets: Tensor) -> float:
        """The metric of all samples' outputs."""
        if self.metric is not None:
            return self.metric(outputs, targets)
        return self.outputs.metric(outputs, targets)

    def example(self) -> Inputs:
        """The inputs of one training sample, as a batch."""
        first = next(iter(self.train.in_order(None)))[0]
        return next(batches_of(tuple(first) if isinstance(first, list) else first, 1))


def as_data(given: Any) -> Data:
    """The data itself where it is one, else the iterable as a `Stream`."""
    if isinstance(given, Data):
        return given
    if not isinstance(given, Iterable):
        raise ValueError(
            f"data is an iterable of (inputs, targets), or Images, got a {type(given).__name__}"
        )
    return Stream(given)


def samples_in(targets: Any) -> int:
    """How many samples a batch's targets are of."""
    return len(targets) if isinstance(targets, Tensor) and targets.ndim else 1


def check_finite(loss: float, epoch: int) -> None:
    """A ValueError where training has diverged."""
    if not math.isfinite(loss):
        raise ValueError(
            f"training diverged: the loss is {loss} in epoch {epoch}; lower the learning rate, "
            "or look for numbers in the data that are not finite and for batches without samples"
        )
