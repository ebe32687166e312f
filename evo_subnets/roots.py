"""Where a divergence that grows with sigma reaches a target: secants on logarithms, bracketed."""

import math
from collections.abc import Callable, Sequence

TOLERANCE = 0.1
"""The root search ends within this fraction of the target, where no other is asked for."""
SQUARE = 2.0
"""The power of sigma with which divergence grows as long as sigma is small."""
LEAST_STEP = 1e-7
"""Of sigma: float32 children of sigmas that differ by less are the same."""
SECANTS = 8
"""Divergence evaluations within which the root search lands on most networks."""
MAX_TRIALS = 40
"""Those that it may spend on one density; from SECANTS on it halves its bracket."""


class NoRoot(ValueError):
    """No sigma has a divergence within the tolerance of the target."""


def find_root(
    measured: Callable[[float], float],
    target: float,
    *,
    sigma: float,
    tolerance: float = TOLERANCE,
    slope: float = SQUARE,
) -> float:
    """A sigma with `measured(sigma)` within a fraction `tolerance` of `target`, from `sigma` on.

    Divergence grows like a power of sigma, so a secant on the logarithms converges in a few steps;
    the first takes `slope` for the power. A bracket keeps it from running away: a step that
    leaves it, or outputs that are not finite, bisect, and so does every step after SECANTS. A
    ValueError, `NoRoot`, says what was found where no sigma gets there.
    """
    low, high = 0.0, math.inf
    previous: tuple[float, float] | None = None
    tried: list[tuple[float, float]] = []
    while len(tried) < MAX_TRIALS and high > low * (1 + LEAST_STEP) and 0 < sigma < math.inf:
        value = measured(sigma)
        tried.append((sigma, value))
        if abs(value - target) <= tolerance * target:
            return sigma
        if math.isfinite(value) and value < target:
            low = sigma
        else:
            high = sigma
        step = sigma * 10.0 if value == 0 else sigma / 10.0
        if math.isfinite(value) and value > 0:
            if previous is not None and previous[0] != sigma:
                slope = power(previous, (sigma, value))
            previous = sigma, value
            factor = math.log(target / value) / slope
            step = sigma * math.exp(min(max(factor, -math.log(100.0)), math.log(100.0)))
        if not low < step < high or (len(tried) >= SECANTS and 0 < low < high < math.inf):
            step = math.sqrt(low * high) if low > 0 else high / 10.0
        sigma = step
    raise NoRoot(_why_not(tried, target))


def _why_not(tried: Sequence[tuple[float, float]], target: float) -> str:
    """What the trials of a search that did not end at its target say."""
    below = [trial for trial in tried if trial[1] < target]
    above = [trial for trial in tried if trial[1] > target]
    if not any(math.isfinite(value) for _, value in tried):
        return "no sigma gave a finite divergence: are the parent's outputs on these inputs finite?"
    if not above:
        sigma, value = max(below, key=lambda trial: trial[1])
        return (
            f"no sigma reaches a divergence of {target:g}, the largest is {value:.3g} at sigma "
            f"{sigma:.3g}: take a lower target, other inputs, or parameters that the outputs "
            "depend on (include)"
        )
    if not below:
        sigma, value = min(above)
        return (
            f"even sigma {sigma:.3g} gives a divergence of {value:.3g}, above {target:g}: does the "
            "module draw random numbers, or keep a state between its calls?"
        )
    low, high = max(below), min(above)
    return (
        f"no sigma gives a divergence of {target:g}: it is {low[1]:.3g} at sigma {low[0]:.9g} and "
        f"{high[1]:.3g} at {high[0]:.9g}; take another target, or a grid of sigmas"
    )


def power(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Of sigma with which divergence grew from one (sigma, divergence) to another."""
    values = (before[1], after[1])
    if not all(0 < value < math.inf for value in values):
        return SQUARE
    found = math.log(after[1] / before[1]) / math.log(after[0] / before[0])
    return min(max(found, 0.5), 8.0)
