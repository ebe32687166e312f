"""Ensembles: references for every way to combine, and files that are whole or refused."""

import json
import math
import random

import pytest
import torch
from networks import all_same_bits, copied, lenet, mlp, noise, normalised, same_bits, tied
from torch import nn

from evo_subnets import Ensemble, Mutation, materialize, parameters, quads, singles
from evo_subnets.files import StorageError, save_tensors

COMBINES = ("mean", "logits", "vote")
X = noise(30, 5, seed=50)


def softmax(row):
    exponentials = [math.exp(x - max(row)) for x in row]
    return [x / sum(exponentials) for x in exponentials]


def reference(member_logits, combine, weights):
    """Probabilities of one sample, in plain Python: `member_logits` is a row for each member."""
    weights = [w / sum(weights) for w in weights]
    classes = range(len(member_logits[0]))
    if combine == "logits":
        pairs = list(zip(weights, member_logits, strict=True))
        return softmax([sum(w * row[c] for w, row in pairs) for c in classes])
    if combine == "vote":
        rows = [[float(row[c] == max(row)) for c in classes] for row in member_logits]
    else:
        rows = [softmax(row) for row in member_logits]
    pairs = list(zip(weights, rows, strict=True))
    return [sum(w * row[c] for w, row in pairs) for c in classes]


@torch.no_grad()
def output(module, x=X):
    return module(x)


@pytest.mark.parametrize("weights", [None, [1, 1, 1], [0.2, 3.0, 0.5], [0, 1, 2]])
@pytest.mark.parametrize("combine", COMBINES)
def test_probabilities_are_those_of_a_plain_reference(combine, weights):
    members = [mlp(seed) for seed in range(3)]
    for member in members:
        with torch.no_grad():
            member[2].weight.mul_(5)
    ensemble = Ensemble(members, combine, weights=weights)
    with torch.no_grad():
        logits = [member(X).double().tolist() for member in members]
    for sample, found in enumerate(output(ensemble).exp().tolist()):
        expected = reference([rows[sample] for rows in logits], combine, weights or [1, 1, 1])
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("combine", COMBINES)
def test_log_probabilities_are_normalised(combine):
    found = output(Ensemble([mlp(seed) for seed in range(3)], combine, weights=[1, 2, 3]))
    assert found.shape == (30, 3)
    assert torch.allclose(found.exp().sum(dim=1), torch.ones(30))
    assert not found.isnan().any()


def test_the_mean_stays_finite_where_probabilities_underflow():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.tensor([[0.0, -300.0, -500.0]]).expand(len(x), 3)

    found = output(Ensemble([Sure(), Sure()]))
    assert torch.allclose(found, torch.tensor([0.0, -300.0, -500.0]))


@pytest.mark.parametrize("make", [mlp, normalised, tied])
def test_one_member_is_the_log_softmax_of_the_model(make):
    module = make().eval()
    expected = output(module).log_softmax(dim=-1)
    assert same_bits(output(Ensemble([module])), expected)
    assert same_bits(output(Ensemble([module], weights=[0.3])), expected)
    assert torch.allclose(output(Ensemble([module], "logits")), expected)


@pytest.mark.parametrize("combine", ["mean", "logits"])
def test_copies_of_one_model_are_that_model(combine):
    module = mlp()
    expected = output(module).log_softmax(dim=-1)
    for weights in (None, [1, 2, 3, 4, 5]):
        found = output(Ensemble([module] * 5, combine, weights=weights))
        assert torch.allclose(found, expected, rtol=0, atol=1e-6)


def test_an_ensemble_is_a_module():
    members = [mlp(seed) for seed in range(2)]
    ensemble = Ensemble(members)
    found = output(ensemble)
    assert list(ensemble.state_dict()) == [
        f"members.{i}.{name}" for i in range(2) for name in members[0].state_dict()
    ]
    double = ensemble.double()
    assert double(X.double()).dtype == torch.float64
    assert torch.allclose(output(double, X.double()).float(), found, atol=1e-6)


def test_member_logits_are_what_each_member_says():
    members = [mlp(seed) for seed in range(3)]
    with torch.no_grad():
        logits = Ensemble(members).member_outputs(X)
        assert same_bits(logits, torch.stack([member(X) for member in members]))


@pytest.mark.parametrize(
    "weights", [[], [1, 2], [1, 2, -1], [0, 0, 0], [1, 2, math.nan], [1, 2, math.inf]]
)
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be 3 finite numbers"):
        Ensemble([mlp(seed) for seed in range(3)], weights=weights)


def test_no_members_or_an_unknown_combination_are_refused():
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble.from_mutations(mlp(), [])
    with pytest.raises(ValueError, match=r"combine must be one of .* got 'median'"):
        Ensemble([mlp()], "median")


def test_members_are_in_eval_mode_and_the_module_stays_in_train_mode():
    module = normalised().train()
    state = copied(module.state_dict())
    ensemble = Ensemble.from_mutations(
        module, quads(4, 0.1, density=0.5, seed=0), include_parent=True
    )
    assert not any(part.training for part in ensemble.modules())
    assert all(part.training for part in module.modules())
    assert same_bits(output(ensemble), output(ensemble))  # Dropout rests
    for member in ensemble.members:
        assert all_same_bits(copied(dict(member.named_buffers())), dict(module.named_buffers()))
    assert all_same_bits(copied(module.state_dict()), state)


