"""Dynamic sparse training: densities, exact counts, where connections go, and when."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import built, noise, pictures
from networks import small_classifier as network
from torch import nn

from evo_subnets.metrics import inference_flops
from evo_subnets.models import build
from evo_subnets.rewiring import Rewired, Rewiring, layer_densities, random_masks
from evo_subnets.schedules import Constant
from evo_subnets.subnetworks import included, parameters
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune

SHAPES = {"first": (16, 3, 3, 3), "second": (32, 16, 3, 3), "last": (10, 32)}


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.95])
def test_densities_leave_what_was_asked(distribution, sparsity):
    found = layer_densities(SHAPES, sparsity, distribution=distribution)
    sizes = {name: math.prod(shape) for name, shape in SHAPES.items()}
    kept = sum(found[name] * size for name, size in sizes.items())
    assert kept == pytest.approx((1 - sparsity) * sum(sizes.values()))
    assert all(0 < density <= 1 for density in found.values())


def test_erk_is_its_formula_where_no_layer_is_full():
    found = layer_densities(SHAPES, 0.95)
    raw = {name: sum(shape) / math.prod(shape) for name, shape in SHAPES.items()}
    ratios = [found[name] / raw[name] for name in SHAPES]
    assert ratios == pytest.approx([ratios[0]] * 3)
    er = layer_densities(SHAPES, 0.95, distribution="er")
    assert er["second"] / er["last"] == pytest.approx((48 / (16 * 32)) / (42 / 320))


def test_full_layers_are_dense_and_the_others_are_solved_for_anew():
    found = layer_densities(SHAPES, 0.5)
    assert found["first"] == found["last"] == 1.0
    rest = 0.5 * (432 + 4608 + 320) - 432 - 320
    assert found["second"] == pytest.approx(rest / 4608)


@pytest.mark.parametrize(("sparsity", "percent"), [(0.8, 33.7), (0.9, 16.7)])
def test_training_of_wrn_28_10_costs_what_the_paper_says(sparsity, percent):
    """Liu et al. 2022, appendix D."""
    with torch.device("meta"):
        module = build("wrn-28-10")
    params, inputs = parameters(module), torch.zeros(1, 3, 32, 32, device="meta")
    shapes = {name: tuple(params[name].shape) for name in included(params)}
    densities = layer_densities(shapes, sparsity)
    share = inference_flops(module, inputs, densities=densities) / inference_flops(module, inputs)
    assert 100 * share == pytest.approx(percent, abs=0.5)
    # and the ratios of table 1: epochs of sparse trainings over 250 of a dense one
    epochs = {0.8: [(750, 1.01), (450, 0.61)], 0.9: [(850, 0.57)]}[sparsity]
    for number, ratio in epochs:
        assert number * share / 250 == pytest.approx(ratio, abs=0.02)


def test_first_connections_are_of_exact_number_and_of_the_seed():
    params = parameters(network(0))
    densities = dict.fromkeys(included(params), 0.3)
    masks = random_masks(params, densities, seed=1)
    for mask in masks.values():
        assert int(mask.sum()) == round(0.3 * mask.numel())
    again, other = random_masks(params, densities, seed=1), random_masks(params, densities, seed=2)
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert any(not torch.equal(masks[name], other[name]) for name in masks)
    with pytest.raises(ValueError, match="leaves none: take a lower sparsity"):
        random_masks(params, dict.fromkeys(densities, 0.001), seed=1)


def linear(density=0.5, **options):
    """One layer of 8 x 6 whose connections move, and its binding."""
    module = built(lambda: nn.Linear(6, 8))
    masks = random_masks(parameters(module), {"weight": density}, seed=0)
    return module, Rewired(module, masks, rewiring=Rewiring(**options), steps=100)


def plain_update(weight, mask, gradient, fraction):
    """Equations 1 and 2, in numpy: which connections there are afterwards, and which are grown."""
    count = round(fraction * mask.sum())
    there = np.flatnonzero(mask)
    dropped = there[np.argsort(np.abs(weight[there]), kind="stable")[:count]]
    left = mask.copy()
    left[dropped] = False
    out = np.flatnonzero(~left)
    grown = out[np.argsort(-np.abs(gradient[out]), kind="stable")[:count]]
    left[grown] = True
    return left, grown


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_an_update_is_the_plain_one(fraction):
    module, bound = linear()
    weight = module.weight.detach().numpy().flatten().copy()
    gradient = noise(8, 6, seed=3)
    mask, grown = plain_update(
        weight, bound.masks["weight"].numpy().flatten(), gradient.numpy().flatten(), fraction
    )
    bound.rewire(fraction, [gradient])
    assert np.array_equal(bound.masks["weight"].numpy().flatten(), mask)
    now = module.weight.detach().numpy().flatten()
    assert (now[~mask] == 0).all()
    assert (now[grown] == 0).all(), "also of those that had just been dropped"
    stayed = mask.copy()
    stayed[grown] = False
    assert np.array_equal(now[stayed], weight[stayed])


@pytest.mark.parametrize("growth", ["gradient", "random"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_counts_never_change_and_nothing_is_remembered_of_what_is_out(growth, optimizer):
    module, seen = network(0), []
    names = list(included(parameters(module)))
    masks = random_masks(parameters(module), dict.fromkeys(names, 0.3), seed=0)
    counts = {name: int(mask.sum()) for name, mask in masks.items()}

    class Watched(Rewired):
        def after_step(self):
            before = self.masks
            super().after_step()
            moved = {name for name in names if not torch.equal(before[name], self.masks[name])}
            seen.append(bool(moved))
            for name, weight, mask in zip(names, self.weights, self.masks.values(), strict=True):
                assert int(mask.sum()) == counts[name]
                assert not weight[~mask].any()
                fresh = mask & ~before[name]
                for value in self._optimizer.state[weight].values():
                    if value.shape == weight.shape:
                        assert not value[~mask].any(), "momentum of what is out"
                        assert not value[fresh].any(), "and of what was just grown"

    rewiring = Rewiring(growth, interval=3, until=0.75)
    bound = Watched(module, masks, rewiring=rewiring, steps=20, seed=1)
    data = Task(pictures(80))
    tune(module, data, tuning=Tuning(4, Constant(0.01), optimizer, batch_size=16), binding=bound)
    assert bound.step == len(seen) == 20
    assert [n for n, moved in enumerate(seen, start=1) if moved] == [3, 6, 9, 12, 15]


def test_random_growth_depends_on_the_seed_and_gradients_do_not():
    found = {}
    for growth in ("gradient", "random"):
        for seed in (1, 2):
            _, bound = linear(growth=growth)
            bound.seed = seed
            bound.rewire(0.5, [noise(8, 6)])
            found[growth, seed] = bound.masks["weight"]
    assert torch.equal(found["gradient", 1], found["gradient", 2])
    assert not torch.equal(found["random", 1], found["random", 2])


def test_the_fraction_falls_by_a_cosine_and_ends():
    rewiring = Rewiring(fraction=0.4, decay="cosine", interval=10, until=0.8)
    found = {step: rewiring.dropped(step, 100) for step in range(1, 101)}
    moving = [step for step, fraction in found.items() if fraction > 1e-12]
    assert moving == list(range(10, 80, 10))
    assert found[40] == pytest.approx(0.2)
    assert [found[step] for step in moving] == sorted((found[s] for s in moving), reverse=True)
    constant = replace(rewiring, decay="constant")
    assert [constant.dropped(step, 100) for step in (10, 80, 85, 90)] == [0.4, 0.4, 0, 0]
    assert replace(constant, until=1.0).dropped(100, 100) == 0, "what is grown would not be trained"


def test_a_restart_rewires_before_the_step_with_gradients_of_the_weights_that_were_kept():
    module, bound = linear(interval=100)
    bound.restarts, bound.escape = (1.0,), 0.8
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    weight, mask = module.weight.detach().clone(), bound.masks["weight"].clone()
    for epoch in (0.5, 1.0, 1.5):
        bound.before_pass(epoch, optimizer)
        module.weight.grad = gradient = noise(8, 6, seed=int(10 * epoch))
        expected, _ = plain_update(
            weight.numpy().flatten(), mask.numpy().flatten(), gradient.numpy().flatten(), 0.8
        )
        bound.before_step()
        moved = not torch.equal(bound.masks["weight"], mask)
        assert moved == (epoch == 1.0), "once"
        if moved:
            assert np.array_equal(bound.masks["weight"].numpy().flatten(), expected)
        mask, weight = bound.masks["weight"].clone(), module.weight.detach().clone()
        assert not module.weight.grad[~mask].any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layer_densities(SHAPES, 1.0), "sparsity must be in"),
        (lambda: layer_densities(SHAPES, 0.5, distribution="even"), "distribution must be"),
        (lambda: Rewiring("gradients"), "growth must be one of"),
        (lambda: Rewiring(decay="linear"), "decay must be one of"),
        (lambda: Rewiring(fraction=1.5), "fraction must be in"),
        (lambda: Rewiring(until=-0.5), "until must be in"),
        (lambda: Rewiring(interval=0), "interval must be at least 1"),
        (lambda: linear(interval=101), "longer than the training, 100 steps"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
