"""What users bring, and the right answer: modules, inputs and files as one table.

A case is a function; it stands under the kind of fault that it is an example of, and its first line
says what a user expects. Every case runs with one torch thread and with two, where members and
batches may go side by side.
"""

import collections
import copy
import math
import tempfile
import threading
from collections.abc import Callable

import gymnasium
import pytest
import torch
import torch.nn.utils.prune
from networks import all_same_bits, built, copied, mlp, noise, tied
from torch import nn
from torch.nn.utils import prune

from evo_subnets import (
    Ensemble,
    Mutation,
    Search,
    Task,
    evaluate,
    evolve,
    materialize,
    parameters,
    quads,
    search_trust_region,
)
from evo_subnets.methods import Pruning, Sparse, Stochastic
from evo_subnets.methods.stochastic import Annealing
from evo_subnets.outputs import Binary, Classes, Values
from evo_subnets.prediction import predict, reestimate_norms
from evo_subnets.pruning import Pruned
from evo_subnets.rl import EnsemblePolicy
from evo_subnets.schedules import Constant
from evo_subnets.structure.classifier import classifier
from evo_subnets.structure.compaction import compacted
from evo_subnets.subnetworks import Whole
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


class HeadFirst(nn.Module):
    """(batch, 5) to (batch, 3), whose head is registered before its body."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Linear(5, 8)

    def forward(self, x):
        return self.head(self.body(x).relu())


class Untraceable(HeadFirst):
    """torch.fx cannot follow it."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class GPT(nn.Module):
    """(batch, time) tokens to (batch, 11) logits of the next one; the head is the embedding."""

    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(11, 8, padding_idx=0)
        self.positions = nn.Embedding(6, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.token_embedding.weight

    def forward(self, tokens):
        x = self.token_embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.block(x))[:, -1])


class WithLora(nn.Module):
    """A frozen linear layer and what is trained beside it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(5, 3).requires_grad_(False)
        self.lora_A = nn.Parameter(noise(2, 5))
        self.lora_B = nn.Parameter(torch.zeros(3, 2))

    def forward(self, x):
        return self.base(x) + x @ self.lora_A.t() @ self.lora_B.t()


def moved(module, **options):
    """The names of the parameters that a mutation moves, everywhere the same."""
    parent = parameters(module)
    mutation = Mutation(3, 0.01, 0.0, 1.0)
    child = materialize(parent, mutation, **options)
    member = parameters(Ensemble.from_mutations(module, [mutation], **options).members[0])
    seen = []

    def fitness(model):
        seen.append(copied(parameters(model)))
        return 0.0

    evaluate(module, [mutation], fitness=fitness, **options)
    for other in (member, seen[0]):
        assert all(torch.equal(other[name], child[name]) for name in parent)
    return {name for name in parent if not torch.equal(child[name], parent[name])}


def revived(parent, child):
    """How many zeros of the parent are none in the child."""
    params = parameters(child)
    return sum(
        int(((weight == 0) & (params[name] != 0)).sum())
        for name, weight in parameters(parent).items()
    )


def sparse():
    """An mlp of which torch.nn.utils.prune removed half, and a unit of each layer altogether."""
    module = mlp()
    for layer in (module[0], module[2]):
        torch.nn.utils.prune.random_unstructured(layer, "weight", 0.5)
        torch.nn.utils.prune.remove(layer, "weight")
        layer.weight.data[0] = 0.0
    return module


@case
def zeros_of_a_sparse_parent_stay_zero_in_mutations():
    """What is zero stays zero in children, in ensembles and in their files; Whole lets it grow."""
    parent = built(sparse)
    mutations = quads(4, 0.1, density=0.5, seed=0)
    ensemble = Ensemble.from_mutations(parent, mutations)
    assert all(revived(parent, member) == 0 for member in ensemble.members)
    everything = Whole(parameters(parent).weights)
    free = Ensemble.from_mutations(parent, mutations, include=everything)
    assert all(revived(parent, member) > 0 for member in free.members)
    with tempfile.TemporaryDirectory() as folder:
        for one in (ensemble, free):
            one.save(f"{folder}/file")
            again = Ensemble.load(f"{folder}/file", parent)
            assert torch.equal(again(noise(4, 5)), one(noise(4, 5)))


@case
def zeros_of_a_sparse_parent_stay_zero_in_tuning():
    """Children of a sparse parent that are tuned grow nothing back, in the classifier neither."""
    parent = built(sparse)
    task = Task([(noise(8, 5), torch.arange(8) % 3)])
    for structure in ("connections", "neurons"):
        pruning = Pruning("halves", structure=structure)
        for child in Sparse(2, pruning, Tuning(2))(parent, task).ensemble.members:
            assert revived(parent, child) == 0
    for start in ("temperature", "iterative", "one-shot"):
        annealing = Annealing(start, 1) if start != "one-shot" else Annealing(start)
        for child in Stochastic(2, annealing, tuning=Tuning(2))(parent, task).ensemble.members:
            assert revived(parent, child) == 0


@case
def a_weight_that_is_zero_altogether_is_no_sparse_one():
    """LoRA's second matrix, zero convolutions: noise moves them."""
    module = built(WithLora)
    assert moved(module) == {"lora_A", "lora_B"}


