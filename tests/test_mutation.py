"""Children: a slow reference, algebra, dtypes and layouts, and whose memory is whose."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import all_same_bits, built, copied, lenet, mlp, noise, same_bits
from torch import nn

from evo_subnets import (
    Mutation,
    Subnetwork,
    materialize,
    materialize_siblings,
    parameters,
    quads,
    singles,
    streams,
)

quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**63 - 1)
sigmas = st.floats(-10, 10, width=32)
bounds = st.floats(0, 1)
mutations = st.builds(Mutation, seeds, sigmas, bounds, bounds)


@pytest.fixture(params=["on", "off"])
def engine(request, monkeypatch):
    """Both ways to build a child; the first is plain torch where nothing was compiled."""
    monkeypatch.setenv("EVO_SUBNETS_ENGINES", request.param)


def layers():
    """Two tensors of one shape, one of another, and two that are not mutated by default."""
    return {
        "a.weight": noise(20, 30, seed=1),
        "a.bias": noise(20, seed=2),
        "b.weight": noise(20, 30, seed=3),
        "c.weight": noise(7, 5, 3, 3, seed=4),
        "steps": torch.tensor(5),
    }


def reference(name, weight, mutation):
    """θ + sigma N(seed) where low <= u < high, in float32 or what is wider."""
    count = weight.numel()
    u = streams.uniform(mutation.seed, name, count=count).double().view(weight.shape)
    n = streams.normal(mutation.seed, name, count=count).view(weight.shape)
    low, high = mutation.low, mutation.high
    inside = (u >= low) & (u < high) if low <= high else (u >= low) | (u < high)
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return torch.where(inside, wide + n * mutation.sigma, wide).to(weight.dtype)


@quick
@given(mutation=mutations)
def test_child_is_the_reference_bit_for_bit(mutation):
    parent = layers()
    child = materialize(parent, mutation)
    assert list(child) == list(parent)
    for name in ("a.weight", "b.weight", "c.weight"):
        assert same_bits(child[name], reference(name, parent[name], mutation))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_child_of_every_dtype_and_layout_is_the_reference(dtype, memory_format, engine):
    weight = noise(7, 5, 3, 3).to(dtype).to(memory_format=memory_format)
    mutation = Mutation(8, 0.3, 0.2, 0.9)
    child = materialize({"w": weight}, mutation)["w"]
    assert same_bits(child, reference("w", weight, mutation))
    assert child.is_contiguous(memory_format=memory_format)


def test_bfloat16_child_is_the_float32_sum_rounded_once(engine):
    weight = noise(40, 50).bfloat16()
    n = streams.normal(8, "w", count=2000).view(40, 50)
    child = materialize({"w": weight}, Mutation(8, 0.3, 0.0, 1.0))["w"]
    assert same_bits(child, (weight.float() + n * 0.3).to(torch.bfloat16))


def test_channels_last_parents_have_the_children_of_contiguous_ones(engine):
    weight = noise(7, 5, 3, 3)
    mutation = Mutation(8, 0.3, 0.2, 0.9)
    plain = materialize({"w": weight}, mutation)["w"]
    last = weight.to(memory_format=torch.channels_last)
    assert same_bits(materialize({"w": last}, mutation)["w"], plain)
    out = {"w": torch.empty_like(weight)}
    assert same_bits(materialize({"w": last}, mutation, out=out)["w"], plain)
    transposed = weight.transpose(0, 1).contiguous().transpose(0, 1)
    assert same_bits(materialize({"w": transposed}, mutation)["w"], plain)


@pytest.mark.parametrize("sigma", [0.0, -0.0])
def test_sigma_zero_is_the_parent(sigma, engine):
    parent = layers()
    assert all_same_bits(materialize(parent, Mutation(1, sigma, 0.0, 1.0)), parent)


def test_an_empty_subnetwork_is_the_parent(engine):
    parent = layers()
    for bound in (0.0, 0.5, 1.0):
        assert all_same_bits(materialize(parent, Mutation(1, 9.0, bound, bound)), parent)


@quick
@given(seed=seeds, density=st.floats(0.01, 1), sigma=st.floats(1e-3, 1))
def test_a_quad_averages_to_the_parent(seed, density, sigma):
    parent = layers()
    population = quads(4, sigma, density=density, seed=seed)
    children = [materialize(parent, mutation) for mutation in population]
    for name in ("a.weight", "b.weight", "c.weight"):
        mean = sum(child[name].double() for child in children) / 4
        assert torch.allclose(mean, parent[name].double(), rtol=0, atol=1e-6)


@given(mutation=mutations)
@settings(quick, max_examples=100)
def test_mirrored_and_partner_are_involutions(mutation):
    assert mutation.mirrored().mirrored() == mutation
    assert mutation.mirrored().partner() == mutation.partner().mirrored()
    assert mutation.mirrored().sigma == -mutation.sigma
    assert mutation.mirrored().subnetwork == mutation.subnetwork
    again = mutation.partner().partner()
    assert again.subnetwork.interval.width == mutation.subnetwork.interval.width
    params = {"w": torch.zeros(20, 30)}
    assert torch.equal(again.subnetwork.mask(params)["w"], mutation.subnetwork.mask(params)["w"])
    if mutation.low != mutation.high and mutation.low < 1 and mutation.high > 0:
        assert again == mutation  # elsewhere an interval has several names, [0.5, 0) and [0.5, 1)
    assert mutation.partner().density == pytest.approx(1 - mutation.density)
    assert mutation.partner().sigma == mutation.sigma
    assert mutation.partner().seed == mutation.seed


@pytest.mark.parametrize("bounds", [(0.0, 0.3), (0.3, 1.0), (0.25, 0.75), (0.8, 0.1)])
def test_a_child_differs_from_its_parent_on_the_subnetwork_alone(bounds, engine):
    parent = layers()
    mutation = Mutation(5, 0.1, *bounds)
    child = materialize(parent, mutation)
    masks = mutation.subnetwork.mask(parent)
    assert set(masks) == {"a.weight", "b.weight", "c.weight"}
    for name, mask in masks.items():
        assert torch.equal(child[name] != parent[name], mask)
    for name in ("a.bias", "steps"):
        assert same_bits(child[name], parent[name])


def test_partners_together_perturb_every_weight_once(engine):
    parent = layers()
    mutation = Mutation(5, 0.1, 0.0, 0.3)
    child, other = materialize_siblings(parent, [mutation, mutation.partner()])
    whole = materialize(parent, Mutation(5, 0.1, 0.0, 1.0))
    for name in ("a.weight", "b.weight", "c.weight"):
        changed, others = child[name] != parent[name], other[name] != parent[name]
        assert torch.equal(changed, ~others)
        assert same_bits(torch.where(changed, child[name], other[name]), whole[name])


def test_noise_of_two_layers_of_one_shape_differs(engine):
    parent = {name: torch.zeros(40, 50) for name in ("a", "b")}
    child = materialize(parent, Mutation(5, 1.0, 0.0, 1.0))
    correlation = torch.corrcoef(torch.stack([child["a"].flatten(), child["b"].flatten()]))
    assert abs(correlation[0, 1]) < 0.1
    assert (child["a"] == child["b"]).sum() == 0


def test_noise_has_the_asked_strength(engine):
    parent = {"w": torch.zeros(200, 200)}
    child = materialize(parent, Mutation(5, 0.25, 0.0, 1.0))["w"]
    assert child.std().item() == pytest.approx(0.25, rel=0.02)
    assert abs(child.mean().item()) < 0.25 * 5 / 200


def test_the_parent_is_untouched_after_many_children(engine):
    parent = layers()
    before = copied(parent)
    versions = {name: tensor._version for name, tensor in parent.items()}
    out, aliased = {}, dict(parent)
    for mutation in quads(40, 0.5, density=0.4, seed=1):
        materialize(parent, mutation, out=out)
        materialize(parent, mutation, out=aliased)
        materialize_siblings(parent, [mutation, mutation.mirrored()])
    assert all_same_bits(parent, before)
    assert {name: tensor._version for name, tensor in parent.items()} == versions


def test_a_work_buffer_is_reused_and_leaves_no_trace_of_its_last_child(engine):
    parent = layers()
    first, second = Mutation(1, 0.1, 0.0, 0.5), Mutation(2, 0.1, 0.5, 1.0)
    out = materialize(parent, first)
    places = {name: tensor.data_ptr() for name, tensor in out.items()}
    again = materialize(parent, second, out=out)
    assert again is out
    assert {name: tensor.data_ptr() for name, tensor in out.items()} == places
    assert all_same_bits(out, materialize(parent, second))


def test_mutated_parameters_never_share_the_parents_memory(engine):
    parent = layers()
    for out in (None, {}, dict(parent), {name: t.view(t.shape) for name, t in parent.items()}):
        child = materialize(parent, Mutation(1, 0.1, 0.0, 0.5), out=out)
        for name in ("a.weight", "b.weight", "c.weight"):
            held, own = child[name].untyped_storage(), parent[name].untyped_storage()
            assert held.data_ptr() != own.data_ptr()


def test_siblings_never_share_memory(engine):
    first, second = materialize_siblings(layers(), quads(4, 0.1, density=0.5, seed=0)[:2])
    for name in ("a.weight", "b.weight", "c.weight"):
        assert first[name].data_ptr() != second[name].data_ptr()


def test_parameters_that_are_not_mutated_are_the_parents_own_or_copied(engine):
    parent = layers()
    mutation = Mutation(1, 0.1, 0.0, 0.5)
    child = materialize(parent, mutation)
    assert child["a.bias"] is parent["a.bias"]
    assert child["steps"] is parent["steps"]
    own = {"a.bias": torch.zeros(20), "steps": torch.tensor(0)}
    child = materialize(parent, mutation, out=dict(own))
    for name, tensor in own.items():
        assert child[name] is tensor
        assert same_bits(tensor, parent[name])


def test_work_buffers_stay_out_of_autograd(engine):
    """A parent that was given with its gradients switched on must not pull a child's into it."""
    module = mlp()
    parent = dict(module.named_parameters())
    out = copied(parent)
    for _ in range(2):
        materialize(parent, Mutation(1, 0.1, 0.0, 0.5), out=out)
    assert not any(tensor.requires_grad for tensor in out.values())


