"""Trains a Procgen parent with PPO, and goes on where an earlier run was stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from agents.ppo import PPOSettings, train
from configs.ppo import CPU, PAPER
from envs.procgen import check_game


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
    """Folder for checkpoints, curve.csv and TensorBoard logs; a run found there goes on."""
    mode: Literal["easy", "hard"] = "easy"
    """Procgen's distribution mode."""
    checkpoint_every: int = 50_000
    """Environment steps between two checkpoints."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    seed: int = 0
    """Seed of levels, initial weights and minibatches."""

    def __post_init__(self) -> None:
        check_game(self.env)


PRESETS = {
    "cpu": ("16-32-32 for 1 M steps, hours on two CPU cores", Args(CPU, 1_000_000)),
    "paper": ("32-64-128 for 10 M steps, as in table 4.2", Args(PAPER, 10_000_000)),
}


def main() -> None:
    args = tyro.extras.overridable_config_cli(PRESETS)
    train(
        args.env,
        args.ppo,
        args.total_timesteps,
        args.out,
        mode=args.mode,
        seed=args.seed,
        device=args.device,
        checkpoint_every=args.checkpoint_every,
    )


if __name__ == "__main__":
    main()
