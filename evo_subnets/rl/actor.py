"""The acting part of an agent as a plain module: the parent that subnetworks are taken from."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize
from torch import Tensor, nn

from evo_subnets.outputs import CLASSES, Outputs
from evo_subnets.rl.acting import Space
from evo_subnets.rl.agents import parts_of
from evo_subnets.rl.normalization import ONE, check_shapes, normalization_of
from evo_subnets.rl.zips import read_agent, statistics_beside

Source = VecNormalize | str | Path | nn.ModuleDict | bool | None


class Actor(nn.Module):
    """(batch, *observation shape) observations to the parameters of a policy's actions, which are
    of the kind `outputs`: logits of classes by default.

    An agent's policy network without its critic: `features`, then `body`, then `head`.
    `observation_space` is the network's own, with channels first for images; observations of
    several parts (a `gymnasium.spaces.Dict`) are given by name. `action_space`: what actions are
    clipped to, or, where the outputs are `squashed` to (-1, 1), spread to.

    `normalization`: statistics of a `VecNormalize`, which observations are normalised by first.
    `frame_stack`: how many frames an observation is made of; environments of `evo_subnets.rl`
    stack them. `masked`: it takes `action_masks`, (batch, actions) booleans of what is possible.
    """

    def __init__(
        self,
        features: nn.Module,
        *,
        body: nn.Module,
        head: nn.Module,
        observation_space: Space,
        normalize_images: bool = True,
        action_space: Space | None = None,
        outputs: Outputs = CLASSES,
        squashed: bool = False,
        normalization: nn.ModuleDict | None = None,
        frame_stack: int = 1,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.features, self.body, self.head = features, body, head
        self.shapes = shapes_of(observation_space)
        self.normalization = nn.ModuleDict() if normalization is None else normalization
        check_shapes(self.normalization, self.shapes)
        self.observation_space = observation_space
        self.normalize_images = normalize_images
        self.action_space, self.outputs, self.squashed = action_space, outputs, squashed
        self.frame_stack, self.masked = frame_stack, masked
        self.eval()

    @classmethod
    def from_agent(
        cls,
        agent: BaseAlgorithm,
        *,
        normalization: Source = None,
        frame_stack: int | None = None,
    ) -> "Actor":
        """The actor of a stable-baselines3 agent: PPO, A2C, DQN, SAC, TD3, DDPG; sb3-contrib's
        TRPO, TQC and MaskablePPO.

        It shares the agent's parameters; it does not copy them. A ValueError refuses other agents,
        and those that act by methods of their own (a temperature, a memory): an actor is the
        network alone.

        `normalization`: the `VecNormalize` that the agent was trained in, or the path of its file
        (a pickle, of which the numbers alone are read); None: that of the agent's environments;
        False: none, whoever plays normalises. `frame_stack`: None is that of its environments. An
        agent whose last observations show that they were normalised is refused without statistics.
        """
        if not isinstance(agent, BaseAlgorithm):
            raise ValueError(
                f"expected an agent of stable-baselines3, got a {type(agent).__name__}"
            )
        parts = parts_of(agent)
        source = agent.get_vec_normalize_env() if normalization is None else normalization
        if source is None and saw_normalized(agent):
            raise ValueError(
                "this agent was trained on normalised observations: give the statistics of its "
                "VecNormalize, normalization=PATH, or normalization=False where the environments "
                "that it will play in normalise"
            )
        stacked = _stack_of(agent) if frame_stack is None else frame_stack
        return cls(**parts, normalization=normalization_of(source), frame_stack=stacked)

    @classmethod
    def from_zip(
        cls,
        path: str | Path,
        *,
        algorithm: str | None = None,
        normalization: Source = None,
        frame_stack: int = 1,
    ) -> "Actor":
        """The actor of a stable-baselines3 zip, which is unpickled: only for files of one's own.

        `algorithm`: the name of its class; None: what the file says. `normalization`: None is the
        file of statistics that lies beside it, if there is one (see `zips.statistics_beside`).
        """
        source = statistics_beside(path) if normalization is None else normalization
        agent = read_agent(path, algorithm=algorithm)
        return cls.from_agent(agent, normalization=source, frame_stack=frame_stack)

    @property
    def observation_shape(self) -> tuple[int, ...]:
        """Of one observation; a ValueError where it has several parts."""
        if list(self.shapes) != [ONE]:
            raise ValueError(f"observations of several parts have no one shape: {self.shapes}")
        return self.shapes[ONE]

    @property
    def actions(self) -> int:
        """The number of actions."""
        assert isinstance(self.head, nn.Linear)
        return self.head.out_features

    def forward(
        self,
        observations: Tensor | None = None,
        *,
        action_masks: Tensor | None = None,
        **named: Tensor,
    ) -> Tensor:
        given = named if observations is None else {ONE: observations, **named}
        for name, normalized in self.normalization.items():
            given[name] = normalized(given[name])
        several = isinstance(self.observation_space, gymnasium.spaces.Dict)
        x: Any = given if several else given[ONE]
        x = preprocess_obs(x, self.observation_space, self.normalize_images)
        found: Tensor = self.head(self.body(self.features(x)))
        return found if action_masks is None else found.masked_fill(~action_masks, -torch.inf)


def shapes_of(space: Space) -> dict[str, tuple[int, ...]]:
    """The shape of each part of an observation, by name; one array is called "observations"."""
    spaces = space.spaces if isinstance(space, gymnasium.spaces.Dict) else {ONE: space}
    shapes = {name: each.shape for name, each in spaces.items() if each.shape is not None}
    if len(shapes) < len(spaces) or "action_masks" in shapes:
        raise ValueError(
            "a parent needs observations of one shape, or a Dict of such (none of the name "
            f"action_masks), got {space}"
        )
    return shapes


def saw_normalized(agent: Any) -> bool:
    """Whether an agent's last observations are none of its environment's: outside of its bounds,
    or real numbers where it gives whole ones, or coarser ones."""
    last, space = agent._last_obs, agent.observation_space
    several = isinstance(space, gymnasium.spaces.Dict)
    pairs = [(last[name], each) for name, each in space.spaces.items()] if several and last else [
        (last, space)
    ]  # fmt: skip
    for seen, each in pairs:
        if not isinstance(seen, np.ndarray) or not isinstance(each, gymnasium.spaces.Box):
            continue
        coarser = seen.dtype == np.float32 and each.dtype != np.float32
        fits = seen.shape[1:] == each.shape
        slack = 1e-3 * np.maximum(1, np.abs(seen))
        outside = fits and np.any((seen < each.low - slack) | (seen > each.high + slack))
        if coarser or outside:
            return True
    return False


def _stack_of(agent: BaseAlgorithm) -> int:
    """How many frames the agent's environments stack."""
    env: Any = agent.get_env()
    while env is not None:
        if isinstance(env, VecFrameStack):
            return env.stacked_obs.n_stack
        env = getattr(env, "venv", None)
    return 1
