"""A device without float64 gives what the CPU gives (see `half_a_device.py`)."""

import copy

import gymnasium
import numpy as np
import pytest
import torch
from half_a_device import MPS, apple
from networks import all_same_bits, built, mlp, noise, pictures, small_classifier
from torch import nn

from evo_subnets import (
    Ensemble,
    Mutation,
    Search,
    Task,
    evolve,
    materialize,
    materialize_siblings,
    parameters,
    quads,
    search_trust_region,
)
from evo_subnets.annealing import gaussian_probabilities, random_probabilities
from evo_subnets.evolution import check_strength
from evo_subnets.lineage import Lineage, Step
from evo_subnets.methods import Pruning, Sparse
from evo_subnets.metrics import contest, diversity, predictive
from evo_subnets.outputs import Binary, Values
from evo_subnets.prediction import predict, reestimate_norms
from evo_subnets.pruning import density_of
from evo_subnets.racing import race
from evo_subnets.rl import episode_returns
from evo_subnets.rl.policy import EnsemblePolicy
from evo_subnets.schedules import Constant
from evo_subnets.subnetworks import Subnetwork
from evo_subnets.tuning import Tuning, tune

QUADS = quads(4, 0.1, density=0.5, seed=0)
HALF = Subnetwork(1, 0, 0.5)
TUNING = Tuning(1, Constant(0.1))
X, LABELS = noise(20, 5), torch.arange(20) % 3
LABELLED = Task([(X, LABELS)], validation=[(X, LABELS)])


@pytest.fixture
def device():
    with apple() as mps:
        yield mps


def test_the_device_has_no_float64(device):
    there = noise(3).to(device)
    assert there.device == MPS
    for wrong in (
        lambda: there.double(),
        lambda: there.to(torch.float64),
        lambda: torch.zeros(3, dtype=torch.float64, device=device),
        lambda: noise(3).double().to(device),
    ):
        with pytest.raises(TypeError, match="float64"):
            wrong()
    with pytest.raises(RuntimeError, match="same device"):
        there + noise(3)
    assert there.cpu().double().dtype == torch.float64


def test_draws_are_the_same_bits(device):
    here, there = (parameters(mlp().to(place)) for place in ("cpu", device))

    def alike(one, other):
        return all(each.device == MPS for each in other.values()) and all_same_bits(
            one, {name: each.cpu() for name, each in other.items()}
        )

    one = Mutation(3, 0.1, 0, 0.5)
    assert alike(materialize(here, one), materialize(there, one))
    siblings = zip(materialize_siblings(here, QUADS), materialize_siblings(there, QUADS))  # noqa: B905
    assert all(alike(*each) for each in siblings)
    steps = Lineage((Step(tuple(QUADS), 0.5),))
    assert alike(steps.replay(here), steps.replay(there))
    assert alike(HALF.mask(here), HALF.mask(there))
    for draw in (random_probabilities, gaussian_probabilities):
        assert alike(draw(HALF.mask(here), 3), draw(HALF.mask(there), 3))


@pytest.mark.parametrize("outputs", [None, Values(), Binary()])
def test_trust_regions_end_where_the_cpus_do(device, outputs):
    kind = {} if outputs is None else {"outputs": outputs}
    found = [search_trust_region(mlp().to(place), X, **kind).sigma for place in ("cpu", device)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize("combine", ["mean", "vote", "logits"])
def test_ensembles_need_no_move_of_their_own(device, combine, tmp_path):
    def said(place):
        parent = mlp().to(place)
        made = Ensemble.from_mutations(parent, QUADS, combine=combine, weights=[1, 2, 3, 4])
        built_in_turn = Ensemble.from_mutations(
            parent, QUADS, combine=combine, weights=[1, 2, 3, 4], resident=False
        )
        made.save(tmp_path / "ensemble")
        loaded = Ensemble.load(tmp_path / "ensemble", copy.deepcopy(parent))
        return [each(X.to(place)).cpu() for each in (made, built_in_turn, loaded)]

    for one, other in zip(said("cpu"), said(device), strict=True):
        torch.testing.assert_close(one, other)


def test_evolution_and_races(device):
    def fittest(place):
        def fitness(child):
            return -child(X.to(place)).square().sum().item()

        def score(child, samples):
            return child(X.to(place))[samples.to(place) % 20, 0]

        parent, search = mlp().to(place), Search(8, 2, sigma=0.1)
        check_strength(parent, search.mutations())
        chosen = [
            evolve(parent, fitness, search=search, generations=2, inputs=X).ensemble(X.to(place)),
            race(parent, search.mutations(), score=score, samples=100, k=2).chosen[0].mutation,
        ]
        return chosen[0].cpu(), chosen[1]

    (one, winner), (other, also) = fittest("cpu"), fittest(device)
    torch.testing.assert_close(one, other)
    assert winner == also


@pytest.mark.parametrize("outputs", [Values(), Binary()])
def test_float64_from_numpy_is_learned_from_as_float32(device, outputs):
    def tuned(place):
        module = built(lambda: nn.Linear(5, 1)).to(place)
        x = X.double()
        targets = x.sum(1, keepdim=True)
        targets = (targets > 0).double() if isinstance(outputs, Binary) else targets
        tune(module, Task([(x.float(), targets)], outputs=outputs), tuning=TUNING)
        return module.weight.detach().cpu()

    torch.testing.assert_close(tuned("cpu"), tuned(device))


def test_classifiers_of_pictures(device):
    def figures(place):
        images = pictures(40).to(place)
        parent = small_classifier().to(place)
        tune(parent, Task(images), tuning=TUNING)
        reestimate_norms(parent, images)
        ensemble = Sparse(2, tuning=TUNING)(parent, Task(images, images)).ensemble
        members = torch.stack(
            [predict(member, images).log_softmax(-1) for member in ensemble.members]
        )
        labels = images.labels
        pairs = [
            diversity.mean_pairwise(function(members))
            for function in (diversity.disagreement, diversity.pairwise_kl,
                             diversity.output_correlation)
        ]  # fmt: skip
        scores = predictive.scores(members[0], labels)
        return [
            *pairs,
            diversity.oracle_accuracy(members, labels),
            *(scores.accuracy, scores.nll, scores.ece),
            *predictive.difference_interval(*members, labels=labels, resamples=10, score="ece"),
            *contest.further(ensemble, images, parent=parent).values(),
            *density_of(Pruning().masks(parent, HALF)).values(),
        ]

    assert figures("cpu") == pytest.approx(figures(device), rel=1e-4, abs=1e-6)


def test_agents_act_on_float64_observations(device):
    seen = np.linspace(-1, 1, 20).reshape(5, 4)  # float64
    space = gymnasium.spaces.Box(-1, 1, (4,))

    def acted(place):
        policy = EnsemblePolicy(built(lambda: nn.Linear(4, 2)), space, device=place)
        if place == "cpu":
            return policy.predict(seen.astype(np.float32))[0].tolist()
        return policy.predict(seen)[0].tolist()

    assert acted("cpu") == acted(device)
    model = built(lambda: nn.Linear(4, 2))
    returns = [
        episode_returns("CartPole-v1", model, episodes=2, num_envs=2, device=place).tolist()
        for place in ("cpu", device)
    ]
    assert returns[0] == returns[1]