def test_members_are_the_children_each_with_its_own_memory():
    module, mutations = lenet(), singles(3, 0.1, density=0.5, seed=0)
    ensemble = Ensemble.from_mutations(module, mutations)
    places = set()
    for member, mutation in zip(ensemble.members, mutations, strict=True):
        assert all_same_bits(parameters(member), materialize(parameters(module), mutation))
        places |= {parameter.data_ptr() for parameter in member.parameters()}
    places |= {parameter.data_ptr() for parameter in module.parameters()}
    assert len(places) == 4 * len(list(module.parameters()))


def test_include_parent_puts_it_first():
    module = mlp()
    ensemble = Ensemble.from_mutations(
        module, quads(4, 0.1, density=0.5, seed=0), include_parent=True
    )
    assert len(ensemble.members) == 5
    assert all_same_bits(parameters(ensemble.members[0]), parameters(module))
    assert ensemble.members[0] is not module
    alone = Ensemble.from_mutations(module, [], include_parent=True)
    assert same_bits(output(alone), output(module).log_softmax(dim=-1))


def test_an_ensemble_keeps_its_parent_when_the_module_trains_on(tmp_path):
    module = mlp()
    ensemble = Ensemble.from_mutations(module, quads(4, 0.1, density=0.5, seed=0))
    found = output(ensemble)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert same_bits(output(ensemble), found)
    ensemble.save(tmp_path / "e.safetensors")
    loaded = Ensemble.load(tmp_path / "e.safetensors", mlp(9), restore=True)
    assert same_bits(output(loaded), found)


def test_tied_weights_stay_tied(tmp_path):
    module = tied()
    ensemble = Ensemble.from_mutations(module, quads(4, 0.1, density=0.5, seed=0))
    for member in ensemble.members:
        assert member.second.weight is member.first.weight
        assert not torch.equal(member.first.weight, module.first.weight)
    ensemble.save(tmp_path / "e.safetensors")
    loaded = Ensemble.load(tmp_path / "e.safetensors", tied(9), restore=True)
    assert same_bits(output(loaded), output(ensemble))


def varied(make=normalised, **arguments):
    """An ensemble that uses everything that a file has to keep."""
    arguments = {"include_parent": True, "include": ["0.weight", "4.bias"], **arguments}
    mutations = [*quads(4, 0.1, density=1 / 3, seed=7), Mutation(2**63 - 1, -1e-7, 0.9, 0.1)]
    return Ensemble.from_mutations(make(), mutations, **arguments)


@pytest.mark.parametrize("restore", [False, True])
@pytest.mark.parametrize("weights", [None, [7, 3, 5, 7, 1, 0], [0.56, 0.35, 0.31, 0.64, 0.2, 0.1]])
@pytest.mark.parametrize("combine", COMBINES)
def test_a_loaded_ensemble_is_the_saved_one_bit_for_bit(combine, weights, restore, tmp_path):
    path = tmp_path / "e.safetensors"
    ensemble = varied(combine=combine, weights=weights)
    ensemble.save(path)
    loaded = Ensemble.load(path, normalised(5 if restore else 0), restore=restore)
    assert same_bits(loaded.weights, ensemble.weights)
    assert all_same_bits(copied(loaded.state_dict()), copied(ensemble.state_dict()))
    assert same_bits(output(loaded), output(ensemble))
    assert (loaded.combine, len(loaded.members)) == (combine, 6)
    for field in ("mutations", "include", "include_parent"):
        assert getattr(loaded.recipe, field) == getattr(ensemble.recipe, field)
    assert all_same_bits(loaded.recipe.parent, ensemble.recipe.parent)


@pytest.mark.parametrize("count", [2, 3, 41, 47])
def test_equal_weights_survive_a_file(count, tmp_path):
    """Normalising what is normalised already must not move them by a bit."""
    path, module = tmp_path / "e.safetensors", tied()
    mutations = singles(count, 0.1, density=0.5, seed=0)
    ensemble = Ensemble.from_mutations(module, mutations)
    ensemble.save(path, parent_weights=False)
    loaded = Ensemble.load(path, module)
    assert same_bits(loaded.weights, ensemble.weights)


def test_a_file_without_weights_is_small_and_needs_the_parent(tmp_path):
    path = tmp_path / "e.safetensors"
    module = lenet()
    ensemble = Ensemble.from_mutations(module, quads(4, 0.1, density=0.5, seed=0))
    ensemble.save(path, parent_weights=False)
    assert path.stat().st_size < 2000
    x = noise(3, 1, 28, 28)
    assert same_bits(output(Ensemble.load(path, lenet()), x), output(ensemble, x))
    with pytest.raises(ValueError, match="holds no weights of the parent"):
        Ensemble.load(path, lenet(), restore=True)


