"""`philox.c` against plain torch, bit for bit, and when it is compiled."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from networks import all_same_bits, noise, same_bits

import evo_subnets
from evo_subnets import Mutation, materialize, materialize_siblings, streams
from evo_subnets.draws import Change, Draw
from evo_subnets.engines import compiler, philox_cpu
from evo_subnets.files import fingerprint
from evo_subnets.streams import Interval

CPU = torch.device("cpu")


@pytest.fixture
def compiled(monkeypatch):
    """Makes the compiled engine serve; skips where it cannot be had."""
    monkeypatch.delenv("EVO_SUBNETS_ENGINES", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if philox_cpu.library() is None:
            pytest.skip("there is no C compiler here, and no compiled engine in the cache")
    assert philox_cpu.available(CPU, 0)


@pytest.fixture
def nothing_cached(monkeypatch, tmp_path):
    """A process that has drawn nothing yet, on a machine whose cache is empty."""
    monkeypatch.delenv("EVO_SUBNETS_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(philox_cpu, "_drawn", 0)
    philox_cpu.library.cache_clear()
    philox_cpu.library_path.cache_clear()
    yield tmp_path
    philox_cpu.library.cache_clear()
    philox_cpu.library_path.cache_clear()


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def siblings(seed=11):
    """A quad, and siblings whose intervals are inner, wrap around, empty or everything."""
    child = Mutation(seed, 0.25, 0.0, 0.3)
    return [
        child,
        child.partner(),
        child.mirrored(),
        child.partner().mirrored(),
        Mutation(seed, 1e-3, 0.4, 0.6),
        Mutation(seed, 3.0, 0.9, 0.2),
        Mutation(seed, 1.0, 0.5, 0.5),
        Mutation(seed, 1.0, 0.0, 1.0),
        Mutation(seed, 1.0, 1.0, 0.25),
    ]


def compiled_and_plain(parent, mutations, monkeypatch, outs=None):
    """The children of both, and how often the kernel was called."""
    calls = []
    perturb = philox_cpu.perturb
    monkeypatch.setattr(philox_cpu, "perturb", lambda draws: (calls.extend(draws), perturb(draws)))
    fast = materialize_siblings(parent, mutations, outs=outs)
    count = len(calls)
    monkeypatch.setenv("EVO_SUBNETS_ENGINES", "off")
    slow = materialize_siblings(parent, mutations)
    assert len(calls) == count
    return fast, slow, count


SHAPES = [(1, 1), (1, 63), (64, 1), (5, 13), (33, 65), (8, 3, 3, 3), (17, 5, 1, 7), (129, 257)]


@pytest.mark.parametrize("shape", SHAPES)
def test_it_gives_the_bits_of_plain_torch(shape, compiled, monkeypatch):
    parent = {"a.weight": noise(*shape, seed=1), "b.weight": noise(*shape, seed=2)}
    fast, slow, calls = compiled_and_plain(parent, siblings(), monkeypatch)
    assert calls == 2
    assert all(all_same_bits(a, b) for a, b in zip(fast, slow, strict=True))


def test_it_keeps_negative_zeros_and_nan_of_the_parent(compiled, monkeypatch):
    weight = torch.tensor([[-0.0, 0.0, float("nan"), float("inf"), -float("inf"), 1e-45]] * 64)
    fast, slow, _ = compiled_and_plain({"w": weight}, siblings(), monkeypatch)
    assert all(all_same_bits(a, b) for a, b in zip(fast, slow, strict=True))
    empty = fast[6]["w"]
    assert same_bits(empty, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (16, 1, 5, 5), (3, 8, 1, 1)])
def test_it_gives_the_bits_of_plain_torch_in_channels_last(shape, dtype, compiled, monkeypatch):
    weight = noise(*shape).to(dtype).to(memory_format=torch.channels_last)
    fast, slow, calls = compiled_and_plain({"w": weight}, siblings(), monkeypatch)
    assert calls >= 1
    assert all(all_same_bits(a, b) for a, b in zip(fast, slow, strict=True))


def test_it_gives_the_bits_of_plain_torch_into_buffers_of_mixed_layouts(compiled, monkeypatch):
    weight = noise(6, 5, 3, 3)
    outs = [{"w": torch.empty_like(weight)} for _ in siblings()]
    outs[1]["w"] = torch.empty_like(weight, memory_format=torch.channels_last)
    fast, slow, _ = compiled_and_plain({"w": weight}, siblings(), monkeypatch, outs)
    assert all(all_same_bits(a, b) for a, b in zip(fast, slow, strict=True))


def test_chunks_continue_each_other(compiled, monkeypatch):
    """Tiny chunks in every layer that cuts the work: 64-element starts, an odd rest."""
    parent = {
        "plain": noise(7, 45),
        "last": noise(7, 5, 3, 3).to(memory_format=torch.channels_last),
    }
    whole = materialize_siblings(parent, siblings())
    monkeypatch.setattr(philox_cpu, "CHUNK", 128)
    monkeypatch.setattr(streams, "CPU_CHUNK", 64)
    fast, slow, calls = compiled_and_plain(parent, siblings(), monkeypatch)
    assert calls == 1 + 5
    for a, b, c in zip(whole, fast, slow, strict=True):
        assert all_same_bits(a, b)
        assert all_same_bits(b, c)


@pytest.mark.parametrize("start", [64, 640, 2**20, 2**34 - 64])
def test_it_starts_anywhere(start, compiled):
    parent, out = noise(150), torch.empty(150)
    change = Change(Interval(2**22, 2**23), 0.5)
    philox_cpu.perturb([Draw("w", parent, [out], 2**63 - 1, [change], start)])
    levels = streams.uniform_levels(2**63 - 1, "w", 150, start)
    changed = parent + streams.normal(2**63 - 1, "w", 150, start) * 0.5
    inside = (levels >= 2**22) & (levels < 2**22 + 2**23)
    assert same_bits(out, torch.where(inside, changed, parent))


def test_it_gives_the_same_bits_on_two_threads(compiled, two_threads, monkeypatch):
    monkeypatch.setattr(philox_cpu, "CHUNK", 512)
    monkeypatch.setattr(philox_cpu, "SHARED_FROM", 123 * 57)
    parent = {"w": noise(123, 57)}
    fast, slow, _ = compiled_and_plain(parent, siblings(), monkeypatch)
    assert all(all_same_bits(a, b) for a, b in zip(fast, slow, strict=True))


def test_it_writes_nothing_past_the_end(compiled):
    for count in (1, 63, 64, 65, 127):
        memory = torch.full((count + 64,), 9.0)
        change = Change(Interval(0, 2**24), 1.0)
        philox_cpu.perturb([Draw("w", torch.zeros(count), [memory[:count]], 1, [change])])
        assert (memory[count:] == 9).all()
        assert (memory[:count] != 9).all()


CHILD = """
import torch
from evo_subnets import Mutation, materialize
from evo_subnets.files import fingerprint
from evo_subnets.streams import Interval
parent = {"w": torch.arange(1000.0).view(20, 50) / 7}
print(fingerprint(materialize(parent, Mutation(123, 0.5, 0.25, 0.75))))
"""


def test_another_process_builds_the_same_child():
    parent = {"w": torch.arange(1000.0).view(20, 50) / 7}
    here = fingerprint(materialize(parent, Mutation(123, 0.5, 0.25, 0.75)))
    run = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=Path(evo_subnets.__file__).parents[1],
        env={**os.environ, "EVO_SUBNETS_ENGINES": "off", "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == here


def test_without_a_compiler_plain_torch_serves_with_one_warning(nothing_cached, monkeypatch):
    monkeypatch.setenv("CC", str(nothing_cached / "no-such-compiler"))
    monkeypatch.setattr(philox_cpu, "COMPILE_AFTER", 1)
    parent, child = {"w": noise(20, 30)}, Mutation(1, 0.1, 0.0, 0.5)
    with pytest.warns(RuntimeWarning, match="no compiled draws.*a C compiler"):
        found = materialize(parent, child)
    again = materialize(parent, child)  # a second warning would be an error
    monkeypatch.setenv("EVO_SUBNETS_ENGINES", "off")
    assert all_same_bits(found, materialize(parent, child))
    assert all_same_bits(found, again)


def test_small_networks_do_not_wait_for_a_compiler(nothing_cached, monkeypatch):
    monkeypatch.setattr(compiler, "build", lambda *_: pytest.fail("compiled for a small network"))
    for _ in range(10):
        materialize({"w": noise(20, 30)}, Mutation(1, 0.1, 0.0, 0.5))
    assert not philox_cpu.available(CPU, philox_cpu.COMPILE_AFTER - 6001)
    assert not philox_cpu.library_path().exists()


def test_it_is_compiled_when_enough_was_drawn(compiled, nothing_cached):
    assert not philox_cpu.available(CPU, philox_cpu.COMPILE_AFTER - 1)
    assert philox_cpu.available(CPU, 1)
    assert philox_cpu.library_path().is_relative_to(nothing_cached)
    files = [path for path in nothing_cached.rglob("*") if path.is_file()]
    assert files == [philox_cpu.library_path()]
