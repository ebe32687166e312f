"""The contract of every method, and what makes each of them itself."""

import dataclasses

import pytest
import torch
from networks import PLAIN, built, pictures
from networks import small_classifier as network
from torch import nn

from evo_subnets import Ensemble, metrics
from evo_subnets.data import Augmentation, Images, load
from evo_subnets.data.downloads import import_torchvision
from evo_subnets.files import fingerprint
from evo_subnets.methods import (
    Annealing,
    Pruning,
    bagging,
    independent,
    noisy,
    sparse,
    stochastic,
)
from evo_subnets.models import build
from evo_subnets.tuning import Constant, OneCycle, Tuning, predict, tune

TUNING = Tuning(2, OneCycle(), batch_size=16)


def new(seed):
    return network(seed)


def parent_of(seed=0):
    module = network(seed)
    tune(module, pictures(), PLAIN, Tuning(4, OneCycle(), batch_size=16))
    return module


METHODS = {
    "independent": lambda parent, seed, members: independent(
        new, pictures(), PLAIN, TUNING, members, seed
    ),
    "bagging": lambda parent, seed, members: bagging(
        new, pictures(), PLAIN, TUNING, members, 0.9, seed
    ),
    "random": lambda parent, seed, members: sparse(
        parent, pictures(), PLAIN, TUNING, Pruning("random", 0.6), members, seed
    ),
    "neurons": lambda parent, seed, members: sparse(
        parent, pictures(), PLAIN, TUNING, Pruning("random", 0.3, "neurons"), members, seed
    ),
    "temperature": lambda parent, seed, members: stochastic(
        parent, pictures(), PLAIN, TUNING, Annealing(epochs=1), Pruning("random"), members, seed
    ),
    "random annealing": lambda parent, seed, members: stochastic(
        parent, pictures(), PLAIN, TUNING, Annealing("random", 2, "linear"), Pruning("random"),
        members, seed,
    ),
    "gaussian": lambda parent, seed, members: stochastic(
        parent, pictures(), PLAIN, TUNING, Annealing("gaussian", 1), Pruning("random"), members,
        seed,
    ),
    "iterative": lambda parent, seed, members: stochastic(
        parent, pictures(), PLAIN, TUNING, Annealing("iterative", 2), Pruning("random", 0.8),
        members, seed,
    ),
    "noisy": lambda parent, seed, members: noisy(
        parent, pictures(seed=5), PLAIN, 4, members, seed=seed
    ),
    "noisy, own norms": lambda parent, seed, members: noisy(
        parent, pictures(seed=5), PLAIN, 4, members, sigma=0.05, seed=seed, norm_images=pictures()
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_methods_keep_the_contract(name):
    parent = parent_of()
    before = fingerprint(parent.state_dict())
    first = METHODS[name](parent, 1, 2).ensemble
    again = METHODS[name](parent, 1, 2).ensemble
    other = METHODS[name](parent, 2, 2).ensemble
    assert fingerprint(first.state_dict()) == fingerprint(again.state_dict()), "a seed, an ensemble"
    assert fingerprint(first.state_dict()) != fingerprint(other.state_dict())
    assert fingerprint(parent.state_dict()) == before, "the parent is left alone"
    assert not any(module.training for module in first.modules())
    inputs = PLAIN.normalize(pictures(8, seed=3).pixels)
    assert first.member_logits(inputs).shape == (2, 8, 4)
    own = {id(tensor) for tensor in parent.state_dict(keep_vars=True).values()}
    members = [set(map(id, m.state_dict(keep_vars=True).values())) for m in first.members]
    assert not members[0] & (members[1] | own), "children own their weights and buffers"
    alone = METHODS[name](parent, 1, 1).ensemble
    torch.testing.assert_close(alone(inputs), alone.members[0](inputs).log_softmax(dim=1))


@pytest.mark.parametrize("name", METHODS)
def test_ensembles_come_back_from_their_files(name, tmp_path):
    parent = parent_of()
    ensemble = METHODS[name](parent, 1, 2).ensemble
    ensemble.save(tmp_path / "ensemble.safetensors")
    loaded = Ensemble.load(tmp_path / "ensemble.safetensors", parent)
    inputs = PLAIN.normalize(pictures(8, seed=3).pixels)
    assert torch.equal(loaded(inputs), ensemble(inputs))


def test_members_of_another_architecture_are_refused(tmp_path):
    METHODS["random"](parent_of(), 1, 1).ensemble.save(tmp_path / "ensemble.safetensors")
    with pytest.raises(ValueError, match="another architecture"):
        Ensemble.load(tmp_path / "ensemble.safetensors", build("mlp", (1, 8, 8), 4, seed=0))


@pytest.mark.parametrize("name", ["random", "neurons", "temperature", "iterative"])
def test_pruned_children_are_as_sparse_as_they_say(name):
    trained = METHODS[name](parent_of(), 1, 2)
    nonzero = sum(int((parameter != 0).sum()) for parameter in trained.ensemble.parameters())
    assert trained.parameters == pytest.approx(nonzero, rel=0.02), "a few kept weights may be zero"
    assert trained.epochs == 4
    assert 0.1 < trained.dense_epochs / trained.epochs < 0.8


def test_halves_are_opposite_after_tuning_as_well():
    trained = sparse(parent_of(), pictures(), PLAIN, TUNING, Pruning("halves"), 4, seed=1)
    weights = [member[6].weight for member in trained.ensemble.members]
    for first, second in (weights[:2], weights[2:]):
        assert not (first.bool() & second.bool()).any()
    assert (weights[0].bool() & weights[2].bool()).any(), "pairs are drawn anew"


def test_annealing_must_end_with_tuning():
    with pytest.raises(ValueError, match="annealing must end"):
        stochastic(network(), pictures(), PLAIN, TUNING, Annealing(epochs=3))
    with pytest.raises(ValueError, match="whole epochs"):
        Annealing("iterative", 1.5)


def test_a_random_start_needs_halves():
    with pytest.raises(ValueError, match="not parts"):
        stochastic(
            network(), pictures(), PLAIN, TUNING, Annealing("random", 1),
            Pruning("parts", 2 / 3), 3,
        )  # fmt: skip


def test_norms_are_taken_anew_when_annealing_ends_with_tuning():
    """They saw only the stochastic network: the means must be those of the last weights."""
    child = stochastic(
        parent_of(), pictures(), PLAIN, TUNING, Annealing(epochs=2), Pruning("random", 0.9), 1
    ).ensemble.members[0]
    inputs = PLAIN.normalize(pictures().pixels)
    torch.testing.assert_close(
        child[1].running_mean, child[0](inputs).mean((0, 2, 3)), atol=1e-4, rtol=1e-3
    )


def test_noisy_children_are_chosen_by_validation_accuracy():
    parent, validation = parent_of(), pictures(seed=5)
    found = noisy(parent, validation, PLAIN, 8, 3, sigma=0.3, seed=1)
    best = sorted((child.fitness for child in found.children), reverse=True)[:3]
    assert [child.fitness for child in found.elites] == best
    outputs = predict(found.ensemble.members[0], validation, PLAIN)
    assert metrics.accuracy(outputs.log_softmax(1), validation.labels) == pytest.approx(best[0])
    assert found.region is None
    searched = noisy(parent, validation, PLAIN, 4, 1, seed=1)
    assert searched.region.divergence == pytest.approx(0.02, rel=0.1)


def test_torchvision_networks_are_parents():
    models = import_torchvision().models
    network = built(lambda: models.mobilenet_v3_small(num_classes=4))
    grey = pictures(16)
    images = Images(grey.pixels.repeat(1, 3, 4, 4), grey.labels)
    augmentation = Augmentation((0.5,) * 3, (0.25,) * 3)
    trained = sparse(network, images, augmentation, Tuning(1), Pruning("halves"), 2)
    assert trained.dense_epochs == pytest.approx(1.0, rel=0.1)
    first = dict(trained.ensemble.members[0].named_parameters())
    assert (first["classifier.0.weight"] == 0).double().mean().item() == pytest.approx(
        0.5, abs=0.01
    )
    assert (first["classifier.3.weight"] != 0).all(), "the classifier is left whole"
    found = noisy(network, images, augmentation, 4, 2, sigma=0.001)
    assert found.ensemble(augmentation.normalize(images.pixels)).shape == (16, 4)


def test_any_module_is_a_parent():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(3)

        def forward(self, x):
            return self.inner(x) * 2 if x.shape[0] else x

    trained = sparse(Own(), pictures(), PLAIN, TUNING, Pruning("random"), 1)
    assert trained.ensemble.members[0].inner[6].weight.eq(0).any()


def test_sparse_halves_learn_digits():
    data = load("digits", limit=400)
    augmentation = dataclasses.replace(data.augmentation, padding=0)
    adam = Tuning(3, Constant(0.001), "adam", batch_size=16)
    module = build("mlp-64", (1, 32, 32), 10, seed=0)
    tune(module, data.train, augmentation, adam)
    own = predict(module, data.test, augmentation).log_softmax(1)
    trained = sparse(module, data.train, augmentation, adam, Pruning("halves"), 4)
    logits = torch.stack([predict(m, data.test, augmentation) for m in trained.ensemble.members])
    report = metrics.report(logits, trained.ensemble.combined(logits), data.test.labels)
    assert report.accuracy > max(0.85, metrics.accuracy(own, data.test.labels) - 0.02)
    assert report.accuracy >= report.member_accuracy
