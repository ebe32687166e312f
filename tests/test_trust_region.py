"""Divergence against references, and both searches for sigma."""

import dataclasses
import math

import pytest
import torch
from networks import all_same_bits, built, copied, impala, lenet, mlp, noise, normalised
from torch import nn

from evo_subnets import (
    Search,
    divergence,
    materialize,
    parameters,
    quads,
    search_trust_region,
    singles,
)
from evo_subnets.outputs import CLASSES, Binary, Classes, Values
from evo_subnets.trust_region import MAX_TRIALS, SECANTS, find_root

# enough is drawn here to ask for a compiler, and a machine may have none
pytestmark = pytest.mark.filterwarnings("ignore:no compiled draws:RuntimeWarning")


def softmax(row):
    exponentials = [math.exp(x - max(row)) for x in row]
    return [x / sum(exponentials) for x in exponentials]


@pytest.mark.parametrize("scale", [0.1, 1.0, 20.0])
def test_kl_is_that_of_a_plain_reference(scale):
    parent, child = noise(6, 4) * scale, noise(6, 4, seed=1) * scale
    rows = [
        sum(p * math.log(p / q) for p, q in zip(softmax(a), softmax(b), strict=True))
        for a, b in zip(parent.tolist(), child.tolist(), strict=True)
    ]
    assert divergence(parent, child) == pytest.approx(sum(rows) / 6, rel=1e-9)
    assert divergence(parent, child) != pytest.approx(divergence(child, parent), rel=1e-3)


def test_kl_does_not_depend_on_an_offset_of_the_logits():
    parent, child = noise(6, 4), noise(6, 4, seed=1)
    assert divergence(parent + 3, child - 5) == pytest.approx(divergence(parent, child), rel=1e-5)


def test_mse_is_that_of_a_plain_reference():
    parent, child = noise(6, 4), noise(6, 4, seed=1)
    rows = [
        sum((a - b) ** 2 for a, b in zip(x, y, strict=True))
        for x, y in zip(parent.tolist(), child.tolist(), strict=True)
    ]
    assert divergence(parent, child, outputs=Values()) == pytest.approx(sum(rows) / 6, rel=1e-9)


@pytest.mark.parametrize("outputs", [Classes(), Values(), Binary()])
def test_equal_outputs_do_not_diverge(outputs):
    for scale in (0.0, 1.0, 300.0):
        logits = noise(50, 7) * scale
        assert divergence(logits, logits.clone(), outputs=outputs) == 0
        assert divergence(logits.bfloat16(), logits.bfloat16(), outputs=outputs) == 0


@pytest.mark.parametrize("outputs", [Classes(), Values(), Binary()])
def test_outputs_that_are_nan_have_a_divergence_that_is_nan(outputs):
    logits = noise(5, 3)
    broken = logits.clone()
    broken[2, 1] = math.nan
    assert math.isnan(divergence(logits, broken, outputs=outputs))
    assert math.isnan(divergence(broken, logits, outputs=outputs))


def test_divergence_of_wrong_arguments_is_refused():
    with pytest.raises(ValueError, match=r"of the same shape, got \(5, 3\) and \(5, 4\)"):
        divergence(noise(5, 3), noise(5, 4))
    with pytest.raises(ValueError, match=r"expected \(batch, classes\) outputs, got \(5,\)"):
        divergence(noise(5), noise(5))


NETWORKS = {"lenet": (lenet, (1, 28, 28)), "impala": (impala, (3, 16, 16))}


