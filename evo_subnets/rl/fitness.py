"""What play in an environment says of a model: its mean return, and what it sees."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecFrameStack,
    VecMonitor,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
)
from torch import nn

from evo_subnets.kinds import said_by
from evo_subnets.rl.acting import check_actions, check_fits, kind_for
from evo_subnets.rl.actor import shapes_of
from evo_subnets.rl.policy import EnsemblePolicy, one_of, space_of
from evo_subnets.streams import check_seed, derive_seed

Environment = str | VecEnv | Callable[[], VecEnv]
"""The id of a gymnasium environment, a stable-baselines3 VecEnv, or a function that makes one. The
first and the last travel to other processes."""
NUM_ENVS = 8
"""Copies that play together, where an id is given."""


@dataclass(frozen=True)
class MeanReturn:
    """A fitness: a model to its mean return; `mean_return` makes it, and says what its options
    are."""

    env: Environment
    options: dict[str, Any]
    seed: int

    def __call__(self, model: nn.Module) -> float:
        returns = self.cases(model)
        return math.fsum(returns) / len(returns)

    def cases(self, model: nn.Module) -> list[float]:
        """The return of each episode, the k-th of the same seeds for every model."""
        found = episode_returns(self.env, model, seed=self.seed, **self.options)
        return [float(each) for each in found]

    def steps(self, model: nn.Module) -> int:
        """The environment steps of these episodes, all together."""
        return int(_played(self.env, model, seed=self.seed, **self.options)[1].sum())

    def in_generation(self, number: int) -> "MeanReturn":
        """The same on the seeds of a generation; the first one's are its own."""
        seed = derive_seed(self.seed, "generation", number) if number else self.seed
        return replace(self, seed=seed)