@case
def the_head_may_be_registered_first():
    """The body is pruned, the head that makes the output is spared."""
    for make in (HeadFirst, Untraceable):
        module, inputs = built(make), noise(1, 5)
        assert classifier(module, inputs) == ["head.weight"]
        pruning = Pruning("halves")
        masks = pruning.masks(module, pruning.subnetworks(2, 0)[0], inputs=inputs)
        assert list(masks) == ["body.weight"]


@case
def a_network_with_two_heads_has_two_classifiers():
    """Actions and values of a policy are both outputs."""

    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.actions, self.value = nn.Linear(8, 3), nn.Linear(8, 1)
            self.body = nn.Linear(5, 8)

        def forward(self, x):
            x = self.body(x).relu()
            return {"actions": self.actions(x), "value": self.value(x)}

    class Branching(Policy):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    for make in (Policy, Branching):
        found = classifier(built(make), noise(1, 5))
        assert sorted(found) == ["actions.weight", "value.weight"]


@case
def a_classifier_may_be_a_convolution():
    """SqueezeNet's kind: the last 1x1 convolution is spared."""
    module = built(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    )
    assert classifier(module) == ["2.weight"]
    task = Task([(noise(4, 1, 8, 8), torch.arange(4) % 3)])
    for child in Sparse(2, tuning=Tuning(1))(module, task).ensemble.members:
        assert (child[2].weight != 0).all()
        assert (child[0].weight == 0).any()


@case
def a_network_without_a_classifier_names_the_option():
    """Where it cannot be found, the message says classifier=True."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, x):
            return x * self.scale

    with pytest.raises(
        ValueError, match=r"Scaled with weights leads to its output.*classifier=True"
    ):
        classifier(Scaled())
    with pytest.raises(ValueError, match=r"cannot trace Untraceable .*inputs, or classifier=True"):
        classifier(built(Untraceable))
    pruning = Pruning("halves", classifier=True)
    assert len(pruning.masks(built(Untraceable), pruning.subnetworks(2, 0)[0])) == 2


@case
def norms_scales_positions_tokens_and_padding_are_no_weights():
    """Noise moves the weights of layers, and nothing else, whatever its shape."""

    class RMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 8))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.own_norm = nn.LayerNorm((4, 8)), RMSNorm()
            self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
            self.gamma = nn.Parameter(torch.ones(2, 8))
            self.pos_embedding = nn.Parameter(noise(1, 4, 8))
            self.positional_embedding = nn.Parameter(noise(4, 8))
            self.class_token, self.register_tokens = (nn.Parameter(noise(1, n, 8)) for n in (1, 4))
            self.relative_position_bias_table = nn.Parameter(noise(9, 2))
            self.position_embeddings = nn.Embedding(4, 8)
            self.words = nn.Embedding(6, 8, padding_idx=0)
            self.bag = nn.EmbeddingBag(6, 8, padding_idx=2)
            self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
            self.other = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
            self.recurrent, self.cell = nn.LSTM(8, 4, proj_size=2), nn.GRUCell(4, 4)
            self.up, self.pair = nn.ConvTranspose2d(2, 2, 2), nn.Bilinear(2, 2, 1)
            self.slope, self.one = nn.PReLU(4), nn.Linear(8, 1)

    module = built(Block)
    layers = ["words", "bag", "up", "pair", "one"]
    attention = ("in_proj_weight", "out_proj.weight")
    apart = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
    expected = {f"{name}.weight" for name in layers}
    expected |= {f"attention.{name}" for name in attention} | {f"other.{name}" for name in apart}
    expected |= {f"recurrent.weight_{name}_l0" for name in ("ih", "hh", "hr")}
    expected |= {"cell.weight_ih", "cell.weight_hh"}
    assert moved(module) == expected
    module.bag.weight.data[2] = 1.0  # a padding row that is not zero stays as well
    child = materialize(parameters(module), Mutation(0, 0.1, 0.0, 1.0))
    for table, row in (("words", 0), ("bag", 2)):
        same = (child[f"{table}.weight"] == getattr(module, table).weight).all(dim=1)
        assert same.tolist() == [index == row for index in range(6)]


@case
def hand_written_layers_have_weights():
    """A bare matrix that a layer multiplies by is a weight; a convolution's of one channel too."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(noise(1, 5))
            self.kernel = nn.Parameter(noise(1, 2, 3, 3))
            self.experts = nn.ParameterList([nn.Parameter(noise(4, 5))])
            self.W = nn.Parameter(noise(3, 4, 5))
            self.bias, self.logit_scale = nn.Parameter(noise(3, 4)), nn.Parameter(noise(3, 1, 1))

    assert moved(Own()) == {"weight", "kernel", "experts.0", "W"}
    assert moved(Own(), include=["logit_scale"]) == {"logit_scale"}


