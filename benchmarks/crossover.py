"""From how many elements on compiled draws pay, loaded from disk and compiled first.

    python benchmarks/crossover.py

One child of one matrix is drawn by plain torch and by the compiled library, which first are seen to
give the same bits. What comes once in a process, finding and loading the library, and what comes
once on a machine, compiling it, is timed in processes of their own. `philox_cpu.COMPILE_AFTER` is
set from the last line: whoever buys once the rent has reached the price never pays twice the best.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from benchmarks.timing import alternate, publish, ratios, spread
from evo_subnets import Mutation, materialize
from evo_subnets.engines import SWITCH, philox_cpu
from evo_subnets.runs.report import table

MUTATION = Mutation(0, 0.01, 0.0, 0.2)
START = (
    "import time, torch; from evo_subnets.engines import philox_cpu\n"
    "start = time.perf_counter(); assert philox_cpu.library() is not None\n"
    "print(time.perf_counter() - start)"
)


@dataclass(frozen=True)
class Args:
    """Finds where compiled draws overtake plain torch."""

    sizes: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000, 4_000_000)
    """Elements of the matrix, at least a thousand."""
    rounds: int = 7
    """Alternations, and starts of a process; medians and extremes are reported."""
    threads: int = 2
    """torch's threads."""
    save: bool = False
    """Add the outcome to benchmarks/results/crossover.md."""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    assert philox_cpu.library() is not None, "a C compiler is needed"
    rows, rents = [], []
    for size in args.sizes:
        parent = {"w": torch.ones(size // 1000, 1000)}
        out = {"w": torch.empty_like(parent["w"])}
        assert torch.equal(plain(parent, out).clone(), compiled(parent, out))
        seconds = alternate(
            {"plain": lambda p=parent, o=out: plain(p, o),  # type: ignore[misc]
             "compiled": lambda p=parent, o=out: compiled(p, o)},  # type: ignore[misc]
            args.rounds,
        )  # fmt: skip
        saved = [a - b for a, b in zip(seconds["plain"], seconds["compiled"], strict=True)]
        rents.append([second / size for second in saved])
        rows.append(
            [f"{size:,}", *(spread([1e3 * s for s in seconds[side]]) for side in seconds),
             spread(ratios(seconds["plain"], seconds["compiled"]), 1)]
        )  # fmt: skip
    compiling, loading = starts(args.rounds)
    lines = []
    for what, times in (("loaded from disk", loading), ("compiled first", compiling)):
        per_size = [
            statistics.median(times) / statistics.median(rent)
            for rent in rents
            if statistics.median(rent) > 0
        ]
        lines.append(
            f"{what}: {spread([1e3 * second for second in times], 0)} ms, as long as plain torch "
            f"takes longer for {per_size[-1] / 1e6:.2f} million elements"
            f" ({' '.join(f'{count / 1e6:.2f}' for count in per_size)} by size)."
        )
    text = "\n\n".join(
        [
            f"{args.threads} threads, {args.rounds} alternations, ms a child.",
            table(["elements", "plain torch", "compiled", "times as fast"], rows),
            "\n".join(lines),
        ]
    )
    publish(__file__, text, args.save)


def compiled(parent: dict[str, Tensor], out: dict[str, Tensor]) -> Tensor:
    return materialize(parent, MUTATION, out=out)["w"]


def plain(parent: dict[str, Tensor], out: dict[str, Tensor]) -> Tensor:
    with without_library():
        return materialize(parent, MUTATION, out=out)["w"]


@contextmanager
def without_library() -> Iterator[None]:
    os.environ[SWITCH] = "off"
    try:
        yield
    finally:
        del os.environ[SWITCH]


def starts(rounds: int) -> tuple[list[float], list[float]]:
    """Seconds until a process has the library: when it is compiled, and when it is on disk."""
    compiling: list[float] = []
    loading: list[float] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            env = os.environ | {"XDG_CACHE_HOME": cache}
            for seconds in (compiling, loading):
                command = [sys.executable, "-c", START]
                done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
                seconds.append(float(done.stdout))
    return compiling, loading


if __name__ == "__main__":
    main(tyro.cli(Args))
