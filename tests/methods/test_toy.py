"""A new method is one new file and one line: it is then in the contract, the help and the table."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOY = '''"""Copies of a parent with another bias each: a toy."""

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from evo_subnets.ensemble import Ensemble
from evo_subnets.methods.result import HERE, NOTHING_KEPT, Result, begin
from evo_subnets.metrics import count_parameters
from evo_subnets.runs import Run
from evo_subnets.task import Task
from evo_subnets.workers import Workers


@dataclass(frozen=True)
class Toy:
    """Copies of a parent whose last biases are shaken."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "parent"
    selects: ClassVar[bool] = False

    ensemble_size: int = 3
    shake: float = 0.1
    seed: int = 0

    def __call__(
        self, parent: nn.Module, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        begin(run, self, start=parent)
        members = [copy.deepcopy(parent) for _ in range(self.ensemble_size)]
        for index, member in enumerate(members):
            generator = torch.Generator().manual_seed(self.seed + index)
            bias = list(member.parameters())[-1].data
            bias += self.shake * torch.randn(bias.shape, generator=generator)
        size = len(members)
        return Result(Ensemble(members), 0, 0, size, size * count_parameters(parent))
'''


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the project with the toy in it; the environment to run it in."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("evo_subnets", "agents", "envs", "configs", "scripts", "tests", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    assert TOY.count("\n") <= 40
    methods = copy / "evo_subnets" / "methods"
    (methods / "toy.py").write_text(TOY)
    listed = (methods / "__init__.py").read_text()
    listed = listed.replace("METHODS:", "from evo_subnets.methods.toy import Toy\n\nMETHODS:")
    listed = listed.replace(
        '    "bagging": Bagging,\n', '    "bagging": Bagging,\n    "toy": Toy,\n'
    )
    (methods / "__init__.py").write_text(listed)
    return copy


def run(checkout, *command):
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=checkout, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_keeps_the_contract_with_the_others(checkout):
    contract = checkout / "tests" / "methods" / "test_contract.py"
    options = ["-p", "no:cacheprovider", "-o", "addopts=", "-q", "-k", "toy"]
    text = run(checkout, "-m", "pytest", *options, contract)
    assert " passed" in text
    assert int(text.split(" passed")[0].split()[-1]) >= 5


def test_it_has_a_subcommand_with_its_own_options(checkout):
    assert "toy" in run(checkout, "scripts/image_ensemble.py", "--help")
    text = run(checkout, "scripts/image_ensemble.py", "toy", "--help")
    assert "--shake FLOAT" in text
    assert "--sampling" not in text


def test_it_is_a_line_of_a_table(checkout, tmp_path):
    options = ["--methods", "toy", "sparse", "--tiny", "--out", tmp_path]
    text = run(checkout, "scripts/compare_methods.py", *options)
    assert any(line.startswith("toy ") for line in text.splitlines())
