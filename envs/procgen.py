"""The sixteen Procgen games (Cobbe et al. 2020) through the real simulator.

`ProcgenSimulator` is the one place that talks to Procgen; `adapters.py` holds thin views of it for
gymnasium and for stable-baselines3.

What the simulator does that its interface does not say, and what is done about it here:

- it resets a slot inside the terminal step and loses that episode's last frame, so the final
  observation reported is the last frame that the policy saw;
- it folds time limits into `first`; they are told apart by counting steps;
- `start_level` is ignored when `num_levels=0`, so unseen levels are an explicit range;
- action -1 restarts a slot: that is what `reset()` does. `reset(seed)` builds the game anew, and
  the k-th level of a slot then depends on the seed alone, not on what the policies did.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from procgen import ProcgenGym3Env

from envs.games import (
    GAMES,
    MAX_ENVS,
    MAX_FRAMES,
    MAX_THREADS,
    TRAIN_LEVELS,
    Levels,
    Mode,
    check_game,
    check_mode,
    whole,
)
from envs.states import Frames, SlotState, check_state, checksum

ACTIONS = 15
FRAME_SHAPE = (64, 64, 3)
RESET_ACTION = -1
INFOS = ("level_seed", "prev_level_seed", "prev_level_complete")
PIXEL = np.dtype((np.void, FRAME_SHAPE[2]))
"""Copied whole: numpy takes twice as long for three channels one by one."""


class Transition(NamedTuple):
    """One step of every environment."""

    observation: Frames
    """(num_envs, 64, 64, 3 * frame_stack); of the next episode where one has ended."""
    reward: npt.NDArray[np.float32]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    final_observation: Frames
    """The last observation that the policy saw, before this step."""


class ProcgenSimulator:
    """`num_envs` copies of one game, with stacked frames, flagged time limits and a real reset.

    Frames are stacked along the channels, oldest first; those before an episode's first are zero.
    `num_threads=0` steps the games on the caller's thread, which is as fast for small numbers of
    environments and is safe to fork.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        *,
        levels: Levels = TRAIN_LEVELS,
        mode: Mode = "easy",
        frame_stack: int = 2,
        seed: int = 0,
        num_threads: int = 0,
        high_resolution: bool = False,
    ) -> None:
        self.game, self.mode = check_game(game), check_mode(mode)
        self.num_envs = whole("num_envs", num_envs, low=1, high=MAX_ENVS)
        self.frame_stack = whole("frame_stack", frame_stack, low=1, high=MAX_FRAMES)
        self.num_threads = whole("num_threads", num_threads, low=0, high=MAX_THREADS)
        if not isinstance(levels, Levels):
            raise ValueError(f"levels must be Levels(start, count), got {levels!r}")
        if not isinstance(high_resolution, bool):
            raise ValueError(f"high_resolution must be True or False, got {high_resolution!r}")
        self.levels, self.high_resolution = levels, high_resolution
        self.time_limit = GAMES[self.game].time_limit
        self.elapsed = np.zeros(self.num_envs, dtype=np.int64)
        channels = FRAME_SHAPE[2] * self.frame_stack
        self._stack = np.zeros((self.num_envs, *FRAME_SHAPE[:2], channels), dtype=np.uint8)
        self._env: Any = None
        self._open(seed)
        self._begin()

    def reset(self, seed: int | None = None) -> Frames:
        """The first observations of new episodes; with a seed, of that seed's first levels.

        seed: an integer from 0 on, of which Procgen looks at the last 31 bits.
        """
        if seed is None:
            self._simulator.act(np.full(self.num_envs, RESET_ACTION, dtype=np.int32))
        else:
            self._open(seed)
        return self._begin()

    def step(self, actions: npt.ArrayLike) -> Transition:
        """One step with an action in 0..14 for every environment; ended episodes start anew."""
        self._simulator.act(self._checked(actions))
        reward, observation, first = self._simulator.observe()
        final_observation = self.observation
        self.elapsed += 1
        truncated = first & (self.elapsed >= self.time_limit)
        if truncated.any():  # a level completed on its very last step was not cut short
            truncated &= ~self.info("prev_level_complete").astype(np.bool_)
        self._push(observation["rgb"], first)
        self.elapsed[first] = 0
        return Transition(
            self.observation, reward.copy(), first & ~truncated, truncated, final_observation
        )

    @property
    def observation(self) -> Frames:
        """(num_envs, 64, 64, 3 * frame_stack): what the environments show now."""
        return self._stack.copy()

    def info(self, key: str) -> npt.NDArray[Any]:
        """`level_seed`, `prev_level_seed` or `prev_level_complete` of every environment."""
        if key not in INFOS:
            raise ValueError(f"there is no info {key!r}; there are {', '.join(INFOS)}")
        return np.array([info[key] for info in self._simulator.get_info()])

    def frames(self) -> Frames:
        """(num_envs, 512, 512, 3) pictures for people; needs `high_resolution=True`."""
        if not self.high_resolution:
            raise ValueError("frames are drawn only with high_resolution=True (100 times slower)")
        return np.stack([info["rgb"] for info in self._simulator.get_info()])

    def get_state(self) -> list[SlotState]:
        """The state of every environment, about 20 kB each."""
        simulators = self._simulator.callmethod("get_state")
        slots = zip(simulators, self._stack.copy(), self.elapsed.tolist(), strict=True)
        return [SlotState(*slot, checksum(slot[0])) for slot in slots]

    def set_state(self, states: Sequence[SlotState], first: int | None = None) -> Frames:
        """The observations at `states`, one for every environment, from where play goes on.

        A state may come from another slot, seed or level range of the same game, mode and frame
        stack; a ValueError refuses others, and damaged ones, before anything is changed. `first`:
        the states are for the slots from this one on alone, and the others stay as they are.
        """
        if not isinstance(states, list | tuple) or isinstance(states, SlotState):
            raise ValueError(f"expected a list of states, got a {type(states).__name__}")
        if first is None and len(states) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} states, got {len(states)}")
        start = 0 if first is None else whole("first", first, low=0)
        if start + len(states) > self.num_envs:
            raise ValueError(
                f"expected slots in 0..{self.num_envs - 1}, got {start}..{start + len(states) - 1}"
            )
        simulator, shape = self._simulator, self._stack.shape[1:]
        for state in states:
            check_state(state, game=self.game, mode=self.mode, shape=shape)
        for slot, state in enumerate(states, start):
            simulator.call_c_func("set_state", slot, state.simulator, len(state.simulator))
            self._stack[slot] = state.frames
            self.elapsed[slot] = state.elapsed
        return self.observation

    def close(self) -> None:
        """Frees the simulator; a closed one has a ValueError for any use but `reset(seed)`."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def __getstate__(self) -> dict[str, Any]:
        """Its options and the states of its environments, for copies and pickles of it."""
        return vars(self) | {"_env": None if self._env is None else self.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _env=None)
        self._stack, self.elapsed = self._stack.copy(), self.elapsed.copy()  # in copy.copy's
        if state["_env"] is not None:
            self._open(0)
            self.set_state(state["_env"])

    @property
    def _simulator(self) -> Any:
        if self._env is None:
            raise ValueError("this Procgen simulator is closed; reset(seed) opens it again")
        return self._env

    def _open(self, seed: int) -> None:
        seed = whole("seed", seed, low=0)
        self.close()
        self._env = ProcgenGym3Env(
            num=self.num_envs,
            env_name=self.game,
            distribution_mode=self.mode,
            num_levels=self.levels.count,
            start_level=self.levels.start,
            rand_seed=seed % 2**31,
            num_threads=self.num_threads,
            render_mode="rgb_array" if self.high_resolution else None,
        )

    def _begin(self) -> Frames:
        _, observation, _ = self._simulator.observe()
        self._push(observation["rgb"], np.ones(self.num_envs, dtype=np.bool_))
        self.elapsed[:] = 0
        return self.observation

    def _checked(self, actions: npt.ArrayLike) -> npt.NDArray[np.integer[Any]]:
        try:
            array = np.asarray(actions)
        except (ValueError, TypeError) as error:  # lists of several lengths, tensors on a GPU
            raise ValueError(f"expected {self.num_envs} actions as one array: {error}") from None
        if array.shape != (self.num_envs,):
            raise ValueError(f"expected {self.num_envs} actions, got shape {array.shape}")
        if array.dtype.kind not in "iu":
            raise ValueError(f"actions must be integers in 0..{ACTIONS - 1}, got {array.dtype}")
        if array.min() < 0 or array.max() >= ACTIONS:
            raise ValueError(f"actions must be in 0..{ACTIONS - 1}, got {array.tolist()}")
        return array

    def _push(self, frames: Frames, first: npt.NDArray[np.bool_]) -> None:
        pixels, new = self._stack.view(PIXEL), frames.view(PIXEL)
        pixels[..., :-1] = pixels[..., 1:]
        self._stack[first] = 0
        pixels[..., -1:] = new
