"""The options of the example with any stable-baselines3 agent."""

from dataclasses import dataclass

from evo_subnets.search import Search
from evo_subnets.streams import check_seed


@dataclass(frozen=True)
class CartPoleArgs:
    """Trains PPO on a gymnasium environment with discrete actions, and mutates it."""

    env: str = "CartPole-v1"
    """Any registered gymnasium environment with discrete actions."""
    total_timesteps: int = 20_000
    """Environment steps of the parent's training."""
    population_size: int = 16
    """Children, a multiple of four."""
    ensemble_size: int = 8
    """Children that are kept. Equal to the population size: all, and validation chooses the best
    child alone."""
    episodes: int = 40
    """Episodes of each validation and of the test."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        for name in ("episodes", "total_timesteps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        object.__setattr__(self, "seed", check_seed(self.seed, bits=31))
        _ = self.search  # refuses what it cannot draw
        check_environment(self.env)

    @property
    def search(self) -> Search:
        """What population is drawn; its sigma is to be found."""
        return Search(self.population_size, self.ensemble_size, seed=self.seed)


def check_environment(name: str) -> None:
    """A ValueError where there is none of this name, or a parent could not act in it."""
    import gymnasium

    from evo_subnets.rl.acting import check_actions

    try:
        env = gymnasium.make(name)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"gymnasium makes no environment {name!r}: {error}") from None
    action_space, shape = env.action_space, env.observation_space.shape
    env.close()
    check_actions(action_space, f"{name} has")
    if shape is None:
        raise ValueError(f"a parent needs observations of one shape, {name} has others")
