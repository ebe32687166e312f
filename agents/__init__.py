"""Agents: the Impala network, PPO, and ensembles that act like one stable-baselines3 agent."""

import contextlib
import io

with contextlib.redirect_stderr(io.StringIO()):  # it imports gym, which prints a notice
    import stable_baselines3  # noqa: F401
