"""The Procgen simulator as gymnasium and stable-baselines3 know environments."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from envs.games import whole
from envs.procgen import ACTIONS, FRAME_SHAPE, ProcgenSimulator
from envs.states import Frames


def _spaces(frame_stack: int) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete]:
    shape = (*FRAME_SHAPE[:2], FRAME_SHAPE[2] * frame_stack)
    return gymnasium.spaces.Box(0, 255, shape, np.uint8), gymnasium.spaces.Discrete(ACTIONS)


class ProcgenVectorEnv(gymnasium.vector.VectorEnv[Frames, npt.NDArray[np.int64], Any]):
    """A game as a `gymnasium.vector.VectorEnv` (autoreset in the terminal step).

    `infos` hold `level_seed` and, where episodes end, `final_obs`, `final_info` with the level
    just left, and gymnasium's masks `_final_obs` and `_final_info`. It renders where the simulator
    has `high_resolution`; it has no `spec`, as it is not made by an id; a pickled copy goes on from
    the same states.
    """

    metadata = {
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": ["rgb_array"],
        "render_fps": 15,
    }

    def __init__(self, simulator: ProcgenSimulator) -> None:
        self.simulator = simulator
        self.render_mode = "rgb_array" if simulator.high_resolution else None
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
        if options:
            raise ValueError(
                f"Procgen has no reset options, a reset_mask neither: all begin anew; got {options}"
            )
        observation = self.simulator.reset(seed)
        if seed is not None:
            super().reset(seed=int(seed))  # gymnasium's own generator
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

    def render(self) -> tuple[Frames, ...]:
        """A (512, 512, 3) picture of each environment; a ValueError without `high_resolution`."""
        return tuple(self.simulator.frames())

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
        self._actions: Any = None

    def reset(self) -> Frames:
        """New episodes; those of the seed's first levels if `seed(...)` was called before."""
        seed = self._seeds[0]
        self._reset_seeds()
        return self.simulator.reset(seed)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Sets the seed of the next reset: one for all environments, whose levels differ."""
        self._seeds = [None if seed is None else whole("seed", seed, low=0)] * self.num_envs
        return self._seeds

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Refuses options: Procgen's resets have none."""
        if options and options != [{}] * self.num_envs:
            raise ValueError(f"Procgen has no reset options, got {options}")

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

    def render(self, mode: str | None = None) -> npt.NDArray[Any] | None:
        """One picture of all environments, where the simulator has `high_resolution`."""
        if mode == "human":
            raise ValueError("Procgen opens no window: show the picture that render() returns")
        return super().render(mode)

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
