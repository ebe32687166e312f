"""Any stable-baselines3 agent can be the parent: PPO on CartPole, in half a minute.

python scripts/cartpole_ensemble.py
"""

from dataclasses import dataclass

from evo_subnets.rl import Actor, EnsemblePolicy  # isort: skip  # first: it silences gym's notice

import gymnasium
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from configs.command_line import run
from evo_subnets import evolve, quads, search_trust_region


@dataclass(frozen=True)
class Args:
    """Trains PPO on a gymnasium environment with discrete actions, and mutates it."""

    env: str = "CartPole-v1"
    """Any registered gymnasium environment with discrete actions."""
    total_timesteps: int = 20_000
    """Environment steps of the parent's training."""
    population_size: int = 16
    """Children, a multiple of four."""
    ensemble_size: int = 8
    """Children that are kept."""
    episodes: int = 40
    """Episodes of each validation and of the test."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        if self.env not in gymnasium.registry:
            raise ValueError(f"gymnasium has no environment {self.env!r}")
        quads(self.population_size, 1.0, 0.5, self.seed)  # refuses what it cannot make
        if not 1 <= self.ensemble_size <= self.population_size:
            raise ValueError(
                f"ensemble_size must be in 1..{self.population_size}, got {self.ensemble_size}"
            )
        for name in ("episodes", "total_timesteps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def main(args: Args) -> None:
    parent = PPO(
        "MlpPolicy", make_vec_env(args.env, 8, seed=args.seed), n_steps=128, batch_size=256,
        seed=args.seed, device="cpu",
    )  # fmt: skip
    parent.set_logger(Logger(None, []))  # the default one leaves a folder behind
    print(f"training a parent for {args.total_timesteps:,} steps")
    parent.learn(args.total_timesteps)
    actor = Actor.from_agent(parent)

    def mean_return(model: nn.Module, seed: int) -> tuple[float, float]:
        policy = EnsemblePolicy(model, actor.observation_space, seed=seed)
        env = make_vec_env(args.env, 8, seed=seed)
        returns, spread = evaluate_policy(policy, env, args.episodes)  # type: ignore[arg-type]
        env.close()
        return returns, spread  # type: ignore[return-value]

    validation, test = args.seed + 1, args.seed + 2
    region = search_trust_region(actor, observations(parent, args.env, args.seed), seed=args.seed)
    print(
        f"sigma {region.sigma:.4f} moves the policy by a KL divergence of {region.divergence:.4f}"
    )
    result = evolve(
        actor, lambda model: mean_return(model, validation)[0], args.population_size,
        args.ensemble_size, region.sigma, region.density, args.seed,
    )  # fmt: skip
    for name, model in (("parent", actor), ("ensemble", result.ensemble)):
        mean, spread = mean_return(model, test)
        print(f"{name:9}{mean:7.1f} +- {spread:.1f} over {args.episodes} episodes")


def observations(agent: PPO, env_id: str, seed: int) -> torch.Tensor:
    """(512, ...) observations of the agent's own play."""
    env: VecEnv = make_vec_env(env_id, 8, seed=seed)
    observation, seen = env.reset(), []
    for _ in range(64):
        seen.append(torch.as_tensor(observation))
        observation = env.step(agent.predict(observation)[0])[0]  # type: ignore[arg-type]
    env.close()
    return torch.cat(seen)


if __name__ == "__main__":
    run(lambda: tyro.cli(Args), main)
