"""Where a result comes from: commit, versions, hardware, dates, command."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from evo_subnets.runs.lock import now

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout, if this is one."""
OTHERS = {
    "stable_baselines3": ("stable-baselines3",),
    "procgen": ("procgen-mirror", "procgen"),
    "torchvision": ("torchvision",),
    "evotorch": ("evotorch",),
    "ray": ("ray",),
}
"""Modules whose versions matter where they are loaded, and the distributions they come in."""
GIT_SECONDS = 10


def session() -> dict[str, Any]:
    """The beginning of a run, or of one that goes on: when, and of which commit.

    `dirty`: whether the code differs from the commit. Both are None outside of a checkout.
    """
    return {"started": now(), **commit()}


def provenance(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What results.json says of a run that ends now; `sessions` as `session` gave them."""
    first, *later = sessions
    last = sessions[-1]
    return {
        "commit": last["commit"],
        "dirty": last["dirty"],
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "started": first["started"],
        "finished": now(),
        "resumed": [dict(one) for one in later],
        "versions": versions(),
        "hardware": hardware(),
    }


def commit(folder: Path = ROOT) -> dict[str, Any]:
    """The commit of the checkout at `folder`, and whether files of it were changed or added."""
    # not of a checkout that the library is merely installed in
    top = _git(folder, "rev-parse", "--show-toplevel")
    head = _git(folder, "rev-parse", "HEAD")
    if not top or not head or Path(top).resolve() != folder.resolve():
        return {"commit": None, "dirty": None}
    status = _git(folder, "status", "--porcelain", "--untracked-files=all")
    changed = None
    if status is not None:
        lines = status.splitlines()
        changed = any(not line.startswith("??") or line.endswith(".py") for line in lines)
    return {"commit": head, "dirty": changed}


def _git(folder: Path, *arguments: str) -> str | None:
    own = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, text=True, timeout=GIT_SECONDS, env=own, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError, UnicodeError):
        return None  # no git, no checkout, or one that git does not trust
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Of what computes, and of those of `OTHERS` that are loaded."""
    found = {"python": platform.python_version()}
    for name in ("torch", "numpy", "evo_subnets"):
        found[name] = str(sys.modules[name].__version__)
    for module, distributions in OTHERS.items():
        if module in sys.modules:
            found[module] = _version(distributions)
    return found


def _version(distributions: Sequence[str]) -> str:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, torch's threads, and the GPU if one is used."""
    usable = getattr(os, "sched_getaffinity", None)
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "processor": _processor() or platform.processor() or platform.machine(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if used else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
