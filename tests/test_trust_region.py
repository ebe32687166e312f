"""Divergence against references, and both searches for sigma."""

import dataclasses
import math
import statistics
from itertools import islice

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
    trust_region,
)
from evo_subnets.outputs import CLASSES, Binary, Classes, Values
from evo_subnets.roots import MAX_TRIALS, SECANTS

# enough is drawn here to ask for a compiler, and a machine may have none
pytestmark = [
    pytest.mark.filterwarnings("ignore:no compiled draws:RuntimeWarning"),
    pytest.mark.whole_trust_regions,
]


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


def measured(module, inputs, mutations, kind=CLASSES):
    """The divergence of each of the children, built one by one."""
    with torch.no_grad():
        outputs, found = module(inputs), []
        for mutation in mutations:
            child = materialize(parameters(module), mutation)
            moved = torch.func.functional_call(module, child, (inputs,))
            found.append(divergence(outputs, moved, outputs=kind))
    return found


def first(search, region, children):
    return list(islice(search.measured(region.sigma, region.density), children))


@pytest.mark.parametrize("target", [1e-3, 0.02, 0.2])
@pytest.mark.parametrize("network", NETWORKS)
def test_root_search_comes_within_a_tenth_in_eight_trials(network, target):
    make, shape = NETWORKS[network]
    module, inputs, search = make().eval(), noise(32, *shape), Search(seed=3)
    region = search_trust_region(module, inputs, target=target, search=search, children=4)
    assert abs(region.divergence - target) <= 0.1 * target
    assert 1 <= len(region.table) <= SECANTS == 8
    assert region.density == 0.5
    assert (region.sigma, region.divergence) in [(t.sigma, t.divergence) for t in region.table]
    again = measured(module, inputs, first(search, region, 4))
    assert sum(again) / 4 == pytest.approx(region.divergence, rel=1e-3)


def test_root_search_of_mse_and_of_any_number_of_children():
    module, inputs = mlp(), noise(40, 5)
    for children in (1, 4, 6):
        search = Search(12, density=0.3, sampler=singles)
        region = search_trust_region(
            module, inputs, search=search, target=0.05, children=children,
            outputs=Values(), batch_size=16,
        )  # fmt: skip
        assert abs(region.divergence - 0.05) <= 0.005
        assert region.table[-1].children == children
        again = measured(module, inputs, first(search, region, children), Values())
        assert sum(again) / children == pytest.approx(region.divergence, rel=1e-4)


def test_it_measures_what_will_be_used_with_noise_of_its_own():
    """The search's own sampler, density and parameters, and none of its own children."""
    module, inputs = mlp(), noise(40, 5)
    search = Search(3, 2, density=0.2, seed=7, sampler=singles, include=["0.weight"])
    region = search_trust_region(module, inputs, search=search, children=7)
    assert region.search == dataclasses.replace(search, sigma=region.sigma)
    children = first(search, region, 7)
    assert len({child.seed for child in children}) == 7
    assert not {child.seed for child in children} & {m.seed for m in region.search.mutations()}
    assert {child.density for child in children} == {0.2}
    total = 0.0
    with torch.no_grad():
        for mutation in children:
            child = materialize(parameters(module), mutation, include=["0.weight"])
            moved = torch.func.functional_call(module, child, (inputs,))
            total += divergence(module(inputs), moved)
    assert total / 7 == pytest.approx(region.divergence, rel=1e-4)


def test_both_halves_of_siblings_are_asked_all_inputs(monkeypatch):
    """They take turns: by their numbers alone either half would see every other share."""
    made, asked = [], {False: set(), True: set()}
    child, outputs = trust_region.WorkCopy.child, trust_region.outputs_of

    def noting_child(work, mutation):
        made.append(mutation.low > 0)
        return child(work, mutation)

    def noting_outputs(module, share, **others):
        if made:
            asked[made[-1]] |= {tuple(row) for batch in share for row in batch.tolist()}
        return outputs(module, share, **others)

    monkeypatch.setattr(trust_region.WorkCopy, "child", noting_child)
    monkeypatch.setattr(trust_region, "outputs_of", noting_outputs)
    search_trust_region(mlp(), noise(64, 5), search=Search(8, 4, density=0.2))
    assert len(asked[False]) == len(asked[True]) == 64


def test_mirrors_are_not_measured_twice():
    search = Search(8, 2, density=0.2)
    children = list(islice(search.measured(0.1, 0.2), 24))
    assert len(set(children)) == 24
    assert not any(child.mirrored() in children for child in children)
    assert [round(child.density, 6) for child in children] == [0.2, 0.8] * 12


def trained_mlp():
    """A network that has learned something: its outputs depend on many weights at once."""
    inputs = noise(256, 12)
    targets = (inputs[:, :4].square().sum(1) - inputs[:, 4:8].square().sum(1) > 0).long()
    module = built(lambda: nn.Sequential(
        nn.Linear(12, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2)
    ))  # fmt: skip
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    return module.eval(), inputs


@pytest.mark.parametrize("sampler", [singles, quads])
def test_sigma_rises_as_density_falls_and_bounds_other_children(sampler):
    """Within a tenth of the target on children that the search has not seen, halves of quads each,
    and about the same sigma for every seed."""
    module, inputs = trained_mlp()
    before = 0.0
    for density in (0.7, 0.2):
        sigmas = []
        for seed in range(2):
            search = Search(16, 4, density=density, seed=seed, sampler=sampler)
            region = search_trust_region(module, inputs, search=search)
            sigmas.append(region.sigma)
            assert abs(region.divergence - 0.02) <= 0.002
        assert max(sigmas) / min(sigmas) < 1.1
        fresh = dataclasses.replace(search, seed=100)
        children = list(islice(fresh.measured(region.sigma, density), 400))
        values = measured(module, inputs, children)
        for half in (0, 1) if sampler is quads else (0,):
            group = values[half::2] if sampler is quads else values
            mean = sum(group) / len(group)
            error = statistics.stdev(group) / len(group) ** 0.5
            assert mean <= 0.022 + 2 * error, (density, half)
        assert region.sigma > 1.1 * before
        before = region.sigma


