"""Returns of many runs and games as one number: normalised scores and their interquartile mean.

Agarwal et al. 2021 (Deep RL at the edge of the statistical precipice). An interval is over runs
where every game has three or more, and else over episodes: it then says nothing of another parent.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evo_subnets import files
from evo_subnets.runs.report import interval, table
from evo_subnets.streams import check_seed

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""(..., runs) scores to (...) of all runs together."""
RESAMPLES = 2000
FEWEST_RUNS = 3
"""Of a game, that an interval over runs is made of."""


@dataclass(frozen=True)
class Played:
    """A run of a game: the episodes of its policies, which are pairs."""

    game: str
    returns: Mapping[str, Array]
    """(episodes,) by policy."""
    steps: int | None = None
    """That its parent was trained for, where that is known."""


def mean(scores: Array) -> Array:
    """Over runs."""
    return np.asarray(scores.mean(axis=-1))


def interquartile_mean(scores: Array) -> Array:
    """Over runs, without the lowest and the highest quarter, rounded down."""
    cut = scores.shape[-1] // 4
    return np.asarray(np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(axis=-1))


STATISTICS: dict[str, Statistic] = {"mean": mean, "IQM": interquartile_mean}


def over_runs(played: Sequence[Played]) -> bool:
    """Whether each game was played by runs enough to resample them."""
    games = [run.game for run in played]
    return all(games.count(game) >= FEWEST_RUNS for game in games)


def resampled(
    played: Sequence[Played],
    policies: Sequence[str],
    *,
    normalized: Callable[[Array, str], Array],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Array]:
    """(1 + resamples, runs) mean normalised scores by policy: as they are, then resampled.

    Stratified: runs within their game, all policies the same ones, where `over_runs`; else episodes
    within their run.
    """
    draw = np.random.default_rng(check_seed(seed))
    scores = {
        policy: [normalized(run.returns[policy], run.game) for run in played] for policy in policies
    }
    means = {policy: np.array([run.mean() for run in runs]) for policy, runs in scores.items()}
    columns: dict[str, list[Array]] = {policy: [] for policy in policies}
    for number, run in enumerate(played):
        if over_runs(played):
            same = [index for index, other in enumerate(played) if other.game == run.game]
            chosen = draw.choice(same, resamples)
            for policy in policies:
                columns[policy].append(means[policy][chosen])
        else:
            count = len(run.returns[policies[0]])
            episodes = draw.integers(0, count, (resamples, count))
            for policy in policies:
                columns[policy].append(scores[policy][number][episodes].mean(axis=1))
    return {
        policy: np.concatenate([means[policy][None], np.stack(columns[policy], axis=1)])
        for policy in policies
    }


@dataclass(frozen=True)
class Aggregate:
    """A statistic of a policy's normalised scores, and of its difference from the first one's."""

    policy: str
    statistic: str
    value: float
    low: float
    high: float
    """Of a 95 % interval, as those below."""
    difference: float
    difference_low: float
    difference_high: float


def aggregates(scores: Mapping[str, Array]) -> list[Aggregate]:
    """Each statistic of each policy, as `resampled` gives them; differences are paired."""
    first, found = next(iter(scores.values())), []
    for policy, each in scores.items():
        for name, statistic in STATISTICS.items():
            values = statistic(each)
            differences = values - statistic(first)
            found.append(Aggregate(policy, name, *_interval(values), *_interval(differences)))
    return found


def _interval(values: Array) -> tuple[float, float, float]:
    """What was measured, and the limits of what was resampled."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return float(values[0]), float(low), float(high)


def aggregate_table(found: Sequence[Aggregate], printed: Mapping[str, Array]) -> str:
    """A row for each policy. `printed`: (games,) normalised scores of published policies."""
    rows = []
    for policy in dict.fromkeys(each.policy for each in found):
        row = [policy]
        for each in (one for one in found if one.policy == policy):
            row += [f"{each.value:.3f} {interval(each.low, each.high, digits=3)}"]
            limits = interval(each.difference_low, each.difference_high, digits=3, signed=True)
            row += [f"{each.difference:+.3f} {limits}" if policy != found[0].policy else ""]
        rows.append(row)
    for policy, scores in printed.items():
        rows.append([policy])
        for statistic in STATISTICS.values():
            rows[-1] += [f"{statistic(scores):.3f}", ""]
    headings = [text for name in STATISTICS for text in (name, "against parent")]
    return table(["normalised", *headings], rows)


def draw(
    points: Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]],
    path: Path,
    *,
    x_label: str,
    title: str,
) -> None:
    """A panel for each game: return over `x_label` of each policy, with its interval.

    points: game, policy, then (x, return, low, high).
    """
    from matplotlib.figure import Figure

    columns = min(4, len(points))
    rows = -(-len(points) // columns)
    size = (3.2 * columns + 1, 2.6 * rows + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    styles = (("tab:orange", "o", "-"), ("tab:blue", "s", "--"))
    for number, (game, policies) in enumerate(points.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        for (policy, values), (colour, marker, line) in zip(policies.items(), styles, strict=False):
            x, y, low, high = np.array(sorted(values)).T
            axes.errorbar(
                x, y, [y - low, high - y], color=colour, marker=marker, linestyle=line,
                capsize=3, label=policy,
            )  # fmt: skip
        axes.set(title=game, xlabel=x_label, ylabel="return")
        if number == 1:
            axes.legend(fontsize="small")
    figure.suptitle(title, fontsize="medium")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    files.write_atomically(path, data.getvalue())
