"""What users bring, and the right answer: modules, inputs and files as one table.

A case is a function; it stands under the kind of fault that it is an example of, and its first line
says what a user expects. Every case runs with one torch thread and with two, where members and
batches may go side by side.
"""

import copy
import math
import tempfile
from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
from networks import all_same_bits, built, copied, mlp, noise, tied
from torch import nn

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
from evo_subnets.pruning import Pruned
from evo_subnets.structure.classifier import classifier
from evo_subnets.structure.compaction import compacted
from evo_subnets.subnetworks import Whole
from evo_subnets.tuning import Tuning

CASES: list[Callable[[], None]] = []


def case(check: Callable[[], None]) -> Callable[[], None]:
    """Adds a row to the table."""
    assert check.__doc__, f"{check.__name__} does not say what is expected"
    CASES.append(check)
    return check


# --- Outputs and inputs ---------------------------------------------------------------------------


# --- An ensemble is its members; a child is the parent plus its mutation ----------------------------


# --- What is a weight -------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=r"the parent's 2\.weight has values that are not finite"):
        search_trust_region(broken, noise(6, 5))


# --- Simulators, agents, folders of pictures, devices, seeds ----------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_what_users_expect(check, threads):
    torch.set_num_threads(threads)
    try:
        check()
    finally:
        torch.set_num_threads(1)
