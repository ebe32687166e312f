"""Networks that are sparse from the start: what they keep, and when tickets are taken."""

import pytest
import torch
from networks import pictures
from networks import small_classifier as network

from evo_subnets.methods import DST, EDST, StaticSparse
from evo_subnets.methods.edst import Phases
from evo_subnets.rewiring import Rewiring, layer_densities
from evo_subnets.schedules import Constant
from evo_subnets.subnetworks import included, parameters
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning

TASK = Task(pictures(64))
TUNING = Tuning(4, Constant(0.02), batch_size=16)
MOVING = Rewiring(interval=3)


def masks_of(member):
    params = parameters(member)
    return {name: params[name] != 0 for name in included(params)}


def counts(member):
    return {name: int(mask.sum()) for name, mask in masks_of(member).items()}


def wanted(sparsity):
    params = parameters(network(0))
    shapes = {name: tuple(params[name].shape) for name in included(params)}
    densities = layer_densities(shapes, sparsity)
    return {name: round(densities[name] * params[name].numel()) for name in shapes}


@pytest.mark.parametrize(
    "method",
    [
        StaticSparse(2, 0.7, tuning=TUNING),
        DST(2, 0.7, rewiring=MOVING, tuning=TUNING),
        EDST(2, 0.7, rewiring=MOVING, tuning=Tuning(4, batch_size=16)),
    ],
    ids=["static", "dst", "edst"],
)
def test_members_keep_exactly_what_their_layers_were_given(method):
    result = method(network, TASK)
    for member in result.ensemble.members:
        found = counts(member)
        for name, count in wanted(0.7).items():  # a weight that was just grown may be zero still
            assert count - 8 <= found[name] <= count


def test_connections_move_where_training_is_dynamic_and_stay_where_it_is_not():
    static = StaticSparse(1, 0.7, tuning=TUNING)(network, TASK).ensemble.members[0]
    still = DST(1, 0.7, rewiring=Rewiring(fraction=0.0, interval=3), tuning=TUNING)
    moving = DST(1, 0.7, rewiring=MOVING, tuning=TUNING)
    same = masks_of(still(network, TASK).ensemble.members[0])
    other = masks_of(moving(network, TASK).ensemble.members[0])
    before = masks_of(static)
    assert all(torch.equal(before[name], same[name]) for name in before)
    assert any(not torch.equal(before[name], other[name]) for name in before)


def test_phases_are_those_of_algorithm_1():
    """150 epochs of exploration and three refinements of 100 (Liu et al. 2022, appendix C)."""
    phases = Phases(1 / 3, 3, (0.1, 0.01, 0.001))
    assert phases.ends(450) == pytest.approx([250, 350, 450])
    rates = {epoch: phases(epoch / 450) for epoch in (0, 149, 151, 199, 201, 249, 251, 301, 449)}
    assert list(rates.values()) == [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.01, 0.001, 0.001]


def test_tickets_differ_and_most_connections_are_rewired_between_them():
    method = EDST(2, 0.7, rewiring=Rewiring(fraction=0.0), tuning=Tuning(4, batch_size=16))
    first, second = (masks_of(each) for each in method(network, TASK).ensemble.members)
    kept = sum(int((first[name] & second[name]).sum()) for name in first)
    assert kept < 0.8 * sum(int(mask.sum()) for mask in first.values())
    nothing = EDST(
        2, 0.7, escape=0.0, rewiring=Rewiring(fraction=0.0), tuning=Tuning(4, batch_size=16)
    )
    first, second = (masks_of(each) for each in nothing(network, TASK).ensemble.members)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_costs_are_those_of_sparse_training_and_of_dense_looks():
    static = StaticSparse(3, 0.7, tuning=TUNING)(network, TASK)
    moving = DST(3, 0.7, rewiring=MOVING, tuning=TUNING)(network, TASK)
    blind = DST(3, 0.7, rewiring=Rewiring("random", interval=3), tuning=TUNING)(network, TASK)
    once = EDST(3, 0.7, rewiring=Rewiring("random"), tuning=Tuning(6, batch_size=16))(network, TASK)
    density = static.inference / 3
    assert static.training == blind.training == pytest.approx(12 * density)
    assert once.training == pytest.approx(6 * density), "one training for three"
    updates = sum(MOVING.dropped(step, 16) > 0 for step in range(1, 17))
    expected = 12 * (density + updates / 16 * (1 - density) / 3)
    assert updates == 5
    assert moving.training == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DST(0), "ensemble_size must be at least 1"),
        (lambda: StaticSparse(sparsity=1.0), "sparsity must be in"),
        (lambda: EDST(12), "12 refinements of an epoch each do not fit"),
        (lambda: EDST(exploration=1.0), "exploration must be in"),
        (lambda: EDST(escape=2.0), "escape in"),
        (lambda: EDST(tuning=TUNING), "schedule has no effect with phases"),
        (lambda: DST(1, 0.9999, tuning=TUNING)(network, TASK), "leaves none: take a lower"),
        (lambda: DST(1, rewiring=Rewiring(interval=99), tuning=TUNING)(network, TASK),
         "longer than the training, 16 steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
