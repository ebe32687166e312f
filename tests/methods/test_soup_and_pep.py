"""Means of weights that are chosen on validation, and noise that its likelihood chooses."""

import math

import pytest
import torch
from networks import PLAIN, pictures
from networks import small_classifier as network

from evo_subnets.methods import PEP, Soup
from evo_subnets.methods.pep import golden_section
from evo_subnets.methods.soup import greedy, mean_of
from evo_subnets.prediction import Validation, predict
from evo_subnets.schedules import Constant
from evo_subnets.streams import derive_seed
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune

TASK = Task(pictures(64), pictures(60, seed=5))
TUNING = Tuning(2, Constant(0.003), "adam", batch_size=16)


def parent():
    module = network(0)
    tune(module, TASK, tuning=Tuning(4, Constant(0.003), "adam", batch_size=16))
    return module


def test_the_uniform_soup_is_the_mean_of_networks_tuned_apart():
    start = parent()
    (soup,) = Soup(3, "uniform", TUNING, seed=2)(start, TASK).ensemble.members
    alone = [Soup(1, "uniform", TUNING, seed=2)(start, TASK).ensemble.members[0]]
    assert any(
        not torch.equal(one, other)
        for one, other in zip(soup.parameters(), alone[0].parameters(), strict=True)
    )
    tuned = []
    for index in range(3):
        module = parent()
        tune(module, TASK, tuning=TUNING, seed=derive_seed(2, "tuning", index))
        tuned.append(dict(module.named_parameters()))
    for name, weight in soup.named_parameters():
        mean = torch.stack([each[name] for each in tuned]).mean(0)
        torch.testing.assert_close(weight, mean)


def test_the_greedy_soup_begins_with_the_best_and_never_gets_worse():
    networks = [network(seed) for seed in range(3)]
    good = parent()
    networks.insert(1, good)
    fitness = Validation(TASK.validation)
    chosen = greedy(networks, TASK)
    assert chosen[0] == 1
    best = fitness(good)
    for count in range(1, len(chosen) + 1):
        value = fitness(mean_of([networks[index] for index in chosen[:count]], TASK))
        assert value >= best
        best = value
    for index in set(range(4)) - set(chosen):  # each that was left out made it worse when tried
        before = [each for each in chosen if fitness(networks[each]) >= fitness(networks[index])]
        assert fitness(mean_of([networks[each] for each in (*before, index)], TASK)) < best


def test_a_network_without_a_metric_is_in_no_soup():
    networks = [network(seed) for seed in range(3)]
    values = iter([math.nan, 0.5, 0.7, 0.6])
    task = Task(pictures(), pictures(), metric=lambda outputs, targets: next(values))
    assert greedy(networks, task) == [2], "the mean with the second is worse, the first is left out"
    nan = Task(pictures(), pictures(), metric=lambda outputs, targets: math.nan)
    with pytest.raises(ValueError, match="the metric is NaN for all of 3 networks"):
        greedy(networks, nan)


def test_the_golden_section_finds_a_maximum_between_points_of_the_grid():
    found = golden_section(lambda x: -(math.log(x / 0.05) ** 2), [0.003, 0.01, 0.03, 0.1, 0.3])
    assert found == pytest.approx(0.05, rel=0.05)
    edge = golden_section(lambda x: -x, [0.003, 0.01, 0.03])
    assert edge == pytest.approx(0.003, rel=0.1)
    nan = golden_section(lambda x: math.nan if x > 0.02 else x, [0.003, 0.01, 0.03])
    assert 0.01 <= nan <= 0.02


def test_pep_takes_the_sigma_of_the_highest_validation_likelihood():
    start = parent()
    found = PEP(4, seed=1)(start, TASK)
    images, targets = PLAIN.normalize(TASK.validation.pixels), TASK.validation.labels

    def nll(method):
        log_probabilities = predict(method(start, TASK).ensemble, TASK.validation)
        return torch.nn.functional.nll_loss(log_probabilities.log_softmax(1), targets).item()

    sigma = found.search.sigma
    at = nll(PEP(4, sigma, seed=1))
    assert at <= min(nll(PEP(4, sigma * factor, seed=1)) for factor in (0.3, 0.7, 1.5, 3)) + 1e-3
    mutations = found.ensemble.recipe.mutations
    assert list(mutations) == found.search.mutations()
    assert {mutation.density for mutation in mutations} == {1.0}
    assert found.ensemble(images).shape == (60, 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Soup(0), "ingredients must be at least 1"),
        (lambda: Soup(recipe="best"), "recipe must be"),
        (lambda: PEP(0), "ensemble_size must be at least 1"),
        (lambda: PEP(sigma=-0.1), "sigma must be positive"),
        (lambda: Soup()(parent(), Task(pictures())), "this method selects by validation data"),
        (lambda: PEP()(parent(), Task(pictures())), "this method selects by validation data"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