@pytest.mark.parametrize("parent_weights", [False, True])
def test_another_parent_is_refused(parent_weights, tmp_path):
    path = tmp_path / "e.safetensors"
    varied().save(path, parent_weights)
    nudged, moved = normalised(), normalised()
    with torch.no_grad():
        nudged[0].weight[0, 0] += 1e-6
        moved[1].running_mean[0] += 1e-6
    for other in (normalised(1), nudged, moved, mlp(), normalised().double()):
        with pytest.raises(ValueError, match=r"made of another parent: .*restore=True"):
            Ensemble.load(path, other)


def test_restoring_leaves_the_given_module_alone(tmp_path):
    path = tmp_path / "e.safetensors"
    varied().save(path)
    module = normalised(1).train()
    state = copied(module.state_dict())
    Ensemble.load(path, module, restore=True)
    assert all_same_bits(copied(module.state_dict()), state)
    assert module.training


def test_members_that_are_no_mutations_are_saved_whole(tmp_path):
    first, second = mlp(), mlp(seed=1)
    ensemble = Ensemble([first, second], "vote", weights=[1, 3])
    ensemble.save(tmp_path / "e.safetensors")
    loaded = Ensemble.load(tmp_path / "e.safetensors", mlp(seed=2))
    assert torch.equal(loaded.members[1][0].weight, second[0].weight)
    assert loaded.combine == "vote"
    assert torch.equal(loaded(noise(4, 5)), ensemble(noise(4, 5)))


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "e.safetensors"
    varied().save(path)
    return path


def refused(path, data, match):
    path.write_bytes(data)
    with pytest.raises(StorageError, match=match):
        Ensemble.load(path, normalised(1), restore=True)


def test_missing_files_are_refused(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(StorageError, match="there is no such file"):
            Ensemble.load(path, mlp())


def test_truncated_files_are_refused(saved):
    data = saved.read_bytes()
    lengths = [0, 1, 7, 8, 9, *range(10, len(data), len(data) // 40), len(data) - 1]
    for length in lengths:
        refused(saved, data[:length], "truncated|damaged|expected")


def test_files_with_any_bit_flipped_are_refused(saved):
    data = saved.read_bytes()
    draws = random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    places = [draws.randrange(header) for _ in range(90)]
    places += [draws.randrange(header, len(data)) for _ in range(40)]
    for place in [*range(8), *places]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draws.randrange(8)
        refused(saved, bytes(flipped), "e.safetensors: ")


def test_files_with_bytes_zeroed_added_or_exchanged_are_refused(saved):
    data = saved.read_bytes()
    draws = random.Random(1)
    for _ in range(15):
        place = draws.randrange(len(data) - 16)
        if any(data[place : place + 16]):
            refused(saved, data[:place] + bytes(16) + data[place + 16 :], "e.safetensors: ")
        noise_bytes = draws.randbytes(8)
        refused(saved, data[:place] + noise_bytes + data[place + 8 :], "e.safetensors: ")
        refused(saved, data[:place] + noise_bytes + data[place:], "e.safetensors: ")
    for other in (b"", b"\0" * 64, draws.randbytes(300), b"{}", data + b"\0", data + data):
        refused(saved, other, "e.safetensors: ")


def test_files_of_another_kind_or_version_are_refused(saved, monkeypatch):
    save_tensors(saved, {}, kind="evo_subnets.other", description={})
    with pytest.raises(StorageError, match=r"kind evo_subnets\.ensemble, got evo_subnets\.other"):
        Ensemble.load(saved, normalised())
    monkeypatch.setattr("evo_subnets.files.writing.VERSION", "2")
    varied().save(saved)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="format version 2 is not 1"):
        Ensemble.load(saved, normalised())


def test_plain_safetensors_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "e.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    with pytest.raises(StorageError, match=r"expected a file of kind .* got None"):
        Ensemble.load(path, mlp())


def test_saving_makes_folders_and_leaves_no_temporary_files(tmp_path):
    path = tmp_path / "runs" / "one" / "e.safetensors"
    for _ in range(2):
        varied().save(path)
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_a_failing_write_keeps_the_old_file(step, saved, monkeypatch):
    def full(*args):
        raise OSError(28, "no space left on device")

    before = saved.read_bytes()
    monkeypatch.setattr(step, full)
    with pytest.raises(OSError, match="no space left"):
        varied(combine="vote").save(saved)
    monkeypatch.undo()
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]
    assert Ensemble.load(saved, normalised()).combine == "mean"


def test_files_are_written_to_disk_before_they_take_their_name(tmp_path, monkeypatch):
    import os

    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *args: (steps.append("fsync"), fsync(*args)))
    monkeypatch.setattr(os, "replace", lambda *args: (steps.append("replace"), replace(*args)))
    varied().save(tmp_path / "e.safetensors")
    assert steps[:2] == ["fsync", "replace"]


def test_the_description_in_a_file_is_readable_json(saved):
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        description = json.loads(file.metadata()["description"])
    assert description["combine"] == "mean"
    assert description["mutations"][-1] == [2**63 - 1, -1e-7, 0.9, 0.1]
