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
        return self.between(progress, first=self.initial, middle=self.maximum, last=self.minimum)

    def between(self, progress: float, *, first: float, middle: float, last: float) -> float:
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


@dataclass(frozen=True)
class Steps:
    """Constant rates, one after the other."""

    rates: tuple[float, ...] = (0.1, 0.01, 0.001)
    """From the first on."""
    ends: tuple[float, ...] = (0.5, 0.75)
    """Parts of the budget after which the next one begins."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.ends), (*self.ends, 1.0), strict=True))
        if len(self.rates) != len(self.ends) + 1 or not rising:
            raise ValueError(
                "steps need one rate more than ends, which rise between 0 and 1, got "
                f"rates={self.rates}, ends={self.ends}"
            )

    def __call__(self, progress: float) -> float:
        return self.rates[sum(progress >= end for end in self.ends)]


@dataclass(frozen=True)
class Restarts:
    """A half cosine from `maximum` to 0, so many times (Huang et al. 2017, eq. 2)."""

    maximum: float = 0.1
    cycles: int = 8

    def __post_init__(self) -> None:
        if self.cycles < 1:
            raise ValueError(f"cycles must be at least 1, got {self.cycles}")

    def __call__(self, progress: float) -> float:
        cycle = progress * self.cycles
        return _half_cosine(
            self.maximum, 0.0, cycle - math.floor(cycle) if cycle < self.cycles else 1.0
        )


@dataclass(frozen=True)
class Triangles:
    """From `maximum` to `minimum` and back, so many times (Garipov et al. 2018, section 4)."""

    maximum: float = 0.05
    minimum: float = 0.0005
    cycles: float = 8
    """Half of one more ends at the minimum."""

    def __post_init__(self) -> None:
        if not self.cycles > 0:
            raise ValueError(f"cycles must be more than 0, got {self.cycles}")

    def __call__(self, progress: float) -> float:
        part = (progress * self.cycles) % 1.0
        return self.minimum + (self.maximum - self.minimum) * abs(1 - 2 * part)
