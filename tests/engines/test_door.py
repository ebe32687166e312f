"""Without engines: the rest works, and gives the same children."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import built
from torch import nn

import evo_subnets
from evo_subnets import engines
from evo_subnets.draws import draw_plainly
from evo_subnets.engines import side_by_side
from evo_subnets.mutation import fastest

PACKAGE = Path(evo_subnets.__file__).parent
TESTS = Path(__file__).parents[1]
FILES = ("streams", "mutation", "ensemble", "trust_region", "evolution", "tuning")
LEFT_OUT = "stopped or flipped or zeroed or root_search or rises"
"""The slowest, of what engines do not touch."""
CHILDREN = """
import torch
from evo_subnets import materialize_siblings, quads
from evo_subnets.files import fingerprint
weights = torch.arange(7000.0).view(20, 14, 5, 5) / 7 - 500
parent = {
    "plain": weights.view(20, -1), "last": weights.to(memory_format=torch.channels_last),
    "half": weights.bfloat16(), "double": weights.double(),
}
for children in (quads(4, 0.3, density=0.4, seed=seed) for seed in range(3)):
    for child in materialize_siblings(parent, children):
        print(fingerprint(child))
"""


def printed(*command, folder, **variables):
    """What Python prints, with the library of a folder."""
    run = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **variables},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
    return run.stdout


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The library with nothing in `engines` but the door, and the tests that are run with it."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "tests").mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / "evo_subnets", ignore=ignored)
    for path in (folder / "evo_subnets" / "engines").iterdir():
        if path.name != "__init__.py":
            path.unlink()
    shutil.copy(TESTS.parent / "pyproject.toml", folder)
    for path in TESTS.glob("*.py"):
        if not path.name.startswith("test_") or path.stem.removeprefix("test_") in FILES:
            shutil.copy(path, folder / "tests")
    return folder


def test_without_engines_the_rest_works(bare):
    files = [f"tests/test_{name}.py" for name in FILES]
    chosen = ["-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})", *files]
    assert " passed" in printed("-m", "pytest", *chosen, folder=bare)


def test_without_engines_children_are_the_same(bare):
    """Deleted or turned off, bit for bit."""
    expected = printed("-c", CHILDREN, folder=TESTS.parent, **{engines.SWITCH: "on"})
    off = printed("-c", CHILDREN, folder=TESTS.parent, **{engines.SWITCH: "off"})
    assert printed("-c", CHILDREN, folder=bare) == off == expected


def test_the_copy_is_what_was_tested_and_holds_the_door_alone(bare):
    code = "import evo_subnets.engines as door; print(door.__file__)"
    found = Path(printed("-c", code, folder=bare).strip())
    assert found.is_relative_to(bare)
    assert [path.name for path in found.parent.glob("*.*")] == ["__init__.py"]


def test_without_engines_every_door_is_shut(monkeypatch):
    convolutions = built(lambda: nn.Sequential(nn.Conv2d(32, 32, 3))).eval()
    members, x = nn.ModuleList([convolutions] * 2).eval(), torch.zeros(64, 32, 9, 9)

    def answers():
        with torch.no_grad():
            return {
                "perturb": engines.perturb(torch.device("cpu"), 10**9),
                "ask_members": engines.ask_members(members, [x]),
                "ask_batches": engines.ask_batches([convolutions], [x], promised=True),
                "convolutions": engines.with_fast_convolutions(convolutions),
                "library": engines.library([PACKAGE / "engines" / "philox.c"], "no draws"),
            }

    monkeypatch.setattr(side_by_side, "rows_that_pay", lambda members: range(1, 100))
    torch.set_num_threads(2)
    try:
        assert all(found is not None for found in answers().values())
        monkeypatch.setenv(engines.SWITCH, "off")
        assert set(answers().values()) == {None}
    finally:
        torch.set_num_threads(1)
    assert fastest(torch.device("cpu"), 10**9) is draw_plainly
    engines.keep_freed_memory()
    done = []
    engines.share_out(done.append, [1, 2, 3], threads=2)
    assert done == [1, 2, 3]


def test_the_switch_knows_two_words(monkeypatch):
    monkeypatch.setenv(engines.SWITCH, "0")
    with pytest.raises(ValueError, match="EVO_SUBNETS_ENGINES must be 'on' or 'off', got '0'"):
        engines.perturb(torch.device("cpu"), 1)


def test_an_engine_that_lacks_a_package_says_so(monkeypatch):
    def fails(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(engines, "import_module", fails)
    engines._loaded.cache_clear()
    try:
        with pytest.raises(ModuleNotFoundError, match="torch"):
            engines.keep_freed_memory()
    finally:
        engines._loaded.cache_clear()