@case
def parametrized_weights_are_their_layers():
    """Weight norm's directions are weights, their lengths are not, in both of torch's versions."""
    parametrized = nn.utils.parametrizations
    module = built(
        lambda: nn.Sequential(
            parametrized.weight_norm(nn.Linear(5, 4)), parametrized.spectral_norm(nn.Linear(4, 3))
        )
    )
    weights = [f"{i}.parametrizations.weight.original{end}" for i, end in ((0, "1"), (1, ""))]
    assert list(parameters(module).weights) == weights
    assert classifier(module) == weights[1:]
    masked = built(lambda: nn.utils.prune.random_unstructured(nn.Linear(4, 3), "weight", 0.5))
    assert parameters(masked).weights == ("weight_orig",)


@case
def frozen_parameters_are_left_alone_unless_named():
    """LoRA's matrices move, its base does not; a model that is frozen altogether moves."""
    module = built(WithLora)
    assert moved(module) == {"lora_A", "lora_B"}
    assert moved(module, include=["base.weight"]) == {"base.weight"}
    assert moved(mlp().requires_grad_(False)) == {"0.weight", "2.weight"}
    probe = mlp()
    probe[0].requires_grad_(False)
    assert moved(probe) == {"2.weight"}
    for name, parameter in probe.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    with pytest.raises(ValueError, match=r"not frozen beside .* with include"):
        materialize(parameters(probe), Mutation(0, 0.1, 0.0, 1.0))


@case
def tied_parameters_are_one():
    """Tied by name or by memory alone, in a child they are tied too."""
    by_memory = tied()
    by_memory.second.weight = nn.Parameter(by_memory.first.weight.data)
    transposed = tied()
    transposed.second.weight = nn.Parameter(transposed.first.weight.data.t())
    for module, also in (
        (tied(), set()),
        *((m, {"second.weight"}) for m in (by_memory, transposed)),
    ):
        assert moved(module) == {"first.weight"} | also
        child = materialize(parameters(module), Mutation(0, 0.1, 0.0, 1.0))
        if also:
            second = child["second.weight"]
            second = second.t() if module is transposed else second
            assert torch.equal(child["first.weight"], second)
        mutations = quads(4, 0.1, density=0.5, seed=0)
        member = Ensemble.from_mutations(module, mutations[:1]).members[0]
        child = materialize(parameters(module), mutations[0])
        x = noise(3, 5)
        assert torch.equal(torch.func.functional_call(module, dict(child), (x,)), member(x))


@case
def a_tied_gpt_goes_all_the_way():
    """Trust region, evolution, file, sparse children: the embedding is the classifier, and one."""
    module = built(GPT).eval()
    assert "positions.weight" not in parameters(module).weights
    assert classifier(module) == ["token_embedding.weight"]
    tokens = torch.tensor([[1, 2, 3], [4, 5, 0], [7, 0, 0]])
    region = search_trust_region(module, tokens, search=Search(4, 2))
    assert abs(region.divergence - 0.02) <= 0.002
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        evolution = evolve(
            module, lambda model: float(model(tokens)[:, 1].sum()), search=region.search
        )
        ensemble = evolution.ensemble
        for member in ensemble.members:
            assert member.head.weight is member.token_embedding.weight
            assert torch.equal(member.head.weight[0], module.head.weight[0])
        ensemble.save(f"{folder}/file")
        again = Ensemble.load(f"{folder}/file", module)
        assert torch.equal(again(tokens), ensemble(tokens))
    task = Task([(tokens, torch.tensor([4, 1, 2]))])
    for whole in (False, True):
        pruning = Pruning("halves", classifier=whole)
        for child in Sparse(2, pruning, Tuning(1))(module, task).ensemble.members:
            assert child.head.weight is child.token_embedding.weight
            assert (child.head.weight[1:] == 0).any() == whole
            assert (child.block.linear1.weight == 0).any()
    with pytest.raises(ValueError, match=r"no layer's neurons can be|cannot trace GPT"):
        compacted(module)


