"""What users bring, and the right answer: modules, inputs and files as one table.

A case is a function; it stands under the kind of fault that it is an example of, and its first line
says what a user expects. Every case runs with one torch thread and with two, where members and
batches may go side by side.
"""

import collections
import contextlib
import copy
import tempfile
import threading
from collections.abc import Callable

import gymnasium
import pytest
import torch
from networks import built, noise
from torch import nn
from torch.nn.utils import prune

from evo_subnets import (
    Ensemble,
    Mutation,
    Task,
    evaluate,
    materialize,
    parameters,
    quads,
    search_trust_region,
)
from evo_subnets.methods import Sparse
from evo_subnets.methods.sparse import Pruning
from evo_subnets.outputs import Binary, Classes, Values
from evo_subnets.prediction import predict, reestimate_norms
from evo_subnets.rl import EnsemblePolicy
from evo_subnets.schedules import Constant
from evo_subnets.trust_region import NoRoot
from evo_subnets.tuning import Tuning, tune

CASES: list[Callable[[], None]] = []


def case(check: Callable[[], None]) -> Callable[[], None]:
    """Adds a row to the table."""
    assert check.__doc__, f"{check.__name__} does not say what is expected"
    CASES.append(check)
    return check


# --- Outputs and inputs -------------------------------------------------------------------------


@case
def one_output_meant_as_classes():
    """Refused, naming the kinds that it can be."""
    network = built(lambda: nn.Linear(8, 1))
    with pytest.raises(ValueError, match=r"one output cannot be classes"):
        search_trust_region(network, noise(20, 8))
    for outputs in (Binary(), Values()):
        region = search_trust_region(network, noise(20, 8), outputs=outputs)
        assert region.divergence == pytest.approx(0.02, rel=0.1)


@case
def an_ensemble_of_regressions():
    """The members' mean and their spread."""
    network, x = built(lambda: nn.Linear(8, 3)), noise(6, 8)
    ensemble = Ensemble.from_mutations(
        network, quads(4, 0.1, density=0.5, seed=0), outputs=Values()
    )
    said = torch.stack([member(x) for member in ensemble.members])
    torch.testing.assert_close(ensemble(x), said.mean(0))
    torch.testing.assert_close(ensemble.spread(x), said.std(0, correction=0))


@case
def logits_masked_with_minus_infinity():
    """A divergence, and an average in which they stay impossible."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x):
            return self.layer(x).masked_fill(torch.tensor([False, True, False]), -torch.inf)

    network, x = built(Masked), noise(20, 5)
    region = search_trust_region(network, x)
    assert region.divergence == pytest.approx(0.02, rel=0.1)
    for combine in ("mean", "logits"):
        ensemble = Ensemble.from_mutations(
            network, region.search.mutations()[:4], combine=combine, weights=[1, 1, 0, 1]
        )
        said = ensemble(x).exp()
        assert (said[:, 1] == 0).all()
        torch.testing.assert_close(said.sum(1), torch.ones(20))


@case
def a_last_batch_of_one_under_batch_norm():
    """It is left out."""
    network = built(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    x, y = noise(9, 4), torch.arange(9) % 2
    batches = [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]
    short = copy.deepcopy(network)
    tune(network, Task(batches), tuning=Tuning(1, Constant(0.1), "adam"))
    assert torch.isfinite(predict(network, batches)).all()
    tune(short, Task(batches[:2]), tuning=Tuning(1, Constant(0.1), "adam"))
    torch.testing.assert_close(network.state_dict(), short.state_dict())


@case
def training_outputs_that_are_others():
    """The main ones are trained, as those of torchvision's googlenet."""

    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            found = collections.namedtuple("Outputs", ["logits", "aux"])
            return found(self.main(x), self.other(x)) if self.training else self.main(x)

    network, batches = built(Auxiliary), [(noise(6, 4), torch.arange(6) % 3)]
    before = copy.deepcopy(network.state_dict())
    tune(network, Task(batches), tuning=Tuning(1, Constant(0.1), "adam"))
    after = network.state_dict()
    assert not torch.equal(before["main.weight"], after["main.weight"])
    assert torch.equal(before["other.weight"], after["other.weight"])


