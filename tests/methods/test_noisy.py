"""How noisy children are judged: whole, or in a race."""

import json

import cloudpickle
import pytest
import torch
from networks import PLAIN, built, pictures
from networks import small_classifier as network
from torch import nn

from evo_subnets import metrics, select
from evo_subnets.data import Augmentation
from evo_subnets.methods import noisy
from evo_subnets.methods.noisy import Accuracy, correct, halves_by_doubt
from evo_subnets.racing import Rules
from evo_subnets.tuning import Constant, Tuning, predict, tune


def parent():
    module = network(0)
    tune(module, pictures(), PLAIN, Tuning(1, Constant(0.001), "adam", batch_size=16))
    return module


def test_accuracy_is_that_of_all_images_whatever_the_batch():
    module, images = parent(), pictures(250)
    outputs = predict(module, images, PLAIN, len(images))
    expected = metrics.accuracy(outputs.log_softmax(dim=1), images.labels)
    assert Accuracy(images, PLAIN)(module) == expected
    assert 0 < expected < 1
    scores = correct(images, PLAIN, module, torch.arange(250))
    assert scores.mean().item() == pytest.approx(expected)
    some = torch.tensor([3, 200, 7])
    assert torch.equal(correct(images, PLAIN, module, some), scores[some])


@pytest.mark.parametrize("layers", ["convolutions", "linear"])
def test_images_are_normalised_once_for_all_children(layers, monkeypatch):
    images = pictures(250)
    flat = images.pixels[0].numel()
    child = network(1) if layers == "convolutions" else built(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(flat, 10))
    )  # fmt: skip
    expected = (predict(child, images, PLAIN).argmax(1) == images.labels).double().mean().item()
    judge, normalised = Accuracy(images, PLAIN), []
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
    monkeypatch.setitem(Accuracy.__call__.__globals__, "KEPT_BYTES", 4 * images.pixels.numel() - 1)
    many, seen = Accuracy(images, PLAIN), len(normalised)
    assert [many(child), many(child)] == pytest.approx([expected] * 2)
    assert len(normalised) == seen + 2 * once


def test_halves_put_together_what_the_parent_doubts():
    module, images = parent(), pictures(101)
    halves = halves_by_doubt(module, images, PLAIN)
    assert halves.bincount().tolist() == [50, 51]
    first, second = predict(module, images, PLAIN).softmax(1).topk(2).values.unbind(1)
    gap = first - second
    assert gap[halves == 0].max() <= gap[halves == 1].min()


def test_a_race_to_the_end_chooses_as_full_evaluation():
    module, images, seen = parent(), pictures(200), []
    full = noisy(module, images, PLAIN, 8, 3, sigma=0.3)
    slow = noisy(
        module, images, PLAIN, 8, 3, sigma=0.3, on_child=seen.append,
        racing=Rules(margin=0, block=400),
    )  # fmt: skip
    assert slow.seen == (200,) * 8
    assert slow.children == tuple(seen)
    assert [c.fitness for c in slow.children] == pytest.approx([c.fitness for c in full.children])
    assert [c.mutation for c in slow.elites] == [c.mutation for c in select(full.children, 3)]
    assert [c.mutation for c in slow.elites] == list(slow.ensemble.recipe.mutations)
    seen.clear()
    fast = noisy(
        module, images, PLAIN, 8, 3, sigma=0.3, on_child=seen.append, racing=Rules(block=20)
    )
    assert sum(fast.seen) < sum(slow.seen)
    told = [fast.children.index(child) for child in seen]  # each once, as its race ends
    assert sorted(told) == list(range(8))
    assert told != sorted(told)
    assert [fast.seen[i] for i in told] == sorted(fast.seen)
    assert len(fast.ensemble.members) == 3


def test_a_race_cannot_estimate_norms_anew():
    with pytest.raises(ValueError, match="leave out racing or norm_images"):
        noisy(network(0), pictures(), PLAIN, sigma=0.1, norm_images=pictures(), racing=Rules())


def test_the_script_races_and_refuses_what_cannot_race(server, tmp_path):
    command = [
        "--method", "noisy", "--dataset", "digits", "--model", "mlp-32", "--limit", "150",
        "--parent-epochs", "1", "--population-size", "8", "--members", "2", "--out", tmp_path,
    ]  # fmt: skip
    result = server.run("image_ensemble", *command, "--racing")
    assert result.status == 0, result.stderr
    assert "times fewer evaluations of an image" in result.stdout
    report = json.loads((tmp_path / "results.json").read_text())
    assert len(report["seen"]) == len(report["children"]) == 8
    assert len(report["elites"]) == 2
    refused = server.run("image_ensemble", *command, "--racing", "--reestimate-norms")
    assert refused.status != 0
    assert "leave out --racing, or --reestimate-norms" in " ".join(refused.stderr.split())
