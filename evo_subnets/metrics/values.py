"""How good predicted real values are, and whether the members' spread says how far off they are."""

import math

from torch import Tensor

from evo_subnets.answers import aligned


def mean_squared_error(values: Tensor, targets: Tensor) -> float:
    """The mean over all values of (value - target) squared, in the targets' unit squared."""
    return (values.double() - _targets(values, targets)).square().mean().item()


def within_spreads(
    values: Tensor, spread: Tensor, *, targets: Tensor, spreads: float = 1.0
) -> float:
    """The fraction of targets within so many spreads of the values.

    Of a calibrated Gaussian 0.683 are within one, 0.954 within two. Members that differ by noise in
    their weights know nothing of the noise in the targets: scale or add to their spread on
    validation data before it is read so.
    """
    _check(values, spread)
    if not 0 < spreads < math.inf:
        raise ValueError(f"spreads must be positive, got {spreads}")
    off = (values.double() - _targets(values, targets)).abs()
    return (off <= spreads * spread.double()).double().mean().item()


def gaussian_nll(values: Tensor, spread: Tensor, *, targets: Tensor) -> float:
    """The mean negative log-likelihood in nats of Gaussians with these means and deviations.

    Infinite where a spread is 0 and the value is not the target.
    """
    _check(values, spread)
    variance = spread.double().square()
    off = (values.double() - _targets(values, targets)).square()
    nll = 0.5 * ((2 * math.pi * variance).log() + off / variance)
    return nll.masked_fill((variance == 0) & (off > 0), math.inf).mean().item()


def _targets(values: Tensor, targets: Tensor) -> Tensor:
    return aligned(targets, values.shape).double()


def _check(values: Tensor, spread: Tensor) -> None:
    if values.shape != spread.shape or bool((spread < 0).any()):
        raise ValueError(
            "expected a spread for each value, none negative (`Ensemble.spread` gives both), got "
            f"shapes {tuple(values.shape)} and {tuple(spread.shape)}"
        )
