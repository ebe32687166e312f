"""Agents of stable-baselines3 as parents, and ensembles that act like one agent (extra `rl`)."""

import contextlib
import io

try:
    with contextlib.redirect_stderr(io.StringIO()):  # it may import gym, which prints a notice
        import stable_baselines3  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"evo_subnets.rl needs {error.name}: pip install 'evo-subnets[rl]'", name=error.name
    ) from None

from evo_subnets.rl.actor import Actor
from evo_subnets.rl.fitness import MeanReturn, episode_returns, mean_return, observations
from evo_subnets.rl.policy import EnsemblePolicy

__all__ = [
    "Actor",
    "EnsemblePolicy",
    "MeanReturn",
    "episode_returns",
    "mean_return",
    "observations",
]
