"""Masks: density in every layer, complements, partitions, and what is included."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import all_same_bits, copied, mlp, noise, tied

from evo_subnets import (
    Ensemble,
    Mutation,
    Run,
    Search,
    Subnetwork,
    evolve,
    halves,
    materialize,
    materialize_siblings,
    parameters,
    parts,
    search_trust_region,
    spreads,
    streams,
    subnetworks,
)
from evo_subnets.evolution import check_strength
from evo_subnets.lineage import Lineage, Step
from evo_subnets.subnetworks import Units, Whole, included

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**63 - 1)
levels = st.sampled_from([0.0, 1e-9, 2**-24, 0.25, 1 / 3, 0.5, 1 - 2**-24, 1 - 1e-9, 1.0])
bounds = st.floats(0, 1) | levels
shapes = st.lists(st.integers(1, 12), min_size=2, max_size=4).map(tuple)


def zeros(*all_shapes):
    return {f"{i}.weight": torch.zeros(shape) for i, shape in enumerate(all_shapes)}


@quick
@given(seed=seeds, low=bounds, high=bounds, layers=st.lists(shapes, min_size=1, max_size=3))
def test_density_holds_in_every_layer(seed, low, high, layers):
    params = zeros(*layers, (70, 80))
    subnetwork = Subnetwork(seed, low, high)
    density = subnetwork.density
    assert 0 <= density <= 1
    for name, mask in subnetwork.mask(params).items():
        assert mask.shape == params[name].shape
        assert mask.dtype == torch.bool
        n = mask.numel()
        slack = 6 * math.sqrt(n * density * (1 - density)) + 8
        assert abs(mask.sum().item() - n * density) <= slack


@quick
@given(seed=seeds, low=bounds, high=bounds, shape=shapes)
def test_mask_is_the_interval_of_the_draw(seed, low, high, shape):
    params = zeros(shape)
    u = streams.uniform(seed, "0.weight", count=params["0.weight"].numel()).double().view(shape)
    expected = (u >= low) & (u < high) if low <= high else (u >= low) | (u < high)
    assert torch.equal(Subnetwork(seed, low, high).mask(params)["0.weight"], expected)


@quick
@given(seed=seeds, low=bounds, high=bounds, shape=shapes)
def test_complement_is_the_exact_negation(seed, low, high, shape):
    params = zeros(shape, (40, 50))
    subnetwork = Subnetwork(seed, low, high)
    mask = subnetwork.mask(params)
    other = subnetwork.complement()
    again = other.complement()
    for name, part in other.mask(params).items():
        assert torch.equal(part, ~mask[name])
        assert torch.equal(again.mask(params)[name], mask[name])
    assert other.density == pytest.approx(1 - subnetwork.density, abs=1e-12)


@given(low=bounds, high=bounds)
@settings(quick, max_examples=300)
def test_complement_holds_for_every_level_at_the_bounds(low, high):
    """A random draw would hardly ever hit them."""
    near = {0, 1, 2**24 - 1, 2**24 - 2}
    for bound in (low, high):
        near |= {min(max(round(bound * 2**24) + i, 0), 2**24 - 1) for i in range(-2, 3)}
    drawn = torch.tensor(sorted(near))
    subnetwork = Subnetwork(0, low, high)
    inside = subnetwork.interval.contains(drawn)
    assert torch.equal(subnetwork.complement().interval.contains(drawn), ~inside)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 10, 49])
def test_parts_are_disjoint_and_cover_everything(k):
    params = zeros((30, 40), (5, 3, 3, 3))
    masks = [part.mask(params) for part in parts(9, k)]
    assert len(masks) == k
    for name in params:
        counts = sum(mask[name].int() for mask in masks)
        assert (counts == 1).all()


@quick
@given(seed=seeds, k=st.integers(1, 2000))
def test_parts_meet_without_a_gap_or_an_overlap(seed, k):
    intervals = [part.interval for part in parts(seed, k)]
    assert intervals[0].low == 0
    for one, following in itertools.pairwise(intervals):
        assert one.low + one.width == following.low
    assert intervals[-1].low + intervals[-1].width == 2**24


def test_halves_are_two_complementary_parts():
    one, other = halves(4)
    assert (one, other) == tuple(parts(4, 2))
    params = zeros((30, 40))
    assert torch.equal(one.mask(params)["0.weight"], ~other.mask(params)["0.weight"])


def test_density_one_is_everything_and_density_zero_nothing():
    params = zeros((30, 40))
    assert Subnetwork(1, 0.0, 1.0).mask(params)["0.weight"].all()
    for bound in (0.0, 0.5, 1.0):
        assert not Subnetwork(1, bound, bound).mask(params)["0.weight"].any()


def test_masks_of_two_layers_of_one_shape_differ():
    masks = Subnetwork(1, 0.0, 0.5).mask(zeros((30, 40), (30, 40)))
    agree = (masks["0.weight"] == masks["1.weight"]).float().mean().item()
    assert 0.4 < agree < 0.6


def test_mask_does_not_depend_on_what_else_is_included():
    params = {f"{i}.weight": torch.zeros(9, 9 + i) for i in range(3)}
    subnetwork = Subnetwork(3, 0.2, 0.7)
    whole = subnetwork.mask(params)
    assert list(whole) == list(params)
    for name in params:
        assert torch.equal(subnetwork.mask(params, [name])[name], whole[name])
        assert torch.equal(subnetwork.mask({name: params[name]})[name], whole[name])
    backwards = subnetwork.mask(dict(reversed(params.items())))
    assert all(torch.equal(backwards[name], whole[name]) for name in params)


def test_mask_does_not_depend_on_values_dtypes_or_memory_formats():
    subnetwork = Subnetwork(3, 0.2, 0.7)
    plain = subnetwork.mask({"w": torch.zeros(4, 3, 5, 5)})["w"]
    for weight in (
        noise(4, 3, 5, 5),
        noise(4, 3, 5, 5).bfloat16(),
        noise(4, 3, 5, 5).to(memory_format=torch.channels_last),
    ):
        assert torch.equal(subnetwork.mask({"w": weight})["w"], plain)


def test_mask_does_not_depend_on_the_chunking(monkeypatch):
    params = zeros((33, 65))
    whole = Subnetwork(3, 0.2, 0.7).mask(params)["0.weight"]
    monkeypatch.setattr(streams, "CPU_CHUNK", 64)
    assert torch.equal(Subnetwork(3, 0.2, 0.7).mask(params)["0.weight"], whole)


def test_by_default_weights_are_included_and_biases_are_not():
    params = parameters(mlp())
    assert subnetworks.included(params) == ["0.weight", "2.weight"]
    assert list(Subnetwork(0, 0, 1).mask(params)) == ["0.weight", "2.weight"]
    whole = {"embedding": torch.zeros(3, 3, dtype=torch.int64), "w": torch.zeros(3, 3)}
    assert subnetworks.included(whole) == ["w"]


def test_include_by_names_and_by_predicate():
    params = parameters(mlp())
    for names in (["2.bias", "0.weight"], {"2.bias", "0.weight"}, ("0.weight", "2.bias")):
        assert subnetworks.included(params, names) == ["0.weight", "2.bias"]
    biases = subnetworks.included(params, lambda name, parameter: parameter.ndim == 1)
    assert biases == ["0.bias", "2.bias"]
    assert subnetworks.included(params, lambda name, _: name.startswith("2")) == [
        "2.weight",
        "2.bias",
    ]


def test_unknown_names_and_empty_selections_are_refused():
    params = parameters(mlp())
    with pytest.raises(ValueError, match=r"no parameters \['nope'\]; there are \['0.weight'"):
        Subnetwork(0, 0, 1).mask(params, ["0.weight", "nope"])
    for empty in ([], lambda name, parameter: False):
        with pytest.raises(ValueError, match="no parameter is to be mutated"):
            subnetworks.included(params, empty)
    with pytest.raises(ValueError, match="no parameter is to be mutated"):
        subnetworks.included({"bias": torch.zeros(3)})


@pytest.mark.parametrize(
    ("low", "high"), [(-0.1, 0.5), (0.0, 1.1), (1.5, 0.5), (float("nan"), 1.0), (0.0, float("nan"))]
)
def test_bounds_outside_zero_one_are_refused(low, high):
    with pytest.raises(ValueError, match=r"bounds must be in \[0, 1\]"):
        Subnetwork(0, low, high)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_of_more_than_63_bits_are_refused(seed):
    with pytest.raises(ValueError, match=r"a seed must be an int in 0\.\.2\*\*63 - 1"):
        Subnetwork(seed, 0.0, 0.5)


def test_less_than_one_part_is_refused():
    with pytest.raises(ValueError, match="at least one part, got k=0"):
        parts(0, 0)


def test_parameters_are_detached_and_not_copied():
    module = tied()
    params = parameters(module)
    assert list(params) == ["first.weight", "first.bias", "second.bias"]
    before = copied(params)
    for name, parameter in module.named_parameters():
        assert params[name].data_ptr() == parameter.data_ptr()
        assert not params[name].requires_grad
        assert torch.equal(params[name], before[name])


# --- sigma in units of each layer


def spread_out(sizes=(1.0, 0.01)):
    module = mlp()
    with torch.no_grad():
        for layer, size in zip((module[0], module[2]), sizes, strict=True):
            layer.weight.mul_(size / layer.weight.std(correction=0))
    return module


def test_spreads_are_those_of_each_layer_s_weights_without_a_sparse_one_s_zeros():
    module = spread_out((1.0, 0.01))
    units = spreads(module)
    assert units == {"0.weight": pytest.approx(1.0), "2.weight": pytest.approx(0.01)}
    with torch.no_grad():
        module[0].weight.flatten()[::2] = 0.0
    some = module[0].weight[module[0].weight != 0]
    assert spreads(module)["0.weight"] == pytest.approx(some.std(correction=0).item())
    assert list(spreads(module, ["2.weight"])) == ["2.weight"]


def test_units_scale_the_noise_of_each_layer_and_nothing_else():
    params, units = parameters(spread_out()), Units({"0.weight": 0.5, "2.weight": 4.0})
    mutation = Mutation(3, 0.25, 0.0, 0.6)
    for siblings in ([mutation], [mutation, mutation.mirrored(), mutation.partner()]):
        children = materialize_siblings(params, siblings, include=units)
        for child, sibling in zip(children, siblings, strict=True):
            for name, unit in units.items():
                stronger = replace(sibling, sigma=sibling.sigma * unit)
                assert torch.equal(child[name], materialize(params, stronger)[name])
            assert torch.equal(child["0.bias"], params["0.bias"])


def test_units_go_all_the_way(tmp_path):
    """Search, trust region, generations, the ensemble's file and the lineage's."""
    module, inputs = spread_out((0.4, 0.8)), noise(64, 5, seed=1)
    units = spreads(module)
    search = Search(8, 3, include=units)
    region = search_trust_region(module, inputs, search=search, target=0.05)
    assert 0.01 < region.sigma < 2, "a fraction of the weights' spread"
    moved = []
    for run in (Run(tmp_path / "run"), Run(tmp_path / "run")):
        with run:
            moved.append(
                evolve(module, lambda model: model(inputs)[:, 0].mean().item(), search=search,
                       generations=2, inputs=inputs, run=run)
            )  # fmt: skip
    evolved = moved[0]
    assert all_same_bits(parameters(evolved.evolved), parameters(moved[1].evolved))
    evolved.lineage.save(tmp_path / "lineage.json", parameters(module), include=units)
    lineage, include = Lineage.load(tmp_path / "lineage.json", parameters(module))
    assert include == units
    again = lineage.replay(parameters(module), include=include)
    assert all_same_bits(again, parameters(evolved.evolved))
    assert not all_same_bits(lineage.replay(parameters(module)), again)
    for resident in (True, False):
        ensemble = Ensemble.from_mutations(
            module, search.mutations() if search.sigma else region.search.mutations(),
            include=units, resident=resident,
        )  # fmt: skip
        ensemble.save(tmp_path / "ensemble.safetensors")
        loaded = Ensemble.load(tmp_path / "ensemble.safetensors", module)
        assert torch.equal(loaded(inputs), ensemble(inputs))
        assert loaded.recipe.include == units


def test_units_that_are_none_are_refused():
    module = mlp()
    with pytest.raises(ValueError, match=r"must be positive and finite; 0\.weight has none"):
        Units({"0.weight": 0.0})
    with pytest.raises(ValueError, match="there are no parameters"):
        included(parameters(module), Units({"nowhere": 1.0}))
    with pytest.raises(ValueError, match="Whole parameters have no units"):
        spreads(module, Whole(["0.weight"]))
    with torch.no_grad():
        module[0].weight.fill_(0.5)
    with pytest.raises(ValueError, match=r"0\.weight have no spread"):
        spreads(module)
    with pytest.raises(ValueError, match="nothing of the parent would be left"):
        check_strength(module, [Mutation(0, 1e6, 0.0, 1.0)], include=Units({"2.weight": 0.01}))
    check_strength(module, [Mutation(0, 100.0, 0.0, 1.0)], include=Units({"2.weight": 1e-4}))


def test_a_lineage_s_file_keeps_whole_parameters(tmp_path):
    module = mlp()
    with torch.no_grad():
        module[0].weight[:, 0] = 0.0
    root = parameters(module)
    whole, lineage = Whole(root.weights), Lineage((Step((Mutation(1, 0.1, 0.0, 1.0),)),))
    lineage.save(tmp_path / "lineage.json", root, include=whole)
    loaded, include = Lineage.load(tmp_path / "lineage.json", root)
    assert isinstance(include, Whole)
    again = loaded.replay(root, include=include)
    assert (again["0.weight"][:, 0] != 0).all()
    assert all_same_bits(again, lineage.replay(root, include=whole))
