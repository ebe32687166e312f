"""What accompanies a training: copies and means on the way, and how they are kept."""

import copy

import pytest
import torch
from networks import pictures
from networks import small_classifier as network

from evo_subnets.bindings import Averaged, Binding, Snapshots, Together
from evo_subnets.pruning import Pruned
from evo_subnets.schedules import Constant
from evo_subnets.subnetworks import Subnetwork, parameters
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune

TASK = Task(pictures(64))
TUNING = Tuning(4, Constant(0.05), batch_size=16)


class Recorder(Binding):
    """Every weight that a pass begins with, by epoch."""

    def __init__(self, module):
        self.module, self.seen = module, {}

    def before_pass(self, epoch, optimizer):
        self.seen[epoch] = copy.deepcopy(self.module.state_dict())


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_snapshots_are_the_network_at_their_epochs():
    module = network(0)
    seen, kept = Recorder(module), Snapshots(module, (1, 2.5, 4))
    tune(module, TASK, tuning=TUNING, binding=Together(kept, seen))
    models = kept.models()
    assert [model.training for model in models] == [False] * 3
    for model, epoch in zip(models, (1, 2.5, 4), strict=True):
        assert same(model.state_dict(), seen.seen[epoch])
    assert same(models[-1].state_dict(), module.state_dict())


def test_the_mean_is_that_of_the_weights_at_their_epochs():
    module = network(0)
    seen, mean = Recorder(module), Averaged(module, (2, 3, 4))
    tune(module, TASK, tuning=TUNING, binding=Together(seen, mean))
    for name, weight in mean.model().named_parameters():
        expected = torch.stack([seen.seen[float(epoch)][name] for epoch in (2, 3, 4)]).mean(0)
        torch.testing.assert_close(weight, expected)


class Stopped(Exception):
    pass


def stop(epoch, loss):
    if epoch == 2:
        raise Stopped


@pytest.mark.parametrize("seconds", [0.0])
def test_copies_and_means_survive_a_stop(seconds, tmp_path, monkeypatch):
    """Those of before the stop too: a network that goes on has other weights by then."""
    monkeypatch.setattr("evo_subnets.files.checkpoints.SECONDS", seconds)

    def run(path, on_epoch=None):
        module = network(0)
        masks = Subnetwork(3, 0.0, 0.4).mask(parameters(module), ["0.weight"])
        kept, mean = Snapshots(module, (1, 3, 4)), Averaged(module, (1, 2, 4))
        bound = Together(Pruned(module, masks), Together(kept, mean))
        tune(module, TASK, tuning=TUNING, binding=bound, on_epoch=on_epoch, checkpoint=path)
        return [*kept.models(), mean.model()]

    whole, path = run(None), tmp_path / "run.safetensors"
    with pytest.raises(Stopped):
        run(path, stop)
    for again in (run(path), run(path)):  # the second has nothing left to do
        assert len(again) == 4
        for one, other in zip(whole, again, strict=True):
            assert same(one.state_dict(), other.state_dict())
