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
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from procgen import ProcgenGym3Env

Mode = Literal["easy", "hard"]
Frames = npt.NDArray[np.uint8]

ACTIONS = 15
FRAME_SHAPE = (64, 64, 3)
RESET_ACTION = -1
PIXEL = np.dtype((np.void, FRAME_SHAPE[2]))
"""Copied whole: numpy takes twice as long for three channels one by one."""


@dataclass(frozen=True)
class Game:
    """A game's time limit in steps, and its minimum and maximum return in each mode."""

    time_limit: int
    easy: tuple[float, float]
    hard: tuple[float, float]

    def returns(self, mode: Mode) -> tuple[float, float]:
        """The (minimum, maximum) return in a mode."""
        return self.easy if mode == "easy" else self.hard


# Minimum and maximum return: Cobbe et al. 2020, appendix C, as in the authors' released code. For
# easy jumper and easy leaper copies of the paper's table have a minimum of 3; the code's 1 and 1.5
# are used here, as most published normalised scores do.
GAMES: dict[str, Game] = {
    "bigfish": Game(6000, (1, 40), (0, 40)),
    "bossfight": Game(4000, (0.5, 13), (0.5, 13)),
    "caveflyer": Game(1000, (3.5, 12), (2, 13.4)),
    "chaser": Game(1000, (0.5, 13), (0.5, 14.2)),
    "climber": Game(1000, (2, 12.6), (1, 12.6)),
    "coinrun": Game(1000, (5, 10), (5, 10)),
    "dodgeball": Game(1000, (1.5, 19), (1.5, 19)),
    "fruitbot": Game(1000, (-1.5, 32.4), (-0.5, 27.2)),
    "heist": Game(1000, (3.5, 10), (2, 10)),
    "jumper": Game(1000, (1, 10), (1, 10)),
    "leaper": Game(500, (1.5, 10), (1.5, 10)),
    "maze": Game(500, (5, 10), (4, 10)),
    "miner": Game(1000, (1.5, 13), (1.5, 20)),
    "ninja": Game(1000, (3.5, 10), (2, 10)),
    "plunder": Game(4000, (4.5, 30), (3, 30)),
    "starpilot": Game(1000, (2.5, 64), (1.5, 35)),
}


def check_game(name: str) -> str:
    """The name of a game; a ValueError names the sixteen if there is no such game."""
    if name not in GAMES:
        raise ValueError(f"there is no Procgen game {name!r}; the games are {', '.join(GAMES)}")
    return name


def normalized_return(
    returns: float | npt.ArrayLike, game: str, *, mode: Mode = "easy"
) -> npt.NDArray[np.float64]:
    """(R - R_min) / (R_max - R_min) of `returns`, with the published constants of the game."""
    low, high = GAMES[check_game(game)].returns(mode)
    return (np.asarray(returns, dtype=np.float64) - low) / (high - low)


@dataclass(frozen=True)
class Levels:
    """The level seeds `start` to `start + count - 1`."""

    start: int
    count: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.count < 1 or self.start + self.count > 2**31 - 1:
            raise ValueError(
                "levels need start >= 0, count >= 1 and start + count < 2**31, "
                f"got start={self.start}, count={self.count}"
            )

    def __contains__(self, level: int) -> bool:
        return self.start <= level < self.start + self.count


TRAIN_LEVELS = Levels(0, 200)
"""Training and validation (Cobbe et al. 2020, easy mode)."""
TEST_LEVELS = Levels(1_000, 2**31 - 1 - 1_000)
"""Never trained on: the hard mode's 500 training levels lie below it as well."""


class SlotState(NamedTuple):
    """Everything that decides how one environment goes on: exact, and portable between slots."""

    simulator: bytes
    frames: Frames
    """Shape (64, 64, 3 * frame_stack)."""
    elapsed: int


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
        self.game = check_game(game)
        if mode not in ("easy", "hard"):
            raise ValueError(f"mode must be 'easy' or 'hard', got {mode!r}")
        if num_envs < 1 or frame_stack < 1:
            raise ValueError(
                f"num_envs and frame_stack must be positive, got {num_envs} and {frame_stack}"
            )
        if num_threads < 0:
            raise ValueError(f"num_threads must not be negative, got {num_threads}")
        self.num_envs, self.levels, self.mode = num_envs, levels, mode
        self.frame_stack, self.num_threads = frame_stack, num_threads
        self.high_resolution = high_resolution
        self.time_limit = GAMES[game].time_limit
        self.elapsed = np.zeros(num_envs, dtype=np.int64)
        channels = FRAME_SHAPE[2] * frame_stack
        self._stack = np.zeros((num_envs, *FRAME_SHAPE[:2], channels), dtype=np.uint8)
        self._env: Any = None
        self.reset(seed)

    def reset(self, seed: int | None = None) -> Frames:
        """The first observations of new episodes; with a seed, of that seed's first levels."""
        if seed is None:
            self._simulator.act(np.full(self.num_envs, RESET_ACTION, dtype=np.int32))
        else:
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
        _, observation, _ = self._simulator.observe()
        self._push(observation["rgb"], np.ones(self.num_envs, dtype=np.bool_))
        self.elapsed[:] = 0
        return self.observation

    def step(self, actions: npt.ArrayLike) -> Transition:
        """One step with an action in 0..14 for every environment; ended episodes start anew."""
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,):
            raise ValueError(f"expected {self.num_envs} actions, got shape {actions.shape}")
        self._simulator.act(actions)
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
        return np.array([info[key] for info in self._simulator.get_info()])

    def frames(self) -> Frames:
        """(num_envs, 512, 512, 3) pictures for people; needs `high_resolution=True`."""
        if not self.high_resolution:
            raise ValueError("frames are drawn only with high_resolution=True (100 times slower)")
        return np.stack([info["rgb"] for info in self._simulator.get_info()])

    def get_state(self) -> list[SlotState]:
        """The state of every environment, about 20 kB each."""
        simulator_states = self._simulator.callmethod("get_state")
        return [
            SlotState(*slot)
            for slot in zip(
                simulator_states, self._stack.copy(), self.elapsed.tolist(), strict=True
            )
        ]

    def set_state(self, states: Sequence[SlotState], first: int | None = None) -> Frames:
        """The observations at `states`, one for every environment, from where play goes on.

        A state may come from another slot, seed or level range of the same game and mode. `first`:
        the states are for the slots from this one on alone, and the others stay as they are.
        """
        start, stop = (0, self.num_envs) if first is None else (first, first + len(states))
        if first is None and len(states) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} states, got {len(states)}")
        if not 0 <= start <= stop <= self.num_envs:
            raise ValueError(f"expected slots in 0..{self.num_envs - 1}, got {start}..{stop - 1}")
        for slot, state in enumerate(states, start):
            data = state.simulator
            self._simulator.call_c_func("set_state", slot, data, len(data))
            self._stack[slot] = state.frames
            self.elapsed[slot] = state.elapsed
        return self.observation

    def close(self) -> None:
        """Frees the simulator; a closed simulator raises on any use but `reset(seed)`."""
        if self._env is not None:
            self._env.close()
            self._env = None

    @property
    def _simulator(self) -> Any:
        if self._env is None:
            raise RuntimeError("this Procgen simulator is closed; reset(seed) opens it again")
        return self._env

    def _push(self, frames: Frames, first: npt.NDArray[np.bool_]) -> None:
        pixels, new = self._stack.view(PIXEL), frames.view(PIXEL)
        pixels[..., :-1] = pixels[..., 1:]
        self._stack[first] = 0
        pixels[..., -1:] = new
