"""One run at a time writes to a folder."""

import contextlib
import errno
import json
import os
import platform
import sys
import threading
import warnings
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any

NAME = "lock"
TAKEN = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What systems say of a lock that another process has."""
FAR = 2**30
"""Where Windows locks a byte: what it locks, others cannot read, and they are to read who it is."""

_held: dict[str, int] = {}
"""Locked files and their descriptors, of this process.

Over network file systems a lock is one of the process, not of the descriptor: a second one is
granted, and lost with the first descriptor that closes. So this is asked before the system is.
"""
_guard = threading.RLock()  # the garbage collector may release a lock while another is taken


class Lock:
    """A folder that is this object's, until `release`, or until object or process are gone.

    `lock`, a file in the folder, says which process has it; it is the system's lock on that file
    that counts, which a killed process cannot leave behind. A ValueError says who has the folder.
    A forked process does not have what its parent has.
    """

    def __init__(self, folder: Path) -> None:
        path = os.path.realpath(folder / NAME)
        with _guard:
            if path in _held:
                raise ValueError(_refusal(folder, path))
            descriptor = _opened(folder, path)
            _held[path] = descriptor
        self._end = weakref.finalize(self, _release, path, descriptor, os.getpid())
        about = {"process": os.getpid(), "host": platform.node(), "since": now()}
        try:
            os.truncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(about).encode())
        except OSError as error:
            error.filename = path  # a full disk does not say where
            self.release()
            raise

    def release(self) -> None:
        """Lets others have the folder; no file remains."""
        self._end()


def now() -> str:
    """Date and time, with the zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _opened(folder: Path, path: str) -> int:
    """The descriptor of the file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _locked(descriptor, folder):
                raise ValueError(_refusal(folder, path))
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder has just removed it


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _locked(descriptor: int, folder: Path) -> bool:
    """Whether the system gave us the lock; where it has none, a warning says so."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ImportError) as error:
        if isinstance(error, OSError) and error.errno in TAKEN:
            return False
        warnings.warn(
            f"{folder} cannot be locked here ({error}): take care that no other run writes to it",
            RuntimeWarning,
            stacklevel=5,
        )
    return True


def _refusal(folder: Path, path: str) -> str:
    try:
        about: dict[str, Any] = json.loads(Path(path).read_bytes())
        process, host, since = about["process"], about["host"], about["since"]
    except (OSError, ValueError, KeyError, TypeError):  # it is just being written
        return f"{folder} is in use by another process: wait for its end, or use another --out"
    if (process, host) == (os.getpid(), platform.node()):
        return (
            f"{folder} is in use by process {process}, this one, since {since}: close that Run "
            "first (run.close(), or a with statement), or use another folder"
        )
    where = "" if host == platform.node() else f" on {host}"
    return (
        f"{folder} is in use by process {process}{where} since {since}: wait for its end, stop it, "
        "or use another --out"
    )


def _release(path: str, descriptor: int, process: int) -> None:
    if os.getpid() != process:
        return  # a forked one: what it closes or removes now would be another's
    with _guard:
        _held.pop(path, None)
        if sys.platform == "win32":  # which removes no open file
            os.close(descriptor)
        with contextlib.suppress(OSError):  # gone with its folder, or opened by the next already
            os.unlink(path)
        if sys.platform != "win32":
            os.close(descriptor)


def _forget() -> None:
    """In a forked process: a lock lasts as long as any process has the descriptor open."""
    global _guard
    _guard = threading.RLock()
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
