"""Policies that play next to each other in one simulator, each in a block of its slots."""

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.play.course import Episodes, Group
from envs.procgen import ProcgenSimulator
from envs.states import Frames
from evo_subnets.rl import EnsemblePolicy
from evo_subnets.rl.policy import check_chosen
from evo_subnets.streams import double_device

NO_OPERATION = 4
"""The Procgen action that presses no key."""


class Block:
    """A policy in a group of a course's environments; `episodes` fill as they finish.

    What is played depends on the policy and the group alone, not on the block's neighbours: the
    policy sees the observations of this block's unfinished environments and nothing else.
    """

    def __init__(
        self,
        policy: EnsemblePolicy,
        group: Group,
        *,
        deterministic: bool = False,
        on_episode: Callable[[float], None] | None = None,
    ) -> None:
        self.policy, self.group, self.on_episode = policy, group, on_episode
        self.size = len(group.states)
        self.episodes = Episodes.none_yet(int(group.quota.sum()))
        self.failure: Exception | None = None
        self._generator = None if deterministic else np.random.default_rng(group.seed)
        self._first = np.concatenate(([0], np.cumsum(group.quota)[:-1]))
        self._played, self._length = np.zeros((2, self.size), dtype=np.int64)
        self._return = np.zeros(self.size)

    @property
    def active(self) -> npt.NDArray[np.int64]:
        """The environments with episodes to play, none where the policy has failed."""
        return np.flatnonzero((self._played < self.group.quota) & (self.failure is None))

    def choose(self, observations: Tensor, uniforms: Tensor | None) -> Tensor:
        """Actions for observations of active environments; `failure` says where there are none."""
        try:
            actions = self.policy.choose(observations, uniforms)
            if actions.is_floating_point():
                raise ValueError("Procgen's actions are numbered, this policy gives real values")
            return actions
        except Exception as error:  # of this policy: its neighbours play on
            self.failure = error
            return torch.full((len(observations),), NO_OPERATION, device=self.policy.device)

    def check(self, actions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The chosen actions; where the policy had none, `failure` says so and it does nothing."""
        try:
            return check_chosen(actions)
        except ValueError as error:
            self.failure = error
            return np.full_like(actions, NO_OPERATION)

    def uniforms(self) -> npt.NDArray[np.float64] | None:
        """A number for each environment, active or not; None where the policy acts greedily."""
        return None if self._generator is None else self._generator.random(self.size)

    def count(
        self,
        reward: npt.NDArray[np.float32],
        *,
        done: npt.NDArray[np.bool_],
        level_seeds: npt.NDArray[np.int64],
    ) -> None:
        """Takes in a step: (environments,) each, the seeds those of the levels just left."""
        self._return += reward
        self._length += 1
        if not done.any():
            return
        for slot in np.flatnonzero(done & (self._played < self.group.quota)):
            episode = self._first[slot] + self._played[slot]
            self.episodes.returns[episode] = self._return[slot]
            self.episodes.lengths[episode] = self._length[slot]
            self.episodes.level_seeds[episode] = level_seeds[slot]
            if self.on_episode is not None:
                self.on_episode(float(self._return[slot]))
        self._played[done] += 1
        self._return[done] = 0
        self._length[done] = 0


def step_together(
    simulator: ProcgenSimulator, observation: Frames, *, blocks: Mapping[int, Block]
) -> Frames:
    """One step of unfinished blocks, given by their first slots; the next observation comes back.

    What the policies see goes to their device in one piece, and their actions come back in one.
    """
    acting = [(start, block, block.active) for start, block in blocks.items()]
    actions = np.full(simulator.num_envs, NO_OPERATION)
    rows = np.concatenate([start + active for start, _, active in acting])
    actions[rows] = _chosen(observation[rows], acting)
    step = simulator.step(actions)
    done = step.terminated | step.truncated
    seeds = simulator.info("prev_level_seed") if done.any() else np.zeros_like(actions)
    for start, block in blocks.items():
        slots = slice(start, start + block.size)
        block.count(step.reward[slots], done=done[slots], level_seeds=seeds[slots])
    return step.observation


def _chosen(
    seen: Frames, acting: Sequence[tuple[int, Block, npt.NDArray[np.int64]]]
) -> npt.NDArray[np.int64]:
    device = acting[0][1].policy.device
    counts = [len(active) for *_, active in acting]
    observations = torch.split(_sent(seen, device), counts)
    drawn = [(block.uniforms(), active) for _, block, active in acting]
    numbers = [every[active] for every, active in drawn if every is not None]
    uniforms = (
        torch.split(_sent(np.concatenate(numbers), double_device(device)), counts)
        if numbers
        else repeat(None)
    )
    chosen = [
        block.choose(part, drawn_here)
        for (_, block, _), part, drawn_here in zip(acting, observations, uniforms, strict=False)
    ]
    actions = np.split(torch.cat(chosen).cpu().numpy(), np.cumsum(counts)[:-1])
    checked = [block.check(part) for (_, block, _), part in zip(acting, actions, strict=True)]
    return np.concatenate(checked)


def _sent(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
