"""Trains a Procgen parent with PPO, and goes on where an earlier run was stopped.

    python scripts/train_parent.py cpu --env bigfish --out runs/bigfish

`policy.safetensors`, `card.json` and `curve.csv` of the folder are what `parents/ENV` holds.
"""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from agents.evaluation import bootstrap_interval, spread
from agents.parents import open_training
from agents.play.course import Course
from agents.play.population import play
from agents.policies import Actor, EnsemblePolicy, save_actor
from agents.ppo import PPOSettings, train
from configs import command_line
from configs.ppo import CPU, PAPER, REFERENCE
from envs.procgen import TEST_LEVELS, TRAIN_LEVELS, Levels, check_game, normalized_return
from evo_subnets import files
from evo_subnets.streams import derive_seed


@dataclass(frozen=True)
class Args:
    """Trains a Procgen parent with PPO, and goes on where an earlier run was stopped."""

    ppo: PPOSettings
    """PPO's hyper-parameters."""
    total_timesteps: int
    """Environment steps in all."""
    env: str = "bigfish"
    """Procgen game."""
    out: Path = Path("runs/train_parent")
    """Folder for checkpoints, curve.csv and TensorBoard logs; a run found there goes on, for more
    steps if they are asked for."""
    overwrite: bool = False
    """Start afresh in a folder that holds another run."""
    mode: Literal["easy", "hard"] = "easy"
    """Procgen's distribution mode."""
    checkpoint_every: int = 50_000
    """Environment steps between two checkpoints."""
    card_episodes: int = 256
    """Episodes on training and on unseen levels for the model card."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    seed: int = 0
    """Seed of levels, initial weights and minibatches."""

    def __post_init__(self) -> None:
        check_game(self.env)
        for name in ("total_timesteps", "checkpoint_every", "card_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


PRESETS = {
    "cpu": ("16-32-32 for 1 M steps, hours on two CPU cores", Args(CPU, 1_000_000)),
    "reference": ("16-32-32 for 5 M steps, as the published runs", Args(REFERENCE, 5_000_000)),
    "paper": ("32-64-128 for 10 M steps, as in table 4.2", Args(PAPER, 10_000_000)),
}


def main(args: Args) -> None:
    device = command_line.choose_device(args.device)
    open_training(args.out, args.env, args.ppo, args.mode, args.seed, args.overwrite)
    agent = train(
        args.env,
        args.ppo,
        args.total_timesteps,
        args.out,
        mode=args.mode,
        seed=args.seed,
        device=device,
        checkpoint_every=args.checkpoint_every,
    )
    actor = Actor.from_agent(agent)
    policy = EnsemblePolicy(actor, actor.observation_space, device=device)

    def returns(levels: Levels, name: str) -> dict[str, Any]:
        print(f"playing {args.card_episodes} episodes on {name} levels")
        seed = derive_seed(args.seed, "card", name)
        course = Course(args.env, levels, seed, args.mode, actor.observation_shape[0] // 3)
        played = play(policy, course, args.card_episodes).returns
        low, high = bootstrap_interval(played)
        print(f"  return {played.mean():.2f} [{low:.2f}, {high:.2f}]")
        return {
            "mean": float(played.mean()),
            "sd": spread(played),
            "interval": [low, high],
            "normalized": float(normalized_return(played.mean(), args.env, args.mode)),
        }

    card = {
        "game": args.env,
        "mode": args.mode,
        "seed": args.seed,
        "steps": agent.num_timesteps,
        "ppo": asdict(args.ppo),
        "command": shlex.join(["python", *sys.argv]),
        "episodes": args.card_episodes,
        "train_levels": returns(TRAIN_LEVELS, "training"),
        "test_levels": returns(TEST_LEVELS, "unseen"),
    }
    save_actor(args.out / "policy.safetensors", actor, card)
    files.write_json(args.out / "card.json", card)


if __name__ == "__main__":
    command_line.run(lambda: tyro.extras.overridable_config_cli(PRESETS), main)
