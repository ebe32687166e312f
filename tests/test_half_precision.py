"""Networks in float16 and bfloat16: what float32 gives to their precision, or a refusal."""

import pytest
import torch
from networks import built, mlp, noise, pictures, same_bits, small_classifier
from torch import nn

from evo_subnets import (
    Ensemble,
    Mutation,
    Search,
    Task,
    evolve,
    materialize,
    parameters,
    quads,
    search_trust_region,
)
from evo_subnets.evolution import evaluate
from evo_subnets.inputs import ask
from evo_subnets.methods import Noisy, Pruning, Sparse, Stochastic
from evo_subnets.methods.stochastic import Annealing
from evo_subnets.outputs import Binary, Classes, Values
from evo_subnets.prediction import predict, reestimate_norms
from evo_subnets.pruning import Pruned
from evo_subnets.schedules import Constant
from evo_subnets.structure.compaction import compacted
from evo_subnets.subnetworks import Subnetwork
from evo_subnets.tuning import Tuning, tune

HALVES = {torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""What a rounding may cost, of one."""
X, IMAGES = noise(20, 5), pictures(96)
QUADS = quads(4, 0.1, density=0.5, seed=0)

pytestmark = pytest.mark.parametrize("dtype", HALVES)


def test_children_are_the_float32_sum_rounded_once(dtype):
    parent = parameters(mlp().to(dtype))
    exact = {name: weight.float() for name, weight in parent.items()}
    child, wanted = (materialize(each, Mutation(1, 0.1, 0, 0.5)) for each in (parent, exact))
    changed = [name for name in parent if not same_bits(parent[name], child[name])]
    assert changed == ["0.weight", "2.weight"]
    assert all(same_bits(child[name], wanted[name].to(dtype)) for name in parent)


@pytest.mark.parametrize("outputs", [Classes(), Binary(), Values()])
def test_trust_regions_land_near_those_of_float32(dtype, outputs):
    found = search_trust_region(mlp().to(dtype), X.to(dtype), outputs=outputs)
    assert found.divergence == pytest.approx(0.02, rel=0.1)
    wanted = search_trust_region(mlp(), X, outputs=outputs)
    assert found.sigma == pytest.approx(wanted.sigma, rel=0.1)


@pytest.mark.parametrize("combine", ["mean", "vote", "logits"])
@pytest.mark.parametrize("resident", [True, False])
def test_ensembles_combine_as_float32_does(dtype, combine, resident):
    ensemble = Ensemble.from_mutations(
        mlp().to(dtype), QUADS, combine=combine, weights=[1, 2, 3, 4], resident=resident
    )
    members = ensemble.member_outputs(X.to(dtype))
    wanted = ensemble.outputs.combined(members.float(), ensemble.weights, how=combine)
    assert same_bits(ensemble(X.to(dtype)), wanted.to(dtype))
    torch.testing.assert_close(
        ensemble(X.to(dtype)).float().exp().sum(1), torch.ones(20), rtol=0, atol=HALVES[dtype]
    )


def test_values_are_averaged_and_spread_beyond_the_range_of_their_squares(dtype):
    members = [built(lambda: nn.Linear(5, 1)).to(dtype).requires_grad_(False) for _ in range(2)]
    for member, value in zip(members, (40000.0, 41000.0), strict=True):
        member.weight.zero_()
        member.bias.fill_(value)
    ensemble = Ensemble(members, outputs=Values())
    close = {"rel": HALVES[dtype]}
    assert ensemble(X.to(dtype))[0].item() == pytest.approx(40500, **close)
    assert ensemble.spread(X.to(dtype))[0].item() == pytest.approx(500, rel=0.05)


def test_a_file_keeps_the_precision(dtype, tmp_path):
    ensemble = Ensemble.from_mutations(mlp().to(dtype), QUADS)
    ensemble.save(tmp_path / "ensemble")
    loaded = Ensemble.load(tmp_path / "ensemble", mlp().to(dtype))
    assert same_bits(ensemble(X.to(dtype)), loaded(X.to(dtype)))


def test_fitness_and_generations(dtype):
    def fitness(child):
        return -child(X.to(dtype)).float().square().sum().item()

    children = evaluate(mlp().to(dtype), QUADS, fitness=fitness)
    assert not any(child.failed for child in children)
    search = Search(8, 2, sigma=0.1)
    found = evolve(mlp().to(dtype), fitness, search=search, generations=2, inputs=X.to(dtype))
    assert all(weight.dtype == dtype for weight in parameters(found.evolved).values())


@pytest.mark.parametrize("make", [small_classifier, lambda: small_classifier(norm=False)])
def test_our_pictures_come_in_the_networks_precision(dtype, make):
    exact, network = make(), make().to(dtype)
    torch.testing.assert_close(
        predict(network, IMAGES), predict(exact, IMAGES), rtol=0, atol=10 * HALVES[dtype]
    )
    region = search_trust_region(network, IMAGES[:20].pixels.float() / 255)
    assert region.divergence == pytest.approx(0.02, rel=0.1)
    reestimate_norms(network, IMAGES)
    result = Noisy(Search(8, 2))(network, Task(IMAGES, IMAGES))
    assert predict(result.ensemble, IMAGES).isfinite().all()


def test_precisions_that_a_network_takes_are_left_alone(dtype):
    class Clock(nn.Module):
        """Differences of times in float64 do not bear rounding."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1).to(dtype)

        def forward(self, times):
            assert times.dtype == torch.float64
            return self.layer((times - 1e9).to(dtype))

    assert ask(built(Clock), torch.tensor([[1e9 + 1]], dtype=torch.float64)).isfinite().all()


def test_what_is_wrong_in_every_precision_is_said(dtype):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        ask(mlp().to(dtype), noise(20, 7).to(dtype))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_float16_is_not_trained(dtype, optimizer):
    network, tuning = small_classifier().to(dtype), Tuning(1, Constant(0.01), optimizer)
    ways = (
        lambda: tune(network, Task(IMAGES), tuning=tuning),
        lambda: Sparse(2, tuning=tuning)(network, Task(IMAGES, IMAGES)),
        lambda: Stochastic(2, annealing=Annealing(start="one-shot"), tuning=tuning)(
            network, Task(IMAGES, IMAGES)
        ),
    )
    for way in ways:
        if dtype == torch.float16:
            with pytest.raises(ValueError, match=r"0\.weight is float16, in which small gradients"):
                way()
        else:
            way()


def test_frozen_weights_are_of_any_precision(dtype):
    network = nn.Sequential(mlp().to(dtype).requires_grad_(False), built(lambda: nn.Linear(3, 3)))
    network.register_module("1", nn.Sequential(Widened(), network[1]))
    before = network[0][0].weight.clone()
    tune(network, Task([(X, torch.arange(20) % 3)]), tuning=Tuning(1, Constant(0.1)))
    assert same_bits(before, network[0][0].weight)


class Widened(nn.Module):
    def forward(self, x):
        return x.float()


def test_sparse_children_that_are_not_trained(dtype):
    child = small_classifier().to(dtype)
    masks = Pruning().masks(child, Subnetwork(1, 0, 0.5))
    Pruned(child, masks)
    pruned = {name: weight for name, weight in child.named_parameters() if name in masks}
    assert pruned
    assert all((weight[~masks[name]] == 0).all() for name, weight in pruned.items())
    small = compacted(child)
    torch.testing.assert_close(
        predict(small, IMAGES), predict(child, IMAGES), rtol=0, atol=10 * HALVES[dtype]
    )
