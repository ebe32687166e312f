"""Learning rates as functions of a training's progress."""

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """The learning rate as a function of the progress: 0 before the first batch, 1 at the end."""

    def __call__(self, progress: float) -> float: ...


@dataclass(frozen=True)
class Constant:
    """The same rate throughout."""

    rate: float = 0.001

    def __call__(self, progress: float) -> float:
        return self.rate


@dataclass(frozen=True)
class StepLinear:
    """`high` for half of the budget, linear to `low` at 90 %, then `low` (Whitaker 2023, 5.3)."""

    high: float = 0.1
    low: float = 0.001

    def __call__(self, progress: float) -> float:
        fraction = min(max((progress - 0.5) / 0.4, 0.0), 1.0)
        return self.high + (self.low - self.high) * fraction


@dataclass(frozen=True)
class OneCycle:
    """Up from `initial` to `maximum`, then down to `minimum`, by cosines (eq. 5.4 and 5.5)."""

    initial: float = 0.001
    maximum: float = 0.1
    minimum: float = 1e-7
    warm_up: float = 0.1
    """Fraction of the budget that goes up."""

    def __call__(self, progress: float) -> float:
        return self.between(self.initial, self.maximum, self.minimum, progress)

    def between(self, first: float, middle: float, last: float, progress: float) -> float:
        """The same two half cosines between other values."""
        if progress < self.warm_up:
            return _half_cosine(first, middle, progress / self.warm_up)
        return _half_cosine(middle, last, (progress - self.warm_up) / (1 - self.warm_up))


@dataclass(frozen=True)
class Cosine:
    """A half cosine from `maximum` to `minimum` (Loshchilov and Hutter 2017, without restarts)."""

    maximum: float = 0.1
    minimum: float = 0.0

    def __call__(self, progress: float) -> float:
        return _half_cosine(self.maximum, self.minimum, progress)


def _half_cosine(first: float, last: float, fraction: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * fraction)) / 2