@case
def keyword_inputs_and_outputs_with_names():
    """As a classifier of `transformers`: works in trust region, ensemble, predict."""

    class Answer:
        def __init__(self, logits):
            self.loss, self.logits = None, logits

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, input_ids=None, attention_mask=None):
            return Answer(self.layer(input_ids * attention_mask))

    network = built(Classifier)
    inputs = {"input_ids": noise(6, 4), "attention_mask": torch.ones(6, 4)}
    region = search_trust_region(network, inputs)
    assert region.divergence == pytest.approx(0.02, rel=0.1)
    ensemble = Ensemble.from_mutations(network, region.search.mutations()[:4])
    said = predict(ensemble, [(inputs, torch.zeros(6))])
    torch.testing.assert_close(said, ensemble(**inputs))


@case
def a_vote_with_a_member_that_is_nan():
    """It is NaN, and no vote for class 0."""
    good, bad = built(lambda: nn.Linear(4, 3)), built(lambda: nn.Linear(4, 3))
    bad.bias.data.fill_(float("nan"))
    assert Ensemble([good, good, bad], "vote")(noise(5, 4)).isnan().all()


@case
def segmentation_without_an_axis():
    """Refused with the axis' name, and not normalised over the width."""
    network = built(lambda: nn.Conv2d(1, 3, 1))
    with pytest.raises(ValueError, match=r"name the classes' axis, outputs=Classes\(axis=1\)"):
        search_trust_region(network, noise(4, 1, 8, 8))
    ensemble = Ensemble([network, network], outputs=Classes(1))
    said = ensemble(noise(4, 1, 8, 8)).exp()
    torch.testing.assert_close(said.sum(1), torch.ones(4, 8, 8))


@case
def an_output_that_nobody_can_read():
    """Refused with what came and what to do."""

    class Two(nn.Module):
        def forward(self, x):
            return {"left": x, "right": x}

    with pytest.raises(ValueError, match=r"a mapping of left, right: say which tensor is meant"):
        Ensemble([Two()])(noise(3, 4))


@case
def a_policy_that_gives_mean_actions():
    """Continuous actions, no index of the largest."""
    network = built(lambda: nn.Linear(3, 2))
    space = gymnasium.spaces.Box(-1, 1, (3,))
    ensemble = Ensemble.from_mutations(
        network, quads(4, 0.1, density=0.5, seed=0), outputs=Values()
    )
    observation = noise(5, 3).numpy()
    actions, _ = EnsemblePolicy(ensemble, space).predict(observation)
    assert actions.shape == (5, 2)
    torch.testing.assert_close(torch.as_tensor(actions), ensemble(torch.as_tensor(observation)))
    alone, _ = EnsemblePolicy(network, space, outputs=Values()).predict(observation[0])
    assert alone.shape == (2,)
    with pytest.raises(ValueError, match=r"a temperature is of numbered actions"):
        EnsemblePolicy(ensemble, space, temperature=0.5)


# --- An ensemble is its members; a child is the parent plus its mutation ------------------------


def _small(*layers):
    return built(lambda: nn.Sequential(*(layer() for layer in layers)))


@case
def members_of_other_code_asked_side_by_side():
    """Each member's own outputs."""
    members = [
        _small(lambda: nn.Conv2d(1, 64, 3), activation, nn.Flatten, lambda: nn.Linear(2304, 10))
        for activation in (nn.ReLU, nn.Tanh, nn.ReLU, nn.Tanh)
    ]
    ensemble, x = Ensemble(members, side_by_side=True), noise(64, 1, 8, 8)
    with torch.no_grad():
        said = torch.stack([member(x) for member in members])
        torch.testing.assert_close(ensemble.member_outputs(x), said)


@case
def rows_that_mix_asked_side_by_side():
    """The members in turn: batch statistics, time first."""
    networks = [
        lambda: _small(
            lambda: nn.Conv2d(1, 64, 3),
            lambda: nn.BatchNorm2d(64, track_running_stats=False),
            nn.Flatten,
            lambda: nn.Linear(2304, 10),
        ),
        lambda: _small(lambda: nn.GRU(8, 2048)),
    ]
    for make, x in zip(networks, (noise(64, 1, 8, 8), noise(64, 2, 8)), strict=True):
        members = [make() for _ in range(4)]
        kind = Classes(read=lambda found: found[0][:, 0] if isinstance(found, tuple) else found)
        ensemble = Ensemble(members, side_by_side=True, outputs=kind)
        with torch.no_grad():
            said = torch.stack([kind.tensor(member.eval()(x)) for member in members])
            assert torch.equal(ensemble.member_outputs(x), said)


