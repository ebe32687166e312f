"""The options of a parent's training, and presets: the paper's settings, train-procgen's, and what
two CPU cores can do in hours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agents.impala import COBBE_WIDTHS
from agents.ppo import PPOSettings
from envs.games import check_game
from evo_subnets.streams import check_seed

PAPER = PPOSettings()
"""Whitaker 2023, table 4.2."""

REFERENCE = PPOSettings(
    target_kl=None, widths=COBBE_WIDTHS, frame_stack=1, normalizer_gamma=0.99, adam="tensorflow"
)
"""train-procgen's: the published runs of `docs/ppo.md`."""

CPU = PPOSettings(rollout_steps=64, target_kl=0.02, widths=COBBE_WIDTHS)
"""A fifth of the paper's network, and an update every 4,096 steps instead of every 16,384: a short
run has too few of the latter."""


@dataclass(frozen=True)
class ParentArgs:
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
    warm_start: Path | None = None
    """A milestone (parents/ENV/milestone.safetensors) to begin at; None: at the start."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs."""
    seed: int = 0
    """Seed of levels, initial weights and minibatches."""

    def __post_init__(self) -> None:
        check_game(self.env)
        for name in ("total_timesteps", "checkpoint_every", "card_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.warm_start is not None and not self.warm_start.is_file():
            raise ValueError(f"{self.warm_start}: there is no such file; --warm-start names one")
        object.__setattr__(self, "seed", check_seed(self.seed, bits=31))

    @property
    def training(self) -> dict[str, Any]:
        """As `train_parent` takes it."""
        return {
            "total_timesteps": self.total_timesteps,
            "checkpoint_every": self.checkpoint_every,
            "mode": self.mode,
            "seed": self.seed,
            "warm_start": self.warm_start,
        }


PRESETS = {
    "cpu": ("16-32-32 for 1 M steps, hours on two CPU cores", ParentArgs(CPU, 1_000_000)),
    "reference": ("16-32-32 for 5 M steps, as published", ParentArgs(REFERENCE, 5_000_000)),
    "paper": ("32-64-128 for 10 M steps, as in table 4.2", ParentArgs(PAPER, 10_000_000)),
}
