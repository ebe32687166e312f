"""The work copy, members as recipes, and what of it can be pickled, moved and loaded."""

import copy
import gc
import pickle

import pytest
import torch
from networks import all_same_bits, built, copied, lenet, mlp, noise, normalised, same_bits, tied
from torch import nn

from evo_subnets import Ensemble, materialize, parameters, quads, singles
from evo_subnets.copies import Likeness
from evo_subnets.prediction import predict_members
from evo_subnets.recipes import WorkCopy, mutated

QUADS = quads(8, 0.1, density=0.5, seed=0)
X = noise(30, 5, seed=50)


def both(make, mutations=QUADS, **options):
    """The same ensemble, resident and kept as recipes."""
    return [
        Ensemble.from_mutations(make(), mutations, resident=resident, **options)
        for resident in (True, False)
    ]


@pytest.mark.parametrize("combine", ["mean", "vote", "logits"])
@pytest.mark.parametrize("make", [mlp, normalised, tied])
def test_recipes_say_what_resident_members_say(make, combine):
    resident, kept = both(make, combine=combine, include_parent=True)
    assert len(kept.members) == len(resident.members) == 9
    with torch.no_grad():
        assert same_bits(kept(X), resident(X))
        assert same_bits(kept.member_outputs(X), resident.member_outputs(X))
        assert same_bits(kept.members[3](X), resident.members[3](X))
        listed = torch.stack([member(X) for member in list(kept.members)])
        assert same_bits(listed, resident.member_outputs(X))


def bytes_of_tensors():
    """Of all tensors of this process, each memory once."""
    gc.collect()
    found = {}
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, nn.Parameter) and each.device.type == "cpu":
            storage = each.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@pytest.mark.parametrize("count", [4, 64])
def test_recipes_need_two_copies_of_the_weights(count):
    module, x = lenet(), noise(2, 1, 28, 28)
    weights = sum(4 * parameter.numel() for parameter in module.parameters())
    before = bytes_of_tensors()
    ensemble = Ensemble.from_mutations(
        module, singles(count, 0.1, density=0.5, seed=0), resident=False
    )
    with torch.no_grad():
        ensemble(x)
    assert 2 * weights <= bytes_of_tensors() - before < 2.1 * weights
    assert weights < len(pickle.dumps(ensemble)) < 1.1 * weights  # not what is worked in


def test_recipes_are_pickled_copied_moved_and_loaded():
    resident, kept = both(normalised)
    with torch.no_grad():
        expected = kept(X)
        for again in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
            assert same_bits(again(X), expected)
            again.parent[0].weight.zero_()
        assert same_bits(kept(X), expected)
        assert list(kept.state_dict()) == [f"parent.{n}" for n in normalised().state_dict()]
        other = Ensemble.from_mutations(normalised(3), QUADS, resident=False)
        other(X)
        other.load_state_dict(kept.state_dict())
        assert same_bits(other(X), expected)
        other.double()
        assert other(X.double()).dtype == torch.float64
        torch.testing.assert_close(other(X.double()).float(), expected)
        assert same_bits(other.float()(X), expected)
    with torch.no_grad():
        predicted = predict_members(kept, [(X, torch.zeros(30))])
        assert same_bits(predicted, resident.member_outputs(X))


def test_recipes_go_through_files(tmp_path):
    path = tmp_path / "e.safetensors"
    resident, kept = both(normalised, include_parent=True, weights=range(9))
    resident.save(path)
    bits = path.read_bytes()
    loaded = Ensemble.load(path, normalised(), resident=False)
    restored = Ensemble.load(path, normalised(4), resident=False, restore=True)
    for ensemble in (kept, loaded, restored):
        assert same_bits(ensemble(X), resident(X))
        ensemble.save(path)
        assert sorted(path.read_bytes()) == sorted(bits)
    kept.save(path, parent_weights=False)
    assert path.stat().st_size < 3000
    assert same_bits(Ensemble.load(path, normalised())(X), resident(X))


