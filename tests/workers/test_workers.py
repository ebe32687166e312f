"""Where work runs, said in one way; what needs Ray itself is in test_evotorch.py."""

import subprocess
import sys

import pytest
from networks import mlp

from configs.workers import WorkerArgs
from evo_subnets import PopulationError, evaluate, quads
from evo_subnets.workers import Here, Ray
from evo_subnets.workers import ray as on_ray
from evo_subnets.workers.here import no_result


def test_here_is_one_after_the_other():
    done = []

    def work(item):
        done.append(item)
        return item**2

    results = Here().map(work, [3, 1, 2])
    assert next(results) == (0, 9)
    assert done == [3]
    assert list(results) == [(1, 1), (2, 4)]
    with pytest.raises(ZeroDivisionError):
        list(Here().map(lambda item: 1 / item, [1, 0]))


def test_work_that_kills_its_workers_is_an_error():
    with pytest.raises(ChildProcessError, match="every worker died that took 2"):
        no_result(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, r"at least 1, got 0 and 1; Here\(\) is this process"),
        ({"workers": -1}, "at least 1, got -1"),
        ({"workers": 1, "threads": 0}, "at least 1, got 1 and 0"),
        ({"workers": 1, "gpus_per_worker": 0}, "gpus_per_worker must be more than 0, got 0"),
        ({"workers": 1, "gpus_per_worker": float("nan")}, "gpus_per_worker must be more than 0"),
    ],
)
def test_arguments_are_checked_before_anything_starts(arguments, message, monkeypatch):
    monkeypatch.setattr(on_ray, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match=message):
        Ray(**arguments)


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None if name == "ray" else True)
    with pytest.raises(ValueError, match=r"^other processes need ray: pip install 'evo-subnets\["):
        Ray(2)
    with pytest.raises(ValueError, match="other processes need ray"):
        WorkerArgs(2)


def test_options_choose_the_workers(monkeypatch):
    monkeypatch.setattr(on_ray, "find_spec", lambda name: True)
    assert WorkerArgs().chosen == Here()
    assert WorkerArgs(2).chosen == Ray(2)
    assert WorkerArgs(2, 0.5, "auto").chosen == Ray(2, 0.5, "auto")
    for arguments, message in [
        ({"workers": -1}, "--workers must not be negative"),
        ({"gpus_per_worker": 0.5}, "--gpus-per-worker and --ray-address need --workers"),
        ({"ray_address": "auto"}, "--gpus-per-worker and --ray-address need --workers"),
        ({"workers": 2, "gpus_per_worker": -1.0}, "gpus_per_worker must be more than 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            WorkerArgs(**arguments)


def test_naming_workers_imports_neither_ray_nor_evotorch():
    code = """
import contextlib, sys
from evo_subnets.workers import Ray
with contextlib.suppress(ValueError):  # not installed
    Ray(2)
print(*sys.modules, sep="\\n")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "evo_subnets.workers.ray" in loaded
    assert not loaded & {"ray", "evotorch"}


def failing(module):
    raise RuntimeError("no simulator")


def test_workers_end_when_a_generation_stops():
    """Also while the error is kept, which keeps all that was there when it was raised."""
    ended = []

    class Watched:
        def map(self, work, items, *, lost):
            try:
                yield from enumerate(map(work, items))
            finally:
                ended.append(True)

    with pytest.raises(PopulationError) as kept:
        evaluate(mlp(), quads(8, 0.1, density=0.5, seed=0), fitness=failing, workers=Watched())
    assert ended == [True]
    assert "no simulator" in str(kept.value)
