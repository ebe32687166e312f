"""The training loop against a plain one, and the schedules against what the papers print."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import PLAIN, pictures
from networks import small_classifier as network
from torch import nn

from evo_subnets.annealing import Annealed, temperature_probabilities
from evo_subnets.bindings import Binding
from evo_subnets.data import Augmentation, batches
from evo_subnets.files import StorageError
from evo_subnets.prediction import predict, reestimate_norms
from evo_subnets.pruning import IterativelyPruned, Pruned, keep_highest, magnitudes
from evo_subnets.rewiring import Rewired, Rewiring
from evo_subnets.schedules import (
    Constant,
    Cosine,
    OneCycle,
    Restarts,
    StepLinear,
    Steps,
    Triangles,
)
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import Subnetwork, parameters
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (Constant(0.3), {0: 0.3, 0.5: 0.3, 1: 0.3}),
        (StepLinear(), {0: 0.1, 0.5: 0.1, 0.7: 0.0505, 0.9: 0.001, 1: 0.001}),
        (OneCycle(), {0: 0.001, 0.05: 0.0505, 0.1: 0.1, 0.55: 0.05000005, 1: 1e-7}),
        (Cosine(0.2), {0: 0.2, 0.5: 0.1, 1: 0.0}),
        (Steps(), {0: 0.1, 0.49: 0.1, 0.5: 0.01, 0.74: 0.01, 0.75: 0.001, 1: 0.001}),
        (Restarts(0.2, 4), {0: 0.2, 0.125: 0.1, 0.25: 0.2, 0.999999: 0.0, 1: 0.0}),
        (Triangles(0.05, 0.01, 2), {0: 0.05, 0.125: 0.03, 0.25: 0.01, 0.5: 0.05, 0.75: 0.01}),
    ],
)
def test_schedules_pass_through_the_printed_rates(schedule, points):
    for progress, rate in points.items():
        assert schedule(progress) == pytest.approx(rate, abs=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Steps((0.1,)), "one rate more than ends"),
        (lambda: Steps((0.1, 0.01, 0.001), (0.7, 0.7)), "which rise"),
        (lambda: Restarts(cycles=0), "cycles must be at least 1"),
        (lambda: Triangles(cycles=0), "cycles must be more than 0"),
    ],
)
def test_schedules_that_cannot_be_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_one_cycle_is_continuous_and_has_one_maximum():
    rates = [OneCycle()(step / 1000) for step in range(1001)]
    peak = rates.index(max(rates))
    assert peak == 100
    assert rates[:101] == sorted(rates[:101])
    assert rates[100:] == sorted(rates[100:], reverse=True)


def test_steps_are_those_that_are_taken():
    for bagging in (1.0, 0.6):
        taken = []

        class Counting(Binding):
            def after_step(self):
                taken.append(1)  # noqa: B023

        tuning = Tuning(3, batch_size=16, bagging=bagging)
        tune(network(norm=False), Task(pictures(70)), tuning=tuning, binding=Counting())
        assert tuning.steps(Task(pictures(70)).train) == len(taken)


def test_momentum_cycles_inversely():
    tuning = Tuning(1, OneCycle(), momentum=0.95, cycled_momentum=0.85)
    optimizer = tuning.make_optimizer(network())
    seen = {}
    for progress in (0.0, 0.1, 1.0):
        tuning.set_rates(optimizer, progress)
        seen[progress] = optimizer.param_groups[0]["momentum"]
    assert seen == pytest.approx({0.0: 0.95, 0.1: 0.85, 1.0: 0.95})


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_tune_is_the_plain_loop(optimizer):
    # a bias before a batch norm has no gradient but rounding errors, which Adam makes large
    images, module = pictures(), network(norm=optimizer == "sgd")
    tuning = Tuning(3, StepLinear(0.05, 0.01), optimizer, batch_size=40)
    reference = copy.deepcopy(module).train()
    tune(module, Task(images), tuning=tuning, seed=5)

    if optimizer == "adam":
        steps = torch.optim.Adam(reference.parameters())
    else:
        steps = torch.optim.SGD(
            reference.parameters(), momentum=0.9, weight_decay=5e-4, nesterov=True
        )
    generator = torch.Generator().manual_seed(derive_seed(5, "images"))
    for number in range(9):
        if number % 3 == 0:
            loader = iter(list(batches(images, 40, generator=generator)))
        for group in steps.param_groups:
            group["lr"] = StepLinear(0.05, 0.01)(number / 9)
        inputs, labels = next(loader)
        loss = F.cross_entropy(reference(inputs), labels)
        steps.zero_grad()
        loss.backward()
        steps.step()
    for ours, plain in zip(
        module.state_dict().values(), reference.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(ours, plain)
    assert not module.training


def test_the_seed_decides_order_augmentation_and_dropout():
    def tuned(seed):
        module = network(dropout=0.5)
        images = replace(pictures(), augmentation=Augmentation((0.5,), (0.25,)))
        tune(module, Task(images), tuning=Tuning(1, batch_size=32), seed=seed)
        return module[0].weight

    assert torch.equal(tuned(1), tuned(1))
    assert not torch.equal(tuned(1), tuned(2))


def test_tuning_learns():
    module = network(1)
    losses = []
    tune(
        module, Task(pictures()), tuning=Tuning(6, OneCycle(), batch_size=16),
        on_epoch=lambda epoch, loss: losses.append((epoch, loss)),
    )  # fmt: skip
    fresh = pictures(seed=9)
    assert (predict(module, fresh).argmax(1) == fresh.labels).float().mean() > 0.95
    assert [epoch for epoch, _ in losses] == [1, 2, 3, 4, 5, 6]
    assert losses[-1][1] < losses[0][1] / 2


def test_bagging_trains_on_the_bag_alone():
    images = pictures(100)
    chosen = images.bag(0.9, 3)
    assert len(chosen) == 90
    assert len({one.numpy().tobytes() for one in chosen.pixels}) == 90
    module, plain = network(), network()
    tune(module, Task(images), tuning=Tuning(1, bagging=0.9), seed=3)
    tune(plain, Task(chosen), tuning=Tuning(1), seed=3)
    assert torch.equal(module[0].weight, plain[0].weight)
    assert not torch.equal(images.bag(0.9, 4).pixels, chosen.pixels)


def test_bf16_trains_float32_weights():
    module = network()
    tune(module, Task(pictures()), tuning=Tuning(2, OneCycle(), bf16=True, batch_size=16))
    assert module[0].weight.dtype == torch.float32
    assert predict(module, pictures()).isfinite().all()


def test_a_diverging_run_says_so():
    with pytest.raises(ValueError, match=r"training diverged.*lower the learning rate"):
        tune(network(norm=False), Task(pictures()), tuning=Tuning(3, Constant(1e6), batch_size=8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "at least one epoch"),
        ({"epochs": 1, "batch_size": 0}, "at least one epoch and one sample"),
        ({"epochs": 1, "bagging": 0.0}, "bagging"),
        ({"epochs": 1, "bagging": 1.5}, "bagging"),
        ({"epochs": 1, "optimizer": "lion"}, "'sgd' or 'adam'"),
        ({"epochs": 1, "cycled_momentum": 0.85}, "OneCycle"),
        ({"optimizer": "adam", "momentum": 0.5}, "momentum has no effect with Adam"),
        ({"optimizer": "adam", "weight_decay": 0.0}, "weight_decay has no effect with Adam"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Tuning(**options)


def test_predict_leaves_the_mode_alone_and_cuts_batches():
    module = network(dropout=0.5).train()
    outputs = predict(module, pictures(50), batch_size=7)
    assert module.training
    assert outputs.shape == (50, 4)
    torch.testing.assert_close(outputs, predict(module.eval(), pictures(50)))


def test_norms_are_the_means_over_the_pictures():
    module, images = network(dropout=0.5).eval(), pictures(64)
    reestimate_norms(module, images, batch_size=16)
    outputs = module[0](PLAIN.normalize(images.pixels))
    torch.testing.assert_close(
        module[1].running_mean, outputs.mean((0, 2, 3)), atol=1e-5, rtol=1e-4
    )
    assert not module.training
    assert math.isclose(module[1].momentum, 0.1)


class Stopped(Exception):
    pass


def stop_after(epochs):
    def on_epoch(epoch, loss):
        if epoch == epochs:
            raise Stopped

    return on_epoch


BINDINGS = {
    "none": lambda module, masks: None,
    "pruned": lambda module, masks: Pruned(module, masks),
    "iterative": lambda module, masks: IterativelyPruned(
        module, lambda density: keep_highest(magnitudes(parameters(module), list(masks)), density,
                                             scope="layer"), density=0.3, epochs=3),
    "annealed": lambda module, masks: Annealed(
        module, masks, probabilities=temperature_probabilities(masks, 0.5), epochs=3, seed=4),
    "rewired": lambda module, masks: Rewired(
        module, masks, rewiring=Rewiring(interval=3), steps=12, restarts=(1.5, 3)),
    "rewired at random": lambda module, masks: Rewired(
        module, masks, rewiring=Rewiring("random", interval=2, decay="cosine"), steps=12, seed=4),
}  # fmt: skip


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("done", [1, 3, 4])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    binding, optimizer, done, tmp_path, monkeypatch
):
    monkeypatch.setattr("evo_subnets.files.checkpoints.SECONDS", 0.0)
    augmentation = Augmentation((0.5,), (0.25,), padding=2, flip=True)
    task = Task(replace(pictures(), augmentation=augmentation))
    tuning = Tuning(4, OneCycle(), optimizer, batch_size=16, bagging=0.9)
    start = nn.Sequential(network(norm=True), nn.Dropout(0.3))

    def run(path, on_epoch=None):
        module = copy.deepcopy(start)
        names = [name for name, weight in module.named_parameters() if weight.ndim > 1]
        masks = Subnetwork(3, 0.0, 0.4).mask(parameters(module), names)
        bound = BINDINGS[binding](module, masks)
        tune(
            module, task, tuning=tuning, seed=7, binding=bound, on_epoch=on_epoch, checkpoint=path
        )  # fmt: skip
        return module.state_dict()

    whole = run(None)
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stopped):
        run(path, stop_after(done))
    epochs = []
    again = run(path, lambda epoch, loss: epochs.append(epoch))
    assert epochs == [1, 2, 3, 4]
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    finished = path.read_bytes()
    assert all(torch.equal(whole[name], tensor) for name, tensor in run(path).items())
    assert path.read_bytes() == finished


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    task = Task(pictures())
    tune(network(norm=False), task, tuning=Tuning(1, batch_size=16), seed=1, checkpoint=path)
    with pytest.raises(ValueError, match="seed 1, this one has 2"):
        tune(network(norm=False), task, tuning=Tuning(1, batch_size=16), seed=2, checkpoint=path)
    with pytest.raises(ValueError, match=r"tuning .*epochs=1.*epochs=2"):
        tune(network(norm=False), task, tuning=Tuning(2, batch_size=16), seed=1, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StorageError, match="truncated"):
        tune(network(norm=False), task, tuning=Tuning(1, batch_size=16), seed=1, checkpoint=path)
