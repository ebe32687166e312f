"""Where children are evaluated and tuned: options that change no result."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from evo_subnets.workers import Here, Ray, Workers


@dataclass(frozen=True)
class WorkerArgs:
    """The processes that share the children of a population, or the members of an ensemble."""

    workers: int = 0
    """Processes that work on children at the same time, through Ray; 0: this one alone."""
    gpus_per_worker: float | None = None
    """Share of a GPU that each of them gets."""
    ray_address: str | None = None
    """A running Ray cluster (HOST:PORT, or 'auto'); None: processes on this machine."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"--workers must not be negative, got {self.workers}")
        if self.workers:
            self.chosen  # noqa: B018  # what Ray refuses, before anything is computed
        elif self.gpus_per_worker is not None or self.ray_address is not None:
            raise ValueError("--gpus-per-worker and --ray-address need --workers")

    @property
    def chosen(self) -> Workers:
        """As the library takes them."""
        if not self.workers:
            return Here()
        return Ray(self.workers, self.gpus_per_worker, self.ray_address)


WorkerOptions = Annotated[WorkerArgs, tyro.conf.arg(name="")]
"""As a field of a script's options: `--workers`, not `--workers.workers`."""
EVERY_RUN = ("workers", "out", "overwrite")
"""Options that may differ between the parts of a run that was stopped."""
