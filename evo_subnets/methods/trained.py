"""What a method that trains gives back, and how its members are trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import Mapper

OnEpoch = Callable[[str, int, float], None]
"""Gets the member's name, the epoch, from 1 on, and its mean loss."""


@dataclass(frozen=True)
class Trained:
    """An ensemble and its training cost; the parent's is not counted."""

    ensemble: Ensemble
    epochs: float
    """Passes over the training images, of all members together."""
    dense_epochs: float
    """Training FLOPs, in units of an epoch of one dense network."""
    parameters: int
    """Weights that are kept, of all members together."""


def trained_members(
    train: Callable[[int], nn.Module], members: int, mapper: Mapper
) -> list[nn.Module]:
    """`train(0)` to `train(members - 1)`, here or wherever the mapper has it done."""
    finished: dict[int, nn.Module] = dict(mapper(train, range(members)))
    return [finished[index] for index in range(members)]


def checkpoint_of(folder: Path | None, index: int) -> Path | None:
    """Where a member's training is kept (see `tuning.tune`)."""
    return None if folder is None else folder / f"member-{index}.safetensors"


def epochs_of(on_epoch: OnEpoch | None, name: str) -> Callable[[int, float], None] | None:
    """`tune`'s on_epoch for the member of this name."""
    return on_epoch and (lambda epoch, loss: on_epoch(name, epoch, loss))