@case
def a_weight_changed_through_its_data():
    """The new weights answer, and are saved."""
    network, x = _small(lambda: nn.Linear(4, 3)), noise(6, 4)
    ensemble = Ensemble.from_mutations(network, quads(4, 0.1, density=0.5, seed=0))
    ensemble(x)
    ensemble.members[1][0].weight.data.mul_(2)
    said = torch.stack([member(x) for member in ensemble.members])
    torch.testing.assert_close(ensemble.member_outputs(x), said)
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/ensemble.safetensors")
        again = Ensemble.load(f"{folder}/ensemble.safetensors", network)
        with pytest.raises(ValueError, match=r"can only be saved with all their weights"):
            ensemble.save(f"{folder}/recipe.safetensors", parent_weights=False)
    torch.testing.assert_close(again.member_outputs(x), said)


@case
def norms_estimated_anew():
    """The file holds them."""
    network = _small(lambda: nn.Linear(4, 4), lambda: nn.BatchNorm1d(4), lambda: nn.Linear(4, 3))
    ensemble = Ensemble.from_mutations(network, quads(4, 0.1, density=0.5, seed=0))
    for member in ensemble.members:
        reestimate_norms(member, [(noise(32, 4), torch.zeros(32))])
    ensemble.weights.copy_(torch.tensor([0.7, 0.1, 0.1, 0.1]))
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/ensemble.safetensors")
        again = Ensemble.load(f"{folder}/ensemble.safetensors", network)
    torch.testing.assert_close(again(noise(6, 4)), ensemble(noise(6, 4)))


@case
def members_as_recipes():
    """The same outputs from two copies of the weights."""
    network, x = _small(lambda: nn.Linear(4, 8), nn.Tanh, lambda: nn.Linear(8, 3)), noise(6, 4)
    mutations = quads(8, 0.1, density=0.5, seed=0)
    kept = Ensemble.from_mutations(network, mutations, resident=False)
    with torch.no_grad():
        expected = Ensemble.from_mutations(network, mutations)(x)
        assert torch.equal(kept(x), expected)
    assert sum(weight.numel() for weight in kept.parameters()) == 67
    with tempfile.TemporaryDirectory() as folder:
        kept.save(f"{folder}/ensemble.safetensors")
        with torch.no_grad():
            loaded = Ensemble.load(f"{folder}/ensemble.safetensors", network)
            assert torch.equal(loaded(x), expected)


