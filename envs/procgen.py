"""The sixteen Procgen games (Cobbe et al. 2020) through the real simulator.

`ProcgenSimulator` is the one place that talks to Procgen. `ProcgenVectorEnv` (gymnasium) and
`ProcgenVecEnv` (stable-baselines3) are thin views of it.

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

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from procgen import ProcgenGym3Env
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

Mode = Literal["easy", "hard"]
Frames = npt.NDArray[np.uint8]

ACTIONS = 15
FRAME_SHAPE = (64, 64, 3)
RESET_ACTION = -1


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
    returns: float | npt.ArrayLike, game: str, mode: Mode = "easy"
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

    def set_state(self, states: Sequence[SlotState]) -> Frames:
        """The observations at `states`, one for every environment, from where play goes on.

        A state may come from another slot, seed or level range of the same game and mode.
        """
        if len(states) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} states, got {len(states)}")
        self._simulator.callmethod("set_state", [state.simulator for state in states])
        self._stack[:] = np.stack([state.frames for state in states])
        self.elapsed[:] = [state.elapsed for state in states]
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
        channels = FRAME_SHAPE[2]
        self._stack[..., :-channels] = self._stack[..., channels:]
        self._stack[first] = 0
        self._stack[..., -channels:] = frames


def _spaces(frame_stack: int) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete]:
    shape = (*FRAME_SHAPE[:2], FRAME_SHAPE[2] * frame_stack)
    return gymnasium.spaces.Box(0, 255, shape, np.uint8), gymnasium.spaces.Discrete(ACTIONS)


class ProcgenVectorEnv(gymnasium.vector.VectorEnv[Frames, npt.NDArray[np.int64], Any]):
    """A game as a `gymnasium.vector.VectorEnv` (autoreset in the terminal step).

    `infos` hold `level_seed` and, where episodes end, `final_obs`, `final_info` with the level
    just left, and gymnasium's masks `_final_obs` and `_final_info`.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(self, simulator: ProcgenSimulator) -> None:
        self.simulator = simulator
        self.num_envs = simulator.num_envs
        self.single_observation_space, self.single_action_space = _spaces(simulator.frame_stack)
        batch_space = gymnasium.vector.utils.batch_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """New episodes; one integer seeds all environments (their levels differ all the same)."""
        if isinstance(seed, list):
            raise ValueError("Procgen takes one integer seed for all environments, got a list")
        observation = self.simulator.reset(seed)
        self.closed = False
        return observation, {"level_seed": self.simulator.info("level_seed")}

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[
        Frames,
        npt.NDArray[np.float32],
        npt.NDArray[np.bool_],
        npt.NDArray[np.bool_],
        dict[str, Any],
    ]:
        """As gymnasium says, with `final_obs` the frame before the terminal one."""
        observation, reward, terminated, truncated, final_observation = self.simulator.step(actions)
        infos: dict[str, Any] = {"level_seed": self.simulator.info("level_seed")}
        done = terminated | truncated
        if done.any():
            final_obs = np.full(self.num_envs, None, dtype=object)
            for index in np.flatnonzero(done):
                final_obs[index] = final_observation[index]
            infos |= {
                "final_obs": final_obs,
                "_final_obs": done,
                "final_info": {
                    "level_seed": self.simulator.info("prev_level_seed"),
                    "_level_seed": done,
                },
                "_final_info": done,
            }
        return observation, reward, terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Frees the simulator."""
        self.simulator.close()


class ProcgenVecEnv(VecEnv):
    """A game as a stable-baselines3 `VecEnv`.

    At the end of an episode `infos` carry `terminal_observation`, `TimeLimit.truncated` and the
    `level_seed` of the episode that ended. `env_method("get_state")` and `env_method("set_state",
    states)` save and restore all environments.
    """

    def __init__(self, simulator: ProcgenSimulator) -> None:
        self.simulator = simulator
        self.render_mode = "rgb_array" if simulator.high_resolution else None
        super().__init__(simulator.num_envs, *_spaces(simulator.frame_stack))
        self.reset_infos = [{} for _ in range(self.num_envs)]

    def reset(self) -> Frames:
        """New episodes; those of the seed's first levels if `seed(...)` was called before."""
        seed = self._seeds[0]
        self._reset_seeds()
        return self.simulator.reset(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Sets the seed of the next reset: one for all environments, whose levels differ."""
        self._seeds = [seed] * self.num_envs
        return self._seeds

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keeps the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Frames, npt.NDArray[np.float32], npt.NDArray[np.bool_], Any]:
        """The transition, in stable-baselines3's form."""
        observation, reward, terminated, truncated, final_observation = self.simulator.step(
            self._actions
        )
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if done.any():
            level_seeds = self.simulator.info("prev_level_seed")
            for index in np.flatnonzero(done):
                infos[index] = {
                    "terminal_observation": final_observation[index],
                    "TimeLimit.truncated": bool(truncated[index]),
                    "level_seed": int(level_seeds[index]),
                }
        return observation, reward, done, infos

    def close(self) -> None:
        """Frees the simulator."""
        self.simulator.close()

    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        """(512, 512, 3) pictures, where the simulator has `high_resolution`."""
        if self.render_mode is None:
            return [None] * self.num_envs
        return list(self.simulator.frames())

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of this object or of its simulator, once for each index."""
        owner = self if attr_name in vars(self) else self.simulator
        return [getattr(owner, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not offered: the environments of one simulator share every setting."""
        raise NotImplementedError("the environments of one Procgen simulator share every setting")

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        """What the simulator's method returns; the method works on all environments at once."""
        if indices is not None:
            raise ValueError("Procgen methods work on all environments: leave indices out")
        result = getattr(self.simulator, method_name)(*args, **kwargs)
        return list(result) if isinstance(result, list | np.ndarray) else [result] * self.num_envs

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """No environment is wrapped."""
        return [False] * len(list(self._get_indices(indices)))