def mean_return(
    env: Environment,
    *,
    episodes: int,
    seed: int = 0,
    num_envs: int | None = None,
    deterministic: bool = False,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> MeanReturn:
    """A fitness: a model to the mean return of `episode_returns`, on the same seeds for each, and
    on others in each generation of `evolve`, which is told the return of each episode.

    Options and what is refused: see there. Test with another `seed` than the one that selects.
    """
    seed = check_seed(seed)
    check(env, episodes, num_envs=num_envs, deterministic=deterministic, temperature=temperature)
    options = {"episodes": episodes, "num_envs": num_envs, "deterministic": deterministic,
               "temperature": temperature, "device": device}  # fmt: skip
    return MeanReturn(env, options, seed)


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
    and rewards as its monitor does. ValueErrors refuse environments that are not the agent's, a
    VecNormalize that still learns, or that normalises what the model normalises itself, and options
    that would change nothing.

    Actions may be of any space that an `Actor` acts in. A model that does not say what its outputs
    are gives classes, or values where actions are real values; of these, and of all that it does
    not say, the environment's action space is taken. Frames are stacked for an actor that was
    trained so, and an actor that masks its actions is given the environment's `action_masks`.
    """
    return _played(
        env, model, episodes=episodes, seed=seed, num_envs=num_envs, deterministic=deterministic,
        temperature=temperature, device=device,
    )[0]  # fmt: skip


def observations(
    env: Environment,
    model: nn.Module,
    *,
    count: int = 512,
    seed: int = 0,
    num_envs: int | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """(count, ...) network inputs from a model's own sampled play, as a trust region takes them; a
    dictionary of such where observations have several parts or actions are masked."""
    seed = check_seed(seed)
    check(env, count, num_envs=num_envs, name="count")
    with _opened(env, num_envs, model) as envs:
        policy = _policy(model, envs, device=device)
        draw = np.random.default_rng([seed, 0])
        observation = _reset(envs, derive_seed(seed, "observations"))
        seen = [_seen(policy, envs, observation)]
        while len(seen) * envs.num_envs < count:
            now, masks = seen[-1]
            actions = policy.act(now, policy.draw(draw, envs.num_envs), **masks)
            seen.append(_seen(policy, envs, envs.step(actions)[0]))
    found = [policy.observations(each, **masks) for each, masks in seen]
    if isinstance(found[0], dict):
        return {name: torch.cat([each[name] for each in found])[:count] for name in found[0]}
    return torch.cat(found)[:count]


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


def _played(
    env: Environment,
    model: nn.Module,
    *,
    episodes: int,
    seed: int,
    num_envs: int | None,
    deterministic: bool,
    temperature: float,
    device: torch.device | str,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(episodes,) returns and numbers of steps."""
    seed = check_seed(seed)
    check(env, episodes, num_envs=num_envs, deterministic=deterministic, temperature=temperature)
    with _opened(env, num_envs, model) as envs:
        policy = _policy(model, envs, temperature=temperature, device=device)
        counts = [episodes // envs.num_envs + (i < episodes % envs.num_envs)
                  for i in range(envs.num_envs)]  # fmt: skip
        rounds = [
            _round(envs, policy, derive_seed(seed, "episodes", index), deterministic)
            for index in range(max(counts))
        ]

    def counted(rows: Any) -> Any:
        found = zip(np.transpose(rows), counts, strict=True)
        return np.concatenate([each[:count] for each, count in found])

    returns, lengths = map(counted, zip(*rounds, strict=True))
    return returns, lengths


@contextmanager
def _opened(env: Environment, num_envs: int | None, model: nn.Module) -> Iterator[VecEnv]:
    """The environments, with frames stacked for the model; those that are made here are closed."""
    if isinstance(env, str):
        envs: VecEnv = make_vec_env(env, num_envs or NUM_ENVS, seed=0)  # None draws one
    else:
        envs = env if isinstance(env, VecEnv) else env()
    made = envs
    try:
        check_actions(envs.action_space, "this environment has")
        one, normalizer = one_of(model), unwrap_vec_normalize(envs)
        if normalizer is not None and normalizer.training:
            raise ValueError("a VecNormalize must not learn from evaluation: set training = False")
        twice = normalizer is not None and normalizer.norm_obs
        if twice and len(getattr(one, "normalization", ())):
            raise ValueError(
                "the environment's VecNormalize and the actor would both normalise observations: "
                "give an environment without one (norm_obs=False), or an actor of "
                "from_agent(agent, normalization=False)"
            )
        frames = getattr(one, "frame_stack", 1)
        if frames > 1 and not _sees(one, envs):
            envs = VecFrameStack(envs, frames)
        _check_observations(one, envs)
        if getattr(one, "masked", False) and not envs.has_attr("action_masks"):
            raise ValueError(
                "this agent was trained with masks of its actions, and the environment has no "
                "method action_masks that gives them"
            )
        yield envs
    finally:
        if made is not env:
            made.close()


def _sees(one: nn.Module, envs: VecEnv) -> bool:
    """Whether a model's observations have the environment's shapes, in any layout of images."""
    space = getattr(one, "observation_space", None)
    if space is None:
        return True
    given, wanted = shapes_of(envs.observation_space), shapes_of(space)
    return set(given) == set(wanted) and all(
        given[name] in (shape, (*shape[1:], shape[0])) if shape else given[name] == shape
        for name, shape in wanted.items()
    )


def _check_observations(one: nn.Module, envs: VecEnv) -> None:
    if not _sees(one, envs):
        raise ValueError(
            f"the environment's observations are {shapes_of(envs.observation_space)}, the agent's "
            f"{shapes_of(one.observation_space)}: give its own environment; an agent of stacked "  # type: ignore[arg-type]
            "frames says how many, Actor.from_agent(agent, frame_stack=...)"
        )


def _policy(model: nn.Module, envs: VecEnv, **options: Any) -> EnsemblePolicy:
    """The model as an agent in these environments."""
    space, actions = space_of(model) or envs.observation_space, envs.action_space
    outputs = said_by(model) or kind_for(actions)
    policy = EnsemblePolicy(model, space, action_space=actions, outputs=outputs, **options)
    check_fits(policy.outputs, getattr(one_of(model), "action_space", None), space=actions)
    return policy


def _seen(policy: EnsemblePolicy, envs: VecEnv, observation: Any) -> tuple[Any, dict[str, Any]]:
    """What a policy is shown, as a copy, and the masks of its actions where it takes such."""
    copied: Any = np.array(observation)
    if isinstance(observation, dict):
        copied = {name: np.array(each) for name, each in observation.items()}
    masks = {"action_masks": np.stack(envs.env_method("action_masks"))} if policy.masked else {}
    return copied, masks


def _reset(envs: VecEnv, seed: int) -> Any:
    envs.seed(seed % 2**31)
    return envs.reset()


def _round(
    envs: VecEnv, policy: EnsemblePolicy, seed: int, deterministic: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(environments,) returns and steps of the first episode of each after a reset to `seed`."""
    monitored = is_vecenv_wrapped(envs, VecMonitor) or all(envs.env_is_wrapped(Monitor))
    draw = np.random.default_rng(seed)
    returns, playing = np.zeros(envs.num_envs), np.ones(envs.num_envs, dtype=np.bool_)
    lengths = np.zeros(envs.num_envs, dtype=np.int64)
    observation: Any = _reset(envs, seed)
    while playing.any():
        uniforms = None if deterministic else policy.draw(draw, envs.num_envs)
        seen, masks = _seen(policy, envs, observation)
        observation, rewards, done, infos = envs.step(policy.act(seen, uniforms, **masks))
        returns[playing] += rewards[playing]
        lengths += playing
        for index in np.flatnonzero(done & playing):
            if monitored and "episode" not in infos[index]:
                continue  # a life was lost, which a wrapper calls an end
            if monitored:
                returns[index] = infos[index]["episode"]["r"]
            playing[index] = False
    return returns, lengths
