"""What play in an environment says of a model: its mean return, and what it sees."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecMonitor,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)
from torch import Tensor, nn

from evo_subnets.rl.actor import check_actions
from evo_subnets.rl.policy import EnsemblePolicy, space_of
from evo_subnets.streams import check_seed, derive_seed

Environment = str | VecEnv | Callable[[], VecEnv]
"""The id of a gymnasium environment, a stable-baselines3 VecEnv, or a function that makes one. The
first and the last travel to other processes."""
NUM_ENVS = 8
"""Copies that play together, where an id is given."""


def mean_return(
    env: Environment,
    *,
    episodes: int,
    seed: int = 0,
    num_envs: int | None = None,
    deterministic: bool = False,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> Callable[[nn.Module], float]:
    """A fitness: a model to the mean return of `episode_returns`, on the same seeds for each.

    Options and what is refused: see there. Test with another `seed` than the one that selects.
    """
    seed = check_seed(seed)
    check(env, episodes, num_envs=num_envs, deterministic=deterministic, temperature=temperature)

    def fitness(model: nn.Module) -> float:
        returns = episode_returns(
            env,
            model,
            episodes=episodes,
            seed=seed,
            num_envs=num_envs,
            deterministic=deterministic,
            temperature=temperature,
            device=device,
        )
        return float(returns.mean())

    return fitness


def episode_returns(
    env: Environment,
    model: nn.Module,
    *,
    episodes: int,
    seed: int = 0,
    num_envs: int | None = None,
    deterministic: bool = False,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> npt.NDArray[np.float64]:
    """(episodes,) returns of a model that acts; the k-th is of the same seeds for every model.

    Each copy of the environment plays its share of the episodes: counting the first to finish
    would favour short ones. They play one episode each at a time, from seeds of their own, with
    the same uniform numbers for every model to choose actions by; a copy that has ended waits for
    the others. `num_envs` (8) is for a gymnasium id alone. A monitored environment counts episodes
    and rewards as its monitor does. ValueErrors refuse environments without discrete actions, a
    VecNormalize that still learns, and options that would change nothing.
    """
    seed = check_seed(seed)
    check(env, episodes, num_envs=num_envs, deterministic=deterministic, temperature=temperature)
    with _opened(env, num_envs) as envs:
        space = space_of(model) or envs.observation_space
        policy = EnsemblePolicy(model, space, temperature=temperature, device=device)
        counts = [episodes // envs.num_envs + (i < episodes % envs.num_envs)
                  for i in range(envs.num_envs)]  # fmt: skip
        rounds = [
            _round(envs, policy, derive_seed(seed, "episodes", index), deterministic)
            for index in range(max(counts))
        ]
    return np.concatenate([returns[:count] for returns, count in zip(
        np.transpose(rounds), counts, strict=True)])  # fmt: skip


def observations(
    env: Environment,
    model: nn.Module,
    *,
    count: int = 512,
    seed: int = 0,
    num_envs: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(count, ...) network inputs from a model's own sampled play, as a trust region takes them."""
    seed = check_seed(seed)
    check(env, count, num_envs=num_envs, name="count")
    with _opened(env, num_envs) as envs:
        space = space_of(model) or envs.observation_space
        policy = EnsemblePolicy(model, space, device=device)
        draw = np.random.default_rng([seed, 0])
        seen = [_reset(envs, derive_seed(seed, "observations"))]
        while len(seen) * envs.num_envs < count:
            actions = policy.act(seen[-1], draw.random(envs.num_envs))
            seen.append(np.array(envs.step(actions)[0]))
    return policy.observations(np.concatenate(seen)[:count])


def check(
    env: Environment,
    count: int,
    *,
    num_envs: int | None,
    deterministic: bool = False,
    temperature: float = 1.0,
    name: str = "episodes",
) -> None:
    """A ValueError where options are wrong, or would change nothing."""
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    if not isinstance(env, str) and num_envs is not None:
        raise ValueError(
            f"num_envs is for a gymnasium id; this environment has its own number: got {num_envs}"
        )
    if isinstance(env, str) and env not in gymnasium.registry:
        raise ValueError(f"gymnasium has no environment {env!r}")
    if num_envs is not None and num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    if deterministic and temperature != 1:
        raise ValueError(f"temperature {temperature:g} changes nothing where deterministic=True")


@contextmanager
def _opened(env: Environment, num_envs: int | None) -> Iterator[VecEnv]:
    """The environments; those that are made here are closed."""
    if isinstance(env, str):
        envs: VecEnv = make_vec_env(env, num_envs or NUM_ENVS, seed=0)  # None draws one
    else:
        envs = env if isinstance(env, VecEnv) else env()
    try:
        check_actions(envs.action_space, "this environment has")
        normalizer = unwrap_vec_normalize(envs)
        if normalizer is not None and normalizer.training:
            raise ValueError("a VecNormalize must not learn from evaluation: set training = False")
        yield envs
    finally:
        if envs is not env:
            envs.close()


def _reset(envs: VecEnv, seed: int) -> npt.NDArray[Any]:
    envs.seed(seed % 2**31)
    observation = envs.reset()
    if not isinstance(observation, np.ndarray):
        raise ValueError(f"observations must be one array, got a {type(observation).__name__}")
    return np.array(observation)  # some environments go on to write into theirs


def _round(
    envs: VecEnv, policy: EnsemblePolicy, seed: int, deterministic: bool
) -> npt.NDArray[np.float64]:
    """(environments,) returns of the first episode of each after a reset to `seed`."""
    monitored = is_vecenv_wrapped(envs, VecMonitor) or all(envs.env_is_wrapped(Monitor))
    draw = np.random.default_rng(seed)
    returns, playing = np.zeros(envs.num_envs), np.ones(envs.num_envs, dtype=np.bool_)
    observation: Any = _reset(envs, seed)
    while playing.any():
        uniforms = None if deterministic else draw.random(envs.num_envs)
        observation, rewards, done, infos = envs.step(policy.act(observation, uniforms))
        returns[playing] += rewards[playing]
        for index in np.flatnonzero(done & playing):
            if monitored and "episode" not in infos[index]:
                continue  # a life was lost, which a wrapper calls an end
            if monitored:
                returns[index] = infos[index]["episode"]["r"]
            playing[index] = False
    return returns
