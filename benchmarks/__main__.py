"""The benchmarks in turn, and what is left out and why.

    python -m benchmarks cpu
    python -m benchmarks gpu --save

Each is a script of its own; this only calls them, and goes on when one fails.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from configs.command_line import run

FOLDER = Path(__file__).parent
CPU = {
    "mutation": "building children, against plain torch and a memory copy",
    "crossover": "from how many weights on compiled draws pay",
    "population": "judging children, against EvoTorch's SupervisedNE",
    "winograd": "convolutions of many pictures, against torch's",
    "racing": "judging fewer children, against judging all",
    "procgen_population": "children that play together, against evaluate_policy one by one",
    "ppo": "PPO, against stable-baselines3's",
    "inference": "an ensemble, against a loop over its members",
    "compaction": "networks without their silent neurons, against those with them",
    "storage": "packed files of sparse children, against dense ones",
    "sparse_linear": "sparse linear layers, against dense ones",
    "training": "the training loop, against bare arithmetic",
    "scaleout": "recipes in other processes, against weights",
}
"""Scripts and what they time."""
GPU = {
    "mutation": (),
    "population": ("--others", "--batches", "500", "2000"),
    "procgen_population": ("--children", "64", "--other-envs", "16"),
    "ppo": ("--widths", "32", "64", "128", "--rollout-steps", "256", "--minibatches", "8"),
    "inference": (),
}
"""Those that take `--device cuda`, and what else they are given there."""
SLOW = {
    "ppo_learning": "trains both sides on two games, three seeds each",
    "crash": "kills runs 60 times",
    "damage": "opens 70,000 damaged files",
    "density": "searches trust regions by density, and asks fresh children",
    "units": "judges children of one sigma and of units of layers",
    "evolution": "evolves two tasks with three sides, tuned and not, three seeds each",
    "architectures": "searches the trust regions of 48 networks of torchvision",
}
"""Scripts that show something and time nothing, to be called by name."""


@dataclass(frozen=True)
class Args:
    """Runs the benchmarks."""

    device: tyro.conf.Positional[Literal["cpu", "gpu"]]
    """What they measure."""
    save: bool = False
    """Add the outcomes to benchmarks/results."""
    only: tuple[str, ...] = ()
    """Names of scripts; empty: all."""


def main(args: Args) -> None:
    if args.device == "gpu" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here: `make bench` measures what a CPU can")
    chosen = tuple(GPU if args.device == "gpu" else CPU)
    unknown = [name for name in args.only if name not in chosen]
    if unknown:
        raise ValueError(f"--only {' '.join(unknown)}: expected names of {', '.join(chosen)}")
    failed = []
    for name in chosen:
        if args.only and name not in args.only:
            continue
        print(f"\n=== {name}: {CPU[name]}\n", flush=True)
        started = time.monotonic()
        command = [sys.executable, str(FOLDER / f"{name}.py")]
        command += ["--device", "cuda", *GPU[name]] if args.device == "gpu" else []
        command += ["--save"] if args.save else []
        if subprocess.run(command).returncode:
            failed.append(name)
        print(f"({time.monotonic() - started:.0f} s)", flush=True)
    print("\nNot run:")
    for name in CPU:
        if args.only and name not in args.only:
            print(f"  {name}: not asked for")
        elif name not in chosen:
            print(f"  {name}: it has no --device, it was written for a CPU")
    for name, reason in SLOW.items():
        print(f"  {name}: {reason}; python benchmarks/{name}.py")
    if args.device == "cpu":
        print(f"  {', '.join(GPU)} on a GPU: make bench-gpu")
    if failed:
        raise ValueError(f"failed: {', '.join(failed)}; each says why above")


if __name__ == "__main__":
    run(lambda: tyro.cli(Args), main)
