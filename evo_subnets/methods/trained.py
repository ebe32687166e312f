"""What a method gives back."""

from dataclasses import dataclass

from evo_subnets.ensemble import Ensemble


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
