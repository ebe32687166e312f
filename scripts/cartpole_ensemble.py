"""Any stable-baselines3 agent can be the parent: PPO on CartPole, in half a minute.

python scripts/cartpole_ensemble.py
"""

from evo_subnets.rl import Actor, episode_returns, mean_return, observations  # isort: skip  # first: it silences gym's notice

import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

from configs import command_line
from configs.cartpole import CartPoleArgs
from evo_subnets import evolve, search_trust_region


def main(args: CartPoleArgs) -> None:
    parent = PPO(
        "MlpPolicy", make_vec_env(args.env, 8, seed=args.seed), n_steps=128, batch_size=256,
        seed=args.seed, device="cpu",
    )  # fmt: skip
    parent.set_logger(Logger(None, []))  # the default one leaves a folder behind
    print(f"training a parent for {args.total_timesteps:,} steps")
    parent.learn(args.total_timesteps)
    actor = Actor.from_agent(parent)

    seen = observations(args.env, actor, seed=args.seed)
    region = search_trust_region(actor, seen, search=args.search)
    print(
        f"sigma {region.sigma:.4f} moves the policy by a KL divergence of {region.divergence:.4f}"
    )
    fitness = mean_return(args.env, episodes=args.episodes, seed=args.seed + 1)
    evolution = evolve(actor, fitness, search=region.search)
    best = evolution.model(evolution.elites[0])
    models = {"parent": actor, "best child": best, "ensemble": evolution.ensemble}
    for name, model in models.items():
        returns = episode_returns(args.env, model, episodes=args.episodes, seed=args.seed + 2)
        spread = f"{returns.mean():7.1f} +- {returns.std():.1f}"
        print(f"{name:11}{spread} over {args.episodes} episodes")


if __name__ == "__main__":
    command_line.run(lambda: tyro.cli(CartPoleArgs), main)
