"""How strong a mutation may be: a bound on how far outputs move (Whitaker 2023, section 4.2.1)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evo_subnets.inputs import ask, batches_of, device_of, joined, moved, same_modes
from evo_subnets.kinds import kind_of
from evo_subnets.mutation import check_density
from evo_subnets.outputs import CLASSES, Outputs, already_read
from evo_subnets.recipes import WorkCopy
from evo_subnets.search import Search
from evo_subnets.streams import in_double
from evo_subnets.subnetworks import parameters

TOLERANCE = 0.1
"""The root search ends within this fraction of the target."""
LEAST_STEP = 1e-7
"""Of sigma: float32 children of sigmas that differ by less are the same."""
SECANTS = 8
"""Divergence evaluations within which the root search lands on most networks."""
MAX_TRIALS = 40
"""Those that it may spend on one density; from SECANTS on it halves its bracket."""
DEFAULT = Search()


class NoRoot(ValueError):
    """No sigma has a divergence within the tolerance of the target."""


def divergence(parent: Tensor, child: Tensor, *, outputs: Outputs = CLASSES) -> float:
    """How far the child's outputs are from the parent's, averaged over samples; not negative.

    Both are (samples, ...), of one kind: of classes it is KL(parent || child) in nats (Whitaker
    2023, eq. 4.5), of real values the squared difference (eq. 4.4); see `evo_subnets.outputs`. NaN
    where outputs are not finite, infinite where the child rules out what the parent does not.
    """
    if parent.shape != child.shape:
        raise ValueError(
            "a divergence is one of outputs of the same shape, got "
            f"{tuple(parent.shape)} and {tuple(child.shape)}"
        )
    # on the CPU, because not every device has float64
    kind = already_read(outputs)
    before, after = (kind.tensor(each).cpu().double() for each in (parent, child))
    return outputs.divergence(before, after).mean().clamp(min=0.0).item()  # NaN stays NaN


@dataclass(frozen=True)
class Trial:
    """One measurement: the mean divergence of some children of this sigma and density."""

    sigma: float
    density: float
    divergence: float


@dataclass(frozen=True)
class TrustRegion:
    """The search whose mutations are as strong as asked, and every trial on the way."""

    search: Search
    """The one that was given, with its sigma and density found."""
    divergence: float
    table: tuple[Trial, ...]

    @property
    def sigma(self) -> float:
        """Of the search."""
        assert self.search.sigma is not None
        return self.search.sigma

    @property
    def density(self) -> float:
        """Of the search."""
        return self.search.density


def search_trust_region(
    module: nn.Module,
    inputs: Any,
    *,
    search: Search = DEFAULT,
    outputs: Outputs | None = None,
    target: float = 0.02,
    densities: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    children: int | None = None,
    batch_size: int = 256,
    on_trial: Callable[[Trial], None] | None = None,
) -> TrustRegion:
    """The search's sigma and density whose children diverge from the parent by `target`.

    The divergence of a pair is the mean over the first `children` of the search's own population
    (four, or all where there are fewer): the same noise for every sigma, so that it is a smooth
    function of sigma. With `sigmas` every pair of the grid is tried (the paper's search) and the
    pair closest to the target is returned. Without, a root search per density (see `find_root`)
    finds sigma to within a tenth of the target, and the first density that gets there is returned;
    it begins at the search's sigma, if there is one. A ValueError says why where none gets there.
    `densities`: None is the search's own. `module` is left alone; it runs in eval mode, on
    `batch_size` inputs at a time. `inputs`: a tensor, a tuple of tensors, a mapping of keyword
    arguments, or an iterable of batches of such, which are moved to the module's device. `outputs`:
    what kind of outputs these are; None: what the module says, or classes.
    """
    densities = (search.density,) if densities is None else densities
    outputs = kind_of(module, outputs)
    children = min(4, search.population_size) if children is None else children
    empty = not densities or (sigmas is not None and not sigmas)
    if not 0 < target < math.inf or not 1 <= children <= search.population_size or empty:
        raise ValueError(
            f"a trust region needs target > 0, children in 1..{search.population_size} "
            f"(population_size), densities and sigmas (or None), got target={target}, "
            f"children={children}, densities={densities}, sigmas={sigmas}"
        )
    for density in densities:
        check_density(density)
    work = WorkCopy(module, search.include)
    names, parent = work.names, parameters(module)
    table: list[Trial] = []

    asked = list(batches_of(inputs, batch_size))  # a loader that shuffles gives others each time
    parent_outputs = outputs_of(work.parent(), asked, outputs=outputs)

    def measured(sigma: float, density: float) -> float:
        total = 0.0
        for mutation in search.measured(sigma, density)[:children]:
            found = outputs_of(work.child(mutation), asked, outputs=outputs)
            total += divergence(parent_outputs, found, outputs=outputs)
        trial = Trial(sigma, density, total / children)
        table.append(trial)
        if on_trial is not None:
            on_trial(trial)
        return trial.divergence

    if sigmas is not None:
        for density in densities:
            for sigma in sigmas:
                measured(sigma, density)
        best = min(table, key=lambda trial: _distance(trial.divergence, target))
        if not math.isfinite(best.divergence):
            raise ValueError(
                "no trial gave a finite divergence: are the parent's outputs on these inputs "
                "finite?"
            )
        found = best.sigma, best.density
    else:
        start = search.sigma or _weight_scale({name: parent[name] for name in names}) * 0.1
        found = _first_root(measured, target, densities=densities, sigma=start)
        best = table[-1]
    sigma, density = found
    return TrustRegion(replace(search, sigma=sigma, density=density), best.divergence, tuple(table))


def _first_root(
    measured: Callable[..., float],
    target: float,
    *,
    densities: Sequence[float],
    sigma: float,
) -> tuple[float, float]:
    """The sigma and density of the first density that gets to the target."""
    reasons = []
    for density in densities:
        try:
            return find_root(partial(measured, density=density), target, sigma=sigma), density
        except NoRoot as error:
            reasons.append(f"density {density:g}: {error}")
    raise NoRoot("; ".join(reasons))


@torch.no_grad()
def outputs_of(
    module: nn.Module, inputs: Any, *, outputs: Outputs | None = None, batch_size: int = 256
) -> Tensor:
    """(samples, ...) outputs of a module in eval mode; it goes back to the mode that it was in."""
    device, outputs = device_of(module), kind_of(module, outputs)
    with same_modes(module):
        module.eval()
        found = [
            outputs.tensor(ask(module, moved(batch, device)))
            for batch in batches_of(inputs, batch_size)
        ]
    return joined(found)


def find_root(measured: Callable[[float], float], target: float, *, sigma: float) -> float:
    """A sigma with `measured(sigma)` within TOLERANCE of `target`, from `sigma` on.

    Divergence grows like a power of sigma, the square as long as sigma is small, so a secant on
    the logarithms converges in a few steps. A bracket keeps it from running away: a step that
    leaves it, or outputs that are not finite, bisect, and so does every step after SECANTS. A
    ValueError, `NoRoot`, says what was found where no sigma gets there.
    """
    low, high = 0.0, math.inf
    previous: tuple[float, float] | None = None
    tried: list[tuple[float, float]] = []
    while len(tried) < MAX_TRIALS and high > low * (1 + LEAST_STEP) and 0 < sigma < math.inf:
        value = measured(sigma)
        tried.append((sigma, value))
        if abs(value - target) <= TOLERANCE * target:
            return sigma
        if math.isfinite(value) and value < target:
            low = sigma
        else:
            high = sigma
        step = sigma * 10.0 if value == 0 else sigma / 10.0
        if math.isfinite(value) and value > 0:
            slope = 2.0
            here = (math.log(sigma), math.log(value))
            if previous is not None and here[0] != previous[0]:
                slope = (here[1] - previous[1]) / (here[0] - previous[0])
                slope = min(max(slope, 0.5), 8.0)
            previous = here
            factor = (math.log(target) - here[1]) / slope
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


def _distance(value: float, target: float) -> float:
    """On a logarithmic scale, and NaN last."""
    return abs(math.log(value / target)) if value > 0 and math.isfinite(value) else math.inf


def _weight_scale(weights: Mapping[str, Tensor]) -> float:
    """Root mean square of the weights, of the layer where it is smallest."""
    scales = {
        name: in_double(weight).square().mean().sqrt().item() for name, weight in weights.items()
    }
    broken = [name for name, scale in scales.items() if not math.isfinite(scale)]
    if broken:
        raise ValueError(f"the parent's {', '.join(broken[:3])} has values that are not finite")
    return min((scale for scale in scales.values() if scale > 0), default=1.0)
