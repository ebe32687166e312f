"""Environments: the sixteen Procgen games, for gymnasium and for stable-baselines3."""

import contextlib
import io

with contextlib.redirect_stderr(io.StringIO()):  # both import gym, which prints a notice
    import procgen  # noqa: F401
    import stable_baselines3  # noqa: F401

from envs.adapters import ProcgenVecEnv, ProcgenVectorEnv
from envs.procgen import (
    GAMES,
    TEST_LEVELS,
    TRAIN_LEVELS,
    Game,
    Levels,
    ProcgenSimulator,
    SlotState,
    Transition,
    normalized_return,
)

__all__ = [
    "GAMES",
    "TEST_LEVELS",
    "TRAIN_LEVELS",
    "Game",
    "Levels",
    "ProcgenSimulator",
    "ProcgenVecEnv",
    "ProcgenVectorEnv",
    "SlotState",
    "Transition",
    "normalized_return",
]