def test_include_by_names_and_predicate(engine):
    parent = layers()
    mutation = Mutation(1, 0.1, 0.0, 1.0)
    for include in (["a.bias"], lambda name, _: name == "a.bias"):
        child = materialize(parent, mutation, include=include)
        assert same_bits(child["a.bias"], reference("a.bias", parent["a.bias"], mutation))
        assert child["a.weight"] is parent["a.weight"]
    with pytest.raises(ValueError, match=r"no parameters \['nope'\]"):
        materialize(parent, mutation, include=["nope"])


def test_a_child_does_not_depend_on_what_else_is_mutated(engine):
    parent = layers()
    mutation = Mutation(1, 0.1, 0.0, 0.5)
    whole = materialize(parent, mutation)
    backwards = materialize(dict(reversed(parent.items())), mutation)
    for name in ("a.weight", "b.weight", "c.weight"):
        assert same_bits(materialize(parent, mutation, include=[name])[name], whole[name])
        assert same_bits(backwards[name], whole[name])


@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
def test_siblings_are_the_children_built_one_by_one(density, engine):
    parent = layers()
    child = Mutation(9, 0.2, 0.0, density)
    family = [child, child.partner(), child.mirrored(), child.partner().mirrored()]
    family.append(Mutation(9, 0.7, 0.8, 0.1))
    together = materialize_siblings(parent, family)
    for mutation, sibling in zip(family, together, strict=True):
        assert all_same_bits(sibling, materialize(parent, mutation))
    outs = [copied(parent) for _ in family]
    assert materialize_siblings(parent, family, outs=outs)[3] is outs[3]
    assert all(all_same_bits(a, b) for a, b in zip(outs, together, strict=True))


