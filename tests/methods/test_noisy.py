"""How noisy children are judged: whole, or in a race."""

import json

import cloudpickle
import pytest
import torch
from networks import built, pictures
from networks import small_classifier as network
from torch import nn

from evo_subnets import Search, metrics, select
from evo_subnets.data import Augmentation
from evo_subnets.methods import Noisy
from evo_subnets.methods.races import halves_by_doubt, right
from evo_subnets.prediction import Validation, predict
from evo_subnets.racing import Rules
from evo_subnets.schedules import Constant
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune


def parent():
    module = network(0)
    tune(module, Task(pictures()), tuning=Tuning(1, Constant(0.001), "adam", batch_size=16))
    return module


def test_accuracy_is_that_of_all_images_whatever_the_batch():
    module, images = parent(), pictures(250)
    outputs = predict(module, images, batch_size=len(images))
    expected = metrics.accuracy(outputs.log_softmax(dim=1), images.labels)
    assert Validation(images)(module) == expected
    assert 0 < expected < 1
    scores = right(images)(module, torch.arange(250))
    assert scores.mean().item() == pytest.approx(expected)
    some = torch.tensor([3, 200, 7])
    assert torch.equal(right(images)(module, some), scores[some])


@pytest.mark.parametrize("layers", ["convolutions", "linear"])
def test_images_are_normalised_once_for_all_children(layers, monkeypatch):
    images = pictures(250)
    flat = images.pixels[0].numel()
    child = network(1) if layers == "convolutions" else built(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(flat, 10))
    )  # fmt: skip
    expected = (predict(child, images).argmax(1) == images.labels).double().mean().item()
    judge, normalised = Validation(images), []
    whole = Augmentation.normalize
    monkeypatch.setattr(
        Augmentation, "normalize", lambda *given: normalised.append(1) or whole(*given)
    )
    fresh = len(cloudpickle.dumps(judge))
    assert [judge(child), judge(child)] == pytest.approx([expected] * 2)
    once = len(normalised)
    assert judge(network(2)) >= 0
    assert len(normalised) == (once if layers == "convolutions" else once + 3), "its own layout"
    assert len(cloudpickle.dumps(judge)) == fresh, "what is kept does not travel"
    monkeypatch.setitem(
        Validation.__call__.__globals__, "KEPT_BYTES", 4 * images.pixels.numel() - 1
    )
    many, seen = Validation(images), len(normalised)
    assert [many(child), many(child)] == pytest.approx([expected] * 2)
    assert len(normalised) == seen + 2 * once


def test_halves_put_together_what_the_parent_doubts():
    module, images = parent(), pictures(101)
    halves = halves_by_doubt(module, images)
    assert halves.bincount().tolist() == [50, 51]
    first, second = predict(module, images).softmax(1).topk(2).values.unbind(1)
    gap = first - second
    assert gap[halves == 0].max() <= gap[halves == 1].min()


def test_a_race_to_the_end_chooses_as_full_evaluation():
    module, images = parent(), pictures(200)
    task, search = Task(pictures(), images), Search(8, 3, 0.3)
    full = Noisy(search)(module, task)
    slow = Noisy(search, racing=True, rules=Rules(margin=0, block=400))(module, task)
    assert slow.seen == (200,) * 8
    assert [c.fitness for c in slow.children] == pytest.approx([c.fitness for c in full.children])
    assert [c.mutation for c in slow.elites] == [c.mutation for c in select(full.children, 3)]
    assert [c.mutation for c in slow.elites] == list(slow.ensemble.recipe.mutations)
    fast = Noisy(search, racing=True, rules=Rules(block=20))(module, task)
    assert sum(fast.seen) < sum(slow.seen)
    assert len(fast.ensemble.members) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"racing": True, "reestimate_norms": True}, "leave out racing or reestimate_norms"),
        ({"rules": Rules(block=20)}, "rules has no effect with no race"),
        ({"search": Search(sigma=0.1), "target_kl": 0.05}, "target_kl has no effect with a sigma"),
        ({"target_kl": 0.0}, "target_kl must be positive"),
    ],
)
def test_options_that_have_no_effect_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Noisy(**options)


def test_a_race_is_of_samples_in_memory_that_are_right_or_wrong():
    images = pictures()
    stream = [(torch.zeros(2, 1, 8, 8), torch.zeros(2).long())]
    raced = Noisy(Search(4, 2, 0.1), racing=True)
    with pytest.raises(ValueError, match="samples in memory"):
        raced(network(0), Task(images, stream))
    with pytest.raises(ValueError, match="leave out racing or metric"):
        raced(network(0), Task(images, images, metric=lambda outputs, targets: 0.0))


def test_the_script_races(server, tmp_path):
    command = ["noisy", "--dataset", "digits", "--model", "mlp-32", "--limit", "150"]
    command += ["--parent-tuning.epochs", "1", "--population-size", "8", "--ensemble-size", "2"]
    result = server.run("image_ensemble", *command, "--racing", "--out", tmp_path)
    assert result.status == 0, result.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    assert len(report["seen"]) == len(report["children"]) == 8
    assert len(report["elites"]) == 2
