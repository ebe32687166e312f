"""Sides of a comparison timed in alternation, and where the outcome is kept."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Literal

import torch

from evo_subnets.files import write_atomically
from evo_subnets.runs.report import table

RESULTS = Path(__file__).parent / "results"

Device = Literal["cpu", "cuda"]

Seconds = dict[str, list[float]]
"""By side, of each round."""


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True) -> Seconds:
    """Every side once in every round, so that a slow moment of the machine meets all of them.

    `warm` runs each side once before, untimed. A GPU's work counts until it is done.
    """
    if warm:
        for job in sides.values():
            job()
    wait_for_gpu()
    seconds: Seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, job in sides.items():
            start = time.perf_counter()
            job()
            wait_for_gpu()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def wait_for_gpu() -> None:
    """Until all that was asked of it is done, where one is used."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round: how many times `under` goes into `over`."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median and the extremes."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def comparison(
    seconds: Seconds, reference: str, heading: str = "ms", scale: float = 1e3, digits: int = 1
) -> str:
    """A table: each side's time, `scale` times seconds, and how much faster it is than another."""
    rows = [
        [name, spread([scale * second for second in times], digits),
         spread(ratios(seconds[reference], times))]
        for name, times in seconds.items()
    ]  # fmt: skip
    return table(["side", heading, f"times as fast as {reference}"], rows)


def publish(script: str, text: str, save: bool) -> None:
    """Prints the outcome; `save` adds it to benchmarks/results/SCRIPT.md, the newest at the end."""
    print(text)
    if not save:
        return
    path = RESULTS / f"{Path(script).stem}.md"
    before = path.read_text() if path.exists() else f"# benchmarks/{Path(script).name}\n"
    section = f"\n## {date.today()}\n\n{commit_and_machine()}\n\n```\n{text}\n```\n"
    write_atomically(path, (before + section).encode())


def commit_and_machine() -> str:
    """What a number needs beside it."""
    command = ["git", "-C", str(RESULTS), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    model = _processor() or platform.processor() or platform.machine()
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    gpu = f"{torch.cuda.get_device_name()}, " if used else ""
    return (
        f"{gpu}{model}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, commit {found or 'unknown'}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
