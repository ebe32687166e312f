"""C sources compiled on first need for this machine, and kept on disk for later processes."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

FAST = [f"-I{Path(__file__).parent}", "-O3", "-fno-math-errno", "-fno-trapping-math"]
"""Flags for what need not have torch's bits, and may include the C files here."""
EXACT = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
"""Flags for what must have them: every operation is rounded by itself."""
NATIVE = {"x86_64": "-march=native", "amd64": "-march=native",
          "arm64": "-mcpu=native", "aarch64": "-mcpu=native"}  # fmt: skip
"""How a machine's compilers are told to use all that the processor has. Not all of them know it."""


@cache
def fast_library(sources: tuple[Path, ...], without: str) -> ctypes.CDLL | None:
    """A `library` with the flags FAST, loaded once."""
    return library(sources, FAST, without=without)


def library(sources: Sequence[Path], flags: Sequence[str], *, without: str) -> ctypes.CDLL | None:
    """The compiled library; None where it cannot be had, with a warning that says `without`.

    Headers are among the sources, so that a change of one makes another library.
    """
    path = library_path(sources, flags)
    try:
        if not path.exists():
            build(sources, flags, path=path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"{without}; a C compiler on the path (or named in CC) mends this "
            f"({reason.strip()[:200]})",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def library_path(sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """Where the library of these sources, this compiler and this processor is kept."""
    known = hashlib.sha256(b"".join(source.read_bytes() for source in sources))
    for part in (*flags, *_native(), _compiler(), platform.platform(), _processor()):
        known.update(part.encode() + b"\0")
    return cache_folder() / f"{sources[0].stem}-{known.hexdigest()[:16]}.so"


def cache_folder() -> Path:
    """Of this user, for what was compiled."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "evo_subnets"


def build(sources: Sequence[Path], flags: Sequence[str], *, path: Path) -> None:
    """Compiles, about a second long, and puts the library where it is kept.

    For this very processor, and where the compiler cannot, for all of its kind.
    """
    try:
        _compile([*flags, *_native()], sources, path)
    except subprocess.CalledProcessError:
        if not _native():
            raise
        _compile(flags, sources, path)


def _compile(flags: Sequence[str], sources: Sequence[Path], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # renamed whole: others may race
        built = Path(folder) / path.name
        command = [*shlex.split(_compiler()), *flags, "-shared", "-fPIC", "-o", str(built)]
        command += [str(source) for source in sources if source.suffix == ".c"]
        command += ["-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        built.replace(path)


def keep(path: Path, content: bytes) -> None:
    """Writes a file of the cache, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / path.name
        written.write_bytes(content)
        written.replace(path)


def _native() -> list[str]:
    flag = NATIVE.get(platform.machine().lower())
    return [flag] if flag else []


def _compiler() -> str:
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or "cc"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
