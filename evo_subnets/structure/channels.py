"""Numbers for a network's channels: those that are summed are one and have one number."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ZERO = -1
"""In place of a channel's number: zeros that padding put there."""
UNKNOWN = object()
"""What nothing is known of, as the network's input."""


@dataclass(frozen=True)
class Activation:
    """(batch, channels, ...) or (batch, ..., channels), with a number for each channel."""

    channels: tuple[int, ...]
    spatial: int
    """The dimensions behind the channels; 0 where they are last."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """As a tensor's, for code that asks how many channels it got."""
        return (UNKNOWN, len(self.channels), *[UNKNOWN] * self.spatial)


@dataclass
class Channels:
    """The channels of a network by number; those that are summed have one number in common."""

    outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """A number for each output of a layer or norm, in the order of the forward pass."""
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """A number for each column of a layer's weight; flattened pictures repeat theirs."""
    same: list[int] = field(default_factory=list)
    """For each number itself or a lower one that means the same channel."""
    fixed: set[int] = field(default_factory=set)
    """Channels that somebody cannot do without: the network's caller, or an unknown operation."""

    def new(self, count: int) -> tuple[int, ...]:
        """Numbers that no other channel has."""
        first = len(self.same)
        self.same += range(first, first + count)
        return tuple(range(first, first + count))

    def find(self, number: int) -> int:
        """The lowest number of a channel."""
        while number != ZERO and self.same[number] != number:
            number = self.same[number]
        return number

    def join(self, first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
        """From now on these are the same, pair by pair; zeros leave their partner alone."""
        pairs = list(zip(first, second, strict=True))
        for pair in pairs:
            low, high = sorted(map(self.find, pair))
            if low != ZERO:
                self.same[high] = low
        return tuple(self.find(max(pair)) for pair in pairs)

    def fix(self, *values: Any) -> object:
        """None of the activations among these can lose a channel, and what follows is unknown."""
        for value in values:
            if isinstance(value, Activation):
                self.fixed.update(value.channels)
            elif isinstance(value, dict):
                self.fix(*value.values())
            elif isinstance(value, tuple | list):
                self.fix(*value)
        return UNKNOWN
