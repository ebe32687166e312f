"""One run's story: what it was asked, has found, shows, and leaves behind."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evo_subnets import files
from evo_subnets.runs.journal import Journal
from evo_subnets.runs.kept import RESULTS, TRAINING, Kept, inside
from evo_subnets.runs.pictures import Panels, curves
from evo_subnets.runs.tracking import Advance, Tracker, bar
from evo_subnets.runs.values import decoded, encoded, plain


class Run:
    """A folder in which a run that was killed goes on when the same is asked again.

        with Run("runs/mine") as run:
            run.ask("search", {"sigma": 0.1, "seed": 0})
            best = run.once("best", compute)  # computed by the first run that gets here
            run.finish({"best": best})

    Nothing on disk is touched before the first `ask`, which locks the folder until `close`, the end
    of the `with` block, or the end of the object or the process. `overwrite` starts afresh: that
    `ask` removes results.json, events, training/ and the `outputs`, files and folders by name, that
    an earlier run has left, except what `needed` is in.

    Pickled, copied or forked, a run keeps and shows nothing, as `Run.none()`: only the process that
    asked writes to the folder. A ValueError refuses '' and '.'.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        outputs: Sequence[str] = (),
        needed: str | Path | None = None,
    ) -> None:
        path = Path(folder)
        if path == Path():
            raise ValueError(
                f"a run needs a folder of its own, got {str(folder)!r}, the current one: name one"
            )
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file: expected a folder, or a name that is free")
        removed = [inside(path, name) for name in (RESULTS, TRAINING, *outputs)]
        self._kept: Kept | None = Kept(path, removed if overwrite else None, needed=needed)
        self._part = ""

    @classmethod
    def none(cls) -> "Run":
        """A run that keeps and shows nothing."""
        run = cls.__new__(cls)
        run._kept, run._part = None, ""
        return run

    def part(self, name: str) -> "Run":
        """A run in FOLDER/NAME, with results and events of its own, and in the same journal."""
        part = Run.none()
        if self._kept is not None:
            inside(self._kept.folder, name)
            part._kept, part._part = self._kept, f"{self._part}{name}/"
        return part

    @property
    def folder(self) -> Path | None:
        """Where it writes; None where nothing is kept."""
        return None if self._kept is None else self._kept.folder / self._part

    def ask(self, what: str, options: Mapping[str, Any]) -> None:
        """Makes sure that an earlier run of this folder was asked the same: it then goes on.

        `options` are those that the results depend on. A ValueError names each that differs, or
        says who writes to the folder now; values that a journal cannot keep are refused as well.
        """
        try:
            named: dict[str, Any] = {key: plain(value) for key, value in options.items()}
        except ValueError as error:
            raise ValueError(f"an option of {what}: {error}") from None
        if self._kept is not None:
            self._kept.ask(self._part + what, encoded(named), part=self._part)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returned as JSON (see `plain`): called where no earlier run has."""
        journal = self._journal
        if journal is None:
            return plain(compute())
        return journal.once(self._part + name, compute)

    def records(self, name: str) -> dict[str, Any]:
        """All that `record` was given under this name, in that order."""
        journal = self._journal
        kept = {} if journal is None else journal.records.get(self._part + name, {})
        return {key: decoded(value) for key, value in kept.items()}

    def record(self, name: str, key: str, value: Any) -> None:
        """Keeps a value at once; one that is kept already stays as it is."""
        if (journal := self._journal) is not None:
            journal.record(self._part + name, key, value)

    def forget(self, name: str) -> None:
        """Drops what was recorded under a name: a journal is written whole for every record."""
        if (journal := self._journal) is not None:
            journal.forget(self._part + name)

    def checkpoint(self, name: str) -> Path | None:
        """Where a training keeps its state until `finish`; None where nothing is kept."""
        if self._kept is None:
            return None
        return inside(self._kept.folder / TRAINING, f"{self._part}{name}.safetensors")

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """A progress bar on standard error; `advance(steps, note)` moves it."""
        if self._kept is None or self._kept.elsewhere:
            yield Advance()
        else:
            with bar(description, total) as advance:
                yield advance

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point of a curve."""
        if tracker := self._tracker:
            tracker.scalar(tag, value, step)

    def histogram(self, tag: str, values: Sequence[float], step: int = 0) -> None:
        """A distribution; left out when it is empty."""
        if tracker := self._tracker:
            tracker.histogram(tag, values, step)

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """A text, rendered as Markdown."""
        if tracker := self._tracker:
            tracker.text(tag, markdown, step)

    def curves(
        self, tag: str, panels: Panels, *, over: str, band: tuple[str, str] | None = None
    ) -> None:
        """A picture of curves, see `pictures.curves`; left out where matplotlib is missing."""
        if (tracker := self._tracker) and (figure := curves(panels, over=over, band=band)):
            tracker.picture(tag, figure)

    def hyper_parameters(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """A row of TensorBoard's HPARAMS page, which compares the runs of a group."""
        if tracker := self._tracker:
            tracker.hyper_parameters(values, metrics)

    @property
    def finished(self) -> dict[str, Any] | None:
        """The results of an earlier run that came to its end, None where there was none."""
        journal = self._journal
        if journal is None or self._part not in journal.finished:
            return None
        path = journal.folder / self._part / RESULTS
        return files.read_json(path) if path.exists() else None

    def finish(self, results: Mapping[str, Any]) -> None:
        """Writes results.json, with its `provenance`; the states of its trainings go."""
        if "provenance" in results:
            raise ValueError("the key 'provenance' is a run's own: use another")
        if self._kept is not None and self._journal is not None:
            self._kept.finish(self._part, results)

    def close(self) -> None:
        """Writes the last events and unlocks the folder; a part leaves the folder locked."""
        if self._kept is not None:
            self._kept.close(self._part)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[], "Run"], tuple[()]]:
        return Run.none, ()

    def __repr__(self) -> str:
        return "Run.none()" if self._kept is None else f"Run({str(self.folder)!r})"

    @property
    def _journal(self) -> Journal | None:
        return None if self._kept is None else self._kept.own_journal()

    @property
    def _tracker(self) -> Tracker | None:
        if self._kept is None or self._journal is None:
            return None
        return self._kept.tracker(self._part)
