"""PPO presets: the paper's settings, train-procgen's, and what two CPU cores can do in hours."""

from agents.impala import COBBE_WIDTHS
from agents.ppo import PPOSettings

PAPER = PPOSettings()
"""Whitaker 2023, table 4.2."""

REFERENCE = PPOSettings(target_kl=None, widths=COBBE_WIDTHS, frame_stack=1, normalizer_gamma=0.99)
"""train-procgen's: the published runs of `docs/ppo.md`."""

CPU = PPOSettings(rollout_steps=64, target_kl=0.02, widths=COBBE_WIDTHS)
"""A fifth of the paper's network, and an update every 4,096 steps instead of every 16,384: a short
run has too few of the latter."""
