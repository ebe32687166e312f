"""How strong a mutation may be: a bound on how far outputs move (Whitaker 2023, section 4.2.1)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from evo_subnets.copies import check_module
from evo_subnets.mutation import check_density
from evo_subnets.recipes import WorkCopy
from evo_subnets.search import Search
from evo_subnets.subnetworks import included, parameters

Measure = Literal["kl", "mse"]

TOLERANCE = 0.1
"""The root search ends within this fraction of the target."""
MAX_TRIALS = 8
"""Divergence evaluations that the root search may spend on one density."""
DEFAULT = Search()


def divergence(parent_logits: Tensor, child_logits: Tensor, *, measure: Measure = "kl") -> float:
    """How far the child's outputs are from the parent's, averaged over samples; not negative.

    Both are (samples, classes). "kl" is KL(parent || child) of their softmax in nats (Whitaker
    2023, eq. 4.5); "mse" is the squared difference of the outputs as they are, summed over classes
    (eq. 4.4). NaN where outputs are not finite.
    """
    if parent_logits.shape != child_logits.shape or parent_logits.ndim != 2:
        raise ValueError(
            "expected two (samples, classes) tensors, got "
            f"{tuple(parent_logits.shape)} and {tuple(child_logits.shape)}"
        )
    parent, child = parent_logits.double(), child_logits.double()
    if measure == "mse":
        return (parent - child).square().sum(dim=1).mean().item()
    if measure != "kl":
        raise ValueError(f"measure must be 'kl' or 'mse', got {measure!r}")
    log_p, log_q = parent.log_softmax(dim=1), child.log_softmax(dim=1)
    kl = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
    return kl.clamp(min=0.0).item()  # NaN stays NaN


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
    inputs: Tensor,
    *,
    search: Search = DEFAULT,
    target: float = 0.02,
    densities: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    children: int | None = None,
    measure: Measure = "kl",
    batch_size: int = 256,
    on_trial: Callable[[Trial], None] | None = None,
) -> TrustRegion:
    """The search's sigma and density whose children diverge from the parent by `target`.

    The divergence of a pair is the mean over the first `children` of the search's own population
    (four, or all where there are fewer): the same noise for every sigma, so that it is a smooth
    function of sigma. With `sigmas` every pair of the grid is tried (the paper's search) and the
    pair closest to the target is returned. Without, a root search per density (see `find_root`)
    finds sigma to within a tenth of the target, and the first density that gets there is returned;
    it begins at the search's sigma, if there is one. `densities`: None is the search's own.
    `module` is left alone; it runs in eval mode, on `batch_size` inputs at a time.
    """
    densities = (search.density,) if densities is None else densities
    children = min(4, search.population_size) if children is None else children
    empty = not len(inputs) or not densities or (sigmas is not None and not sigmas)
    if not 0 < target < math.inf or not 1 <= children <= search.population_size or empty:
        raise ValueError(
            f"a trust region needs target > 0, children in 1..{search.population_size} "
            "(population_size), inputs, densities and sigmas (or None), got "
            f"target={target}, children={children}, {len(inputs)} inputs, densities={densities}, "
            f"sigmas={sigmas}"
        )
    for density in densities:
        check_density(density)
    check_module(module)
    parent = parameters(module)
    names = included(parent, search.include)
    work = WorkCopy(module, names)
    table: list[Trial] = []

    @torch.no_grad()
    def outputs(network: nn.Module) -> Tensor:
        return torch.cat([network(batch) for batch in torch.split(inputs, batch_size)])

    parent_outputs = outputs(work.parent())

    def measured(sigma: float, density: float) -> float:
        total = 0.0
        for mutation in search.measured(sigma, density)[:children]:
            child_outputs = outputs(work.child(mutation))
            total += divergence(parent_outputs, child_outputs, measure=measure)
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
    else:
        start = search.sigma or _weight_scale([parent[name] for name in names]) * 0.1
        for density in densities:
            first = len(table)
            find_root(partial(measured, density=density), target, sigma=start)
            best = min(table[first:], key=lambda trial: _distance(trial.divergence, target))
            if abs(best.divergence - target) <= TOLERANCE * target:
                break
        else:
            best = min(table, key=lambda trial: _distance(trial.divergence, target))
    if not math.isfinite(best.divergence):
        raise ValueError(
            "no trial gave a finite divergence: are the parent's outputs on these inputs finite?"
        )
    found = replace(search, sigma=best.sigma, density=best.density)
    return TrustRegion(found, best.divergence, tuple(table))


def find_root(measured: Callable[[float], float], target: float, *, sigma: float) -> float:
    """A sigma with `measured(sigma)` within TOLERANCE of `target`, from `sigma` on.

    Divergence grows like a power of sigma, the square as long as sigma is small, so a secant on
    the logarithms converges in a few steps. A bracket keeps it from running away: a step that
    leaves it, or outputs that are not finite, bisect. After MAX_TRIALS the last sigma is returned.
    """
    low, high = 0.0, math.inf
    previous: tuple[float, float] | None = None
    for _ in range(MAX_TRIALS):
        value = measured(sigma)
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
        if not low < step < high:
            step = math.sqrt(low * high) if low > 0 else high / 10.0
        sigma = step
    return sigma


def _distance(value: float, target: float) -> float:
    """On a logarithmic scale, and NaN last."""
    return abs(math.log(value / target)) if value > 0 and math.isfinite(value) else math.inf


def _weight_scale(weights: Sequence[Tensor]) -> float:
    """Root mean square of the weights, of the layer where it is smallest."""
    scales = [weight.double().square().mean().sqrt().item() for weight in weights]
    return min((scale for scale in scales if scale > 0), default=1.0)
