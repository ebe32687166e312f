"""What episodes of policies say: intervals, comparisons, clips."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from agents.play.course import Course, Episodes
from envs.games import Mode, normalized_return
from envs.procgen import ProcgenSimulator
from evo_subnets import files
from evo_subnets.rl import EnsemblePolicy
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


def record_clip(
    policy: EnsemblePolicy,
    course: Course,
    *,
    path: Path,
    max_steps: int = 500,
    deterministic: bool = False,
) -> float:
    """Writes a GIF of the policy's play, at most one episode; the return so far comes back.

    It comes from an environment of its own: drawing slows the simulator down a hundred times.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    simulator = ProcgenSimulator(
        course.game,
        1,
        levels=course.levels,
        mode=course.mode,
        frame_stack=course.frame_stack,
        seed=course.seed,
        high_resolution=True,
    )
    generator = np.random.default_rng(course.seed)
    total = 0.0
    pictures = []
    for _ in range(max_steps):
        pictures.append(Image.fromarray(simulator.frames()[0]).resize((256, 256)))
        uniforms = None if deterministic else generator.random(1)
        step = simulator.step(policy.act(simulator.observation, uniforms))
        total += float(step.reward[0])
        if step.terminated[0] or step.truncated[0]:
            break
    simulator.close()
    data = io.BytesIO()
    pictures[0].save(
        data, "GIF", save_all=True, append_images=pictures[1:], duration=1000 // 15, loop=0
    )
    files.write_atomically(path, data.getvalue())
    return total


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
    normalized: float
    difference: float
    difference_low: float
    difference_high: float


def compare(played: Mapping[str, Episodes], *, game: str, mode: Mode = "easy") -> list[Row]:
    """A row for each policy, compared with the first one level by level."""
    first = next(iter(played.values())).returns
    rows = []
    for name, episodes in played.items():
        returns = episodes.returns
        difference = returns - first
        low, high = bootstrap_interval(returns)
        below, above = bootstrap_interval(difference)
        normalized = float(normalized_return(returns.mean(), game, mode=mode))
        rows.append(
            Row(name, float(returns.mean()), spread(returns), len(returns), low, high, normalized,
                float(difference.mean()), below, above)
        )  # fmt: skip
    return rows


def as_table(rows: Sequence[Row]) -> str:
    """Rows as text in columns."""
    lines = []
    for index, row in enumerate(rows):
        difference = interval(row.difference_low, row.difference_high, signed=True)
        compared = f"{row.difference:+.2f} {difference}" if index else ""
        lines.append(
            [row.policy, f"{row.mean:.2f}", f"{row.sd:.2f}", str(row.n),
             interval(row.low, row.high), f"{row.normalized:.3f}", compared]
        )  # fmt: skip
    headings = ["policy", "return", "sd", "n", "95 % interval", "normalised", "against parent"]
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


def write_episodes(path: Path, played: Mapping[str, Episodes]) -> None:
    """One line an episode and policy, with the level it was played on."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["policy", "episode", "level_seed", "return", "length"])
    for name, episodes in played.items():
        for number, (level, value, length) in enumerate(
            zip(episodes.level_seeds, episodes.returns, episodes.lengths, strict=True)
        ):
            writer.writerow([name, number, int(level), float(value), int(length)])
    files.write_atomically(path, text.getvalue().encode())
