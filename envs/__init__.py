"""Environments: the sixteen Procgen games, for gymnasium and for stable-baselines3."""

import contextlib
import io

with contextlib.redirect_stderr(io.StringIO()):  # both import gym, which prints a notice
    import procgen  # noqa: F401
    import stable_baselines3  # noqa: F401

from envs.adapters import ProcgenVecEnv, ProcgenVectorEnv
from envs.games import GAMES, TEST_LEVELS, TRAIN_LEVELS, Game, Levels, normalized_return
from envs.procgen import ProcgenSimulator, Transition
from envs.states import SlotState

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
