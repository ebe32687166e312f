"""The options of the population sweep."""

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from agents.parents import parent_file
from configs.moving import MovingArgs, MovingOptions
from configs.options import SAMPLERS
from configs.workers import EVERY_RUN, WorkerArgs, WorkerOptions
from envs.games import check_game
from evo_subnets.options import check_distinct
from evo_subnets.search import Search
from evo_subnets.streams import check_seed


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
    sampler: Literal["quads", "singles"] = "quads"
    """'quads': children in fours that share a draw. 'singles': children that share nothing."""
    ensemble_size: int | None = None
    """Children that are kept (all where a population is smaller). None: 8."""
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
    evolution: MovingOptions = MovingArgs()
    workers: WorkerOptions = WorkerArgs()

    def __post_init__(self) -> None:
        check_game(self.env)
        for name in ("sigmas", "densities", "population_sizes"):
            if not getattr(self, name):
                raise ValueError(f"a sweep needs {name}")
            check_distinct(name, getattr(self, name))
        if self.validation_episodes < 1:
            raise ValueError(
                f"validation_episodes must be at least 1, got {self.validation_episodes}"
            )
        object.__setattr__(self, "seed", check_seed(self.seed, bits=31))
        for sigma, density in self.grid:
            for size in self.population_sizes:
                self.search(sigma, density, population_size=size)
        if self.ensemble_size is not None and self.ensemble_size > max(self.population_sizes):
            raise ValueError(
                f"ensemble_size {self.ensemble_size} exceeds every population of "
                f"{', '.join(map(str, self.population_sizes))}"
            )
        _ = self.parent_file

    @property
    def parent_file(self) -> Path:
        """Where the parent lies; a ValueError where it would have to be trained."""
        file = parent_file(self.parent, self.env, mode=self.mode)
        if file is None:
            raise ValueError(
                f"a sweep needs a parent, and there is none of {self.env} ({self.mode}) to take: "
                "train one with scripts/train_parent.py, and give its policy.safetensors as "
                "--parent"
            )
        return file

    @property
    def grid(self) -> list[tuple[float, float]]:
        """The pairs of sigma and density."""
        return list(product(self.sigmas, self.densities))

    def search(self, sigma: float, density: float, *, population_size: int) -> Search:
        """One population of the sweep."""
        kept = min(8 if self.ensemble_size is None else self.ensemble_size, population_size)
        sampler = SAMPLERS[self.sampler]
        return Search(population_size, kept, sigma, density, self.seed, sampler)

    @property
    def asked(self) -> dict[str, Any]:
        """What the results depend on."""
        return {key: value for key, value in asdict(self).items() if key not in EVERY_RUN}
