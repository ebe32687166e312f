"""Files that are whole or absent, whatever they hold."""

import os
import re
import secrets
import shutil
from pathlib import Path

VERSION = "1"
"""Of all formats."""
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
"""Names of files that are not whole yet."""


class StorageError(ValueError):
    """A file that is missing, damaged, or not what was asked for."""


def write_atomically(path: str | Path, data: bytes) -> None:
    """Writes a file so that a crash at any moment leaves the old one or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say where
        raise


def remove(path: str | Path) -> None:
    """Removes a file or a folder, if there is one."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Removes what a process that was killed within `write_atomically` has left in a folder.

    Only where no other process writes there.
    """
    for path in Path(folder).glob(".*"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
