"""What a run and its parts share: one folder, one journal, one lock."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evo_subnets import files
from evo_subnets.runs.journal import Journal
from evo_subnets.runs.lock import Lock
from evo_subnets.runs.provenance import provenance, session
from evo_subnets.runs.tracking import EVENTS, Tracker

RESULTS, TRAINING = "results.json", "training"


class Kept:
    """A folder that is open from the first `ask` on.

    `part` is "" for the run itself, "NAME/" for a part of it. `removed`: what an earlier run has
    left and that `ask` is to remove, None where the earlier run goes on.
    """

    def __init__(
        self, folder: Path, removed: Sequence[Path] | None, *, needed: str | Path | None
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

    def ask(self, what: str, options: dict[str, Any], *, part: str) -> None:
        if self.elsewhere:
            return
        if self.journal is None:
            self._open(what, options)
        journal = self.own_journal()
        assert journal is not None
        journal.check(what, options)
        if what not in journal.asked:
            journal.asked[what] = options
            for name in {part, ""} & set(journal.finished):  # it was asked less
                journal.finished.remove(name)
                files.remove(self.folder / name / RESULTS)
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
                journal.change(journal.events, part, value=self.told[part])

            self.trackers[part] = Tracker(self.folder / part, old, on_file=on_file)
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


def inside(folder: Path, name: str) -> Path:
    """folder / name; a ValueError where that is not inside of the folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"expected a name of something in {folder}, got {name!r}")
    return folder / path
