"""What a run shows while it lasts: progress bars, and TensorBoard's events."""

import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Made = TypeVar("Made")

EVENTS = "events.out.tfevents.*"
MISSING = "is not installed (pip install 'evo-subnets[track]')"


class Advance:
    """Moves a progress bar, where there is one; pickled, it moves none."""

    def __init__(self, shown: Any = None) -> None:
        self._shown = shown

    def __call__(self, steps: int, note: str = "") -> None:
        """So many steps further, with a note at the bar's end."""
        if self._shown is not None:
            self._shown.set_postfix_str(note, refresh=False)
            self._shown.update(steps)

    def __reduce__(self) -> tuple[type["Advance"], tuple[()]]:
        return Advance, ()


@contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """A progress bar on standard error; `advance(steps, note)` moves it."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        warnings.warn(f"no progress bars: tqdm {MISSING}", RuntimeWarning, stacklevel=3)
        yield Advance()
        return
    with tqdm(desc=description, total=total) as shown:
        yield Advance(shown)


class Tracker:
    """TensorBoard's events in a folder; the first of them makes it.

    They take the place of `old`, files of the folder that an earlier run has left: a run that goes
    on tells its story from the beginning. `on_file` gets the name of each file that is made.
    """

    def __init__(self, folder: Path, old: Sequence[str], *, on_file: Callable[[str], None]) -> None:
        self.folder, self.old, self.on_file = folder, old, on_file
        self._writer: Any = None
        self._failed = False
        self._end: Callable[[], object] | None = None

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point of a curve."""
        if writer := self._open():
            writer.add_scalar(tag, value, step)

    def histogram(self, tag: str, values: Sequence[float], step: int) -> None:
        """A distribution; left out when it is empty."""
        if len(values) and (writer := self._open()):
            import numpy as np

            writer.add_histogram(tag, np.asarray(values, dtype=np.float64), step)

    def text(self, tag: str, markdown: str, step: int) -> None:
        """A text, rendered as Markdown."""
        if writer := self._open():
            writer.add_text(tag, markdown, step)

    def picture(self, tag: str, figure: "Figure") -> None:
        """A figure of matplotlib's, as an image."""
        if writer := self._open():
            from matplotlib.backends.backend_agg import FigureCanvasAgg

            FigureCanvasAgg(figure)  # one that was made without a window has none
            writer.add_figure(tag, figure)

    def hyper_parameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A row of TensorBoard's HPARAMS page, which compares the runs of a group."""
        if writer := self._open():
            plain = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
                for name, value in values.items()
            }
            self._noted(lambda: writer.add_hparams(plain, dict(metrics), run_name="."))

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._end is not None:
            self._end()
        self._writer = None

    def _open(self) -> Any:
        if self._writer is None and not self._failed:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                self._failed = True
                warnings.warn(f"no events: tensorboard {MISSING}", RuntimeWarning, stacklevel=4)
                return None
            for name in self.old:
                (self.folder / name).unlink(missing_ok=True)
            self.old = ()
            self._writer = self._noted(lambda: self._last(SummaryWriter))
            self._end = weakref.finalize(self, _close, self._writer, os.getpid())
        return self._writer

    def _last(self, writer: Callable[[str], Any]) -> Any:
        """A writer whose file is the last by name, the order in which TensorBoard reads files.

        A name has the second and then the file's number as text, in which 10 comes before 9.
        """
        before = set(self.folder.glob(EVENTS))
        made = writer(str(self.folder))
        (path,) = set(self.folder.glob(EVENTS)) - before
        second = path.name.removeprefix(EVENTS[:-1]).split(".")[0]
        if any(path.name < other.name for other in before if f".{second}." in other.name):
            made.close()
            path.unlink()
            time.sleep(1.0 - time.time() % 1.0)
            made = writer(str(self.folder))
        return made

    def _noted(self, make: Callable[[], Made]) -> Made:
        before = set(self.folder.glob(EVENTS))
        made = make()
        for path in sorted(set(self.folder.glob(EVENTS)) - before):
            self.on_file(path.name)
        return made


def _close(writer: Any, process: int) -> None:
    if os.getpid() == process:  # in a forked one the thread that writes is missing
        writer.close()
