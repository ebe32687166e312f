"""PPO and the Impala network, faster: the same numbers without it."""