def test_a_parent_that_is_sparse_by_now_has_children_that_are(tmp_path):
    """As members that are made of it now, and as those that its file has."""
    kept, path = both(mlp)[1], tmp_path / "e.safetensors"
    kept(X)
    sparse = mlp(1)
    sparse[0].weight.data[:, ::2] = 0
    kept.load_state_dict({f"parent.{name}": each for name, each in sparse.state_dict().items()})
    kept.save(path)
    for other in (
        Ensemble.from_mutations(sparse, QUADS), Ensemble.load(path, sparse),
        Ensemble.load(path, mlp(2), restore=True, resident=False),
    ):  # fmt: skip
        assert same_bits(kept(X), other(X))


def test_what_recipes_cannot_do_is_said():
    _, kept = both(mlp)
    for wrong, message in [
        (kept.train, "cannot be trained"),
        (lambda: kept(X.clone().requires_grad_()), "cannot be asked for gradients"),
        (kept.members[0].state_dict, "cannot be taken for a module with weights of its own"),
        (lambda: parameters(kept.members[0]), "cannot be taken for a module with weights"),
        (lambda: both(mlp, side_by_side=True), "cannot go side_by_side"),
        (lambda: torch.jit.trace(kept, X), "cannot be exported"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()
    for strict in (False, True):
        with pytest.raises(Exception, match="cannot be exported"):
            torch.export.export(kept, (X,), strict=strict)
    assert not kept(X).requires_grad


def test_one_work_copy_serves_all_children_that_leave_it_as_it_was():
    module = normalised()
    work = WorkCopy(module)
    first = work.child(QUADS[0])
    with torch.random.fork_rng(devices=[]):
        first.train()(X)  # moves the statistics
    assert work.child(QUADS[1]) is first
    assert all_same_bits(copied(parameters(first)), materialize(parameters(module), QUADS[1]))
    assert all_same_bits(copied(dict(first.named_buffers())), dict(module.named_buffers()))
    assert not first.training
    assert all_same_bits(copied(work.parent().state_dict()), copied(module.state_dict()))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.number, self.flag, self.words = 1, True, {"a": [1, 2.5, "x"], "b": (None, {1})}
        self.tensor, self.shared = torch.zeros(2), torch.ones(1).expand(4)
        self.function, self.inner = len, self.layer.forward


CHANGES = [
    lambda m: setattr(m, "number", 2),
    lambda m: setattr(m, "number", 1.0),
    lambda m: setattr(m, "flag", 1),
    lambda m: m.words["a"].append(3),
    lambda m: m.words["a"].__setitem__(1, 2.0),
    lambda m: m.words.update(c=1),
    lambda m: m.words["b"][1].add(2),
    lambda m: setattr(m, "tensor", torch.zeros(2)),
    lambda m: m.tensor.resize_(3),
    lambda m: setattr(m, "function", sum),
    lambda m: delattr(m, "number"),
    lambda m: m.layer.register_forward_pre_hook(print),
    lambda m: m.layer.register_full_backward_hook(print),
    lambda m: m.layer.weight.register_hook(print),
    lambda m: m.layer.weight.requires_grad_(False),
    lambda m: m.register_buffer("more", None),
    lambda m: m.add_module("another", None),
    lambda m: setattr(m.layer, "weight", nn.Parameter(m.layer.weight.detach())),
    lambda m: setattr(m.layer.weight, "data", m.layer.weight.data.T),
    lambda m: m.layer.to(memory_format=torch.channels_last) and m.double(),
    lambda m: nn.utils.parametrizations.orthogonal(m.layer),
]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_beside_the_weights_is_seen(change):
    module = built(Odd)
    del module.shared
    likeness = Likeness(module)
    module.eval()
    module.tensor += 1
    module.layer.weight.data += 1
    assert likeness.holds()
    change(module)
    assert not likeness.holds()


def test_what_cannot_be_looked_into_is_never_the_same():
    assert not Likeness(built(Odd)).holds()  # its elements share memory
    module = built(lambda: nn.Linear(3, 3))
    module.draws = torch.Generator()
    assert not Likeness(module).holds()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named_and_an_empty_one_is_no_fault(value):
    full, none = (built(lambda: nn.Linear(3, 2)) for _ in range(2))
    none.weight = nn.Parameter(torch.empty(2, 0))
    empty = nn.ModuleDict({"full": full, "none": none})
    assert set(mutated(empty)) == {"full.weight", "none.weight"}
    with torch.no_grad():
        empty["full"].weight[1, 2] = value
    with pytest.raises(ValueError, match=r"full\.weight of the parent is not finite everywhere"):
        mutated(empty)
