"""Children of parents that have moved, from the root and a recipe alone."""

import pickle
from dataclasses import replace

import pytest
import torch
from networks import all_same_bits, mlp

from evo_subnets import Lineage, evaluate, quads
from evo_subnets.descendants import Descendant, Descendants, Moved, lost_descendant
from evo_subnets.lineage import Adam, Momentum, Plain, Step
from evo_subnets.subnetworks import parameters


def steps(count, *, first=0):
    found = (quads(8, 0.1, density=0.5, seed=seed)[::2] for seed in range(first, first + count))
    return tuple(Step(tuple(each), 0.5) for each in found)


def weight_sum(module):
    return sum(parameter.double().sum().item() for parameter in module.parameters())


class OfGenerations:
    """Another fitness in each generation."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, module):
        return self.factor * weight_sum(module)

    def in_generation(self, number):
        return OfGenerations(10.0 + number)


@pytest.mark.parametrize("rule", [Plain(), Momentum(), Adam()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_step_by_step_is_the_replay(rule, dtype):
    root = mlp().to(dtype)
    before = {name: weight.clone() for name, weight in parameters(root).items()}
    moved, lineage = Moved(root, rule=rule), Lineage(rule=rule)
    for step in steps(4):
        moved.take(step)
        lineage = lineage.then(step)
        assert moved.lineage == lineage
        assert all_same_bits(parameters(moved.module), lineage.replay(parameters(root)))
    assert all_same_bits(parameters(root), before)


def test_a_descendant_is_the_child_of_the_parent_that_its_lineage_leads_to():
    root, other = mlp(), Lineage(steps(3, first=7))
    own = [Lineage(steps(count)) for count in (0, 1, 3, 2, 0)]
    lineages = [*own[:3], other, *own[3:]]
    descendants = Descendants(root, weight_sum)
    for lineage in lineages:  # forwards, elsewhere, backwards
        moved = Moved(root)
        for step in lineage.steps:
            moved.take(step)
        mutations = quads(4, 0.1, density=0.5, seed=9)
        expected = evaluate(moved.module, mutations, fitness=weight_sum)
        travelled = pickle.loads(pickle.dumps(descendants))  # begins at the root
        for each in (descendants, travelled):
            assert [each(Descendant(lineage, mutation)) for mutation in mutations] == expected
        with descendants.knowing(lineage, moved.module):
            assert [descendants(Descendant(lineage, one)) for one in mutations] == expected


def test_its_generation_judges_it_where_there_is_one():
    mutation = quads(4, 0.1, density=0.5, seed=0)[0]
    descendants = Descendants(mlp(), OfGenerations())
    plain, third, again = (
        descendants(Descendant(Lineage(), mutation, number)).fitness for number in (None, 3, None)
    )
    assert third == pytest.approx(13 * plain)
    assert again == plain


def test_what_travels_is_the_root_and_not_where_it_was_led():
    descendants = Descendants(mlp(), weight_sum)
    size = len(pickle.dumps(descendants))
    descendants(Descendant(Lineage(steps(2)), quads(4, 0.1, density=0.5, seed=0)[0]))
    assert len(pickle.dumps(descendants)) == size
    lost = lost_descendant(Descendant(Lineage(), quads(4, 0.1, density=0.5, seed=0)[0]))
    assert lost.failed
    assert lost.reason == "its worker died"


def test_a_step_is_stretched_to_the_last_digits_and_coarse_weights_are_not():
    (step,) = steps(1)
    moved, other = Moved(mlp()), mlp()
    moved.write(replace(step, length=0.3), other)
    for length in (0.1, 2.0, 0.5):
        away = {0.1: 0.3, 2.0: 0.1, 0.5: 2.0}[length]
        assert moved.stretch(other, length / away)
        expected = mlp()
        moved.write(replace(step, length=length), expected)
        torch.testing.assert_close(other.state_dict(), expected.state_dict(), rtol=1e-6, atol=1e-7)
    coarse = mlp().bfloat16()
    assert not Moved(coarse).stretch(coarse, 2.0)