def test_siblings_of_several_seeds_or_wrong_buffers_are_refused():
    parent = layers()
    one, other = Mutation(1, 0.1, 0.0, 0.5), Mutation(2, 0.1, 0.0, 0.5)
    with pytest.raises(ValueError, match="siblings share one seed, got 2 seeds"):
        materialize_siblings(parent, [one, other])
    with pytest.raises(ValueError, match="siblings share one seed, got 0 seeds"):
        materialize_siblings(parent, [])
    with pytest.raises(ValueError, match="expected 2 work buffers, got 1"):
        materialize_siblings(parent, [one, one], outs=[{}])
    for wrong in (torch.empty(20, 31), torch.empty(20, 30, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"the work buffer of a\.weight is .* another buffer"):
            materialize(parent, one, out={"a.weight": wrong})


def test_child_works_in_the_model():
    module = lenet()
    child = materialize(parameters(module), Mutation(1, 0.1, 0.0, 0.5))
    x = noise(2, 1, 28, 28)
    with torch.no_grad():
        found = torch.func.functional_call(module, child, (x,))
        assert not torch.equal(found, module(x))
        module.load_state_dict(child)
        assert torch.equal(found, module(x))


@pytest.mark.parametrize("sigma", [math.nan, math.inf, -math.inf])
def test_sigma_must_be_finite(sigma):
    with pytest.raises(ValueError, match="sigma must be finite"):
        Mutation(0, sigma, 0.0, 0.5)


def test_bad_seeds_and_bounds_are_refused():
    for seed in (-1, 2**63):
        with pytest.raises(ValueError, match="a seed must be an int in"):
            Mutation(seed, 0.1, 0.0, 0.5)
    with pytest.raises(ValueError, match=r"bounds must be in \[0, 1\], got low=0\.0, high=1\.5"):
        Mutation(0, 0.1, 0.0, 1.5)


def test_mutation_names_its_subnetwork():
    mutation = Mutation(7, 0.1, 0.2, 0.5)
    assert mutation.subnetwork == Subnetwork(7, 0.2, 0.5)
    assert mutation.density == pytest.approx(0.3)


def test_quads_are_four_siblings_of_one_seed():
    population = quads(12, 0.1, density=0.3, seed=5)
    assert len(population) == 12
    assert len({mutation.seed for mutation in population}) == 3
    for i in range(0, 12, 4):
        child, partner, mirror, both = population[i : i + 4]
        assert (child.sigma, child.low, child.high) == (0.1, 0.0, 0.3)
        assert (partner.seed, partner.low, partner.high) == (child.seed, 0.3, 1.0)
        assert (partner.low, partner.high) == (child.partner().low, child.partner().high)
        length = 0.3 * 0.1**2  # of the noise, squared, per weight
        assert 0.7 * partner.sigma**2 == pytest.approx(length)
        assert mirror == child.mirrored()
        assert both == partner.mirrored()
    child, partner, *_ = quads(4, 0.1, density=0.5, seed=5)
    assert partner == child.partner() == Mutation(child.seed, 0.1, 0.5, 1.0)


def test_at_density_one_a_four_is_two_mirrored_pairs():
    population = quads(8, 0.1, density=1.0, seed=5)
    assert len(set(population)) == 8
    assert all(mutation.density == 1 for mutation in population)
    for i in (0, 4):
        child, other, mirror, other_mirror = population[i : i + 4]
        assert child.seed != other.seed
        assert mirror == child.mirrored()
        assert other_mirror == other.mirrored()
    assert len({mutation.seed for mutation in population}) == 4


@pytest.mark.parametrize("population_size", [-4, 0, 1, 2, 6, 18])
def test_quads_come_in_fours(population_size):
    with pytest.raises(
        ValueError, match=f"quads come in fours: .* multiple of 4, got {population_size}$"
    ):
        quads(population_size, 0.1, density=0.5, seed=0)


@pytest.mark.parametrize("density", [0.0, -0.5, 1.5, math.nan])
def test_density_must_be_in_zero_one(density):
    for population in (quads, singles):
        with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
            population(4, 0.1, density=density, seed=0)


def test_singles_share_nothing():
    population = singles(10, 0.1, density=0.3, seed=5)
    assert len({mutation.seed for mutation in population}) == 10
    assert {(m.sigma, m.low, m.high) for m in population} == {(0.1, 0.0, 0.3)}
    assert singles(3, 0.1, density=0.3, seed=5) == population[:3]
    with pytest.raises(ValueError, match="population_size must be at least 1, got 0"):
        singles(0, 0.1, density=0.3, seed=5)


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_populations_of_different_seeds_share_no_child(density):
    seen = set()
    for seed in range(40):
        population = quads(16, 0.1, density=density, seed=seed)
        assert population == quads(16, 0.1, density=density, seed=seed)
        children = {mutation.seed for mutation in population}
        assert not children & seen
        seen |= children


# --- a mean


def test_a_mean_is_added_to_the_noise_and_mirrored_with_it():
    parent = parameters(built(lambda: nn.Linear(40, 30)))
    plain = Mutation(3, 0.1, 0.2, 0.7)
    shifted = dataclasses.replace(plain, mean=0.5)
    inside = materialize(parent, plain)["weight"] != parent["weight"]
    draw = streams.normal(3, "weight", count=1200).view(30, 40)
    expected = torch.where(inside, parent["weight"] + 0.1 * (draw + 0.5), parent["weight"])
    children = materialize_siblings(parent, [shifted, shifted.mirrored(), shifted.partner()])
    torch.testing.assert_close(children[0]["weight"], expected)
    mirror = 2 * parent["weight"] - children[0]["weight"]
    torch.testing.assert_close(children[1]["weight"], mirror)
    moved = children[2]["weight"] != parent["weight"]
    assert torch.equal(moved, ~inside)
    assert torch.equal(materialize(parent, shifted)["weight"], children[0]["weight"])
    # beside siblings without one
    both = materialize_siblings(parent, [plain, shifted])
    assert torch.equal(both[0]["weight"], materialize(parent, plain)["weight"])
    assert torch.equal(both[1]["weight"], children[0]["weight"])


def test_numbers_of_old_recipes_stay_four():
    assert Mutation(3, 0.1, 0.2, 0.7).numbers == (3, 0.1, 0.2, 0.7)
    shifted = Mutation(3, 0.1, 0.2, 0.7, -0.5)
    assert Mutation(*shifted.numbers) == shifted
    with pytest.raises(ValueError, match="mean must be finite"):
        Mutation(3, 0.1, 0.2, 0.7, math.nan)
