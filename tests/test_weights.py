"""Which parameters are weights: by the kind of layer, and by name where the layer is a user's."""

import pytest
import torch
from networks import built, mlp, noise
from torch import nn

from evo_subnets import Ensemble, Mutation, files, materialize, parameters, quads
from evo_subnets.ensemble import KIND
from evo_subnets.subnetworks import Whole, included
from evo_subnets.weights import padding_rows, weight_names

NO_WEIGHTS = [
    "cls_token", "class_token", "mask_token", "dist_token", "register_tokens", "pos_embed",
    "pos_embedding", "position_embeddings", "positional_embedding", "embed_positions", "rel_pos_h",
    "relative_position_bias_table", "attention_biases", "layer_scale", "layer_scale_1",
    "logit_scale", "gamma", "gamma_1", "beta", "gain", "scale", "shift", "temperature", "bias",
    "wpe",
]  # fmt: skip
WEIGHTS = [
    "weight", "weight1", "W", "A", "lora_A", "kernel", "in_proj", "experts", "compose",
    "token_mixer", "scaled", "queries", "composition", "prototypes",
]  # fmt: skip


class Bare(nn.Module):
    """A module with one matrix of its own."""

    def __init__(self, name, shape=(4, 6)):
        super().__init__()
        self.register_parameter(name, nn.Parameter(noise(*shape)))
        self.other = nn.Linear(2, 2)


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_names_of_what_is_no_weight(name):
    assert weight_names(built(lambda: Bare(name))) == ["other.weight"]


@pytest.mark.parametrize("name", WEIGHTS)
def test_names_of_what_is_a_weight(name):
    assert weight_names(built(lambda: Bare(name))) == [name, "other.weight"]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("mixing", (1, 4, 6), False),
        ("mixing", (4, 1, 1), False),
        ("mixing", (1, 4), False),
        ("weight", (4, 1, 1), False),
        ("weight", (1, 4), True),
        ("weight", (1, 2, 3, 3), True),
        ("mixing", (2, 4, 6), True),
        ("mixing", (4,), False),
    ],
)
def test_shapes_of_bare_parameters(name, shape, expected):
    assert (name in weight_names(built(lambda: Bare(name, shape)))) == expected


@pytest.mark.parametrize(
    "kind", ["RMSNorm", "LayerNorm2d", "GroupNorm1", "LayerScale", "LayerScale2d",
             "PositionEmbedding", "LearnedPositionalEncoding"]
)  # fmt: skip
def test_classes_that_are_norms_scales_or_positions_by_name(kind):
    made = type(kind, (Bare,), {})
    assert weight_names(built(lambda: made("weight"))) == ["other.weight"]
    layer = type("NormalizedLinear", (Bare,), {})
    assert weight_names(built(lambda: layer("weight"))) == ["weight", "other.weight"]


def test_layers_with_own_parameters_of_their_users():
    class Adapted(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.lora_A, self.gain = nn.Parameter(noise(2, 4)), nn.Parameter(noise(3, 1))

    assert set(weight_names(built(Adapted))) == {"weight", "lora_A"}


def test_scripted_networks_have_the_weights_of_their_layers():
    module = built(lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm((2, 3)), nn.Linear(6, 2)))
    with pytest.warns(DeprecationWarning, match="script"):
        scripted = torch.jit.script(module)
    assert weight_names(scripted) == weight_names(module) == ["0.weight", "2.weight"]


def test_a_plain_mapping_goes_by_dimension():
    tensors = {"norm.weight": noise(4, 8), "bias": noise(4)}
    assert included(tensors) == ["norm.weight"]


def test_padding_rows_are_of_embeddings_alone_and_count_from_behind():
    module = built(lambda: nn.Sequential(nn.Embedding(6, 3, padding_idx=-1), nn.Embedding(6, 3)))
    assert padding_rows(module) == {"0.weight": 5}


def test_what_stays_is_found_once_and_broadcasts():
    module = built(lambda: nn.Sequential(nn.Embedding(6, 3, padding_idx=2), nn.Linear(3, 4)))
    with torch.no_grad():
        module[0].weight[2] = 7.0  # not zero: it stays all the same
        module[1].weight[0] = 0.0
    params = parameters(module)
    assert params.stays("0.weight").shape == (6, 1)
    assert params.stays("0.weight") is params.stays("0.weight")
    assert params.stays("1.weight").sum() == 3
    assert params.stays("1.bias") is None
    child = materialize(params, Mutation(0, 0.1, 0.0, 1.0))
    assert (child["0.weight"] == 7.0).sum() == 3
    assert (child["1.weight"] == 0.0).sum() == 3
    free = materialize(params, Mutation(0, 0.1, 0.0, 1.0), include=Whole(params.weights))
    plain = materialize(dict(params), Mutation(0, 0.1, 0.0, 1.0))
    for name in params:
        assert torch.equal(free[name], plain[name])
        moved = params.stays(name)
        kept = torch.ones_like(plain[name], dtype=torch.bool) if moved is None else ~moved
        assert torch.equal(child[name][kept.expand_as(child[name])],
                           plain[name][kept.expand_as(plain[name])])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zeros_stay_in_every_type_and_memory_format(dtype):
    module = built(lambda: nn.Conv2d(4, 6, 3)).to(dtype, memory_format=torch.channels_last)
    with torch.no_grad():
        module.weight[:, ::2] = 0.0
    out = {}
    for seed in range(2):  # into fresh memory and into a work buffer
        child = materialize(parameters(module), Mutation(seed, 0.1, 0.0, 1.0), out=out)
        assert (child["weight"][:, ::2] == 0).all()
        assert (child["weight"][:, 1::2] != module.weight[:, 1::2]).any()


def test_weights_that_are_not_sparse_have_nothing_that_stays():
    params = parameters(mlp())
    assert all(params.stays(name) is None for name in params)


def test_files_of_before_zeros_stayed_load_as_they_were(tmp_path):
    module, x = mlp(), noise(4, 5)
    with torch.no_grad():
        module[0].weight[:, 0] = 0.0
    mutations, everything = quads(4, 0.1, density=0.5, seed=0), Whole(parameters(module).weights)
    Ensemble.from_mutations(module, mutations).save(tmp_path / "new")
    tensors, description = files.load_tensors(tmp_path / "new", KIND)
    assert description.pop("held")
    files.save_tensors(tmp_path / "old", tensors, kind=KIND, description=description)
    before = Ensemble.from_mutations(module, mutations, include=everything)
    after = Ensemble.load(tmp_path / "old", module)
    assert torch.equal(after(x), before(x))
    assert not torch.equal(after(x), Ensemble.load(tmp_path / "new", module)(x))
