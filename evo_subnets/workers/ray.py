"""Work in other processes, through EvoTorch on Ray, which are imported when there is work."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from evo_subnets.workers.here import Mapper, no_result


@dataclass(frozen=True)
class Ray:
    """So many processes, of this machine or of a Ray cluster.

    A worker that dies is replaced, and its items are done again; an item that kills its workers is
    `lost`. Work and items travel by cloudpickle: they must hold no open files or environments, and
    take their random numbers from seeds of their own. A ValueError or an OSError says what is
    missing, that no Ray answers or that it is too small.
    """

    workers: int
    """How many; never more than there are items."""
    gpus_per_worker: float | None = None
    """Share of a GPU that each of them gets."""
    address: str | None = None
    """Of a Ray cluster (HOST:PORT, or 'auto'); None: this machine, or what this process has
    connected already."""
    threads: int = 1
    """torch's threads in each of them: their number can move a last digit."""

    def __post_init__(self) -> None:
        if self.workers < 1 or self.threads < 1:
            raise ValueError(
                "workers and threads must be at least 1, "
                f"got {self.workers} and {self.threads}; Here() is this process"
            )
        if self.gpus_per_worker is not None and not 0 < self.gpus_per_worker < float("inf"):
            raise ValueError(f"gpus_per_worker must be more than 0, got {self.gpus_per_worker}")
        missing = [name for name in ("ray", "evotorch") if find_spec(name) is None]
        if missing:
            raise ValueError(
                f"other processes need {' and '.join(missing)}: pip install 'evo-subnets[scale]'"
            )

    @contextmanager
    def kept(
        self,
        work: Callable[[Any], Any],
        *,
        most: int,
        lost: Callable[[Any], Any] = no_result,
    ) -> Iterator[Mapper]:
        """See `Workers`. The processes start with the first item and end with the block."""
        from evo_subnets.workers.crew import Crew  # this alone needs EvoTorch and Ray: seconds

        with Crew(
            work,
            min(self.workers, max(most, 1)),
            gpus_per_worker=self.gpus_per_worker,
            address=self.address,
            threads=self.threads,
            lost=lost,
        ) as crew:
            yield crew.results

    def map(
        self,
        work: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        lost: Callable[[Any], Any] = no_result,
    ) -> Iterator[tuple[int, Any]]:
        """See `Workers`. The processes end with the iterator, `close()` ends it early."""
        with self.kept(work, most=len(items), lost=lost) as mapped:
            yield from mapped(items)
