"""Episodes on levels that are the same for every policy, and what they say."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from agents.policies import EnsemblePolicy
from envs.procgen import Levels, Mode, ProcgenSimulator
from evo_subnets import storage
from evo_subnets.streams import derive_seed

NO_OPERATION = 4
"""The Procgen action that presses no key."""


@dataclass(frozen=True)
class Course:
    """Levels to play: two policies on the same course face the same ones, episode by episode."""

    game: str
    levels: Levels
    seed: int
    mode: Mode = "easy"
    frame_stack: int = 2
    num_envs: int = 64
    """Environments at most; they are simulated in groups, one group to a thread."""

    def simulators(self, episodes: int) -> list[ProcgenSimulator]:
        """The groups of environments for so many episodes, on their first levels."""
        num_envs = min(self.num_envs, episodes)
        group = min(GROUP, -(-num_envs // 2))  # two groups at least: two threads, if there are
        sizes = [min(group, num_envs - start) for start in range(0, num_envs, group)]
        return [self.simulator(size, index) for index, size in enumerate(sizes)]

    def simulator(self, num_envs: int, group: int = 0) -> ProcgenSimulator:
        """One group of environments."""
        seed = derive_seed(self.seed, group) % 2**31
        return ProcgenSimulator(self.game, num_envs, self.levels, self.mode, self.frame_stack, seed)


GROUP = 32
"""Environments that step together, at most. What is played does not depend on threads."""


@dataclass(frozen=True)
class Episodes:
    """Finished episodes, in an order that is the same for every policy: (episodes,) each."""

    returns: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64]
    level_seeds: npt.NDArray[np.int64]


def play(
    policy: EnsemblePolicy,
    course: Course,
    episodes: int,
    deterministic: bool = False,
    on_episode: Callable[[float], None] | None = None,
) -> Episodes:
    """`episodes` whole episodes of a course: the same levels in the same order for every policy.

    Every environment plays a fixed quota: counting the first episodes to finish would favour
    short ones. The k-th level of an environment depends on the course alone, and so do the uniform
    numbers that choose its actions, which makes the returns of two policies pairs.

    On a CPU each group of environments has a thread to itself, with one torch thread: small
    batches gain little from more. `on_episode` gets the return of each finished episode.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    simulators = course.simulators(episodes)
    slots = sum(simulator.num_envs for simulator in simulators)
    quota = episodes // slots + (np.arange(slots) < episodes % slots)
    quotas = np.split(quota, np.cumsum([simulator.num_envs for simulator in simulators])[:-1])
    threads = torch.get_num_threads() if policy.device.type == "cpu" else 1
    workers = min(threads, len(simulators))
    stop = Event()

    def run(group: int) -> Episodes:
        generator = np.random.default_rng([course.seed, group])
        uniforms = None if deterministic else generator
        try:
            return _play_group(policy, simulators[group], quotas[group], uniforms, on_episode, stop)
        except BaseException:  # the other groups need not play to their ends
            stop.set()
            raise

    try:
        if workers == 1:
            groups = [run(group) for group in range(len(simulators))]
        else:  # set_num_threads is for the calling thread alone
            with ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(1,)
            ) as pool:
                try:
                    groups = list(pool.map(run, range(len(simulators))))
                except BaseException:  # Ctrl-C reaches this thread alone
                    stop.set()
                    raise
    finally:
        if workers > 1:  # for threads to come, which take the last number set
            torch.set_num_threads(threads)
        for simulator in simulators:
            simulator.close()
    return Episodes(
        np.concatenate([group.returns for group in groups]),
        np.concatenate([group.lengths for group in groups]),
        np.concatenate([group.level_seeds for group in groups]),
    )


def _play_group(
    policy: EnsemblePolicy,
    simulator: ProcgenSimulator,
    quota: npt.NDArray[np.int64],
    generator: np.random.Generator | None,
    on_episode: Callable[[float], None] | None,
    stop: Event,
) -> Episodes:
    slots, episodes = simulator.num_envs, int(quota.sum())
    first = np.concatenate(([0], np.cumsum(quota)[:-1]))
    returns = np.zeros(episodes)
    lengths = np.zeros(episodes, dtype=np.int64)
    level_seeds = np.zeros(episodes, dtype=np.int64)
    played = np.zeros(slots, dtype=np.int64)
    running_return = np.zeros(slots)
    running_length = np.zeros(slots, dtype=np.int64)
    observation = simulator.observation
    while not stop.is_set() and (active := np.flatnonzero(played < quota)).size:
        uniforms = None if generator is None else generator.random(slots)[active]
        actions = np.full(slots, NO_OPERATION)
        actions[active] = policy.act(observation[active], uniforms)
        step = simulator.step(actions)
        observation = step.observation
        running_return += step.reward
        running_length += 1
        done = step.terminated | step.truncated
        if not done.any():
            continue
        seeds = simulator.info("prev_level_seed")
        for slot in np.flatnonzero(done & (played < quota)):
            episode = first[slot] + played[slot]
            returns[episode] = running_return[slot]
            lengths[episode] = running_length[slot]
            level_seeds[episode] = seeds[slot]
            if on_episode is not None:
                on_episode(float(returns[episode]))
        played[done] += 1
        running_return[done] = 0
        running_length[done] = 0
    return Episodes(returns, lengths, level_seeds)


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
    storage.write_atomically(path, data.getvalue())
    return total
