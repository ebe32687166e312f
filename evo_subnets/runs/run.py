"""One run's story: what it was asked, has found, shows, and leaves behind."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evo_subnets import files
from evo_subnets.runs.journal import Journal
from evo_subnets.runs.lock import Lock
from evo_subnets.runs.provenance import provenance, session
from evo_subnets.runs.tracking import EVENTS, Advance, Tracker, bar
from evo_subnets.runs.values import decoded, encoded, plain

RESULTS, TRAINING = "results.json", "training"


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
        removed = [_inside(path, name) for name in (RESULTS, TRAINING, *outputs)]
        self._kept: _Kept | None = _Kept(path, removed if overwrite else None, needed)
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
            _inside(self._kept.folder, name)
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
            self._kept.ask(self._part + what, encoded(named), self._part)

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

    def checkpoint(self, name: str) -> Path | None:
        """Where a training keeps its state until `finish`; None where nothing is kept."""
        if self._kept is None:
            return None
        return _inside(self._kept.folder / TRAINING, f"{self._part}{name}.safetensors")

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


class _Kept:
    """What a run and its parts share: the folder, open from the first `ask` on."""

    def __init__(
        self, folder: Path, removed: Sequence[Path] | None, needed: str | Path | None
    ) -> None:
        self.folder, self.removed, self.needed = folder, removed, needed
        self.journal: Journal | None = None
        self.lock: Lock | None = None
        self.process = 0
        self.session: dict[str, Any] = {}
        self.trackers: dict[str, Tracker] = {}
        self.told: dict[str, list[str]] = {}
        """Files of events that this run has written, by part."""

    @property
    def elsewhere(self) -> bool:
        """Whether this is a process forked from the one that asked."""
        return self.process not in (0, os.getpid())

    def own_journal(self) -> Journal | None:
        """None in a forked process. A ValueError where nothing was asked."""
        if self.elsewhere:
            return None
        if self.journal is None:
            raise ValueError(f"run.ask(what, options) comes first, it opens {self.folder}")
        return self.journal

    def ask(self, what: str, options: dict[str, Any], part: str) -> None:
        if self.elsewhere:
            return
        if self.journal is None:
            self._open(what, options)
        journal = self.own_journal()
        assert journal is not None
        journal.check(what, options)
        if what not in journal.asked:
            journal.asked[what] = options
            if part in journal.finished:  # it was asked less
                journal.finished.remove(part)
                files.remove(self.folder / part / RESULTS)
            journal.write()

    def _open(self, what: str, options: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.folder)
        try:
            journal = Journal(self.folder, afresh=self.removed is not None)
            journal.check_first(what)
            journal.check(what, options)
            if self.removed is not None:
                self._remove(self.removed)
            elif not journal.existed and (self.folder / RESULTS).exists():
                raise ValueError(
                    f"{self.folder} holds {RESULTS} and no journal.json: use another --out, or "
                    "--overwrite to remove it"
                )
            files.remove_leftovers(self.folder)
            files.remove_leftovers(self.folder / TRAINING)
            self.session = session()
            if "" in journal.finished:
                files.remove(self.folder / TRAINING)  # killed in between
            else:
                if journal.existed:
                    files.remove(self.folder / RESULTS)  # until this run is whole there are none
                journal.asked.setdefault(what, options)
                journal.sessions.append(self.session)
                journal.write()
        except BaseException:
            lock.release()
            raise
        self.removed = None  # not again, after a close
        self.journal, self.lock, self.process = journal, lock, os.getpid()

    def _remove(self, paths: Sequence[Path]) -> None:
        """Removes what an earlier run has left; its journal stays until the new one is written."""
        of_parts: list[Path] = []
        with contextlib.suppress(files.StorageError):  # damaged: then the parts are not known
            old = Journal(self.folder)
            of_parts += [self.folder / part / RESULTS for part in old.finished]
            for part, names in old.events.items():
                of_parts += [self.folder / part / name for name in names]
        needed = None if self.needed is None else Path(self.needed).resolve()
        kept = [] if needed is None else [needed, *needed.parents]
        for path in [*paths, *self.folder.glob(EVENTS), *of_parts]:
            if path.resolve() not in kept:
                files.remove(path)

    def tracker(self, part: str) -> Tracker:
        """The events of a part."""
        if part not in self.trackers:
            journal = self.journal
            assert journal is not None
            old = [] if part in self.told else journal.events.get(part, [])

            def on_file(name: str) -> None:
                self.told[part] = [*self.told.get(part, []), name]
                journal.change(journal.events, part, self.told[part])

            self.trackers[part] = Tracker(self.folder / part, old, on_file)
        return self.trackers[part]

    def finish(self, part: str, results: Mapping[str, Any]) -> None:
        journal = self.journal
        assert journal is not None
        if all(one is not self.session for one in journal.sessions):
            journal.sessions.append(self.session)
        about = provenance(journal.sessions)
        files.remove_leftovers(self.folder / part)
        files.write_json(self.folder / part / RESULTS, {**results, "provenance": about})
        if part not in journal.finished:
            journal.finished.append(part)
        journal.write()
        files.remove(self.folder / TRAINING / part)

    def close(self, part: str) -> None:
        if self.elsewhere:
            return
        for name in [name for name in self.trackers if name.startswith(part)]:
            self.trackers.pop(name).close()
        if part == "" and self.lock is not None:
            self.journal, self.told = None, {}
            self.lock.release()
            self.lock = None


def _inside(folder: Path, name: str) -> Path:
    """folder / name; a ValueError where that is not inside of the folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"expected a name of something in {folder}, got {name!r}")
    return folder / path
