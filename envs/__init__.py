"""Environments: the sixteen Procgen games, for gymnasium and for stable-baselines3."""

from envs.procgen import (
    GAMES,
    TEST_LEVELS,
    TRAIN_LEVELS,
    Game,
    Levels,
    ProcgenSimulator,
    ProcgenVecEnv,
    ProcgenVectorEnv,
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
