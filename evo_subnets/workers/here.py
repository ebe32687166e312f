"""What all workers do, and the plain ones: this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol


def no_result(item: Any) -> Any:
    """Raises a ChildProcessError that says that the item killed its workers."""
    raise ChildProcessError(f"every worker died that took {item!r:.100}")


Mapper = Callable[[Sequence[Any]], Iterator[tuple[int, Any]]]
"""Items to the (index, result) of each as they come, in any order."""


class Workers(Protocol):
    """Where work is done; the results are the same wherever that is."""

    def kept(
        self,
        work: Callable[[Any], Any],
        *,
        most: int,
        lost: Callable[[Any], Any] = no_result,
    ) -> AbstractContextManager[Mapper]:
        """What does one kind of work, for item after item, until the block ends.

        What the work raises, this raises. `most`: so many items come at once. `lost`: an item to
        its result where every worker that took it died.
        """
        ...

    def map(
        self,
        work: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        lost: Callable[[Any], Any] = no_result,
    ) -> Iterator[tuple[int, Any]]:
        """The same for all items at once: (index, result) of each as they come, in any order."""
        ...


@dataclass(frozen=True)
class Here:
    """One item after the other in this process, which has no worker to lose."""

    def kept(
        self,
        work: Callable[[Any], Any],
        *,
        most: int,
        lost: Callable[[Any], Any] = no_result,
    ) -> AbstractContextManager[Mapper]:
        """See `Workers`."""
        return nullcontext(partial(self.map, work, lost=lost))

    def map(
        self,
        work: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        lost: Callable[[Any], Any] = no_result,
    ) -> Iterator[tuple[int, Any]]:
        """See `Workers`."""
        return enumerate(map(work, items))
