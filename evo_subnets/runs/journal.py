"""What a run was asked and what it has found so far, so that a run that was killed goes on."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evo_subnets import files
from evo_subnets.runs.values import decoded, differences, encoded, plain

PARTS = {
    "asked": dict, "found": dict, "records": dict, "events": dict, "finished": list,
    "sessions": list,
}  # fmt: skip
"""Of the file, with their types."""


class Journal:
    """`journal.json` of an output folder; whole or absent at any moment.

    Where there is one it is read, unless `afresh`. Nothing is written before the first `ask`.
    """

    def __init__(self, folder: Path, *, afresh: bool = False) -> None:
        self.folder, self.path = folder, folder / "journal.json"
        self.asked: dict[str, Any] = {}
        self.found: dict[str, Any] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[str]] = {}
        self.finished: list[str] = []
        self.sessions: list[dict[str, Any]] = []
        self._lock = threading.RLock()
        self.existed = self.path.exists() and not afresh
        if self.existed:
            self._read()

    def check(self, what: str, options: Any) -> None:
        """A ValueError where the earlier run was asked for something else under this name."""
        if what not in self.asked:
            return
        if differ := differences(self.asked[what], options):
            raise ValueError(
                f"{self.folder} holds a run with {', '.join(differ)}: use another --out, or "
                "--overwrite to start afresh"
            )

    def check_first(self, what: str) -> None:
        """A ValueError where the folder holds a run of another kind."""
        if self.asked and what not in self.asked:
            raise ValueError(
                f"{self.folder} holds a run of {next(iter(self.asked))}, this one is of {what}: "
                "use another --out, or --overwrite to start afresh"
            )

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returned, `plain`: it is called where no earlier run has done so."""
        if name not in self.found:
            self.change(self.found, name, value=compute())
        return decoded(self.found[name])

    def record(self, name: str, key: str, value: Any) -> None:
        """Keeps a value at once; one that is kept already stays as it is."""
        with self._lock:
            records = self.records.setdefault(name, {})
            if key not in records:
                self.change(records, key, value=value)

    def forget(self, name: str) -> None:
        """Drops the records of a name, if there are any."""
        with self._lock:
            if self.records.pop(name, None) is not None:
                self.write()

    def change(self, where: dict[str, Any], key: str, *, value: Any) -> None:
        """`where[key] = value`, on disk as well."""
        new = encoded(plain(value))  # before the first change: it may be refused
        with self._lock:
            where[key] = new
            self.write()

    def write(self) -> None:
        """All of it."""
        with self._lock:
            content = {part: getattr(self, part) for part in PARTS}
            files.write_json(self.path, content, indent=None)  # it is written for every child

    def _read(self) -> None:
        advice = f"--overwrite starts afresh in {self.folder}"
        try:
            content: Mapping[str, Any] = files.read_json(self.path)
        except files.StorageError as error:
            raise files.StorageError(f"{error}; {advice}") from None
        if set(content) == {"asked", "found"}:
            raise files.StorageError(
                f"{self.path} is of an earlier version of this library, which did not keep the "
                f"types of options: finish that run there, or use another --out; {advice}"
            )
        for part, kind in PARTS.items():
            if not isinstance(content.get(part), kind):
                raise files.StorageError(f"{self.path}: not a whole journal; {advice}")
            setattr(self, part, content[part])
