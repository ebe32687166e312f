"""Agents that several files look at."""

from small_agents import actor, cartpole_agent, lively_agent, procgen_agent  # noqa: F401
