"""What makes each of the methods itself."""

import dataclasses

import pytest
import torch
from networks import PLAIN, built, pictures
from networks import small_classifier as network
from torch import nn

from evo_subnets import Ensemble, Search, metrics
from evo_subnets.data import Augmentation, Images, load
from evo_subnets.data.downloads import import_torchvision
from evo_subnets.methods import Annealing, Noisy, Pruning, Sparse, Stochastic
from evo_subnets.models import build
from evo_subnets.prediction import predict
from evo_subnets.schedules import Constant, OneCycle
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune

TUNING = Tuning(2, OneCycle(), batch_size=16)


TASK = Task(pictures())


def parent_of(seed=0):
    module = network(seed)
    tune(module, TASK, tuning=Tuning(4, OneCycle(), batch_size=16))
    return module


RANDOM = Sparse(2, Pruning("random", 0.6), TUNING)
PRUNED = {
    "random": RANDOM,
    "neurons": Sparse(2, Pruning("random", 0.3, "neurons"), TUNING),
    "temperature": Stochastic(2, Annealing(annealing_epochs=1), Pruning("random"), TUNING),
    "iterative": Stochastic(2, Annealing("iterative", 2), Pruning("random", 0.8), TUNING),
}


def test_members_of_another_architecture_are_refused(tmp_path):
    RANDOM(parent_of(), TASK).ensemble.save(tmp_path / "ensemble.safetensors")
    with pytest.raises(ValueError, match="another architecture"):
        Ensemble.load(tmp_path / "ensemble.safetensors", build("mlp", (1, 8, 8), classes=4, seed=0))


@pytest.mark.parametrize("name", PRUNED)
def test_pruned_children_are_as_sparse_as_they_say(name):
    trained = PRUNED[name](parent_of(), TASK)
    nonzero = sum(int((parameter != 0).sum()) for parameter in trained.ensemble.parameters())
    assert trained.parameters == pytest.approx(nonzero, rel=0.02), "a few kept weights may be zero"
    assert trained.epochs == 4
    assert 0.1 < trained.training / trained.epochs < 0.8


def test_halves_are_opposite_after_tuning_as_well():
    trained = Sparse(4, Pruning("halves"), TUNING, seed=1)(parent_of(), TASK)
    weights = [member[6].weight for member in trained.ensemble.members]
    for first, second in (weights[:2], weights[2:]):
        assert not (first.bool() & second.bool()).any()
    assert (weights[0].bool() & weights[2].bool()).any(), "pairs are drawn anew"


def test_annealing_must_end_with_tuning():
    with pytest.raises(ValueError, match="annealing must end"):
        Stochastic(2, Annealing(annealing_epochs=3), tuning=TUNING)
    with pytest.raises(ValueError, match="whole epochs"):
        Annealing("iterative", 1.5)


def test_a_random_start_needs_halves():
    with pytest.raises(ValueError, match="not parts"):
        Stochastic(3, Annealing("random", 1), Pruning("parts", 2 / 3), TUNING)


def test_norms_are_taken_anew_when_annealing_ends_with_tuning():
    """They saw only the stochastic network: the means must be those of the last weights."""
    method = Stochastic(1, Annealing(annealing_epochs=2), Pruning("random", 0.9), TUNING)
    child = method(parent_of(), TASK).ensemble.members[0]
    inputs = PLAIN.normalize(pictures().pixels)
    torch.testing.assert_close(
        child[1].running_mean, child[0](inputs).mean((0, 2, 3)), atol=1e-4, rtol=1e-3
    )


def test_noisy_children_are_chosen_by_validation_accuracy():
    parent, validation = parent_of(), pictures(seed=5)
    task = Task(pictures(), validation)
    found = Noisy(Search(8, 3, 0.3, seed=1))(parent, task)
    best = sorted((child.fitness for child in found.children), reverse=True)
    assert found.elites[0].fitness == best[0]
    assert not {child.mutation.mirrored() for child in found.elites} & {
        child.mutation for child in found.elites
    }
    outputs = predict(found.ensemble.members[0], validation)
    assert metrics.accuracy(outputs.log_softmax(1), validation.labels) == pytest.approx(best[0])
    assert found.divergence is None
    searched = Noisy(Search(4, 1, seed=1))(parent, task)
    assert searched.divergence == pytest.approx(0.02, rel=0.1)
    assert searched.search.sigma > 0
    with pytest.raises(
        ValueError, match=r"selects by validation data: give Task\(..., validation=\)"
    ):
        Noisy(Search(4, 1))(parent, Task(pictures()))


def test_torchvision_networks_are_parents():
    models = import_torchvision().models
    network = built(lambda: models.mobilenet_v3_small(num_classes=4))
    grey = pictures(16)
    augmentation = Augmentation((0.5,) * 3, (0.25,) * 3)
    images = Images(grey.pixels.repeat(1, 3, 4, 4), grey.labels, augmentation)
    trained = Sparse(2, tuning=Tuning(1))(network, Task(images))
    assert trained.training == pytest.approx(1.0, rel=0.1)
    first = dict(trained.ensemble.members[0].named_parameters())
    assert (first["classifier.0.weight"] == 0).double().mean().item() == pytest.approx(
        0.5, abs=0.01
    )
    assert (first["classifier.3.weight"] != 0).all(), "the classifier is left whole"
    found = Noisy(Search(4, 2, 0.001))(network, Task(images, images))
    assert found.ensemble(augmentation.normalize(images.pixels)).shape == (16, 4)


def test_any_module_is_a_parent():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(3)

        def forward(self, x):
            return self.inner(x) * 2 if x.shape[0] else x

    trained = Sparse(1, Pruning("random"), TUNING)(Own(), TASK)
    assert trained.ensemble.members[0].inner[6].weight.eq(0).any()


def test_sparse_halves_learn_digits():
    data = load("digits", limit=400)
    data = data.augmented(dataclasses.replace(data.augmentation, padding=0))
    adam = Tuning(3, Constant(0.001), "adam", batch_size=16)
    module = build("mlp-64", (1, 32, 32), classes=10, seed=0)
    tune(module, Task(data.train), tuning=adam)
    own = predict(module, data.test).log_softmax(1)
    trained = Sparse(4, tuning=adam)(module, Task(data.train))
    logits = torch.stack([predict(m, data.test) for m in trained.ensemble.members])
    report = metrics.report(logits, trained.ensemble.combined(logits), labels=data.test.labels)
    assert report.accuracy > max(0.85, metrics.accuracy(own, data.test.labels) - 0.02)
    assert report.accuracy >= report.member_accuracy
