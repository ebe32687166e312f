"""How strong a mutation may be: a bound on how far outputs move (Whitaker 2023, section 4.2.1)."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evo_subnets.inputs import ask, batches_of, device_of, joined, moved, same_modes
from evo_subnets.kinds import kind_of
from evo_subnets.mutation import Mutation, check_density
from evo_subnets.outputs import CLASSES, Outputs, already_read
from evo_subnets.recipes import WorkCopy
from evo_subnets.roots import SQUARE, TOLERANCE, NoRoot, find_root, power
from evo_subnets.search import Search
from evo_subnets.streams import derive_seed, in_double
from evo_subnets.subnetworks import Units, parameters

CLOSE, ERROR = 0.03, 0.03
"""How near to the target the mean of the measured children ends, and its standard error, both as
fractions: what other children of that sigma have on average is then within TOLERANCE."""
FIRST, MORE, LEAST, MOST = 4, 4, 16, 1024
"""Children of the first trials, by how much they become more, the fewest whose standard error is
believed, and how many are enough."""
SHARE = 16
"""Inputs that each of so many children is asked: they differ more than inputs do."""
PIECE = 2**16
"""Elements of a weight that are looked at in double precision at a time."""
DEFAULT = Search()


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
    """One measurement: the mean divergence of some children of this sigma and density.

    Of siblings that perturb different fractions, as the quads of a density other than one half do,
    it is the mean of those that diverge more.
    """

    sigma: float
    density: float
    divergence: float
    error: float = math.nan
    """Its standard error; NaN of one child."""
    children: int = 0
    """How many were measured."""
    fitness: float | None = None
    """Mean fitness of the children, where it was asked for."""


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
    fitness: Callable[[nn.Module], float] | None = None,
    children: int | None = None,
    batch_size: int = 256,
    on_trial: Callable[[Trial], None] | None = None,
) -> TrustRegion:
    """The search's sigma and density whose children diverge from the parent by at most `target`.

    A trial is the mean divergence of children that the search's own sampler draws, with seeds of
    their own: the same ones for every sigma, so that it is a smooth function of sigma. `children`
    is how many, each on all inputs; None begins with few and ends with as many as the mean needs to
    be that of any other children of this sigma within a tenth, each on a share of the inputs.

    With `sigmas` every pair of the grid is tried (the paper's search), and of each density the
    strongest trial within the target counts (an infinite one only measures). Without, a root search
    per density (`find_root`) finds the sigma that reaches the target; it begins at the search's
    sigma, if there is one. With
    `fitness` of a child, higher is better, the density whose children are the fittest on average is
    taken (section 4.3.3); without, the strongest trial of a grid, or the first density that reaches
    the target. A ValueError says why where none does. `densities`: None is the search's own.

    `module` is left alone; it runs in eval mode, on `batch_size` inputs at a time. `inputs`: a
    tensor, a tuple of tensors, a mapping of keyword arguments, or an iterable of batches of such,
    which are moved to the module's device. `outputs`: what kind of outputs these
    are; None: what the module says, or classes.
    """
    densities = (search.density,) if densities is None else densities
    outputs = kind_of(module, outputs)
    empty = not densities or (sigmas is not None and not sigmas)
    bounded = 0 < target < math.inf or (target == math.inf and sigmas)
    if not bounded or (children is not None and children < 1) or empty:
        raise ValueError(
            f"a trust region needs target > 0, at least one child, densities and sigmas (or None), "
            f"got target={target}, children={children}, densities={densities}, sigmas={sigmas}"
        )
    for density in densities:
        check_density(density)
    # a loader that shuffles gives others each time
    asked = list(batches_of(inputs, min(SHARE, batch_size) if children is None else batch_size))
    shares = [asked]
    if children is None:  # in another order: neighbours, of an episode or a class, are alike
        order = np.random.default_rng(derive_seed(search.seed, "shares")).permutation(len(asked))
        shares = [[asked[index]] for index in order]
    trials = _Trials(module, shares, search=search, outputs=outputs, on_trial=on_trial)
    reasons, found = [], list[Trial]()
    for density in densities:
        try:
            if sigmas is None:
                best = _at_root(trials, density, target=target, children=children)
            else:
                best = _within(trials, density, sigmas, target=target, children=children)
        except NoRoot as error:
            reasons.append(f"density {density:g}: {error}")
            continue
        found.append(best if fitness is None else trials.judged(best, fitness))
        if sigmas is None and fitness is None:
            break
    if not found:
        raise NoRoot("; ".join(reasons))
    chosen = max(found, key=_divergence if fitness is None else _fitness)
    return TrustRegion(
        replace(search, sigma=chosen.sigma, density=chosen.density),
        chosen.divergence,
        tuple(trials.table),
    )


class _Trials:
    """What is measured, and the table of it."""

    def __init__(
        self,
        module: nn.Module,
        shares: Sequence[Sequence[Any]],
        *,
        search: Search,
        outputs: Outputs,
        on_trial: Callable[[Trial], None] | None,
    ) -> None:
        self.work, self.shares, self.search = WorkCopy(module, search.include), shares, search
        self.outputs, self.on_trial = outputs, on_trial
        self.parents = [outputs_of(self.work.parent(), share, outputs=outputs) for share in shares]
        self.table: list[Trial] = []
        self._last: tuple[float, float, list[float]] | None = None

    def start(self) -> float:
        """A sigma to begin with."""
        weights = parameters(self.work.module)
        some = {name: weights[name] for name in self.work.names}
        scale = _weight_scale(some)  # also where it is not needed: it refuses what is not finite
        return self.search.sigma or 0.1 * (1.0 if isinstance(self.work.names, Units) else scale)

    def measure(self, sigma: float, density: float, children: int) -> Trial:
        """The trial of so many children; those that the last trial had already are not asked."""
        mutations = list(islice(self.search.measured(sigma, density), children))
        known = self._last[2] if self._last and self._last[:2] == (sigma, density) else []
        values = known[:children]
        turns = list(_turns(mutations))
        for mutation, (_, turn) in list(zip(mutations, turns, strict=True))[len(values) :]:
            share = turn % len(self.shares)  # each group goes through all inputs
            found = outputs_of(self.work.child(mutation), self.shares[share], outputs=self.outputs)
            values.append(divergence(self.parents[share], found, outputs=self.outputs))
        self._last = sigma, density, values
        means = [_mean(group) for group in _groups(turns, values)]
        worst = max(means, key=lambda mean: math.inf if math.isnan(mean[0]) else mean[0])
        return self._noted(Trial(sigma, density, *worst, children))

    def judged(self, trial: Trial, fitness: Callable[[nn.Module], float]) -> Trial:
        """The trial with the mean fitness of its children."""
        mutations = islice(self.search.measured(trial.sigma, trial.density), trial.children)
        values = [fitness(self.work.child(mutation)) for mutation in mutations]
        return self._noted(replace(trial, fitness=sum(values) / len(values)))

    def _noted(self, trial: Trial) -> Trial:
        self.table.append(trial)
        if self.on_trial is not None:
            self.on_trial(trial)
        return trial


def _turns(mutations: Sequence[Mutation]) -> Iterator[tuple[bool, int]]:
    """Whether each is a first, or a sibling that perturbs another fraction, and how many of its
    group come before it."""
    first, counts = dict[int, float](), Counter[bool]()
    for mutation in mutations:
        density = first.setdefault(mutation.seed, mutation.density)
        group = not math.isclose(density, mutation.density, abs_tol=1e-6)
        yield group, counts[group]
        counts[group] += 1


def _groups(turns: Sequence[tuple[bool, int]], values: Sequence[float]) -> list[list[float]]:
    """The values of either group, where there are any."""
    groups: tuple[list[float], list[float]] = [], []
    for (group, _), value in zip(turns, values, strict=True):
        groups[group].append(value)
    return [group for group in groups if group]


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and its standard error."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    square = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(square / len(values))


def _at_root(trials: _Trials, density: float, *, target: float, children: int | None) -> Trial:
    """A trial at the target, of children enough."""
    sigma, count, tolerance = trials.start(), FIRST if children is None else children, TOLERANCE

    def measured(sigma: float) -> float:
        return trials.measure(sigma, density, count).divergence

    while True:
        slope = _slope(trials.table, density)
        sigma = find_root(measured, target, sigma=sigma, tolerance=tolerance, slope=slope)
        trial = trials.table[-1]
        count = trial.children if children is not None else _enough(trial)
        close = children is not None or abs(trial.divergence - target) <= CLOSE * target
        if count == trial.children and close:
            return _told(trial) if children is None else trial
        tolerance = CLOSE if count == trial.children else TOLERANCE


def _slope(table: Sequence[Trial], density: float) -> float:
    """By what power of sigma divergence grew between the last two trials of the same children."""
    for after, before in zip(reversed(table), reversed(table[:-1]), strict=False):
        same = (after.density, after.children) == (before.density, before.children)
        if same and after.density == density and after.sigma != before.sigma:
            return power((before.sigma, before.divergence), (after.sigma, after.divergence))
    return SQUARE


def _enough(trial: Trial) -> int:
    """How many children are to be measured next; as many as the trial has where they are enough."""
    if trial.divergence <= 0:
        return trial.children
    if trial.error <= ERROR * trial.divergence:
        return max(trial.children, LEAST)
    most = max(trial.children, min(MOST, MORE * trial.children))
    wanted = trial.children * (trial.error / (ERROR * trial.divergence)) ** 2
    return most if not wanted < most else min(most, trial.children + FIRST + int(wanted))


def _told(trial: Trial) -> Trial:
    """The trial; a warning where no number of children that can be afforded is enough."""
    if trial.children >= MOST and trial.error > TOLERANCE * trial.divergence:
        warnings.warn(
            f"children of sigma {trial.sigma:.3g} and density {trial.density:g} diverge so "
            f"differently that {trial.children} of them leave a standard error of "
            f"{trial.error:.2g} for their mean of {trial.divergence:.3g}: the bound holds roughly",
            RuntimeWarning,
            stacklevel=4,
        )
    return trial


def _within(
    trials: _Trials,
    density: float,
    sigmas: Sequence[float],
    *,
    target: float,
    children: int | None,
) -> Trial:
    """The strongest trial of a density that is within the target, also with children enough."""
    count = FIRST if children is None else children
    tried = [trials.measure(sigma, density, count) for sigma in sigmas]
    for trial in sorted(tried, key=_divergence, reverse=True):
        if trial.divergence <= target:
            while children is None and (more := _enough(trial)) > trial.children:
                trial = trials.measure(trial.sigma, density, more)
            if trial.divergence <= target:
                return trial if children is not None else _told(trial)
    least = min(tried, key=_divergence)
    if not math.isfinite(least.divergence):
        raise NoRoot(
            "no trial gave a finite divergence: are the parent's outputs on these inputs finite?"
        )
    raise NoRoot(
        f"no sigma of the grid is within {target:g}: even {least.sigma:g} gives a divergence of "
        f"{least.divergence:.3g}; take smaller ones, or leave sigmas out for a root search"
    )


def _divergence(trial: Trial) -> float:
    return math.inf if math.isnan(trial.divergence) else trial.divergence


def _fitness(trial: Trial) -> float:
    assert trial.fitness is not None
    return -math.inf if math.isnan(trial.fitness) else trial.fitness


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


def _weight_scale(weights: Mapping[str, Tensor]) -> float:
    """Root mean square of the weights, of the layer where it is smallest."""

    def scale(weight: Tensor) -> float:  # without a copy of the layer, which may be half a network
        pieces = torch.split(weight.flatten(), PIECE)
        squares = sum(float(in_double(piece).square().sum()) for piece in pieces)
        return math.sqrt(squares / max(weight.numel(), 1))

    scales = {name: scale(weight) for name, weight in weights.items()}
    broken = [name for name, scale in scales.items() if not math.isfinite(scale)]
    if broken:
        raise ValueError(f"the parent's {', '.join(broken[:3])} has values that are not finite")
    return min((scale for scale in scales.values() if scale > 0), default=1.0)
