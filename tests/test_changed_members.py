"""What torch does with modules, with ensembles whose members were changed since they were made."""

import copy
import io
import pickle

import pytest
import torch
from networks import all_same_bits, mlp, noise, normalised, same_bits

from evo_subnets import Ensemble, Task, quads
from evo_subnets.prediction import reestimate_norms
from evo_subnets.schedules import Constant
from evo_subnets.tuning import Tuning, tune

QUADS = quads(4, 0.1, density=0.5, seed=0)
X = noise(30, 5, seed=50)
DATA = [(noise(20, 5, seed=1), torch.arange(20) % 3)]


def tuned(member):
    with torch.enable_grad():
        tune(member, Task(DATA), tuning=Tuning(2, Constant(0.1), "adam"))


CHANGES = {
    "as made": lambda ensemble, one: None,
    "norms re-estimated": lambda ensemble, one: reestimate_norms(one, DATA),
    "tuned": lambda ensemble, one: tuned(one),
    "edited through data": lambda ensemble, one: one[0].weight.data.mul_(2),
    "other memory": lambda ensemble, one: setattr(one[0].weight, "data", one[0].weight.data * 2),
    "the mean's weights": lambda ensemble, one: ensemble.weights.copy_(
        torch.tensor([0.7, 0.1, 0.2, 0.0])
    ),
    "of float64": lambda ensemble, one: ensemble.double(),
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
residence = pytest.mark.parametrize("resident", [True, False], ids=["resident", "recipes"])


def changed(change, resident):
    """Such an ensemble, that was asked before and after; X and what it says of it."""
    ensemble = Ensemble.from_mutations(normalised(), QUADS, resident=resident)
    with torch.no_grad():
        before = ensemble(X)
        change(ensemble, ensemble.members[1] if resident else ensemble.parent)
        x = X.to(next(ensemble.parameters()).dtype)
        expected = ensemble(x)
    assert (change is CHANGES["as made"]) == same_bits(before, expected)
    return ensemble, x, expected


def through_torch_save(ensemble):
    file = io.BytesIO()
    torch.save(ensemble, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_a_state_dict(ensemble):
    resident = ensemble.parent is None
    other = Ensemble.from_mutations(normalised(9), QUADS, resident=resident)
    other.to(next(ensemble.parameters()).dtype)(X.to(next(ensemble.parameters()).dtype))
    other.load_state_dict(ensemble.state_dict())
    other.weights.copy_(ensemble.weights)  # of no state dict
    return other


def there_and_back(ensemble):
    dtype = next(ensemble.parameters()).dtype
    other = copy.deepcopy(ensemble).double()
    assert other(X.double()).dtype == torch.float64
    return other.to(dtype)


WAYS = [
    copy.deepcopy, copy.copy, lambda ensemble: pickle.loads(pickle.dumps(ensemble)),
    through_torch_save, through_a_state_dict, there_and_back,
]  # fmt: skip


@residence
@changes
def test_copies_say_the_same(change, resident, tmp_path):
    ensemble, x, expected = changed(change, resident)
    with torch.no_grad():
        for way in WAYS:
            other = way(ensemble)
            assert same_bits(other(x), expected)
            assert all_same_bits(other.state_dict(), ensemble.state_dict())
            other.save(tmp_path / "other")
            ensemble.save(tmp_path / "ensemble")
            dtype = next(ensemble.parameters()).dtype
            loaded = [
                Ensemble.load(tmp_path / name, normalised(9).to(dtype), restore=True)
                for name in ("other", "ensemble")
            ]
            assert all(same_bits(each(x), expected) for each in loaded)
        for parameter in copy.deepcopy(ensemble).parameters():
            parameter.zero_()  # of its own
        assert same_bits(ensemble(x), expected)


@pytest.mark.filterwarnings("ignore:Dynamo detected")
@residence
def test_what_is_compiled_follows_its_members(resident):
    ensemble = Ensemble.from_mutations(normalised(), QUADS, resident=resident)
    compiled = torch.compile(ensemble, backend="eager")
    one = ensemble.members[1] if resident else ensemble.parent
    with torch.no_grad():
        for change in CHANGES.values():
            compiled(X)
            change(ensemble, one)
            x = X.to(next(ensemble.parameters()).dtype)
            torch.testing.assert_close(compiled(x), ensemble(x))


@changes
def test_changed_members_are_exported(change):
    ensemble, x, expected = changed(change, resident=True)
    with torch.no_grad():
        exported = torch.export.export(ensemble, (x,)).module()
        torch.testing.assert_close(exported(x), expected)
        torch.testing.assert_close(torch.jit.trace(ensemble, x)(x), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's own
def test_changed_members_become_onnx(tmp_path):
    runtime, *_ = map(pytest.importorskip, ("onnxruntime", "onnx", "onnxscript"))
    ensemble, x, _ = changed(CHANGES["norms re-estimated"], resident=True)
    for change in ("tuned", "the mean's weights"):
        CHANGES[change](ensemble, ensemble.members[2])
    path = str(tmp_path / "e.onnx")
    torch.onnx.export(ensemble, (x,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path)
    (said,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(said), ensemble(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_changed_members_are_rounded_into_another_precision_and_back(dtype, tmp_path):
    for change in CHANGES.values():
        ensemble, _, _ = changed(change, resident=True)
        ensemble.save(tmp_path / "e")
        there = Ensemble.load(tmp_path / "e", normalised(9).to(dtype), restore=True)
        wanted = copy.deepcopy(ensemble).to(dtype)
        assert all_same_bits(there.state_dict(), wanted.state_dict())
        there.save(tmp_path / "e")
        back = Ensemble.load(tmp_path / "e", normalised(9), restore=True)
        assert all_same_bits(back.state_dict(), wanted.float().state_dict())


def test_members_of_several_architectures_are_changed_and_kept(tmp_path):
    ensemble = Ensemble([mlp(), normalised()], weights=[1, 2])
    reestimate_norms(ensemble.members[1], DATA)
    tuned(ensemble.members[0])
    ensemble.weights.copy_(torch.tensor([0.9, 0.1]))
    with torch.no_grad():
        for other in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
            assert same_bits(other(X), ensemble(X))
        ensemble.save(tmp_path / "e")
        loaded = Ensemble.load(tmp_path / "e", [mlp(3), normalised(4)])
        assert same_bits(loaded(X), ensemble(X))
        half = Ensemble.load(tmp_path / "e", [mlp(3).bfloat16(), normalised(4).bfloat16()])
        wanted = copy.deepcopy(ensemble).bfloat16()
        assert all_same_bits(half.state_dict(), wanted.state_dict())
