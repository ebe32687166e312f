"""The options of the population sweep."""

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from configs.workers import EVERY_RUN, WorkerArgs, WorkerOptions
from envs.procgen import check_game
from evo_subnets.mutation import check_density


@dataclass(frozen=True)
class SweepArgs:
    """Evaluates populations over a grid of sigma, density and population size on one parent, each
    as a run of one TensorBoard group. Training levels only: nothing here is a test result.
    """

    env: str = "bigfish"
    """Procgen game."""
    parent: str = "auto"
    """'auto' (parents/ENV), or the path of a policy.safetensors or stable-baselines3 zip."""
    sigmas: tuple[float, ...] = (0.003, 0.01, 0.03)
    """Standard deviations of the noise, in the weights' unit."""
    densities: tuple[float, ...] = (0.2, 0.5)
    """Fractions of the weights that are perturbed."""
    population_sizes: tuple[int, ...] = (16,)
    """Children; smaller populations are the first children of larger ones."""
    ensemble_size: int = 8
    """Children that are kept (fewer where a population is smaller)."""
    validation_episodes: int = 32
    """Episodes on training levels that a child's fitness is the mean return of."""
    mode: Literal["easy", "hard"] = "easy"
    """Procgen's distribution mode."""
    seed: int = 0
    """Seed of levels, mutations and actions."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run."""
    out: Path = Path("runs/population_sweep")
    """Folder of the group: `tensorboard --logdir OUT`. A sweep that was stopped goes on there."""
    overwrite: bool = False
    """Start afresh in a folder that holds another sweep."""
    workers: WorkerOptions = WorkerArgs()

    def __post_init__(self) -> None:
        check_game(self.env)
        for density in self.densities:
            check_density(density)
        for size in self.population_sizes:
            if size < 4 or size % 4:
                raise ValueError(f"population sizes must be multiples of 4, got {size}")
        for sigma in self.sigmas:
            if not 0 < sigma < float("inf"):
                raise ValueError(f"sigmas must be positive, got {sigma}")
        if self.validation_episodes < 1 or self.ensemble_size < 1:
            raise ValueError("validation_episodes and ensemble_size must be at least 1")
        if not (self.sigmas and self.densities and self.population_sizes):
            raise ValueError("a sweep needs sigmas, densities and population sizes")

    @property
    def asked(self) -> dict[str, Any]:
        """What the results depend on."""
        return {key: value for key, value in asdict(self).items() if key not in EVERY_RUN}

    @property
    def grid(self) -> list[tuple[float, float]]:
        """The pairs of sigma and density."""
        return list(product(self.sigmas, self.densities))
