"""What episodes of a policy say: intervals, observations, clips."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from agents.play.course import Course
from agents.policies import EnsemblePolicy
from envs.procgen import ProcgenSimulator
from evo_subnets import files


def collect_observations(policy: EnsemblePolicy, course: Course, count: int) -> Tensor:
    """(count, ...) network inputs from the policy's own play: every 16th step of all slots."""
    simulator = course.simulator(min(course.num_envs, count))
    generator = np.random.default_rng(course.seed)
    kept: list[npt.NDArray[np.uint8]] = []
    while len(kept) * simulator.num_envs < count:
        for _ in range(16):
            uniforms = generator.random(simulator.num_envs)
            simulator.step(policy.act(simulator.observation, uniforms))
        kept.append(simulator.observation)
    simulator.close()
    return policy.observations(np.concatenate(kept)[:count])


def spread(values: npt.NDArray[np.float64]) -> float:
    """The sample standard deviation, NaN for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def bootstrap_interval(
    values: npt.NDArray[np.float64], seed: int = 0, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of independent values (Efron 1979)."""
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def record_clip(
    policy: EnsemblePolicy,
    course: Course,
    path: Path,
    max_steps: int = 500,
    deterministic: bool = False,
) -> float:
    """Writes a GIF of the policy's play, at most one episode; the return so far comes back.

    It comes from an environment of its own: drawing slows the simulator down a hundred times.
    """
    simulator = ProcgenSimulator(
        course.game, 1, course.levels, course.mode, course.frame_stack, course.seed, 0, True
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
