"""What all workers do, and the plain ones: this process."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


def no_result(item: Any) -> Any:
    """Raises a ChildProcessError that says that the item killed its workers."""
    raise ChildProcessError(f"every worker died that took {item!r:.100}")


class Workers(Protocol):
    """Where work is done; the results are the same wherever that is."""

    def map(
        self,
        work: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        lost: Callable[[Any], Any] = no_result,
    ) -> Iterator[tuple[int, Any]]:
        """(index, result) of each item as they come, in any order.

        What the work raises, this raises. `lost`: an item to its result where every worker that
        took it died.
        """
        ...


@dataclass(frozen=True)
class Here:
    """One item after the other in this process, which has no worker to lose."""

    def map(
        self,
        work: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        lost: Callable[[Any], Any] = no_result,
    ) -> Iterator[tuple[int, Any]]:
        """See `Workers`."""
        return enumerate(map(work, items))
