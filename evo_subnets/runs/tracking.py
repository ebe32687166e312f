"""What a run shows and leaves behind: progress bars, TensorBoard, tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on standard error; `advance(steps, note)` moves it."""
    from tqdm.auto import tqdm

    with tqdm(desc=description, total=total) as shown:

        def advance(steps: int, note: str) -> None:
            shown.set_postfix_str(note, refresh=False)
            shown.update(steps)

        yield advance


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in aligned columns, the first to the left and the others to the right."""
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [headings, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)


class Tracker:
    """TensorBoard events in a folder; use it in a `with` statement.

    They take the place of those that an earlier run has left in the folder: a run that goes on
    where it was stopped tells its story from the beginning.
    """

    def __init__(self, folder: str | Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for old in Path(folder).glob("events.out.tfevents.*"):
            old.unlink()
        self._writer: Any = SummaryWriter(str(folder))

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point of a curve."""
        self._writer.add_scalar(tag, value, step)

    def histogram(self, tag: str, values: Sequence[float], step: int = 0) -> None:
        """A distribution; left out when it is empty."""
        if len(values):
            import numpy as np

            self._writer.add_histogram(tag, np.asarray(values, dtype=np.float64), step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """A text, rendered as Markdown."""
        self._writer.add_text(tag, markdown, step)

    def hyper_parameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A row of TensorBoard's HPARAMS page, which compares the runs of a group."""
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in values.items()
        }
        self._writer.add_hparams(plain, dict(metrics), run_name=".")

    def close(self) -> None:
        """Writes what is still in memory."""
        self._writer.close()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