def measured(module, inputs, sigma, density, children, seed, kind=CLASSES):
    """The mean divergence of the first children of the quads, one by one."""
    population = quads(-(-children // 4) * 4, sigma, density=density, seed=seed)[:children]
    with torch.no_grad():
        outputs = module(inputs)
        total = 0.0
        for mutation in population:
            child = materialize(parameters(module), mutation)
            moved = torch.func.functional_call(module, child, (inputs,))
            total += divergence(outputs, moved, outputs=kind)
    return total / children


@pytest.mark.parametrize("target", [1e-3, 0.02, 0.2])
@pytest.mark.parametrize("network", NETWORKS)
def test_root_search_comes_within_a_tenth_in_eight_trials(network, target):
    make, shape = NETWORKS[network]
    module, inputs = make().eval(), noise(32, *shape)
    region = search_trust_region(module, inputs, target=target, search=Search(seed=3))
    assert abs(region.divergence - target) <= 0.1 * target
    assert 1 <= len(region.table) <= SECANTS == 8
    assert region.density == 0.5
    assert (region.sigma, region.divergence) in [(t.sigma, t.divergence) for t in region.table]
    again = measured(module, inputs, region.sigma, 0.5, 4, 3)
    assert again == pytest.approx(region.divergence, rel=1e-3)


def test_root_search_of_mse_and_of_any_number_of_children():
    module, inputs = mlp(), noise(40, 5)
    for children in (1, 4, 6):
        region = search_trust_region(
            module,
            inputs,
            target=0.05,
            densities=(0.3,),
            children=children,
            outputs=Values(),
            batch_size=16,
        )
        assert abs(region.divergence - 0.05) <= 0.005
        again = measured(module, inputs, region.sigma, 0.3, children, 0, Values())
        assert again == pytest.approx(region.divergence, rel=1e-4)


def test_it_measures_the_population_that_will_be_used():
    """The search's own sampler, seed and parameters, and its own size where that is small."""
    module, inputs = mlp(), noise(40, 5)
    search = Search(3, 2, density=0.2, seed=7, sampler=singles, include=["0.weight"])
    region = search_trust_region(module, inputs, search=search)
    assert region.search == dataclasses.replace(search, sigma=region.sigma)
    total = 0.0
    with torch.no_grad():
        for mutation in region.search.mutations():
            child = materialize(parameters(module), mutation, include=["0.weight"])
            moved = torch.func.functional_call(module, child, (inputs,))
            total += divergence(module(inputs), moved)
    assert total / 3 == pytest.approx(region.divergence, rel=1e-4)
    quad = search_trust_region(module, inputs, search=Search(4, 2, density=0.2, seed=7))
    assert quad.sigma < region.sigma, "half of a quad perturbs four fifths of the weights"


def test_the_root_search_begins_at_the_searchs_sigma():
    module, inputs = mlp(), noise(40, 5)
    found = search_trust_region(module, inputs).search
    again = search_trust_region(module, inputs, search=found)
    assert len(again.table) == 1
    assert again.search == found


def test_the_search_is_the_same_for_a_seed_and_reports_its_trials():
    trials = []
    one = search_trust_region(mlp(), noise(40, 5), search=Search(seed=1), on_trial=trials.append)
    assert one == search_trust_region(mlp(), noise(40, 5), search=Search(seed=1))
    assert one != search_trust_region(mlp(), noise(40, 5), search=Search(seed=2))
    assert tuple(trials) == one.table


def test_grid_returns_the_closest_of_all_pairs():
    module, inputs = mlp(), noise(40, 5)
    sigmas, densities = (0.003, 0.03, 0.1, 0.3), (0.2, 1.0)
    region = search_trust_region(module, inputs, target=0.02, densities=densities, sigmas=sigmas)
    assert [(t.density, t.sigma) for t in region.table] == [
        (density, sigma) for density in densities for sigma in sigmas
    ]
    for trial in region.table:
        expected = measured(module, inputs, trial.sigma, trial.density, 4, 0)
        assert trial.divergence == pytest.approx(expected, rel=1e-4)
    closest = min(region.table, key=lambda trial: abs(math.log(trial.divergence / 0.02)))
    assert (region.sigma, region.density, region.divergence) == (
        closest.sigma,
        closest.density,
        closest.divergence,
    )


def test_grid_passes_over_outputs_that_are_not_finite():
    region = search_trust_region(mlp(), noise(40, 5), target=0.02, sigmas=(1e38, 0.0, 0.01))
    assert region.sigma == 0.01


def test_the_first_density_that_reaches_the_target_is_taken():
    region = search_trust_region(mlp(), noise(40, 5), target=0.02, densities=(0.4, 0.8))
    assert region.density == 0.4
    assert {trial.density for trial in region.table} == {0.4}


def test_a_density_that_cannot_reach_the_target_gives_way_to_the_next():
    """Nothing of `dead` depends on its weights, at any sigma."""

    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(noise(3, 3))

        def forward(self, x):
            return x

    trials = []
    with pytest.raises(
        ValueError, match=r"density 0.4: no sigma reaches .*; density 0.8: no sigma"
    ):
        search_trust_region(
            Dead(), noise(8, 3), target=0.02, densities=(0.4, 0.8), on_trial=trials.append
        )
    assert {trial.density for trial in trials} == {0.4, 0.8}
    assert len(trials) <= 2 * MAX_TRIALS


def test_the_module_is_left_alone():
    module = normalised().train()
    state, inputs = copied(module.state_dict()), noise(40, 5)
    region = search_trust_region(module, inputs)
    assert module.training
    assert all(child.training for child in module.modules())
    assert all_same_bits(copied(module.state_dict()), state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert region == search_trust_region(module.eval(), inputs)


def test_include_restricts_what_is_mutated():
    module, inputs = mlp(), noise(40, 5)
    region = search_trust_region(module, inputs, search=Search(include=["2.bias"]))
    assert abs(region.divergence - 0.02) <= 0.002
    with pytest.raises(ValueError, match=r"no parameters \['nope'\]"):
        search_trust_region(module, inputs, search=Search(include=["nope"]))


def test_parents_of_any_scale_are_searched():
    """The first trial comes from the weights: a fixed one would need too many steps."""
    for scale in (1e-4, 1.0, 1e4):
        module = built(lambda: nn.Linear(6, 4))
        with torch.no_grad():
            module.weight.mul_(scale)
        region = search_trust_region(module, noise(40, 6) / scale, target=0.02)
        assert abs(region.divergence - 0.02) <= 0.002


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": 0.0},
        {"target": -1.0},
        {"target": math.nan},
        {"target": math.inf},
        {"children": 0},
        {"children": 17},
        {"densities": ()},
        {"sigmas": ()},
    ],
)
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="a trust region needs target > 0"):
        search_trust_region(mlp(), **{"inputs": noise(40, 5), **wrong})


