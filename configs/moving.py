"""Generations: options that every script with an evolving parent has."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from evo_subnets.lineage import Adam, Momentum, Plain, best_child, centred_ranks, log_weights
from evo_subnets.options import refuse_idle
from evo_subnets.search import Search
from evo_subnets.walk import Moving

RECOMBINE = {"ranks": centred_ranks, "log": log_weights, "best": best_child}
RULES = {"plain": Plain, "momentum": Momentum, "adam": Adam}


@dataclass(frozen=True)
class StepArgs:
    """How the children of a generation move their parent."""

    recombine: Literal["ranks", "log", "best"] = "ranks"
    """What a generation's step is made of. 'ranks': all children, weighed by their rank (OpenAI's
    evolution strategy). 'log': the better half (CMA-ES's mean). 'best': the best child is the next
    parent."""
    rule: Literal["plain", "momentum", "adam"] = "plain"
    """What is made of that sum over the generations."""
    step_kl: float = 0.06
    """Mean KL divergence of the next parent from the last, in nats."""
    drift_kl: float | None = None
    """Mean KL divergence from the first parent that no step may lead beyond."""
    stop: bool = False
    """End with a generation whose children cannot be told apart."""

    def step(self, noise: float | None = Moving.noise) -> Moving:
        """As the library takes it; `noise`: of the children, None where sigma is given."""
        return Moving(
            RECOMBINE[self.recombine],
            RULES[self.rule](),
            noise=noise,
            step=self.step_kl,
            drift=self.drift_kl,
            stop=self.stop,
        )


@dataclass(frozen=True)
class MovingArgs(StepArgs):
    """How often, and how, the children of a generation move their parent."""

    generations: int = 1
    """Generations; with one, children are selected and the parent stays where it is."""

    def __post_init__(self) -> None:
        if self.generations < 1:
            raise ValueError(f"--generations must be at least 1, got {self.generations}")
        if self.generations == 1:
            idle = ("recombine", "rule", "step_kl", "drift_kl", "stop")
            refuse_idle(self, idle, because="one generation")
        self.step(None)  # refuses what cannot be

    def again(self, asked: int | None, search: Search) -> int:
        """Of how many children `--reevaluate` asks for new episodes, as the library takes it."""
        least, most = search.ensemble_size, search.population_size
        if asked is None:
            return 0 if self.generations == 1 else min(2 * least, most)
        if asked and not least <= asked <= most:
            raise ValueError(
                "--reevaluate must be 0, or from --ensemble-size to --population-size, "
                f"{least} to {most}, got {asked}"
            )
        return asked

    def moving(self, noise: float | None) -> Moving | None:
        """As the library takes it; None where the parent stays where it is."""
        return None if self.generations == 1 else self.step(noise)


MovingOptions = Annotated[MovingArgs, tyro.conf.arg(name="")]
"""As a field of a script's options: `--generations`, not `--evolution.generations`."""
