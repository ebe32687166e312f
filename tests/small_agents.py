"""Small agents of stable-baselines3, made without touching the global random generators."""

import random

import numpy as np
import pytest
import torch
from networks import built, noise

from agents.impala import impala_actor
from agents.ppo import PPOSettings, make_ppo, make_training_env

from stable_baselines3 import PPO  # isort: skip  # after agents, which silences gym
from stable_baselines3.common.env_util import make_vec_env  # isort: skip
from stable_baselines3.common.logger import Logger  # isort: skip

TINY = PPOSettings(num_envs=4, rollout_steps=16, minibatches=2, epochs=2, widths=(2, 2, 2))
GAME = "bossfight"
"""Its episodes are the shortest."""


def unseeded(make):
    """What `make` returns; the global generators that stable-baselines3 seeds are put back."""
    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            return make()
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


@pytest.fixture(scope="module")
def procgen_agent():
    """An untrained PPO agent on Procgen, and its environment."""
    env = make_training_env(GAME, TINY)
    yield unseeded(lambda: make_ppo(env, TINY, seed=0, device="cpu"))
    env.close()


@pytest.fixture(scope="module")
def lively_agent(procgen_agent):
    """An agent on Procgen with strong weights, whose actions differ between pictures."""
    env = procgen_agent.get_env()
    agent = unseeded(lambda: make_ppo(env, TINY, seed=0, device="cpu"))
    with torch.no_grad():
        for number, weight in enumerate(agent.policy.parameters()):
            weight += 0.12 * noise(*weight.shape, seed=number)
    return agent


@pytest.fixture(scope="module")
def cartpole_agent():
    """A PPO agent on CartPole after one update: its critic and its actor differ."""

    def make():
        env = make_vec_env("CartPole-v1", 2, seed=0)
        agent = PPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0, device="cpu")
        agent.set_logger(Logger(None, []))  # else it makes a folder in /tmp
        return agent.learn(64)

    agent = unseeded(make)
    yield agent
    agent.env.close()


@pytest.fixture
def actor():
    return built(lambda: impala_actor((2, 3, 4), frame_stack=2))


def channels_first(observations):
    return torch.as_tensor(observations.transpose(0, 3, 1, 2).copy())


def pictures(count, channels=6, seed=0):
    """(count, 64, 64, channels), as the environments show them: coarse patterns."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (count, 4, 4, channels)) * draw.random((count, 1, 1, channels))
    return coarse.astype(np.uint8).repeat(16, axis=1).repeat(16, axis=2)


def parameters_of(widths, channels, actions=None, features=256):
    """Weights and biases, by arithmetic; 3x3 convolutions, five to a block."""
    total = 0
    for width in widths:
        total += 9 * channels * width + width + 4 * (9 * width * width + width)
        channels = width
    total += channels * 8 * 8 * features + features
    return total if actions is None else total + features * actions + actions