@case
def a_policy_that_remembers_its_last_state():
    """Every child starts from the parent's state."""

    class Remembering(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head, self.hidden = nn.GRUCell(4, 6), nn.Linear(6, 3), None

        def forward(self, x):
            self.hidden = self.cell(x, self.hidden)
            return self.head(self.hidden)

    network, x = built(Remembering), noise(7, 4)
    mutations = quads(4, 0.1, density=0.5, seed=0)

    def fitness(model):
        return model(x)[0, 0].item()

    forwards = evaluate(network, mutations, fitness=fitness)
    backwards = evaluate(network, mutations[::-1], fitness=fitness)
    assert forwards == backwards[::-1]
    assert network.hidden is None
    region = search_trust_region(network, x, sigmas=(1e-9,))
    assert region.divergence < 1e-12


@case
def a_fitness_that_rebuilds_the_child():
    """It costs one child, and the next is the parent and its mutation again."""
    network, x = _small(lambda: nn.Linear(4, 4), nn.ReLU, lambda: nn.Linear(4, 3)), noise(6, 4)
    mutations = quads(8, 0.1, density=0.5, seed=0)

    def spoiled(change):
        calls = []

        def fitness(model):
            calls.append(None)
            found = model(x).sum().item()
            if len(calls) == 2:
                change(model)
            if len(calls) == 3:
                raise RuntimeError("one child")
            return found

        return fitness

    whole = evaluate(network, mutations, fitness=lambda model: model(x).sum().item())
    changes = [
        lambda model: setattr(model, "0", nn.Linear(4, 4, bias=False)),
        lambda model: setattr(model[0], "bias", None),
        lambda model: model[2].register_forward_hook(lambda *_: torch.zeros(6, 3)),
        lambda model: model.half(),
        lambda model: model.register_buffer("more", torch.zeros(3)),
        lambda model: model.requires_grad_(False),
        lambda model: setattr(model, "counter", 3),
        lambda model: model.train(),
        lambda model: model.append(nn.Linear(3, 3)),
    ]
    with torch.random.fork_rng(devices=[]):
        for change in changes:
            found = evaluate(network, mutations, fitness=spoiled(change))
            assert found[2].reason == "RuntimeError: one child"
            assert [*found[:2], *found[3:]] == [*whole[:2], *whole[3:]]


@case
def modules_that_cannot_be_copied():
    """One sentence with the layer's name; what a pass without gradients lets copy works."""
    pruned = _small(lambda: nn.Linear(4, 3))
    prune.l1_unstructured(pruned[0], "weight", amount=0.5)
    assert torch.isfinite(Ensemble.from_mutations(
        pruned, quads(4, 0.1, density=0.5, seed=0))(noise(6, 4))).all()  # fmt: skip
    locked = _small(lambda: nn.Linear(4, 3))
    locked[0].lock = threading.Lock()
    sparse = _small(lambda: nn.Linear(4, 3))
    sparse[0].weight = nn.Parameter(sparse[0].weight.data.to_sparse())
    lazy = nn.Sequential(nn.LazyLinear(3))
    infinite = _small(lambda: nn.Linear(4, 3))
    infinite[0].weight.data[0, 0] = torch.inf
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(4, 3))
    coarse = _small(lambda: nn.Linear(4, 3))
    coarse[0].weight = nn.Parameter(coarse[0].weight.data.to(torch.float8_e4m3fn))
    for network, words in (
        (locked, r"lock of layer 0 \(Linear\), a lock, cannot be copied"),
        (sparse, r"weight of layer 0 \(Linear\) is torch.sparse_coo"),
        (lazy, r"layer 0 \(LazyLinear\) does not know its shape yet"),
        (infinite, r"0.weight of the parent is not finite everywhere"),
        (empty, r"on the meta device, without values"),
        (coarse, r"0.weight is torch.float8_e4m3fn, which is too coarse for noise"),
    ):
        with pytest.raises(ValueError, match=words):
            Ensemble.from_mutations(network, [Mutation(0, 0.1, 0, 1)])
        with pytest.raises(ValueError, match=words):
            evaluate(network, [Mutation(0, 0.1, 0, 1)], fitness=lambda _: 0.0)


@case
def a_file_of_float32_onto_a_bfloat16_module():
    """Converted: children are built in the file's precision and rounded."""
    network = _small(lambda: nn.Linear(4, 3))
    ensemble = Ensemble.from_mutations(network, quads(4, 0.1, density=0.5, seed=0))
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/ensemble.safetensors")
        half = copy.deepcopy(network).bfloat16()
        again = Ensemble.load(f"{folder}/ensemble.safetensors", half, restore=True)
    for member, before in zip(again.members, ensemble.members, strict=True):
        assert torch.equal(member[0].weight, before[0].weight.bfloat16())


@case
def members_of_several_architectures():
    """Saved and loaded with a module for each."""
    networks = [
        _small(lambda: nn.Linear(4, 3)),
        _small(lambda: nn.Linear(4, 8), nn.ReLU, lambda: nn.Linear(8, 3)),
    ]
    ensemble = Ensemble(networks)
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/ensemble.safetensors")
        again = Ensemble.load(f"{folder}/ensemble.safetensors", networks)
        with pytest.raises(ValueError, match=r"members of several need a module for each"):
            Ensemble.load(f"{folder}/ensemble.safetensors", networks[0])
    torch.testing.assert_close(again(noise(6, 4)), ensemble(noise(6, 4)))


# --- What is a weight ---------------------------------------------------------------------------


def _mutated(network):
    """The names of what a mutation changes, and by how many elements of each."""
    before = parameters(network)
    after = materialize(before, Mutation(0, 0.1, 0, 1))
    changed = {name: int((after[name] != before[name]).sum()) for name in before}
    return {name: count for name, count in changed.items() if count}


@case
def zeros_of_a_sparse_parent():
    """They stay zero."""
    network = _small(lambda: nn.Linear(8, 8), nn.ReLU, lambda: nn.Linear(8, 3))
    network[0].weight.data[:4] = 0
    assert _mutated(network) == {"0.weight": 32, "2.weight": 24}
    ensemble = Ensemble.from_mutations(network, quads(4, 0.1, density=0.5, seed=0))
    assert all((member[0].weight[:4] == 0).all() for member in ensemble.members)


