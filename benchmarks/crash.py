"""Kills a small run at random moments, gives the same command again, and compares the results.

    python benchmarks/crash.py --kills 20

Every run ends with `results.json` as the uninterrupted one wrote it, to the last digit, or is
counted as a failure. Only its provenance may differ: dates, and how often the run was resumed.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from configs.command_line import run
from evo_subnets import files
from evo_subnets.runs.report import table
from evo_subnets.runs.tracking import bar

ROOT = Path(__file__).parent.parent
PROCGEN = (
    "procgen_ensemble.py --env fruitbot --parent train --ppo.num-envs 4 --ppo.rollout-steps 16 "
    "--ppo.minibatches 2 --ppo.epochs 1 --ppo.frame-stack 1 --ppo.widths 4 4 4 "
    "--total-timesteps 512 --checkpoint-every 64 --population-size 8 --ensemble-size 4 "
    "--validation-episodes 2 --test-episodes 4"
)
IMAGES = "--dataset digits --model lenet-s --limit 600 --parent-tuning.epochs 6"
NOISY = f"image_ensemble.py noisy {IMAGES} --population-size 32 --ensemble-size 8"
COMMANDS = {
    "procgen_ensemble, PPO and children": PROCGEN,
    "image_ensemble, noisy": NOISY,
    "image_ensemble, generations": f"{NOISY} --generations 4",
    "agent_ensemble, generations": "agent_ensemble.py --env CartPole-v1 --total-timesteps 2000 "
    "--population-size 8 --ensemble-size 4 --generations 4 --validation-episodes 4 "
    "--held-out-episodes 8 --test-episodes 8 --further-training",
    "image_ensemble, stochastic": f"image_ensemble.py stochastic {IMAGES} --ensemble-size 4 "
    "--epochs 3 --annealing-epochs 2",
    "image_ensemble over 2 workers": f"{NOISY} --workers 2",
}


@dataclass(frozen=True)
class Args:
    """Kills runs and counts those that end with the results of an uninterrupted one."""

    kills: int = 20
    """Runs of each command that are killed, each at a moment of its own."""
    only: tuple[str, ...] = ()
    """Commands by a part of their names; none: all."""
    seed: int = 0
    """Seed of the moments."""


def start(command: str, folder: Path) -> subprocess.Popen[bytes]:
    """The command in a folder of its own: what it writes there names no other folder."""
    script, *options = command.split()
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "scripts" / script), *options, "--out", "run"],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def finish(command: str, folder: Path) -> dict[str, Any]:
    """The results of the command run to its end; a RuntimeError shows why there are none."""
    process = start(command, folder)
    if process.wait() != 0:
        log = (folder / "log").read_text(errors="replace")
        raise RuntimeError(f"{command}\nended with status {process.returncode}:\n{log[-2000:]}")
    results = files.read_json(folder / "run" / "results.json")
    return {key: value for key, value in results.items() if key != "provenance"}


def kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and all that it has started, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main(args: Args) -> None:
    rng = random.Random(args.seed)
    chosen = {
        name: command
        for name, command in COMMANDS.items()
        if not args.only or any(part in name for part in args.only)
    }
    lines = []
    failed = False
    with bar("runs", len(chosen) * (args.kills + 1)) as advance:
        for name, command in chosen.items():
            with tempfile.TemporaryDirectory() as folder:
                begun = time.monotonic()
                expected = finish(command, Path(folder))
                seconds = time.monotonic() - begun
                advance(1, f"{name}: {seconds:.0f} s uninterrupted")
            same = caught = 0
            for _ in range(args.kills):
                with tempfile.TemporaryDirectory() as folder:
                    process = start(command, Path(folder))
                    moment = rng.uniform(0, 0.95 * seconds)
                    try:
                        process.wait(moment)
                    except subprocess.TimeoutExpired:
                        kill(process)
                        caught += 1
                    try:
                        same += finish(command, Path(folder)) == expected
                    except RuntimeError as error:
                        print(error, file=sys.stderr)
                advance(1, f"{name}: {same} the same")
            failed |= same != args.kills
            lines.append(
                [name, f"{seconds:.1f} s", f"{caught} of {args.kills}", f"{same} of {args.kills}"]
            )
    print(table(["command", "uninterrupted", "killed before the end", "same results"], lines))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run(lambda: tyro.cli(Args), main)
