"""Where a result comes from."""

import shutil
import subprocess
import sys
import types
from datetime import datetime

import numpy as np
import pytest
import torch

import evo_subnets
from evo_subnets.runs import provenance as origin

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder, *arguments):
    own = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *own, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_the_checkout_s_own(tmp_path, monkeypatch):
    nothing = {"commit": None, "dirty": None}
    assert origin.commit(tmp_path) == nothing
    git(tmp_path, "init", "-q")
    assert origin.commit(tmp_path) == nothing, "no commit yet"
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "site-packages").mkdir()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    clean = {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as a hook has it
    assert origin.commit(tmp_path) == clean
    assert origin.commit(tmp_path / "site-packages") == nothing, "installed within a checkout"
    (tmp_path / "notes.txt").touch()
    assert origin.commit(tmp_path) == clean
    (tmp_path / "method.py").touch()
    assert origin.commit(tmp_path) == {**clean, "dirty": True}
    (tmp_path / "method.py").unlink()
    (tmp_path / "a.py").write_text("2")
    assert origin.commit(tmp_path) == {**clean, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert origin.commit(tmp_path) == nothing


def test_versions_are_of_what_is_loaded(monkeypatch):
    for name in origin.OTHERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    own = {
        "python": sys.version.split()[0], "torch": torch.__version__, "numpy": np.__version__,
        "evo_subnets": evo_subnets.__version__,
    }  # fmt: skip
    assert origin.versions() == own
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.setitem(origin.OTHERS, "ray", ("no-such-distribution", "numpy"))
    assert origin.versions() == {**own, "ray": np.__version__}
    monkeypatch.setitem(origin.OTHERS, "ray", ("no-such-distribution",))
    assert origin.versions()["ray"] == "unknown"


def test_dates_have_zones_and_commands_their_options():
    begun = [{"started": "2026-01-01T00:00:00+00:00", "commit": "a", "dirty": False}]
    begun.append(origin.session())
    found = origin.provenance(begun)
    assert found["started"] == begun[0]["started"]
    assert found["resumed"] == begun[1:]
    assert found["commit"] == begun[1]["commit"]
    assert datetime.fromisoformat(found["finished"]).tzinfo is not None
    assert found["command"].startswith("python ")
    assert found["hardware"]["threads"] == torch.get_num_threads()
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["processor"]
