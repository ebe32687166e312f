"""One thread, and a guard: library calls must not move the global random generators."""

import os
import random

# Two threads that wait by turning take the cores from the tests beside them. OpenMP looks at this
# once, when it is loaded with torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import rich.style  # noqa: F401  its import draws a random number, whichever test comes to it
import torch
from script_client import Server

from evo_subnets import trust_region

torch.set_num_threads(1)
# the small networks here differ so much that a search would ask hundreds of children
ERROR, trust_region.ERROR = trust_region.ERROR, 1.0
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves them on a busy machine


def pytest_configure(config):
    # procgen's import leaves the file open
    ignored = "ignore:unclosed file .*procgen.version.txt:ResourceWarning"
    config.addinivalue_line("filterwarnings", ignored)


@pytest.fixture(autouse=True)
def global_generators_stay(request):
    """Fails a test that drew from a global generator, unless it is marked `moves_generators`."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    yield
    if "moves_generators" not in request.keywords:
        assert torch.equal(before[0], torch.get_rng_state()), "torch's global generator moved"
        assert (before[1] == np.random.get_state()[1]).all(), "numpy's global generator moved"
        assert before[2] == random.getstate(), "random's global generator moved"


@pytest.fixture(autouse=True)
def whole_trust_regions(request, monkeypatch):
    """Those tests that are marked so see searches ask as many children as users' do."""
    if "whole_trust_regions" in request.keywords:
        monkeypatch.setattr(trust_region, "ERROR", ERROR)


@pytest.fixture(scope="session")
def server():
    """Runs scripts, one after the other."""
    server = Server()
    yield server
    server.close()
