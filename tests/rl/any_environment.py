"""Environments of any spaces, and small agents of every kind in them."""

import gymnasium
import numpy as np
from networks import noise
from small_agents import unseeded

from evo_subnets.rl import Actor  # noqa: F401  # first: it silences gym's notice

import torch  # isort: skip
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete  # isort: skip
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3  # isort: skip
from stable_baselines3.common.vec_env import DummyVecEnv  # isort: skip

LINE = Box(-np.inf, np.inf, (4,), np.float32)
PICTURE = Box(0, 255, (1, 36, 36), np.uint8)
ARM = Box(np.array([-1, -2, 0], np.float32), np.array([1, 5, 0.5], np.float32))
PARTS = Dict({"seen": PICTURE, "where": Box(-5, 5, (3,), np.float32), "mode": Discrete(3)})


class Anything(gymnasium.Env):
    """Shows samples of its observation space for some steps, and pays for large actions."""

    def __init__(self, observation_space=LINE, action_space=ARM, length=5):
        self.observation_space, self.action_space = observation_space, action_space
        self.length, self.actions = length, []

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self._shown(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.actions.append(action)
        self.steps += 1
        reward = float(np.sum(action)) + 0.01 * self.steps
        return self._shown(), reward, self.steps == self.length, False, {}

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def render(self):
        return np.full((32, 32, 3), 40 * self.steps, np.uint8)

    def _shown(self):
        return self.observation_space.sample()

    def action_masks(self):
        """The first option of whatever it is, is forbidden."""
        sizes = [self.action_space.n] if isinstance(self.action_space, Discrete) else (
            self.action_space.nvec if isinstance(self.action_space, MultiDiscrete)
            else [2] * self.action_space.n
        )  # fmt: skip
        return np.concatenate([np.arange(size) > 0 for size in sizes])


def several(count=2, **options):
    return DummyVecEnv([lambda: Anything(**options)] * count)


def lively(agent):
    """Its weights made strong, so that actions differ between observations."""
    with torch.no_grad():
        for number, weight in enumerate(agent.policy.parameters()):
            weight += 0.2 * noise(*weight.shape, seed=number) if weight.ndim else 0
    return agent


SMALL = {"net_arch": [8]}
OFF = {"buffer_size": 10, "device": "cpu", "seed": 0}
ON = {"n_steps": 8, "device": "cpu", "seed": 0}


def made(kind, *, observation_space=LINE, action_space=ARM, policy="MlpPolicy", env=None, **more):
    options = {**(ON if kind in (PPO, A2C) or "n_steps" in more else OFF), **more}
    options["policy_kwargs"] = {**SMALL, **more.get("policy_kwargs", {})}  # agents add to theirs
    if kind is PPO:
        options["batch_size"] = 8
    env = env or several(observation_space=observation_space, action_space=action_space)
    return lively(unseeded(lambda: kind(policy, env, **options)))


SDE = {"use_sde": True, "policy_kwargs": {"log_std_init": -1.0}}
AGENTS = {
    "normal": lambda: made(PPO),
    "normal, A2C": lambda: made(A2C, action_space=Box(-1, 1, (2, 2), np.float32)),
    "state-dependent noise": lambda: made(PPO, **SDE),
    "squashed state-dependent noise": lambda: made(
        A2C, use_sde=True, policy_kwargs={"squash_output": True, "use_expln": True}
    ),
    "state-dependent noise, few": lambda: made(
        A2C, use_sde=True, policy_kwargs={"full_std": False}
    ),
    "squashed normal": lambda: made(SAC),
    "squashed normal, noisy states": lambda: made(SAC, use_sde=True),
    "values": lambda: made(TD3),
    "values, DDPG": lambda: made(DDPG),
    "values of actions": lambda: made(DQN, action_space=Discrete(5)),
    "choice": lambda: made(PPO, action_space=Discrete(5)),
    "choices": lambda: made(PPO, action_space=MultiDiscrete([3, 2, 4])),
    "yes and no": lambda: made(A2C, action_space=MultiBinary(4)),
    "pictures": lambda: made(SAC, observation_space=PICTURE, policy="CnnPolicy"),
    "values of actions, pictures": lambda: made(
        DQN, observation_space=PICTURE, policy="CnnPolicy", action_space=Discrete(5)
    ),
    "parts": lambda: made(PPO, observation_space=PARTS, policy="MultiInputPolicy"),
    "parts, squashed": lambda: made(SAC, observation_space=PARTS, policy="MultiInputPolicy"),
    "parts, values": lambda: made(TD3, observation_space=PARTS, policy="MultiInputPolicy"),
    "numbers": lambda: made(PPO, observation_space=MultiDiscrete([3, 4])),
    "bits": lambda: made(PPO, observation_space=MultiBinary(6)),
}  # fmt: skip


def shown(space, count=20, seed=0):
    """A batch of observations, as a vectorised environment gives them."""
    space.seed(seed)
    samples = [space.sample() for _ in range(count)]
    if isinstance(space, Dict):
        return {name: np.stack([one[name] for one in samples]) for name in space.spaces}
    return np.stack(samples)


def one(batch, row=0):
    return (
        {name: each[row] for name, each in batch.items()} if isinstance(batch, dict) else batch[row]
    )
