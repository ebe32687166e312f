"""What returns of policies say: intervals, comparisons."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evo_subnets.runs.report import interval, table
from evo_subnets.streams import check_seed

EPISODES_FOR_A_VERDICT = 30
"""With fewer, an interval of the bootstrap says little."""


def spread(values: npt.NDArray[np.float64]) -> float:
    """The sample standard deviation, NaN for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def bootstrap_interval(
    values: npt.NDArray[np.float64], *, seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of independent values (Efron 1979)."""
    if not len(values) or resamples < 1 or not 0 < level < 1:
        raise ValueError(
            "an interval needs values, resamples >= 1 and a level in (0, 1), got "
            f"{len(values)} values, resamples={resamples}, level={level}"
        )
    generator = np.random.default_rng(check_seed(seed))
    draws = generator.integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Row:
    """What a policy's episodes say of it, and of its difference from the first policy's."""

    policy: str
    mean: float
    sd: float
    n: int
    low: float
    high: float
    """Of a 95 % interval over episodes, as those below."""
    normalized: float | None
    difference: float
    difference_low: float
    difference_high: float


def compare(
    returns: Mapping[str, npt.NDArray[np.float64]],
    *,
    normalized: Callable[[float], Any] | None = None,
) -> list[Row]:
    """A row for each policy, compared with the first one episode by episode: they are pairs.

    `normalized`: a mean return to where it lies between chance and the best.
    """
    first = next(iter(returns.values()))
    rows = []
    for name, each in returns.items():
        difference = each - first
        low, high = bootstrap_interval(each)
        below, above = bootstrap_interval(difference)
        mean = float(each.mean())
        rows.append(
            Row(name, mean, spread(each), len(each), low, high,
                None if normalized is None else float(normalized(mean)),
                float(difference.mean()), below, above)
        )  # fmt: skip
    return rows


def as_table(rows: Sequence[Row]) -> str:
    """Rows as text in columns."""
    lines = []
    for index, row in enumerate(rows):
        difference = interval(row.difference_low, row.difference_high, signed=True)
        compared = f"{row.difference:+.2f} {difference}" if index else ""
        normalized = [] if row.normalized is None else [f"{row.normalized:.3f}"]
        lines.append(
            [row.policy, f"{row.mean:.2f}", f"{row.sd:.2f}", str(row.n),
             interval(row.low, row.high), *normalized, compared]
        )  # fmt: skip
    named = [] if rows[0].normalized is None else ["normalised"]
    headings = ["policy", "return", "sd", "n", "95 % interval", *named, "against parent"]
    return table(headings, lines)


def verdict(row: Row) -> str:
    """What the difference from the first policy, the parent, says; few episodes say nothing."""
    if row.n < EPISODES_FOR_A_VERDICT:
        return (
            f"no verdict, {row.n} episodes show nothing "
            f"(at least {EPISODES_FOR_A_VERDICT} are needed)"
        )
    if row.difference_low > 0:
        return "better than the parent"
    if row.difference_high < 0:
        return "worse than the parent"
    return "no difference from the parent that this many episodes can show"