@case
def a_head_registered_before_the_body():
    """The layer that makes the output is the classifier."""

    class HeadFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 3)
            self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6))

        def forward(self, x):
            return self.head(self.body(x))

    batches = [(noise(8, 4), torch.arange(8) % 3)]
    sparse = Sparse(2, Pruning("halves"), Tuning(1, Constant(0.01), "adam"))
    children = sparse(built(HeadFirst), Task(batches)).ensemble
    for child in children.members:
        assert (child.head.weight != 0).all()
        assert (child.body[2].weight == 0).any()


@case
def norms_positions_tokens_and_padding_rows():
    """They are no weights."""

    class Vision(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 8, padding_idx=0)
            self.pos_embedding = nn.Parameter(torch.zeros(1, 5, 8))
            self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
            self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
            self.norm, self.head = nn.LayerNorm((5, 8)), nn.Linear(8, 3)

        def forward(self, tokens):
            x = self.embedding(tokens) + self.pos_embedding + self.class_token
            return self.head(self.norm(x * self.layer_scale[:, 0, 0]).mean(1))

    assert _mutated(built(Vision)) == {"embedding.weight": 48, "head.weight": 24}


@case
def a_frozen_base_with_small_additions():
    """What is frozen is left alone, unless it is named or all is frozen."""
    network = _small(lambda: nn.Linear(4, 4), lambda: nn.Linear(4, 3))
    network[0].requires_grad_(False)
    assert _mutated(network) == {"1.weight": 12}
    named = materialize(parameters(network), Mutation(0, 0.1, 0, 1), include=["0.weight"])
    assert (named["0.weight"] != network[0].weight).all()
    assert set(_mutated(network.requires_grad_(False))) == {"0.weight", "1.weight"}


@case
def tied_weights():
    """They are one, in every member."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    network, tokens = built(Tied), torch.arange(6)
    ensemble = Ensemble.from_mutations(network, quads(4, 0.1, density=0.5, seed=0))
    for member in ensemble.members:
        assert member.head.weight is member.embedding.weight
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/ensemble.safetensors")
        again = Ensemble.load(f"{folder}/ensemble.safetensors", network)
    torch.testing.assert_close(again(tokens), ensemble(tokens))


@case
def a_classifier_that_is_a_convolution():
    """It is left dense, as other classifiers."""
    network = _small(
        lambda: nn.Conv2d(1, 8, 3, padding=1), nn.ReLU, lambda: nn.Conv2d(8, 4, 3, padding=1),
        nn.ReLU, lambda: nn.Conv2d(4, 3, 1), lambda: nn.AdaptiveAvgPool2d(1), nn.Flatten,
    )  # fmt: skip
    batches = [(noise(8, 1, 6, 6), torch.arange(8) % 3)]
    sparse = Sparse(2, Pruning("halves"), Tuning(1, Constant(0.01), "adam"))
    for child in sparse(network, Task(batches)).ensemble.members:
        assert (child[4].weight != 0).all()
        assert (child[2].weight == 0).any()


@case
def a_parent_in_a_wrapper():
    """The same recipe is the same child, and its file the same parent's."""
    network = _small(lambda: nn.Linear(4, 3))
    wrapped = nn.DataParallel(network)
    mutation = Mutation(0, 0.1, 0, 1)
    bare, inside = (materialize(parameters(each), mutation) for each in (network, wrapped))
    assert list(bare) == list(inside)
    assert all(torch.equal(bare[name], inside[name]) for name in bare)
    ensemble = Ensemble.from_mutations(wrapped, [mutation])
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/ensemble.safetensors")
        again = Ensemble.load(f"{folder}/ensemble.safetensors", network)
    torch.testing.assert_close(again(noise(6, 4)), ensemble(noise(6, 4)))


@case
def a_deep_network_of_small_weights():
    """The root search lands, or says that it does not."""
    network = _small(*[lambda: nn.Linear(16, 16, bias=False)] * 40)
    for layer in network:
        layer.weight.data.mul_(0.3)
    with contextlib.suppress(NoRoot):
        region = search_trust_region(network, noise(20, 16))
        assert region.divergence == pytest.approx(0.02, rel=0.1)


# --- Simulators, agents, folders of pictures, devices, seeds ------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_what_users_expect(check, threads):
    torch.set_num_threads(threads)
    try:
        check()
    finally:
        torch.set_num_threads(1)