def test_a_mean_that_stays_uncertain_is_said(monkeypatch):
    """Of children one in hundreds moves the outputs at all."""
    monkeypatch.setattr(trust_region, "MOST", 64)
    module = built(Rare)
    search = Search(density=1.0, sampler=singles)
    with pytest.warns(RuntimeWarning, match=r"diverge so differently that 64 of them"):
        region = search_trust_region(module, noise(8, 3), search=search, target=1e-4)
    assert abs(region.divergence - 1e-4) <= 1e-5


class Rare(nn.Module):
    """Outputs move only where noise is far in its tail."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        far = (self.layer.weight.abs().sum() - 2.5).clamp(min=0)
        return x + far * x.flip(-1)


def test_the_root_search_begins_at_the_searchs_sigma():
    module, inputs = mlp(), noise(40, 5)
    found = search_trust_region(module, inputs, children=4).search
    again = search_trust_region(module, inputs, search=found, children=4)
    assert len(again.table) == 1
    assert again.search == found


def test_the_search_is_the_same_for_a_seed_and_reports_its_trials():
    trials = []
    one = search_trust_region(
        mlp(), noise(40, 5), search=Search(seed=1), children=4, on_trial=trials.append
    )
    assert one == search_trust_region(mlp(), noise(40, 5), search=Search(seed=1), children=4)
    assert one != search_trust_region(mlp(), noise(40, 5), search=Search(seed=2), children=4)
    assert tuple(trials) == one.table


def test_grid_returns_the_strongest_within_the_target():
    module, inputs = mlp(), noise(40, 5)
    sigmas, densities = (0.003, 0.03, 0.1, 0.3), (0.2, 1.0)
    region = search_trust_region(
        module, inputs, target=0.02, densities=densities, sigmas=sigmas, children=4
    )
    assert [(t.density, t.sigma) for t in region.table] == [
        (density, sigma) for density in densities for sigma in sigmas
    ]
    within = [trial for trial in region.table if trial.divergence <= 0.02]
    assert within
    assert len(within) < len(region.table)
    strongest = max(within, key=lambda trial: trial.divergence)
    assert (region.sigma, region.density, region.divergence) == (
        strongest.sigma,
        strongest.density,
        strongest.divergence,
    )


def test_a_grid_outside_the_target_is_refused():
    with pytest.raises(ValueError, match=r"even 0.5 gives a divergence of .*; take smaller ones"):
        search_trust_region(mlp(), noise(40, 5), sigmas=(3.0, 0.5), children=4)
    with pytest.raises(ValueError, match=r"no trial gave a finite divergence"):
        search_trust_region(mlp(), noise(40, 5), sigmas=(1e38,))


def test_of_trials_at_the_target_the_fittest_is_taken():
    """Section 4.3.3; over strengths and densities."""
    module, inputs = mlp(), noise(40, 5)
    densities = (0.2, 0.5, 1.0)

    def few_changed(child):
        same = torch.cat([
            (a == b).flatten() for a, b in zip(child.parameters(), module.parameters(), strict=True)
        ])  # fmt: skip
        return same.float().mean().item()

    def many_changed(child):
        return -few_changed(child)

    for sigmas in (None, (0.003, 0.03, 0.1)):
        for fitness, expected in ((few_changed, 0.2), (many_changed, 1.0)):
            region = search_trust_region(
                module, inputs, search=Search(sampler=singles), densities=densities,
                sigmas=sigmas, fitness=fitness, children=4,
            )  # fmt: skip
            assert region.density == expected
            judged = [trial for trial in region.table if trial.fitness is not None]
            assert [trial.density for trial in judged] == list(densities)
            assert all(trial.divergence <= 0.022 for trial in judged)


def test_grid_passes_over_outputs_that_are_not_finite():
    region = search_trust_region(
        mlp(), noise(40, 5), target=0.02, sigmas=(1e38, 0.0, 0.01), children=4
    )
    assert region.sigma == 0.01


def test_the_first_density_that_reaches_the_target_is_taken():
    region = search_trust_region(mlp(), noise(40, 5), densities=(0.4, 0.8), children=4)
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
    region = search_trust_region(module, inputs, children=4)
    assert module.training
    assert all(child.training for child in module.modules())
    assert all_same_bits(copied(module.state_dict()), state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert region == search_trust_region(module.eval(), inputs, children=4)


def test_include_restricts_what_is_mutated():
    module, inputs = mlp(), noise(40, 5)
    region = search_trust_region(module, inputs, search=Search(include=["2.bias"]), children=4)
    assert abs(region.divergence - 0.02) <= 0.002
    with pytest.raises(ValueError, match=r"no parameters \['nope'\]"):
        search_trust_region(module, inputs, search=Search(include=["nope"]))


def test_parents_of_any_scale_are_searched():
    """The first trial comes from the weights: a fixed one would need too many steps."""
    for scale in (1e-4, 1.0, 1e4):
        module = built(lambda: nn.Linear(6, 4))
        with torch.no_grad():
            module.weight.mul_(scale)
        region = search_trust_region(module, noise(40, 6) / scale, children=4)
        assert abs(region.divergence - 0.02) <= 0.002


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": 0.0},
        {"target": -1.0},
        {"target": math.nan},
        {"target": math.inf},
        {"children": 0},
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