@case
def wrappers_do_not_change_names():
    """Of torch.compile and DataParallel, inside and outside: the same child, the same file."""
    plain, mutation, x = mlp().eval(), Mutation(3, 0.1, 0.0, 0.5), noise(4, 5)
    child = materialize(parameters(plain), mutation)
    inside = copy.deepcopy(plain)
    inside[0] = nn.DataParallel(inside[0])
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    wrapped = [compiled, nn.DataParallel(copy.deepcopy(plain)), inside, nn.DataParallel(compiled)]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bare = Ensemble.from_mutations(plain, [mutation])
        bare.save(f"{folder}/bare")
        for module in wrapped:
            again = materialize(parameters(module), mutation)
            assert all_same_bits(dict(again), dict(child))
            assert list(again) == list(child)
            ensemble = Ensemble.from_mutations(module, [mutation])
            assert torch.allclose(ensemble(x), bare(x))
            ensemble.save(f"{folder}/wrapped")
            for file in ("bare", "wrapped"):
                for onto in (module, plain):
                    for restore in (False, True):
                        loaded = Ensemble.load(f"{folder}/{file}", onto, restore=restore)
                        assert torch.allclose(loaded(x), bare(x))
            found = search_trust_region(module, x, search=Search(4, 2))
            assert found.search == search_trust_region(plain, x, search=Search(4, 2)).search
            assert classifier(module) == ["2.weight"]


@case
def a_layer_that_lost_all_neurons_can_be_compacted():
    """Narrow ones, as of squeeze and excitation in EfficientNet: one silent neuron stays."""

    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 1)
            self.squeeze, self.excite = nn.Conv2d(8, 1, 1), nn.Conv2d(1, 8, 1)

        def forward(self, x):
            x = self.first(x).relu()
            return self.last(x + self.excite(self.squeeze(x).relu())).flatten(1)

    parent, pruning = built(Squeezed).eval(), Pruning("halves", structure="neurons")
    for subnetwork in pruning.subnetworks(2, 0):
        child = copy.deepcopy(parent)
        Pruned(child, pruning.masks(parent, subnetwork))
        small = compacted(child)
        assert small.first.out_channels < 8
        assert small.squeeze.out_channels == 1
        x = noise(4, 2, 3, 3)
        assert torch.allclose(small(x), child(x), atol=1e-6)


@case
def a_deep_network_of_small_weights_has_a_trust_region():
    """Forty layers scaled by 0.3: within a tenth of the target, after more bisections."""
    module = built(lambda: nn.Sequential(*[nn.Linear(16, 16) for _ in range(40)]))
    with torch.no_grad():
        for layer in module:
            layer.weight.mul_(0.3)
    region = search_trust_region(module, noise(16, 16), search=Search(4, 2))
    assert abs(region.divergence - 0.02) <= 0.002


@case
def a_trust_region_that_cannot_be_had_says_why():
    """Dead outputs, random outputs, steps in half precision, infinite weights: one sentence."""

    class Dead(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu() * 0.0 + x

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(x.shape, generator=generator) * 9

    class Steps(nn.Linear):
        def forward(self, x):
            return (super().forward(x) * 0.02).round() * 99

    generator = torch.Generator().manual_seed(0)
    x = noise(6, 4)
    for make, why in (
        (Dead, "no sigma reaches a divergence of 0.02, the largest is 0"),
        (Noisy, "even sigma .* draw random numbers"),
        (Steps, "no sigma gives a divergence of 0.02: it is 0 at sigma"),
    ):
        with pytest.raises(ValueError, match=why):
            search_trust_region(built(lambda make=make: make(4, 4)), x, search=Search(4, 2))
    broken = mlp()
    broken[2].weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"2\.weight of the parent is not finite"):
        search_trust_region(broken, noise(6, 5))


# --- Simulators, agents, folders of pictures, devices, seeds ------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_what_users_expect(check, threads):
    torch.set_num_threads(threads)
    try:
        check()
    finally:
        torch.set_num_threads(1)
