"""What a policy sees while it plays."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from agents.play.course import Course
from evo_subnets.rl import EnsemblePolicy


def collect_observations(policy: EnsemblePolicy, course: Course, *, count: int) -> Tensor:
    """(count, ...) network inputs from the policy's own play: every 16th step of all slots."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    simulator = course.simulator(min(course.num_envs, count))
    generator = np.random.default_rng(course.seed)
    kept: list[npt.NDArray[np.uint8]] = []
    while len(kept) * simulator.num_envs < count:
        for _ in range(16):
            uniforms = generator.random(simulator.num_envs)
            simulator.step(policy.act(simulator.observation, uniforms))
        kept.append(simulator.observation)
    simulator.close()
    found: Tensor = policy.observations(np.concatenate(kept)[:count])
    return found
