"""What the C compiler is asked for, machine by machine, and what serves where it refuses."""

import platform
import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import all_same_bits, noise

from evo_subnets import materialize_siblings, quads
from evo_subnets.engines import compiler, philox_cpu, winograd

CC = shutil.which("cc") or shutil.which("gcc")
needs_cc = pytest.mark.skipif(CC is None, reason="there is no C compiler here")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A fresh cache, and a compiler that writes down its flags and refuses some."""
    monkeypatch.delenv("EVO_SUBNETS_ENGINES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(philox_cpu, "COMPILE_AFTER", 1)
    forget()

    def prepare(machine, *, refused):
        """Of `machine`, whose flags for its processors this one's compiler does not have."""
        script, log = tmp_path / "cc", tmp_path / "asked"
        script.write_text(
            f'#!/bin/sh\necho "$@" >> {log}\n'
            'for flag in "$@"; do case "$flag" in '
            f'{"|".join(refused)}) echo "unsupported option $flag" >&2; exit 1;; esac; done\n'
            f'exec {CC} $(echo "$@" | sed "s/-m[a-z]*=native//")\n'
        )
        script.chmod(0o755)
        monkeypatch.setenv("CC", str(script))
        monkeypatch.setattr(platform, "machine", lambda: machine)
        return lambda: [
            [flag for flag in line.split() if flag.startswith("-m")]
            for line in log.read_text().splitlines()
        ]

    yield prepare
    forget()


def forget():
    philox_cpu.library.cache_clear()
    philox_cpu.library_path.cache_clear()


def children(monkeypatch=None):
    if monkeypatch:
        monkeypatch.setenv("EVO_SUBNETS_ENGINES", "off")
    return materialize_siblings({"w": noise(33, 65)}, quads(4, 0.1, density=0.5, seed=0))


NONE = "-no-flag-at-all"
MACHINES = {
    "x86": ("x86_64", [NONE], [["-march=native"]]),
    "arm": ("arm64", [NONE], [["-mcpu=native"]]),
    "arm on Linux": ("aarch64", [NONE], [["-mcpu=native"]]),
    "arm, old compiler": ("arm64", ["-march=native", "-mcpu=native"], [["-mcpu=native"], []]),
    "x86, odd compiler": ("AMD64", ["-march=native"], [["-march=native"], []]),
    "another machine": ("riscv64", ["-march=native", "-mcpu=native"], [[]]),
}  # fmt: skip


@needs_cc
@pytest.mark.parametrize("case", MACHINES)
def test_every_machine_gets_its_own_flags_and_the_same_bits(case, asked, monkeypatch):
    machine, refused, expected = MACHINES[case]
    flags = asked(machine, refused=refused)
    found = children()  # a warning would be an error
    assert philox_cpu.library() is not None
    assert flags() == expected
    assert all(map(all_same_bits, found, children(monkeypatch)))


def test_a_compiler_that_refuses_everything_costs_one_warning(asked, monkeypatch):
    asked("arm64", refused=["*"])
    with pytest.warns(RuntimeWarning, match="no compiled draws.*unsupported option") as caught:
        found = children()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        children()
    assert all(map(all_same_bits, found, children(monkeypatch)))


@needs_cc
def test_machines_do_not_share_a_library(asked):
    paths = set()
    for machine in ("x86_64", "arm64", "riscv64"):
        asked(machine, refused=[NONE])
        paths.add(compiler.library_path([philox_cpu.SOURCE], compiler.EXACT))
    assert len(paths) == 3


@needs_cc
@pytest.mark.parametrize("r", [3, 5])
def test_convolutions_need_no_instructions_of_one_machine(r, asked, monkeypatch):
    flags = asked("riscv64", refused=[NONE])
    compiled = compiler.library(winograd.SOURCES, compiler.FAST, without="no convolutions")
    assert flags() == [[]]
    monkeypatch.setattr(winograd, "library", lambda: compiled)
    x = noise(7, 16, 9, 6).contiguous(memory_format=torch.channels_last)
    weight = noise(24, 16, r, r, seed=1) / (4 * r)
    expected = F.conv2d(x.double(), weight.double(), padding=1)
    found = winograd.convolve(x, weight, padding=1)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=6e-5)
