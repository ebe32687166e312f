"""Procgen agents: the Impala network, PPO, where parents come from, and their evaluation."""

import evo_subnets.rl  # noqa: F401  # silences the notice of gym, which stable-baselines3 imports
