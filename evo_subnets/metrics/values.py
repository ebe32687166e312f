"""How good predicted real values are, and whether the members' spread says how far off they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from evo_subnets.ensemble import Ensemble
from evo_subnets.outputs import Values
from evo_subnets.prediction import batches_for, predict_members

LEVELS = (0.5, 0.8, 0.95)


@dataclass(frozen=True)
class ValueReport:
    """Errors of predicted values, and what the members' spread says of them; see `value_report`."""

    mse: float
    """Mean squared error of the members' mean, in the targets' unit squared."""
    rmse: float
    """Its root, in the targets' unit."""
    r2: float
    """1 - mse / variance of the targets, the mean over a sample's values: 0 is their mean."""
    member_mse: float
    """Mean over the members."""
    spread: float
    """Root of the mean over values of the members' variance, in the targets' unit."""
    nll: float
    """Of a Gaussian with the members' mean and variance, in nats (Lakshminarayanan et al. 2017)."""
    coverage: dict[float, float]
    """By level: the share of targets in that Gaussian's central interval; equal where calibrated
    (Kuleshov et al. 2018)."""
    correlation: float
    """Spearman's, of spread and absolute error: whether the spread tells which values are off."""


def value_report(
    members: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    noise: float = 0.0,
    levels: Sequence[float] = LEVELS,
) -> ValueReport:
    """The report of (members, samples, ...) values, as `predict_members` gives them.

    `weights`: of the members, for example `ensemble.weights`; None: equal ones. `noise`: the
    standard deviation of the targets themselves, which members cannot know and which is added to
    their variance in `nll` and `coverage`; `unexplained` estimates it on validation data.
    Where the spread is 0, `coverage` counts exact values alone, and `nll` is infinite unless all
    are; `correlation` is NaN where all spreads are equal, as with one member.
    """
    shares, said, wanted = _aligned(members, targets, weights)
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise is a standard deviation of the targets, got {noise}")
    kind = Values()
    mean, spread = kind.combined(said, shares, how="mean"), kind.spread(said, shares)
    squares = (mean - wanted).square()
    return ValueReport(
        mse=squares.mean().item(),
        rmse=squares.mean().sqrt().item(),
        r2=_r_squared(squares, wanted),
        member_mse=(said - wanted).square().mean().item(),
        spread=spread.square().mean().sqrt().item(),
        nll=_gaussian_nll(squares, spread.square() + noise**2),
        coverage=_coverage(squares.sqrt(), (spread.square() + noise**2).sqrt(), levels),
        correlation=_rank_correlation(spread.flatten(), squares.sqrt().flatten()),
    )


def judge_values(ensemble: Ensemble, data: Any, *, noise: float = 0.0) -> ValueReport:
    """The `value_report` of an ensemble of `Values`, for example a method's `result.ensemble`, on
    any data of (inputs, targets) that is the same in every pass."""
    if not isinstance(ensemble.outputs, Values):
        raise ValueError(
            "a report of values is one of real values, got an ensemble of outputs="
            f"{type(ensemble.outputs).__name__}: classes have metrics.report"
        )
    targets = torch.cat([wanted for _, wanted in batches_for(ensemble, data)])
    said = predict_members(ensemble, data)
    return value_report(said, targets, weights=ensemble.weights, noise=noise)


def unexplained(members: Tensor, targets: Tensor, *, weights: Tensor | None = None) -> float:
    """The standard deviation that the members' spread leaves of the error, in the targets' unit:
    the root of mean squared error minus mean variance, 0 where the spread is as large or larger.

    On validation data it estimates the noise of the targets (and whatever all members get wrong).
    """
    shares, said, wanted = _aligned(members, targets, weights)
    kind = Values()
    error = (kind.combined(said, shares, how="mean") - wanted).square().mean()
    return (error - kind.spread(said, shares).square().mean()).clamp(min=0).sqrt().item()


def spread_against_error(
    members: Tensor, targets: Tensor, *, weights: Tensor | None = None, bins: int = 5
) -> list[tuple[float, float]]:
    """(root mean variance, root mean squared error) of values in equal bins from the least spread
    to the largest (Levi et al. 2022): near each other where the spread is calibrated."""
    shares, said, wanted = _aligned(members, targets, weights)
    if not 1 <= bins <= wanted.numel():
        raise ValueError(f"bins must be in 1..{wanted.numel()} (values), got {bins}")
    kind = Values()
    spread = kind.spread(said, shares).flatten()
    off = (kind.combined(said, shares, how="mean") - wanted).flatten()
    parts = torch.tensor_split(spread.argsort(stable=True), bins)
    return [
        tuple(each[part].square().mean().sqrt().item() for each in (spread, off))  # type: ignore[misc]
        for part in parts
    ]


def _aligned(
    members: Tensor, targets: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Shares, members and targets in double precision, the targets of a member's shape."""
    if members.ndim < 2 or not members.numel():
        raise ValueError(
            "expected (members, samples, ...) values, at least one of each, got a tensor of shape "
            f"{tuple(members.shape)}"
        )
    fits = targets.ndim and len(targets) == members.shape[1]
    if not fits or targets.numel() != members[0].numel():
        raise ValueError(
            f"members' values {tuple(members.shape)} go with targets of shape "
            f"{tuple(members.shape[1:])}, got {tuple(targets.shape)}"
        )
    if weights is None:
        weights = torch.ones(len(members))
    if weights.shape != members.shape[:1] or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(f"expected a weight for each of {len(members)} members, not all zero")
    shares = weights.detach().cpu().double()
    wanted = targets.detach().cpu().double().reshape(members.shape[1:])
    return shares / shares.sum(), members.detach().cpu().double(), wanted


def _r_squared(squares: Tensor, wanted: Tensor) -> float:
    errors = squares.flatten(1).mean(dim=0) if squares.ndim > 1 else squares.mean()
    variances = wanted.flatten(1).var(dim=0, correction=0) if wanted.ndim > 1 else wanted.var(
        correction=0
    )  # fmt: skip
    return (1 - errors / variances).mean().item()


def _gaussian_nll(squares: Tensor, variance: Tensor) -> float:
    nll = 0.5 * ((2 * math.pi * variance).log() + squares / variance)
    return nll.masked_fill((variance == 0) & (squares > 0), math.inf).mean().item()


def _coverage(off: Tensor, deviation: Tensor, levels: Sequence[float]) -> dict[float, float]:
    if any(not 0 < level < 1 for level in levels):
        raise ValueError(f"levels of central intervals are between 0 and 1, got {tuple(levels)}")
    widths = {level: NormalDist().inv_cdf((1 + level) / 2) for level in levels}
    return {
        level: (off <= width * deviation).double().mean().item() for level, width in widths.items()
    }


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    if (one == one[0]).all() or (other == other[0]).all():
        return math.nan
    return torch.corrcoef(torch.stack([_ranks(one), _ranks(other)]))[0, 1].item()


def _ranks(values: Tensor) -> Tensor:
    """From 0; equal values share the mean of theirs."""
    _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ranks: Tensor = counts.cumsum(0).double() - 1 - (counts - 1) / 2
    return ranks[places]
