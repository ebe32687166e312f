"""Networks out of one training: where on its way they are taken, and at which rates."""

import pytest
import torch
from networks import all_same_bits, pictures
from networks import small_classifier as network

from evo_subnets.bindings import Binding
from evo_subnets.methods import SWA, FastGeometric, Snapshot
from evo_subnets.prediction import reestimate_norms
from evo_subnets.schedules import Constant
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import parameters
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune

TASK = Task(pictures(64))
TUNING = Tuning(6, batch_size=16)


class Recorder(Binding):
    """Weights and rates before every pass, by epoch."""

    def __init__(self, module):
        self.module, self.weights, self.rates = module, {}, {}

    def before_pass(self, epoch, optimizer):
        params = self.module.named_parameters()
        self.weights[epoch] = {name: weight.detach().clone() for name, weight in params}
        self.rates[epoch] = optimizer.param_groups[0]["lr"]


def recorded(module, tuning, seed):
    seen = Recorder(module)
    tune(module, TASK, tuning=tuning, seed=derive_seed(seed, "tuning", 0), binding=seen)
    return seen


def scheduled(method):
    return Tuning(6, method.schedule, batch_size=16)


def test_snapshots_stand_at_the_ends_of_cosine_cycles():
    """Huang et al. 2017, eq. 2: the rate starts anew where a snapshot was taken."""
    method = Snapshot(3, rate=0.05, tuning=TUNING, seed=4)
    members = method(network, TASK).ensemble.members
    seen = recorded(network(derive_seed(4, "network", 0)), scheduled(method), 4)
    for member, end in zip(members, (2.0, 4.0, 6.0), strict=True):
        assert all_same_bits(parameters(member), seen.weights[end])
    first = [seen.rates[step / 4] for step in range(24)]  # four batches an epoch
    assert first[0] == first[8] == first[16] == pytest.approx(0.05)
    assert first[4] == pytest.approx(0.025)
    assert first[:8] == sorted(first[:8], reverse=True)
    assert first[7] < 0.002


def test_fast_geometric_networks_stand_where_the_rate_is_lowest():
    """Garipov et al. 2018, section 4."""
    method = FastGeometric(2, (0.04, 0.001), TUNING, seed=4)
    parent = network(1)
    members = method(parent, TASK).ensemble.members
    seen = recorded(network(1), scheduled(method), 4)
    for member, middle in zip(members, (2.0, 6.0), strict=True):  # cycles of four epochs
        assert all_same_bits(parameters(member), seen.weights[middle])
    assert seen.rates[0] == seen.rates[4.0] == pytest.approx(0.04)
    assert seen.rates[2.0] == pytest.approx(0.001)
    assert seen.rates[1.0] == seen.rates[3.0] == pytest.approx((0.04 + 0.001) / 2)
    assert min(seen.rates.values()) == pytest.approx(0.001)
    assert len(FastGeometric(1, tuning=TUNING)(parent, TASK).ensemble.members) == 1


def test_swa_is_the_mean_with_norms_of_its_own():
    """Izmailov et al. 2018, algorithm 1: the parent is in the mean."""
    method = SWA(2.0, Tuning(6, Constant(0.02), batch_size=16), seed=4)
    (mean,) = method(network(1), TASK).ensemble.members
    seen = recorded(network(1), method.tuning, 4)
    for name, weight in mean.named_parameters():
        each = torch.stack([seen.weights[at][name] for at in (0.0, 2.0, 4.0, 6.0)])
        torch.testing.assert_close(weight, each.mean(0))
    again = network(1)
    again.load_state_dict(mean.state_dict())
    reestimate_norms(again, TASK.train)
    assert all_same_bits(dict(mean.named_buffers()), dict(again.named_buffers()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Snapshot(0), "ensemble_size must be at least 1"),
        (lambda: Snapshot(17), "17 cycles of an epoch at least do not fit into 16 epochs"),
        (lambda: Snapshot(tuning=Tuning(16, Constant(0.1))), "schedule has no effect with cycles"),
        (lambda: FastGeometric(tuning=Tuning(8, Constant(0.1))), "schedule has no effect with"),
        (
            lambda: FastGeometric(30, tuning=TUNING)(network(1), TASK),
            "30 networks out of 24 training",
        ),
        (lambda: SWA(0.0), "every must be above 0"),
        (lambda: SWA(9.0), "at most the epochs, 8"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
