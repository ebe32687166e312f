"""Where children are evaluated and tuned: options that change no result."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from evo_subnets.evolution import Mapper, in_turn
from evo_subnets.methods.trained import OnEpoch


@dataclass(frozen=True)
class Workers:
    """The processes that share the children of a population, or the members of an ensemble."""

    actors: int = 0
    """Processes that work on children at the same time, through Ray; 0: this one alone."""
    gpus_per_actor: float | None = None
    """Share of a GPU that each of them gets."""
    ray_address: str | None = None
    """A running Ray cluster (HOST:PORT, or 'auto'); None: actors on this machine."""

    def __post_init__(self) -> None:
        if self.actors < 0:
            raise ValueError(f"actors must not be negative, got {self.actors}")
        if self.actors == 0 and (self.gpus_per_actor is not None or self.ray_address is not None):
            raise ValueError("--gpus-per-actor and --ray-address need --actors")

    @property
    def options(self) -> dict[str, Any]:
        """As `evaluate` takes them."""
        return {
            "actors": self.actors,
            "gpus_per_actor": self.gpus_per_actor,
            "address": self.ray_address,
        }

    def training(
        self, on_epoch: OnEpoch, on_member: Callable[[str], None]
    ) -> tuple[OnEpoch | None, Mapper]:
        """What is told of epochs, and where the members of an ensemble are trained.

        Actors tell of whole members alone, through `on_member`.
        """
        if self.actors == 0:
            return on_epoch, in_turn
        from evo_subnets.workers.evotorch import over_actors  # Ray takes seconds to import

        mapper = over_actors(**self.options)

        def told(work: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
            for index, result in mapper(work, items):
                on_member(f"member {index + 1} of {len(items)}")
                yield index, result

        return None, told


WorkerOptions = Annotated[Workers, tyro.conf.arg(name="")]
"""As a field of a script's options: `--actors`, not `--workers.actors`."""
EVERY_RUN = ("workers", "out", "overwrite")
"""Options that may differ between the parts of a run that was stopped."""
