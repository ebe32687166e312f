"""The contract of every method, and of those variants that go other ways."""

import contextlib
import dataclasses
import inspect

import pytest
import torch
from networks import PLAIN, pictures
from networks import small_classifier as network

from configs.experiments import shrunk
from evo_subnets import Ensemble, Search, files, singles
from evo_subnets.methods import (
    DST,
    METHODS,
    Annealing,
    FastGeometric,
    Independent,
    Noisy,
    Pruning,
    Result,
    Soup,
    Sparse,
    Stochastic,
    with_seed,
)
from evo_subnets.rewiring import Rewiring
from evo_subnets.runs import Run
from evo_subnets.schedules import OneCycle
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune

TUNING = Tuning(2, OneCycle(), batch_size=16)
TASK = Task(pictures(), pictures(seed=5))
QUAD = Search(4, 2, 0.05)


def parent_of(seed=0):
    module = network(seed)
    tune(module, TASK, tuning=Tuning(4, OneCycle(), batch_size=16))
    return module


VARIANTS = {
    **{name: shrunk(method()) for name, method in METHODS.items()},
    "deep ensemble": Independent(2, TUNING),
    "random": Sparse(2, Pruning("random", 0.6), TUNING),
    "fast_geometric": FastGeometric(2, tuning=Tuning(2, batch_size=16)),  # in one step none fit
    "soup, uniform": Soup(3, "uniform", TUNING),
    "dst, random growth": DST(2, rewiring=Rewiring("random", interval=2), tuning=TUNING),
    "neurons": Sparse(2, Pruning("random", 0.3, "neurons"), TUNING),
    "temperature": Stochastic(2, Annealing(annealing_epochs=1), Pruning("random"), TUNING),
    "random annealing": Stochastic(2, Annealing("random", 2, "linear"), Pruning("random"), TUNING),
    "gaussian": Stochastic(2, Annealing("gaussian", 1), Pruning("random"), TUNING),
    "iterative": Stochastic(2, Annealing("iterative", 2), Pruning("random", 0.8), TUNING),
    "one-shot": Stochastic(2, Annealing("one-shot"), Pruning("random", 0.8), TUNING),
    "noisy, own norms": Noisy(QUAD, reestimate_norms=True),
    "noisy, raced": Noisy(QUAD, racing=True),
    "noisy, singles": Noisy(Search(5, 2, sampler=singles)),
    "noisy, in units of layers": Noisy(QUAD, per_layer=True),
    "noisy, algorithm 1": Noisy(QUAD, combine="logits", include_parent=True),
    "noisy, of densities": Noisy(Search(4, 2), densities=(0.2, 0.7)),
    "noisy, generations": Noisy(Search(4, 2), generations=3),
    "noisy, generations, own norms": Noisy(QUAD, generations=2, reestimate_norms=True),
}


def called(method, parent=None, **how):
    start = (parent or parent_of()) if method.starts_from == "parent" else network
    return method(start, TASK, **how)


def alone(method):
    """The same with one member, None where members come in sets."""
    names = {field.name for field in dataclasses.fields(method)}
    if "include_parent" in names:
        method = dataclasses.replace(method, include_parent=False)
    try:
        if "ensemble_size" in names:
            return dataclasses.replace(method, ensemble_size=1)
        if "search" not in names:  # it gives one network anyway
            return method
        return dataclasses.replace(
            method, search=dataclasses.replace(method.search, ensemble_size=1)
        )
    except ValueError:
        return None


@pytest.mark.parametrize("name", VARIANTS)
def test_methods_keep_the_contract(name):
    method, parent = VARIANTS[name], parent_of()
    size = method.ensemble_size
    before = files.fingerprint(parent.state_dict())
    result = called(method, parent)
    assert isinstance(result, Result)
    first, again = result.ensemble, called(method, parent).ensemble
    other = called(with_seed(method, 2), parent).ensemble
    assert files.fingerprint(first.state_dict()) == files.fingerprint(again.state_dict())
    assert files.fingerprint(first.state_dict()) != files.fingerprint(other.state_dict())
    assert files.fingerprint(parent.state_dict()) == before, "the parent is left alone"
    assert not any(module.training for module in first.modules())
    inputs = PLAIN.normalize(pictures(8, seed=3).pixels)
    if result.candidates:  # the chosen one may be of one network
        size = len(result.candidates[result.chosen].members)
    assert first.member_outputs(inputs).shape == (size, 8, 4)
    own = {id(tensor) for tensor in parent.state_dict(keep_vars=True).values()}
    for member in first.members:
        tensors = set(map(id, member.state_dict(keep_vars=True).values()))
        assert not tensors & own, "children own their weights and buffers"
        own |= tensors
    if (single := alone(method)) is not None:
        one = called(single, parent).ensemble
        torch.testing.assert_close(one(inputs), one.members[0](inputs).log_softmax(dim=1))


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_frozen_dataclasses_that_say_what_they_are(name):
    kind = METHODS[name]
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    assert inspect.getdoc(kind)
    assert kind.starts_from in ("parent", "builder")
    assert kind.selects in (True, False)
    assert list(inspect.signature(kind.__call__).parameters)[2:] == ["task", "run", "workers"]
    assert kind() == kind(), "options are compared by value"


@pytest.mark.parametrize("name", VARIANTS)
def test_costs_are_counted(name):
    method = VARIANTS[name]
    result = called(method)
    assert result.training >= 0
    if name != "distillation":  # whose teachers are asked besides
        assert result.epochs >= result.training
    assert 0 < result.inference <= method.ensemble_size
    assert (
        0
        < result.parameters
        <= method.ensemble_size * sum(weight.numel() for weight in network().parameters())
    )
    assert bool(result.children) == bool(result.elites)
    assert method.selects or not result.children


@pytest.mark.parametrize("name", VARIANTS)
def test_ensembles_come_back_from_their_files(name, tmp_path):
    parent = parent_of()
    result = called(VARIANTS[name], parent)
    ensemble, evolved = result.ensemble, bool(result.candidates)  # it may have another parent
    ensemble.save(tmp_path / "ensemble.safetensors")
    loaded = Ensemble.load(tmp_path / "ensemble.safetensors", parent, restore=evolved)
    inputs = PLAIN.normalize(pictures(8, seed=3).pixels)
    assert torch.equal(loaded(inputs), ensemble(inputs))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", VARIANTS)
def test_a_call_that_was_stopped_goes_on_in_its_folder(name, tmp_path, monkeypatch):
    """Stopped half-way, by whatever it records or trains; then the same call again."""
    monkeypatch.setattr("evo_subnets.files.checkpoints.SECONDS", 0.0)
    method, parent = VARIANTS[name], parent_of()
    whole = called(method, parent).ensemble
    left = [2]

    def stop(*_, **__):
        left[0] -= 1
        if not left[0]:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", stopping(Run.record, stop))
        patch.setattr(Run, "scalar", stopping(Run.scalar, stop))
        run = Run(tmp_path)
        with contextlib.suppress(Stopped), run:
            called(method, parent, run=run)
    with Run(tmp_path) as run:
        again = called(method, parent, run=run).ensemble
    assert files.fingerprint(again.state_dict()) == files.fingerprint(whole.state_dict())
    with Run(tmp_path) as run, pytest.raises(ValueError, match="seed"):
        called(with_seed(method, 7), parent, run=run)


def stopping(method, stop):
    def called_and_stopped(self, *given, **named):
        method(self, *given, **named)
        stop()

    return called_and_stopped
