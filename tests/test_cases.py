"""What users bring, and the right answer: modules, inputs and files as one table.

A case is a function; it stands under the kind of fault that it is an example of, and its first line
says what a user expects. Every case runs with one torch thread and with two, where members and
batches may go side by side.
"""

import collections
import copy
from collections.abc import Callable

import gymnasium
import pytest
import torch
from networks import built, noise
from torch import nn

from evo_subnets import Ensemble, Task, quads, search_trust_region
from evo_subnets.outputs import Binary, Classes, Values
from evo_subnets.prediction import predict
from evo_subnets.rl import EnsemblePolicy
from evo_subnets.schedules import Constant
from evo_subnets.tuning import Tuning, tune

CASES: list[Callable[[], None]] = []


def case(check: Callable[[], None]) -> Callable[[], None]:
    """Adds a row to the table."""
    assert check.__doc__, f"{check.__name__} does not say what is expected"
    CASES.append(check)
    return check


# --- Outputs and inputs -------------------------------------------------------------------------


@case
def one_output_meant_as_classes():
    """Refused, naming the kinds that it can be."""
    network = built(lambda: nn.Linear(8, 1))
    with pytest.raises(ValueError, match=r"one output cannot be classes"):
        search_trust_region(network, noise(20, 8))
    for outputs in (Binary(), Values()):
        region = search_trust_region(network, noise(20, 8), outputs=outputs)
        assert region.divergence == pytest.approx(0.02, rel=0.1)


@case
def an_ensemble_of_regressions():
    """The members' mean and their spread."""
    network, x = built(lambda: nn.Linear(8, 3)), noise(6, 8)
    ensemble = Ensemble.from_mutations(
        network, quads(4, 0.1, density=0.5, seed=0), outputs=Values()
    )
    said = torch.stack([member(x) for member in ensemble.members])
    torch.testing.assert_close(ensemble(x), said.mean(0))
    torch.testing.assert_close(ensemble.spread(x), said.std(0, correction=0))


@case
def logits_masked_with_minus_infinity():
    """A divergence, and an average in which they stay impossible."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x):
            return self.layer(x).masked_fill(torch.tensor([False, True, False]), -torch.inf)

    network, x = built(Masked), noise(20, 5)
    region = search_trust_region(network, x)
    assert region.divergence == pytest.approx(0.02, rel=0.1)
    for combine in ("mean", "logits"):
        ensemble = Ensemble.from_mutations(
            network, region.search.mutations()[:4], combine=combine, weights=[1, 1, 0, 1]
        )
        said = ensemble(x).exp()
        assert (said[:, 1] == 0).all()
        torch.testing.assert_close(said.sum(1), torch.ones(20))


@case
def a_last_batch_of_one_under_batch_norm():
    """It is left out."""
    network = built(lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    x, y = noise(9, 4), torch.arange(9) % 2
    batches = [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])]
    short = copy.deepcopy(network)
    tune(network, Task(batches), tuning=Tuning(1, Constant(0.1), "adam"))
    assert torch.isfinite(predict(network, batches)).all()
    tune(short, Task(batches[:2]), tuning=Tuning(1, Constant(0.1), "adam"))
    torch.testing.assert_close(network.state_dict(), short.state_dict())


@case
def training_outputs_that_are_others():
    """The main ones are trained, as those of torchvision's googlenet."""

    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            found = collections.namedtuple("Outputs", ["logits", "aux"])
            return found(self.main(x), self.other(x)) if self.training else self.main(x)

    network, batches = built(Auxiliary), [(noise(6, 4), torch.arange(6) % 3)]
    before = copy.deepcopy(network.state_dict())
    tune(network, Task(batches), tuning=Tuning(1, Constant(0.1), "adam"))
    after = network.state_dict()
    assert not torch.equal(before["main.weight"], after["main.weight"])
    assert torch.equal(before["other.weight"], after["other.weight"])


@case
def keyword_inputs_and_outputs_with_names():
    """As a classifier of `transformers`: works in trust region, ensemble, predict."""

    class Answer:
        def __init__(self, logits):
            self.loss, self.logits = None, logits

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, input_ids=None, attention_mask=None):
            return Answer(self.layer(input_ids * attention_mask))

    network = built(Classifier)
    inputs = {"input_ids": noise(6, 4), "attention_mask": torch.ones(6, 4)}
    region = search_trust_region(network, inputs)
    assert region.divergence == pytest.approx(0.02, rel=0.1)
    ensemble = Ensemble.from_mutations(network, region.search.mutations()[:4])
    said = predict(ensemble, [(inputs, torch.zeros(6))])
    torch.testing.assert_close(said, ensemble(**inputs))


@case
def a_vote_with_a_member_that_is_nan():
    """It is NaN, and no vote for class 0."""
    good, bad = built(lambda: nn.Linear(4, 3)), built(lambda: nn.Linear(4, 3))
    bad.bias.data.fill_(float("nan"))
    assert Ensemble([good, good, bad], "vote")(noise(5, 4)).isnan().all()


@case
def segmentation_without_an_axis():
    """Refused with the axis' name, and not normalised over the width."""
    network = built(lambda: nn.Conv2d(1, 3, 1))
    with pytest.raises(ValueError, match=r"name the classes' axis, outputs=Classes\(axis=1\)"):
        search_trust_region(network, noise(4, 1, 8, 8))
    ensemble = Ensemble([network, network], outputs=Classes(1))
    said = ensemble(noise(4, 1, 8, 8)).exp()
    torch.testing.assert_close(said.sum(1), torch.ones(4, 8, 8))


@case
def an_output_that_nobody_can_read():
    """Refused with what came and what to do."""

    class Two(nn.Module):
        def forward(self, x):
            return {"left": x, "right": x}

    with pytest.raises(ValueError, match=r"a mapping of left, right: say which tensor is meant"):
        Ensemble([Two()])(noise(3, 4))


@case
def a_policy_that_gives_mean_actions():
    """Continuous actions, no index of the largest."""
    network = built(lambda: nn.Linear(3, 2))
    space = gymnasium.spaces.Box(-1, 1, (3,))
    ensemble = Ensemble.from_mutations(
        network, quads(4, 0.1, density=0.5, seed=0), outputs=Values()
    )
    observation = noise(5, 3).numpy()
    actions, _ = EnsemblePolicy(ensemble, space).predict(observation)
    assert actions.shape == (5, 2)
    torch.testing.assert_close(torch.as_tensor(actions), ensemble(torch.as_tensor(observation)))
    alone, _ = EnsemblePolicy(network, space, outputs=Values()).predict(observation[0])
    assert alone.shape == (2,)
    with pytest.raises(ValueError, match=r"a temperature is of numbered actions"):
        EnsemblePolicy(ensemble, space, temperature=0.5)


# --- An ensemble is its members; a child is the parent plus its mutation ------------------------


# --- What is a weight ---------------------------------------------------------------------------


# --- Simulators, agents, folders of pictures, devices, seeds ------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_what_users_expect(check, threads):
    torch.set_num_threads(threads)
    try:
        check()
    finally:
        torch.set_num_threads(1)
