"""Copies of a network are freed when their last user goes, and wait for no garbage collector."""

import contextlib
import gc
import weakref

import pytest
import torch
from networks import built, mlp, noise, normalised, pictures, small_classifier
from torch import nn

from evo_subnets import Ensemble, Search, Task, evaluate, evolve, quads, search_trust_region
from evo_subnets.evolution import PopulationError
from evo_subnets.methods import Noisy, Pruning, Sparse, Stochastic
from evo_subnets.methods.stochastic import Annealing
from evo_subnets.prediction import Validation, predict_members
from evo_subnets.schedules import Constant
from evo_subnets.structure.classifier import classifier
from evo_subnets.structure.compaction import compacted
from evo_subnets.tuning import Tuning

QUADS = quads(4, 0.1, density=0.5, seed=0)
X = noise(20, 5, seed=50)
SEARCH = Search(4, 2, 0.05)
TUNING = Tuning(1, Constant(0.01), "adam")
TASK = Task(pictures(32), pictures(32, seed=5))


class Keeping(nn.Module):
    """Keeps its last output, with the gradients' history, and a method of a layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.ask, self.last = self.layer.forward, None

    def forward(self, x):
        self.last = self.ask(x)
        return self.last if x.sum() < 1e9 else -self.last  # not for torch.fx


def learned(model):
    loss = model(X).square().mean()
    loss.backward()
    return -loss.item()


def failing(model):
    learned(model)
    raise ValueError(f"no fitness of a {type(model).__name__}")


def failed():
    with contextlib.suppress(PopulationError):
        evaluate(mlp(), QUADS, fitness=failing)


def saved(tmp_path, resident):
    ensemble = Ensemble.from_mutations(normalised(), QUADS, resident=resident)
    ensemble.save(tmp_path / "e")
    Ensemble.load(tmp_path / "e", normalised(2), restore=True, resident=resident)(X)


def asked_side_by_side():
    ensemble = Ensemble.from_mutations(small_classifier(), QUADS, side_by_side=True)
    with torch.no_grad():
        ensemble(noise(64, 1, 8, 8))
        predict_members(ensemble, TASK.selection, side_by_side=True)


def tuned(method):
    method(small_classifier(), TASK)


USERS = {
    "a population": lambda _: evaluate(normalised(), QUADS, fitness=learned),
    "one that keeps things": lambda _: evaluate(built(Keeping), QUADS, fitness=learned),
    "one that fails": lambda _: failed(),
    "one with validation data": lambda _: evaluate(
        small_classifier(), QUADS, fitness=Validation(TASK.selection, side_by_side=True)
    ),
    "generations": lambda _: evolve(mlp(), learned, search=SEARCH, generations=2, inputs=X),
    "a trust region": lambda _: search_trust_region(built(Keeping), X, search=Search(4, 2)),
    "members": lambda _: Ensemble.from_mutations(normalised(), QUADS)(X),
    "recipes": lambda _: Ensemble.from_mutations(normalised(), QUADS, resident=False)(X),
    "files": lambda path: saved(path, True),
    "files of recipes": lambda path: saved(path, False),
    "members side by side": lambda _: asked_side_by_side(),
    "a classifier": lambda _: classifier(built(Keeping), X[:1]),
    "a compact network": lambda _: compacted(small_classifier()),
    "noise": lambda _: tuned(Noisy(SEARCH, reestimate_norms=True)),
    "a race": lambda _: tuned(Noisy(SEARCH, racing=True)),
    "neurons": lambda _: tuned(Sparse(2, Pruning("random", 0.3, "neurons"), TUNING)),
    "annealing": lambda _: tuned(
        Stochastic(2, Annealing(annealing_epochs=1), Pruning("random"), TUNING)
    ),
}


@pytest.mark.parametrize("use", USERS.values(), ids=USERS.keys())
def test_a_copy_goes_with_its_last_user(use, tmp_path, monkeypatch):
    copies, original = [], nn.Module.__setstate__

    def setstate(module, state):
        copies.append(weakref.ref(module))
        original(module, state)

    torch.optim.Adam(mlp().parameters())  # what torch imports then holds on to who asked for it
    monkeypatch.setattr(nn.Module, "__setstate__", setstate)
    given = built_modules(monkeypatch)
    gc.collect()
    gc.disable()
    try:
        use(tmp_path)
        alive = [each for ref in copies + given if (each := ref()) is not None]
    finally:
        gc.enable()
    assert given
    assert not alive


def built_modules(monkeypatch):
    """References to all modules that are built from here on: the parents as well."""
    made, original = [], nn.Module.__init__

    def init(module, *arguments, **options):
        made.append(weakref.ref(module))
        original(module, *arguments, **options)

    monkeypatch.setattr(nn.Module, "__init__", init)
    return made