@pytest.mark.parametrize("inputs", [torch.zeros(0, 5), [], {"x": torch.zeros(0, 5)}, ()])
def test_no_inputs_are_refused(inputs):
    with pytest.raises(ValueError, match=r"at least one sample is needed|have as many rows each"):
        search_trust_region(mlp(), inputs)


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_bad_densities_are_refused(density):
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        search_trust_region(mlp(), noise(40, 5), densities=(0.5, density))


CURVES = {
    "square": lambda sigma: 3.0 * sigma**2,
    "linear": lambda sigma: 0.2 * sigma,
    "steep": lambda sigma: 50.0 * sigma**6,
    "saturating": lambda sigma: 1.5 * (1 - math.exp(-4 * sigma**2)),
    "nan above one": lambda sigma: sigma**2 if sigma < 1 else math.nan,
    "infinite above one": lambda sigma: sigma**2 if sigma < 1 else math.inf,
    "flat, then square": lambda sigma: max(sigma - 0.01, 0.0) ** 2,
    "square, then steep": lambda sigma: sigma**2 + 1e4 * sigma**8,
}


@pytest.mark.parametrize("start", [1e-3, 0.1, 20.0])
@pytest.mark.parametrize("target", [1e-3, 0.02, 0.2])
@pytest.mark.parametrize("curve", CURVES)
def test_find_root_of_synthetic_curves(curve, target, start):
    tried = []

    def measure(sigma):
        tried.append(sigma)
        return CURVES[curve](sigma)

    sigma = find_root(measure, target, sigma=start)
    assert abs(CURVES[curve](sigma) - target) <= 0.1 * target
    assert len(tried) <= SECANTS
    assert tried[-1] == sigma
    assert all(0 < s < math.inf for s in tried)


NO_ROOTS = {
    "nothing": (lambda sigma: 0.0, "no sigma reaches a divergence of 0.02, the largest is 0 "),
    "too little": (
        lambda sigma: 1e-9,
        "no sigma reaches a divergence of 0.02, the largest is 1e-09",
    ),
    "too much": (lambda sigma: 5.0, r"even sigma \S+ gives a divergence of 5, above 0.02"),
    "NaN": (lambda sigma: math.nan, "no sigma gave a finite divergence"),
    "infinite": (lambda sigma: math.inf, "no sigma gave a finite divergence"),
    "a jump": (
        lambda sigma: 5.0 if sigma > 0.3 else 1e-3,
        r"it is 0.001 at sigma \S+ and 5 at 0.3",
    ),
    "a plateau": (lambda sigma: min(sigma, 0.01), "no sigma reaches .* the largest is 0.01"),
}


@pytest.mark.parametrize("curve", NO_ROOTS)
def test_find_root_says_why_there_is_no_root(curve):
    tried = []
    measured, why = NO_ROOTS[curve]
    with pytest.raises(ValueError, match=why):
        find_root(lambda sigma: (tried.append(sigma), measured(sigma))[1], 0.02, sigma=0.1)
    assert len(tried) <= MAX_TRIALS
    assert all(0 < s < math.inf for s in tried)


HARD = {
    "very steep": lambda sigma: 1e30 * sigma**40,
    "up, down and up": lambda sigma: sigma**2 * (1 + 0.8 * math.sin(9 * sigma)) + sigma**8,
    "NaN in the middle": lambda sigma: math.nan if 0.05 < sigma < 0.07 else sigma**2,
    "a cliff with a foothold": lambda sigma: (
        1e-6 + 1 / (1 + math.exp(min(-1500 * (sigma - 0.37), 600)))
    ),
}


@pytest.mark.parametrize("start", [1e-3, 0.1, 20.0])
@pytest.mark.parametrize("curve", HARD)
def test_find_root_bisects_where_secants_fail(curve, start):
    sigma = find_root(HARD[curve], 0.02, sigma=start)
    assert abs(HARD[curve](sigma) - 0.02) <= 0.002
