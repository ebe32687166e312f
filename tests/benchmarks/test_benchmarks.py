"""Every benchmark, tiny: it runs to its end and says what it promises to measure."""

import importlib
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro

from benchmarks import evolution
from benchmarks.__main__ import CPU, GPU, SLOW

ROOT = Path(__file__).parents[2]
SPREAD = r"\[[\d.]+, [\d.]+\]"


def test_the_training_benchmark_runs_to_its_end(server):
    text = server.printed("benchmarks/training", "--models", "lenet-s", "--steps", 1, "--rounds", 1,
                          "--threads", 1)  # fmt: skip
    for side in ("bare", "tune", "tune, pruned"):
        assert re.search(
            rf"^lenet-s, {side} +\d+\.\d {SPREAD} +\d+\.\d{{3}} {SPREAD}",
            text,
            re.MULTILINE,
        )


def test_the_mutation_benchmark_runs_to_its_end(server):
    text = server.printed("benchmarks/mutation", "--weights", 200_000, "--layers", 2, "--rounds", 2,
                          "--threads", 1)  # fmt: skip
    assert "200,000 weights in 2 matrices, 1 threads, 2 alternations." in text
    for side in ("plain torch", "memory copy", "one child", "a quad"):
        seconds = re.search(rf"^{side} +(\d+\.\d+) {SPREAD}", text, re.MULTILINE)
        assert seconds, side
        assert float(seconds[1]) >= 0
    assert re.search(r"population of +16: +-?\d+\.\d\d", text)
    assert re.search(r"population of +1024: +-?\d+\.\d\d", text)
    assert len(re.findall(r"on disk +\d+\.\d{3}", text)) == 5


def test_the_peak_memory_of_a_process_is_not_the_peak_of_whoever_started_it():
    ballast = b"1" * 2**28
    process = subprocess.run(
        [sys.executable, "-c", "from benchmarks.memory import *; print(peak_bytes())"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 2**20 < int(process.stdout) < len(ballast)


def test_damaged_files_are_refused_or_harmless():
    process = subprocess.run(
        [sys.executable, "benchmarks/damage.py", "--tiny"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    assert len(re.findall(r" 100 +\d+ +\d+ +\d+ +0 +0\.\d+ s$", process.stdout, re.MULTILINE)) == 7


def test_trust_regions_of_architectures_land_or_raise(server):
    text = server.printed("benchmarks/architectures", "--tiny")
    assert "1 landed, 0 raised, 0 silent miss" in text
    assert re.search(r"^squeezenet1_1 +landed +0\.0\d+ +0\.\d+ +\d+ +\d+\.\d$", text, re.MULTILINE)


def test_sigma_by_density_says_how_far_fresh_children_go(server):
    text = server.printed("benchmarks/density", "--tiny")
    sigma = dict(re.findall(r"^mlp +singles +(0\.\d+) +1 +(0\.\d+) ", text, re.MULTILINE)[-2:])
    assert float(sigma["0.1"]) > float(sigma["0.5"])
    assert re.search(r"Farthest from the target: \d+\.\d %", text)


def test_units_of_layers_are_compared_at_one_divergence(server):
    text = server.printed("benchmarks/units", "--tiny")
    number = r"-?\d+\.\d{3}"
    row = rf"^mlp +0\.05 +8 +{number} +{number} +[+-]\d+\.\d{{3}} \["
    assert re.search(row, text, re.MULTILINE)


def test_killed_runs_end_with_the_same_results():
    process = subprocess.run(
        [sys.executable, "benchmarks/crash.py", "--kills", "1", "--only", "image_ensemble, noisy"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    assert re.search(r"1 of 1$", process.stdout, re.MULTILINE)


def test_every_benchmark_is_run_by_make_or_left_out_for_a_reason():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts - {"__init__", "__main__", "memory", "timing", "evolution_tasks"} == {
        *CPU,
        *SLOW,
    }


@pytest.mark.moves_generators  # importing evotorch does
@pytest.mark.parametrize("name", GPU)
def test_a_benchmark_takes_what_it_is_given_for_a_gpu(name):
    script = importlib.import_module(f"benchmarks.{name}")
    arguments = tyro.cli(script.Args, args=["--device", "cuda", *GPU[name]])
    assert arguments.device == "cuda"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cpu", "--only", "nothing"], "--only nothing: expected names of mutation, "),
        (["gpu"], "there is no CUDA device here"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_line(arguments, message):
    if arguments == ["gpu"] and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stderr.startswith("error: ")
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_a_benchmark_of_make_runs_and_says_what_was_left_out():
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks", "cpu", "--only", "storage"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "times smaller" in process.stdout
    assert "mutation: not asked for" in process.stdout
    assert "make bench-gpu" in process.stdout


def test_every_side_evolves_both_tasks_and_has_its_cost():
    args = evolution.Args(tiny=True)
    few = replace(args, population_size=4, generations=2)
    for task in evolution.TASKS.values():
        start = task.judged(task.network(0), 0)
        for side, grid in evolution.GRIDS.items():
            (value,) = evolution.curve(side, grid[1], task, 0, few, [2])
            assert math.isfinite(value)
            assert value != start, side
    few = replace(few, seeds=1, tuning_seeds=1, width=32)
    text = evolution.fitness_of(evolution.TASKS["digits"], few)
    assert re.search(r"^ours +tuned: noise", text, re.MULTILINE)
    found = {side: evolution.cost(side, few) for side in evolution.GRIDS}
    assert all(each["seconds"] > 0 and each["weights"] == 4522 for each in found.values())
