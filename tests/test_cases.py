"""What users bring, and the right answer: modules, inputs and files as one table.

A case is a function; it stands under the kind of fault that it is an example of, and its first line
says what a user expects. Every case runs with one torch thread and with two, where members and
batches may go side by side.
"""

import collections
import copy
import functools
import math
import pickle
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import torch.distributions as td
import torch.nn.utils.prune
from half_a_device import apple
from networks import (
    all_same_bits,
    built,
    copied,
    mlp,
    noise,
    normalised,
    pictures,
    same_bits,
    tied,
)
from PIL import Image
from small_agents import unseeded
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from envs import Levels, ProcgenSimulator, ProcgenVecEnv, ProcgenVectorEnv
from evo_subnets import (
    Ensemble,
    Mutation,
    Search,
    Task,
    divergence,
    engines,
    evaluate,
    evolve,
    materialize,
    metrics,
    parameters,
    quads,
    search_trust_region,
    singles,
)
from evo_subnets.data import Images, load
from evo_subnets.methods import Noisy, Pruning, Sparse, Stochastic
from evo_subnets.methods.stochastic import Annealing
from evo_subnets.metrics.contest import Contest
from evo_subnets.outputs import Binary, Classes, Distribution, Values
from evo_subnets.prediction import Validation, predict, predict_members, reestimate_norms
from evo_subnets.pruning import Pruned
from evo_subnets.rl import Actor, EnsemblePolicy
from evo_subnets.schedules import Constant
from evo_subnets.structure.classifier import classifier
from evo_subnets.structure.compaction import compacted
from evo_subnets.subnetworks import Whole
from evo_subnets.tuning import Tuning, tune

from stable_baselines3 import PPO  # isort: skip  # after envs, which silences gym
from stable_baselines3.common.distributions import CategoricalDistribution  # isort: skip
from stable_baselines3.common.env_util import make_vec_env  # isort: skip
from stable_baselines3.common.policies import ActorCriticPolicy  # isort: skip
from stable_baselines3.common.torch_layers import MlpExtractor  # isort: skip

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


X = noise(40, 8, seed=3)
Q = quads(4, 0.1, density=0.5, seed=0)
ADAM = Tuning(3, Constant(0.01), "adam")


def linear(outputs: int, seed: int = 0) -> nn.Module:
    return built(lambda: nn.Linear(8, outputs), seed)


class Returns(nn.Module):
    """A linear layer's outputs, in whatever `wrap` puts them."""

    def __init__(self, wrap, outputs=3):
        super().__init__()
        self.layer, self.wrap = linear(outputs), wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


@case
def one_logit_is_no_choice_among_classes():
    """A sigma for one logit or one value, as the user says; without it a refusal that names both"""
    for ask in (
        lambda: search_trust_region(linear(1), X),
        lambda: Ensemble.from_mutations(linear(1), Q)(X),
        lambda: tune(linear(1), Task([(X, X[:, 0] > 0)]), tuning=ADAM),
        lambda: Ensemble([Returns(lambda out: out[:, 0])])(X),
        lambda: divergence(X[:, 0], X[:, 0]),
    ):
        with pytest.raises(ValueError, match=r"Binary\(\).*Values\(\)"):
            ask()
    for outputs in (Binary(), Values()):
        region = search_trust_region(linear(1), X, outputs=outputs)
        assert region.divergence == pytest.approx(0.02, rel=0.1)


@case
def yes_or_no_is_the_mean_probability():
    """The logit of the members' mean probability, of (n,) and (n, 1) logits; and it is learned"""
    members = [linear(1, seed) for seed in range(3)]
    mean = torch.stack([member(X).sigmoid() for member in members]).mean(0)
    torch.testing.assert_close(Ensemble(members, outputs=Binary())(X).sigmoid(), mean)
    votes = torch.stack([member(X) > 0 for member in members]).float().mean(0)
    found = Ensemble(members, "vote", outputs=Binary())(X).sigmoid()
    torch.testing.assert_close(found, votes)
    sure = torch.tensor([math.inf, -math.inf, 0.0])
    assert divergence(sure, sure, outputs=Binary()) == 0
    assert divergence(sure, sure.clamp(-9, 9), outputs=Binary()) < 1e-3
    task = Task([(X, (X[:, 0] > 0).long())], outputs=Binary())
    module = linear(1)
    tune(module, task, tuning=Tuning(60, Constant(0.1), "adam"))
    assert Validation(task.train, outputs=Binary())(module) > 0.9
    with pytest.raises(ValueError, match="0 and 1, or probabilities between, got -1 to 1"):
        tune(module, Task([(X, X[:, 0].sign())], outputs=Binary()), tuning=ADAM)


@case
def regression_gives_the_mean_and_the_spread():
    """The members' mean, not log-softmaxed, and how far they are apart; a file keeps the kind"""
    for outputs in (1, 3):
        module = linear(outputs)
        ensemble = Ensemble.from_mutations(module, Q, outputs=Values())
        each = torch.stack([member(X) for member in ensemble.members])
        torch.testing.assert_close(ensemble(X), each.mean(0))
        torch.testing.assert_close(ensemble.spread(X), each.std(0, correction=0))
        with tempfile.TemporaryDirectory() as folder:
            ensemble.save(f"{folder}/e")
            assert same_bits(Ensemble.load(f"{folder}/e", module)(X), ensemble(X))
            Ensemble(list(ensemble.members), outputs=Values()).save(f"{folder}/m")
            assert same_bits(Ensemble.load(f"{folder}/m", module)(X), ensemble(X))
    with pytest.raises(ValueError, match=r"spread is one of real values.*Classes"):
        Ensemble([linear(3)]).spread(X)
    for combine in ("vote", "logits"):
        with pytest.raises(ValueError, match=f"combine '{combine}' means nothing for Values"):
            Ensemble([linear(1)], combine, outputs=Values())


@case
def targets_of_regression_are_not_broadcast():
    """(n,) targets of (n, 1) outputs are n errors, not n times n; other shapes are refused"""
    outputs, targets = noise(6, 1), noise(6, seed=1)
    wanted = (outputs[:, 0] - targets).square().mean()
    torch.testing.assert_close(Values().loss(outputs, targets), wanted)
    assert Values().metric(outputs, targets) == pytest.approx(-wanted.item())
    normal = Distribution(lambda out: td.Normal(out, 1.0))
    assert normal.loss(outputs, targets).item() == pytest.approx(
        wanted.item() / 2 + math.log(2 * math.pi) / 2
    )
    for kind in (Values(), Binary(), normal):
        with pytest.raises(ValueError, match=r"outputs \(6, 1\) go with .*got \(5,\)"):
            kind.loss(outputs, targets[:5])


@case
def a_distribution_of_ones_own():
    """Divergence, likelihood and the mixture's mean and spread, of what a function makes"""
    kind = Distribution(lambda out: td.Normal(out[:, 0], out[:, 1].exp()))
    module = linear(2)
    region = search_trust_region(module, X, outputs=kind)
    assert region.divergence == pytest.approx(0.02, rel=0.1)
    ensemble = Ensemble.from_mutations(module, Q, outputs=kind)
    each = torch.stack([member(X) for member in ensemble.members])
    means, variances = each[..., 0], each[..., 1].exp().square()
    torch.testing.assert_close(ensemble(X), means.mean(0))
    squares = (variances + means.square()).mean(0)
    torch.testing.assert_close(ensemble.spread(X), squares.sub(means.mean(0) ** 2).sqrt())
    data = [(X, X[:, 0])]
    likelihood = td.Normal(means, variances.sqrt()).log_prob(X[:, 0]).exp().mean(0).log().mean()
    found = Validation(data, outputs=kind)(ensemble)
    assert found == pytest.approx(likelihood.item(), abs=1e-5)
    before = Validation(data, outputs=kind)(module)
    tune(module, Task(data, outputs=kind), tuning=Tuning(50, Constant(0.05), "adam"))
    assert Validation(data, outputs=kind)(module) > before + 0.3
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/e")
        again = Ensemble.load(f"{folder}/e", linear(2), restore=True, outputs=kind)
        assert same_bits(again(X), ensemble(X))
        with pytest.raises(ValueError, match="functions of its own: give outputs="):
            Ensemble.load(f"{folder}/e", linear(2), restore=True)
    for wrong, words in (
        (lambda out: out, "must give a torch.distributions.Distribution, got a Tensor"),
        (lambda out: td.Categorical(logits=out), r"take outputs=Classes\(\)"),
        (lambda out: td.MixtureSameFamily(td.Categorical(out.exp()), td.Normal(out, 1.0)),
         "no KL divergence of a MixtureSameFamily"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            search_trust_region(linear(2), X, outputs=Distribution(wrong))


@case
def classes_on_a_named_axis():
    """Sequences and segmentation are normalised over their classes; without the axis refused"""
    logits = [noise(4, 3, 5, 6, seed=seed) for seed in range(2)]
    flat = [each.movedim(1, -1).reshape(-1, 3) for each in logits]
    labels = noise(4, 5, 6, seed=9).gt(0).long()
    for axis, parts, wanted in (
        (1, logits, labels),
        (-3, logits, labels),
        (-1, [each.movedim(1, -1) for each in logits], labels),
    ):
        kind = Classes(axis=axis)
        assert divergence(*parts, outputs=kind) == pytest.approx(divergence(*flat), rel=1e-9)
        torch.testing.assert_close(
            kind.loss(parts[0], wanted), nn.functional.cross_entropy(flat[0], labels.flatten())
        )
        assert kind.metric(parts[0], wanted) == Classes().metric(flat[0], labels.flatten())
        for combine in ("mean", "logits", "vote"):
            members = [nn.Identity(), nn.Identity()]
            weights = torch.tensor([0.3, 0.7])
            whole = kind.combined(torch.stack(parts), weights, how=combine)
            expected = Ensemble(members, combine, weights=[3, 7]).combined(torch.stack(flat))
            found = whole.movedim(axis, -1).reshape(-1, 3)
            torch.testing.assert_close(found, expected)
    for ask in (
        lambda: divergence(*logits),
        lambda: Ensemble([nn.Identity()])(logits[0]),
        lambda: tune(built(lambda: nn.Conv2d(3, 3, 1)), Task([(logits[0], labels)]), tuning=ADAM),
    ):
        with pytest.raises(ValueError, match=r"name the classes' axis, outputs=Classes\(axis=1\)"):
            ask()
    for axis in (0, 4, -4, -5):
        with pytest.raises(ValueError, match=f"have no classes on axis {axis}"):
            divergence(*logits, outputs=Classes(axis=axis))


@case
def masked_logits():
    """A class that both rule out adds nothing; one that the child alone rules out is infinite"""
    masked = noise(5, 4)
    masked[:, 2] = -math.inf
    other = noise(5, 4, seed=1)
    other[:, 2] = -math.inf
    left = [0, 1, 3]
    expected = divergence(masked[:, left], other[:, left])
    assert divergence(masked, other) == pytest.approx(expected, rel=1e-9)
    assert divergence(noise(5, 4), masked) == math.inf
    assert math.isfinite(divergence(masked, noise(5, 4)))

    def mask(out):
        return out.masked_fill(torch.tensor([False, True, False]), -math.inf)

    assert search_trust_region(Returns(mask), X).divergence == pytest.approx(0.02, rel=0.1)
    for combine in ("mean", "logits", "vote"):
        members = [Returns(mask), linear(3)]
        for weights in ([0, 1], [1, 0], [1, 1]):
            found = Ensemble(members, combine, weights=weights)(X)
            assert not found.isnan().any()
            torch.testing.assert_close(found.exp().sum(1), torch.ones(40))


@case
def a_member_that_is_nan_is_not_class_0():
    """The vote is NaN where a member with a vote is, as the mean is; accuracy counts it as wrong"""
    broken = linear(3, 1)
    with torch.no_grad():
        broken.weight.fill_(math.nan)
    for combine in ("vote", "mean", "logits"):
        assert Ensemble([linear(3), broken], combine)(X).isnan().all()
        left_out = Ensemble([linear(3), broken], combine, weights=[1, 0])(X)
        assert same_bits(left_out.argmax(1), linear(3)(X).argmax(1))
        assert not left_out.isnan().any()
    one, other = linear(1), linear(1, 1)
    with torch.no_grad():
        other.bias.fill_(math.nan)
    assert Ensemble([one, other], "vote", outputs=Binary())(X).isnan().all()
    assert Ensemble([one, other], outputs=Values())(X).isnan().all()
    assert Validation([(X, torch.zeros(40).long())])(broken) == 0
    assert math.isnan(Validation([(X, X[:, 0])], outputs=Values())(other))


@case
def what_a_network_returns_is_read():
    """The logits of a mapping, a named tuple, a tuple; others are refused, naming what came"""
    Named = collections.namedtuple("Named", ["logits", "aux"])
    plain = Returns(lambda out: out)
    ways = [
        lambda out: {"out": out, "aux": out * 9},
        lambda out: {"loss": out.sum(), "logits": out},
        lambda out: Named(out, out * 9),
        lambda out: (out, out * 9),
        lambda out: [out, None],
    ]
    expected = search_trust_region(plain, X)
    data = [(X, X[:, :3].argmax(1))]
    trained = Returns(lambda out: out)
    tune(trained, Task(data), tuning=ADAM)
    for way in ways:
        module = Returns(way)
        assert search_trust_region(module, X) == expected
        assert same_bits(
            Ensemble.from_mutations(module, Q)(X), Ensemble.from_mutations(plain, Q)(X)
        )
        assert same_bits(predict(module, data), predict(plain, data))
        assert Validation(data)(module) == Validation(data)(plain)
        tune(module, Task(data), tuning=ADAM)
        assert all_same_bits(copied(module.state_dict()), copied(trained.state_dict()))
    named = Returns(lambda out: {"scores": out, "other": out})
    for ask in (
        lambda: search_trust_region(named, X),
        lambda: Ensemble([named])(X),
        lambda: predict(named, data),
        lambda: tune(named, Task(data), tuning=ADAM),
    ):
        with pytest.raises(ValueError, match=r"returned a mapping of scores, other.*read=lambda"):
            ask()
    kind = Classes(read=lambda out: out["scores"])
    assert search_trust_region(named, X, outputs=kind) == expected
    for way, words in (
        (lambda out: None, "returned a NoneType"),
        (lambda out: ({}, out), "returned a tuple: say which tensor is meant"),
        (lambda out: out.argmax(1), "floating-point numbers, got torch.int64"),
        (lambda out: out.sum(), r"expected \(batch, classes\) outputs, got \(\)"),
    ):
        with pytest.raises(ValueError, match=words):
            search_trust_region(Returns(way), X)


@case
def inputs_of_any_form_for_a_trust_region():
    """A tensor, a tuple, a mapping, a list and a loader of batches give the same sigma"""
    module = linear(3)
    expected = search_trust_region(module, X, children=4)
    for given in (
        (X,), {"input": X}, [X], [X[:30], X[30:]], [{"input": X[:9]}, {"input": X[9:]}],
        DataLoader(TensorDataset(X), 7, shuffle=True), (part for part in X.split(9)),
    ):  # fmt: skip
        found = search_trust_region(module, given, children=4)
        assert found.sigma == pytest.approx(expected.sigma, rel=1e-5)
    pairs = DataLoader(TensorDataset(X, torch.zeros(40)), 7)
    for wrong, words in (
        (3, "inputs are a tensor, a tuple .*got a int"),
        (
            pairs,
            r"a Linear takes .*got 2 by position.*of \(inputs, targets\) pairs give the inputs",
        ),
        ([(X, X, X)], "got 3 by position"),
        ({"inputs": X}, "got inputs by name"),
        ([], "at least one sample is needed"),
    ):
        with pytest.raises(ValueError, match=words):
            search_trust_region(module, wrong)
    for ask in (
        lambda: Ensemble([module])(X, X),
        lambda: tune(linear(3), Task([((X, X), X[:, 0].long())]), tuning=ADAM),
        lambda: predict(module, [({"inputs": X}, X)]),
    ):
        with pytest.raises((ValueError, TypeError), match=r"Linear.*takes"):
            ask()


@case
def sequences_of_other_lengths():
    """Batches of other lengths train and have a trust region; methods take them where each gives
    outputs of one shape, else a refusal says to pad them"""
    lstm, kind = built(lambda: nn.LSTM(8, 3, batch_first=True)), Classes(axis=-1)
    batches = [noise(4, 5, 8), noise(4, 7, 8, seed=1)]
    data = [(x, x[..., :3].argmax(-1)) for x in batches]
    tune(lstm, Task(data, outputs=kind), tuning=ADAM)
    found = search_trust_region(lstm, batches, outputs=kind)
    assert found.divergence == pytest.approx(0.02, rel=0.1)
    for ask in (
        lambda: search_trust_region(lstm, batches, outputs=kind, children=4),
        lambda: predict(lstm, data),
        lambda: Validation(data, outputs=kind)(lstm),
    ):
        with pytest.raises(ValueError, match=r"different shapes of a sample.*pad them"):
            ask()
    last = Classes(read=lambda found: found[0][:, -1])
    labels = [(x, torch.arange(4) % 3) for x in batches]
    result = Noisy(Search(4, 2))(lstm, Task(labels, labels, outputs=last))
    assert result.divergence == pytest.approx(0.02, rel=0.1)
    assert predict(result.ensemble, labels).shape == (8, 3)
    halves = Sparse(2, Pruning("halves", classifier=True), ADAM)(lstm, Task(labels, outputs=last))
    assert predict(halves.ensemble, labels).shape == (8, 3)
    assert math.isnan(halves.inference)  # operations of recurrent layers are not counted


@case
def a_last_batch_of_one():
    """It is left out, also where norms are estimated anew; a batch size of 1 is refused"""
    images, tuning = pictures(17), Tuning(2, Constant(0.01), "adam", batch_size=8)

    def flat(norm):
        return built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), norm(), nn.Linear(6, 4)))

    for norm in (lambda: nn.BatchNorm1d(6), nn.Identity):
        module = flat(norm)
        tune(module, Task(images), tuning=tuning)
        assert predict(module, images).isfinite().all()
    module = flat(lambda: nn.BatchNorm1d(6))
    tune(module, Task(images), tuning=tuning)
    assert int(module[2].num_batches_tracked) == 4
    pair = [(x.contiguous(), y) for x, y in images.in_order(8)]
    tune(module, Task(pair), tuning=Tuning(1))
    assert int(module[2].num_batches_tracked) == 6
    with pytest.raises(ValueError, match="make batches larger"):
        tune(module, Task(images), tuning=Tuning(1, batch_size=1))
    reestimate_norms(module, images, batch_size=8)
    reestimate_norms(module, pair)
    with pytest.raises(ValueError, match="batches of two samples or more"):
        reestimate_norms(module, images, batch_size=1)


@case
def networks_that_flatten_by_view():
    """Pictures in memory train, are judged and predicted, as where they are flattened by Flatten"""

    class View(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    def network(flatten, channels):
        return built(
            lambda: nn.Sequential(
                nn.Conv2d(channels, 8, 3, bias=False),
                nn.BatchNorm2d(8),
                flatten(),
                nn.Linear(288, 4),
            )
        )

    for channels in (1, 3):
        grey = pictures(20)
        images = Images(grey.pixels.repeat(1, channels, 1, 1), grey.labels)
        task, fitness = Task(images, images), Validation(images)
        found = []
        for flatten in (nn.Flatten, View):
            module = network(flatten, channels)
            tune(module, task, tuning=ADAM)
            reestimate_norms(module, images)
            assert len(Noisy(Search(4, 2))(module, task).elites) == 2
            ensemble = Ensemble.from_mutations(module, Q)
            sparse = Sparse(2, tuning=Tuning(1, Constant(0.01), "adam"))(module, task)
            assert 1 < sparse.inference < 2
            both = predict(module, images), predict(ensemble, images, side_by_side=True)
            found.append((*both, torch.tensor(fitness(module))))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@case
def labels_of_other_types_and_shapes():
    """Whole labels of any type are right, -100 is left out, probabilities are learned"""
    logits, labels = noise(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    loss, right = Classes().loss(logits, labels), Classes().metric(logits, labels)
    for same in (labels.int(), labels.to(torch.uint8), labels.short()):
        torch.testing.assert_close(Classes().loss(logits, same), loss)
        assert Classes().metric(logits, same) == right
    soft = nn.functional.one_hot(labels).float()
    torch.testing.assert_close(Classes().loss(logits, soft), loss)
    ignored = torch.cat((labels[:5], torch.tensor([-100])))
    assert Classes().metric(logits, ignored) == Classes().metric(logits[:5], labels[:5])
    for wrong, words in (
        (labels.float(), "whole-numbered labels"),
        (labels[:, None], r"labels of shape \(6,\), got \(6, 1\)"),
        (labels + 1, r"labels of 3 classes must be in 0\.\.2, got 1\.\.3"),
        (labels - 1, r"in 0\.\.2, got -1\.\.1"),
        (labels[:4], r"labels of shape \(6,\), got \(4,\)"),
        (soft.long(), r"labels of shape \(6,\), got \(6, 3\)"),
    ):
        module = built(lambda: nn.Linear(3, 3))
        with pytest.raises(ValueError, match=words):
            tune(module, Task([(logits, wrong)]), tuning=ADAM)
    many = (X[:, :4] > 0).long()
    with pytest.raises(ValueError, match=r"sum to 1 .*several labels a sample are.*Binary\(\)"):
        tune(linear(4), Task([(X, many.float())]), tuning=ADAM)
    module = linear(4)
    tune(module, Task([(X, many)], outputs=Binary()), tuning=Tuning(60, Constant(0.1), "adam"))
    assert Validation([(X, many)], outputs=Binary())(module) > 0.9


@case
def data_that_is_empty_or_not_finite():
    """A sentence that says what else than the learning rate it can be"""
    module, labels = linear(3), X[:, :3].argmax(1)
    nan = X.clone()
    nan[3, 2] = math.nan
    for batch in ((nan, labels), (X[:0], labels[:0])):
        with pytest.raises(ValueError, match=r"numbers in the data that are not finite"):
            tune(module, Task([(X, labels), batch]), tuning=Tuning(1))
    for ask in (lambda: predict(module, []), lambda: Validation([])(module)):
        with pytest.raises(ValueError, match="nothing to predict: the data has no batches"):
            ask()
    assert Ensemble.from_mutations(linear(3), Q)(X[:0]).shape == (0, 3)
    frozen = linear(3).requires_grad_(False)
    with pytest.raises(ValueError, match="a Linear has no parameter that is trained"):
        tune(frozen, Task([(X, labels)]), tuning=Tuning(1))
    each = Task([(X, labels)], loss=lambda out, y: nn.functional.cross_entropy(
        out, y, reduction="none"))  # fmt: skip
    with pytest.raises(ValueError, match=r"a loss is one number.*got shape \(40,\)"):
        tune(linear(3), each, tuning=Tuning(1))


@case
def modes_of_layers_stay():
    """Predicting leaves a norm that is frozen in a training network frozen"""
    module = nn.Sequential(linear(3), nn.BatchNorm1d(3)).train()
    module[1].eval()
    predict(module, [(X, X)])
    reestimate_norms(module, [(X, X)])
    assert [layer.training for layer in module.modules()] == [True, True, False]


@case
def policies_act_by_the_kind_of_output():
    """Continuous actions of values; NaN chooses no action, and no action 0"""
    seen = X[:5].numpy()
    space = gymnasium.spaces.Box(-1, 1, (8,))
    ensemble = Ensemble.from_mutations(linear(2), Q, outputs=Values())
    for model, outputs in ((ensemble, None), (linear(2), Values())):
        policy = EnsemblePolicy(model, space, outputs=outputs)
        actions, _ = policy.predict(seen)
        assert actions.dtype == "float32"
        torch.testing.assert_close(torch.from_numpy(actions), model(X[:5]).detach())
        assert policy.predict(seen[0])[0].shape == (2,)
    with pytest.raises(ValueError, match=r"Values\(\) for a real value"):
        EnsemblePolicy(linear(1), space).predict(seen)
    with pytest.raises(ValueError, match="this model gives Binary"):
        EnsemblePolicy(linear(1), space, outputs=Binary())
    with pytest.raises(ValueError, match="a temperature is of numbered actions"):
        EnsemblePolicy(ensemble, space, temperature=2)
    broken = linear(3)
    with torch.no_grad():
        broken.weight.fill_(math.nan)
    for deterministic in (True, False):
        with pytest.raises(ValueError, match=r"outputs give no action for 5 of 5"):
            EnsemblePolicy(broken, space).predict(seen, deterministic=deterministic)


@case
def numbers_for_classifiers_refuse_values():
    """Accuracy of real values is refused, naming what there is instead, and the other way round"""
    with pytest.raises(ValueError, match="of real values value_report"):
        metrics.accuracy(X[:, :3] + 5, torch.zeros(40).long())
    ensemble = Ensemble.from_mutations(linear(1), Q, outputs=Values())
    found = metrics.judge_values(ensemble, [(X[:30], X[:30, 0]), (X[30:], X[30:, 0])])
    assert found.mse == pytest.approx(-Values().metric(ensemble(X), X[:, 0]), rel=1e-5)
    assert sorted(found.coverage) == [0.5, 0.8, 0.95]
    with pytest.raises(ValueError, match=r"outputs=Classes: classes have metrics\.report"):
        metrics.judge_values(Ensemble([linear(3)]), [(X, X[:, 0])])
    images = pictures(6)
    network = built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    contest = Contest(images, 1.0)
    with pytest.raises(ValueError, match="compares classifiers, got an ensemble of outputs=Values"):
        contest.judge(
            "it", Ensemble([network], outputs=Values()),
            epochs=0, dense_epochs=0, inference=1, parameters=1,
        )  # fmt: skip


# --- An ensemble is its members; a child is the parent plus its mutation ------------------------


def _small(*layers):
    return built(lambda: nn.Sequential(*(layer() for layer in layers)))


@case
def rows_that_mix_asked_side_by_side():
    """The members in turn: batch statistics, time first."""
    networks = [
        lambda: _small(
            lambda: nn.Conv2d(1, 64, 3),
            lambda: nn.BatchNorm2d(64, track_running_stats=False),
            nn.Flatten,
            lambda: nn.Linear(2304, 10),
        ),
        lambda: _small(lambda: nn.GRU(8, 2048)),
    ]
    for make, x in zip(networks, (noise(64, 1, 8, 8), noise(64, 2, 8)), strict=True):
        members = [make() for _ in range(4)]
        kind = Classes(read=lambda found: found[0][:, 0] if isinstance(found, tuple) else found)
        ensemble = Ensemble(members, side_by_side=True, outputs=kind)
        with torch.no_grad():
            said = torch.stack([kind.tensor(member.eval()(x)) for member in members])
            assert torch.equal(ensemble.member_outputs(x), said)


@case
def a_weight_changed_through_its_data():
    """The new weights answer, and are saved."""
    network, x = _small(lambda: nn.Linear(4, 3)), noise(6, 4)
    ensemble = Ensemble.from_mutations(network, quads(4, 0.1, density=0.5, seed=0))
    ensemble(x)
    ensemble.members[1][0].weight.data.mul_(2)
    said = torch.stack([member(x) for member in ensemble.members])
    torch.testing.assert_close(ensemble.member_outputs(x), said)
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/ensemble.safetensors")
        again = Ensemble.load(f"{folder}/ensemble.safetensors", network)
        with pytest.raises(ValueError, match=r"can only be saved with all their weights"):
            ensemble.save(f"{folder}/recipe.safetensors", parent_weights=False)
    torch.testing.assert_close(again.member_outputs(x), said)


@case
def norms_estimated_anew():
    """The file holds them."""
    network = _small(lambda: nn.Linear(4, 4), lambda: nn.BatchNorm1d(4), lambda: nn.Linear(4, 3))
    ensemble = Ensemble.from_mutations(network, quads(4, 0.1, density=0.5, seed=0))
    for member in ensemble.members:
        reestimate_norms(member, [(noise(32, 4), torch.zeros(32))])
    ensemble.weights.copy_(torch.tensor([0.7, 0.1, 0.1, 0.1]))
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/ensemble.safetensors")
        again = Ensemble.load(f"{folder}/ensemble.safetensors", network)
    torch.testing.assert_close(again(noise(6, 4)), ensemble(noise(6, 4)))


@case
def members_as_recipes():
    """The same outputs from two copies of the weights."""
    network, x = _small(lambda: nn.Linear(4, 8), nn.Tanh, lambda: nn.Linear(8, 3)), noise(6, 4)
    mutations = quads(8, 0.1, density=0.5, seed=0)
    kept = Ensemble.from_mutations(network, mutations, resident=False)
    with torch.no_grad():
        expected = Ensemble.from_mutations(network, mutations)(x)
        assert torch.equal(kept(x), expected)
    assert sum(weight.numel() for weight in kept.parameters()) == 67
    with tempfile.TemporaryDirectory() as folder:
        kept.save(f"{folder}/ensemble.safetensors")
        with torch.no_grad():
            loaded = Ensemble.load(f"{folder}/ensemble.safetensors", network)
            assert torch.equal(loaded(x), expected)


class Remembering(nn.Module):
    """A GRU policy that goes on where the last call stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)
        self.hidden = None

    def forward(self, x):
        out, self.hidden = self.gru(x[:, None], self.hidden)
        return self.head(out[:, 0])


QUADS = quads(4, 0.1, density=0.5, seed=0)


def fitness_in_both_orders(module, fitness, mutations=QUADS):
    """The fitness of each child, evaluated in this order; fails where the order matters."""
    one = evaluate(module, mutations, fitness=fitness)
    other = evaluate(module, mutations[::-1], fitness=fitness)[::-1]
    assert [child.fitness for child in one] == [child.fitness for child in other]
    return one


def summed(model):
    with torch.no_grad():
        return model(noise(6, 4)).double().sum().item()


@case
def a_policy_that_remembers_has_children_that_begin_where_the_parent_is():
    """Fitness does not depend on the order of the children; sigma 1e-9 moves nothing."""
    module = built(Remembering)
    module(noise(6, 4, seed=1))  # has seen something, with gradients
    fitness_in_both_orders(module, summed)
    region = search_trust_region(module, noise(6, 4), search=Search(4, 2), sigmas=[1e-9])
    assert region.divergence < 1e-9
    ensemble = Ensemble.from_mutations(module, QUADS, resident=False)
    first = ensemble.member_outputs(noise(6, 4))
    assert torch.equal(ensemble.member_outputs(noise(6, 4)), first)


def spoilt(model, number):
    """Does one of many things that a fitness should not do, and comes back."""
    with torch.no_grad():
        match number % 14:
            case 0:
                model[0] = nn.Identity()
            case 1:
                model[0].bias = None
            case 2:
                model[0].register_forward_hook(lambda *_: torch.zeros(6, 3))
            case 3:
                model.half()
            case 4:
                model.register_buffer("more", torch.ones(1))
            case 5:
                model[1].running_mean = torch.ones(5)
            case 6:
                model.train().requires_grad_(False)
            case 7:
                model[0].forward = lambda x: x.new_zeros(6, 3)
            case 8:
                del model[1]
            case 9:
                model[0].__class__ = nn.Identity
            case 10:
                model[1].running_var.data = torch.ones(3).double()
            case 11:
                model.double()[0].weight.data.zero_()
            case 12:
                model.train()(noise(6, 4))  # moves the statistics


@case
def a_fitness_that_changes_its_model_changes_no_other_child():
    """Replaced layers, hooks, buffers, types, modes and attributes are one child's own."""
    module = built(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    ).eval()
    mutations = singles(15, 0.1, density=0.5, seed=0)
    expected = [child.fitness for child in evaluate(module, mutations, fitness=summed)]
    before = copied(module.state_dict())
    done = []

    def fitness(model):
        value = summed(model)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in
                   model.parameters())  # fmt: skip
        model(noise(6, 4)).sum().backward()
        done.append(None)
        spoilt(model, len(done))
        if len(done) % 3 == 0:
            raise RuntimeError("and fails")
        return value

    children = evaluate(module, mutations, fitness=fitness)
    for number, (child, value) in enumerate(zip(children, expected, strict=True), start=1):
        assert (child.reason, child.fitness) == (None, value) or number % 3 == 0
    assert sum(child.failed for child in children) == 5
    assert all_same_bits(copied(module.state_dict()), before)


class Growing(nn.Module):
    """Has another buffer, a longer one and a count after every call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(0))
        self.calls, self.kept = 0, [torch.zeros(3)]

    def forward(self, x):
        out = self.layer(x) * (1 + self.calls) + self.seen.sum() + self.kept[0]
        if not hasattr(self, "first"):
            self.register_buffer("first", out.detach())
        self.calls += 1
        self.kept[0] += 1
        self.kept.append(out)
        self.seen = torch.cat([self.seen, out.detach().mean()[None]])
        return out


@case
def buffers_that_appear_or_grow_do_not_end_a_generation():
    """Each child starts without them, and so does the trust region."""
    module = built(Growing)
    children = fitness_in_both_orders(module, summed)
    assert not any(child.failed for child in children)
    assert search_trust_region(module, noise(6, 4), search=Search(4, 2)).sigma > 0
    module(noise(6, 4))
    fitness_in_both_orders(module, summed)


def reestimated(module):
    with torch.random.fork_rng(devices=[]):  # Dropout draws
        torch.optim.swa_utils.update_bn([noise(9, 5)], module)


@case
def members_that_were_changed_are_saved_as_they_are():
    """Norms re-estimated, weights edited through `.data`, loaded, tuned; the weights buffer too."""
    changes = [
        lambda e: reestimated(e.members[1]),
        lambda e: e.members[0][0].weight.data.mul_(2),
        lambda e: e.members[2].load_state_dict(normalised(3).state_dict()),
        lambda e: e.members[3][0].bias.data.fill_(1),
        lambda e: e.members[1][1].num_batches_tracked.add_(1),
        lambda e: e.weights.copy_(torch.tensor([0.1, 0.7, 0.3, 0.0])),
        lambda e: e.members.__setitem__(0, normalised(5).eval()),
        lambda e: e.half().float(),
    ]
    for change in changes:
        ensemble = Ensemble.from_mutations(normalised(), QUADS)
        change(ensemble)
        ensemble.eval()
        loaded = saved_and_loaded(ensemble, normalised())
        assert all_same_bits(loaded.state_dict(), ensemble.state_dict())
        assert torch.equal(loaded(noise(6, 5)), ensemble(noise(6, 5)))
    plain = Ensemble.from_mutations(normalised(), QUADS)
    assert saved_and_loaded(plain, normalised()).recipe is not None
    changes[0](plain)
    with pytest.raises(ValueError, match="were changed since: they can only be saved with all"):
        plain.save("nowhere", parent_weights=False)


def saved_and_loaded(ensemble, module, **options):
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/e")
        return Ensemble.load(f"{folder}/e", module, **options)


def act(kind):
    return built(lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), kind(), nn.Flatten(),
                                       nn.Linear(512, 16)))  # fmt: skip


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body, self.scale = act(nn.ReLU), scale

    def forward(self, x):
        return self.scale * self.body(x)


def same_as_in_turn(members, x):
    """Side by side what they say in turn, more than once."""
    ensemble = Ensemble(members, side_by_side=True, outputs=Values())
    for _ in range(2):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            expected = torch.stack([member(x) for member in copy.deepcopy(ensemble).members])
            torch.manual_seed(0)
            torch.testing.assert_close(ensemble.member_outputs(x), expected, rtol=1e-4, atol=1e-4)


@case
def members_that_may_go_side_by_side_do():
    """Where there are two threads: of torch's layers, and of code that was tried."""
    x = noise(64, 3, 8, 8)
    for members in ([act(nn.ReLU) for _ in range(4)], [Scaled(2.0) for _ in range(4)]):
        ensemble = Ensemble(members, side_by_side=True)
        with torch.no_grad():
            found = engines.ask_members(ensemble.members, (x,))
        assert (found is not None) == (torch.get_num_threads() > 1 and engines.turned_on())


@case
def members_of_other_code_or_attributes_say_what_they_say():
    """Each member's own activation and its own plain attribute, side by side."""
    x = noise(64, 3, 8, 8)
    same_as_in_turn([act(nn.ReLU), act(nn.Tanh), act(nn.GELU), act(nn.Sigmoid)], x)
    same_as_in_turn([Scaled(scale) for scale in (1.0, 2.0, -1.0, 0.0)], x)


@case
def weights_edited_through_data_answer_at_once():
    """After a first call, side by side and as recipes; replaced layers and new hooks as well."""
    x = noise(64, 3, 8, 8)
    members = [act(nn.ReLU) for _ in range(4)]
    same_as_in_turn(members, x)
    members[0][0].weight.data.mul_(2)
    same_as_in_turn(members, x)
    ensemble = Ensemble(members, side_by_side=True)
    with torch.no_grad():
        for change in (
            lambda: members[1].__setitem__(1, nn.Softmax(dim=0).eval()),
            lambda: members[1].__setitem__(1, nn.ReLU().eval()),
            lambda: members[2].register_forward_hook(lambda module, inputs, out: out + out.mean(0)),
        ):
            ensemble(x)
            change()
            expected = torch.stack([member(x) for member in members])
            torch.testing.assert_close(ensemble.member_outputs(x), expected)


@case
def recurrent_layers_that_begin_to_mix_rows_say_what_they_say():
    """Time comes first: rows mix from when the weights say so, as after an edit through `.data`."""
    members = [built(lambda: Rows(time_first(lambda: nn.RNN(10, 10))()), seed) for seed in range(4)]
    for member in members:
        member.then.layer.weight_hh_l0.data.zero_()
    same_as_in_turn(members, noise(64, 3, 8, 8))
    for member in members:
        member.then.layer.weight_hh_l0.data.fill_(0.5)
    same_as_in_turn(members, noise(64, 3, 8, 8))


@case
def tied_weights_stay_tied_everywhere():
    """In members, kept or resident, in files, and side by side."""
    for resident in (True, False):
        ensemble = Ensemble.from_mutations(tied(), QUADS, resident=resident)
        loaded = saved_and_loaded(ensemble, tied(3), restore=True, resident=resident)
        assert torch.equal(loaded(noise(6, 5)), ensemble(noise(6, 5)))
    whole = saved_and_loaded(Ensemble([tied(0), tied(1)]), tied(3))
    assert all(member.second.weight is member.first.weight for member in whole.members)
    apart = tied(1)
    apart.second.weight = nn.Parameter(noise(5, 5))
    with pytest.raises(ValueError, match=r"two weights for first\.weight and second"):
        saved_and_loaded(Ensemble([apart]), tied())


@case
@torch.no_grad()
def parametrized_convolutions_have_children():
    """weight_norm and spectral_norm, of today and of before, and torch.nn.utils.prune."""
    new, old = nn.utils.parametrizations, nn.utils
    x = noise(40, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for wrap in (
            new.weight_norm, new.spectral_norm, old.weight_norm, old.spectral_norm,
            lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        ):  # fmt: skip
            module = built(lambda wrap=wrap: nn.Sequential(
                wrap(nn.Conv2d(3, 32, 3)), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(1152, 3))
            ))  # fmt: skip
            with torch.random.fork_rng(devices=[]):
                torch.enable_grad()(module)(x)  # leaves tensors with a history
            module.eval()
            ensemble = Ensemble.from_mutations(module, QUADS)
            assert (ensemble.member_outputs(x) != module(x)).any(dim=-1).all()
            kept = Ensemble.from_mutations(module, QUADS, resident=False)
            assert torch.equal(kept(x), ensemble(x))
            loaded = saved_and_loaded(ensemble, module)
            assert torch.equal(loaded(x), ensemble(x))
            same_as_in_turn(list(ensemble.members), x)
            assert search_trust_region(module, x, search=Search(4, 2)).sigma > 0


class WithState(nn.Module):
    def __init__(self, state) -> None:
        super().__init__()
        self.layer, self.state = nn.Linear(4, 3), state

    def forward(self, x):
        return self.layer(x)

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


@case
def extra_state_is_kept_or_named():
    """JSON and tensors go through files; what is neither is named, and needs no file."""
    for state in ({"version": 2, "names": ["a"]}, torch.ones(3), None, "text"):
        module = built(lambda state=state: WithState(state))
        loaded = saved_and_loaded(Ensemble.from_mutations(module, QUADS), module)
        assert (loaded.members[0].state == state) is not False
        whole = saved_and_loaded(Ensemble([module]), built(lambda: WithState({})))
        assert whole.members[0].state == state if not torch.is_tensor(state) else True
        assert len(evolve(module, summed, search=Search(4, 2, 0.1)).elites) == 2
    odd = built(lambda: WithState({1, 2}))
    ensemble = Ensemble.from_mutations(odd, QUADS)
    with pytest.raises(ValueError, match="_extra_state is neither a tensor nor JSON"):
        ensemble.save("nowhere")


class Holding(nn.Module):
    def __init__(self, held) -> None:
        super().__init__()
        self.layer, self.held = nn.Linear(4, 3), held

    def forward(self, x):
        return self.layer(x)


@case
def what_cannot_be_copied_is_named():
    """A lock, a file, a generator function, a closure over the module, sparse or lazy weights."""
    closure = built(lambda: Holding(None))
    closure.held = lambda: closure.layer.weight
    cached, hooked = built(lambda: Holding(None)), built(lambda: Holding([]))
    cached.held = functools.lru_cache(lambda: cached.layer.weight.sum())
    hooked.layer.register_forward_hook(lambda layer, inputs, out: hooked.held.append(out))
    sparse = built(lambda: Holding(None))
    sparse.layer.weight = nn.Parameter(sparse.layer.weight.detach().to_sparse())
    with open(__file__) as file:
        for inner, message in [
            (built(lambda: Holding(threading.Lock())), "held of layer 1 .Holding., a lock, cannot"),
            (built(lambda: Holding({"log": [file]})), "held of layer 1 .Holding., a dict, cannot"),
            (built(lambda: Holding(iter(x for x in ()))), "a generator, cannot be copied"),
            (closure, "held of layer 1 .Holding. is or has a function that holds the"),
            (cached, "held of layer 1 .Holding. is or has a function that holds the module"),
            (hooked, "_forward_hooks of layer 1.layer .Linear. is or has a function"),
            (sparse, r"weight of layer 1.layer .Linear. is torch.sparse_coo.*to_dense"),
            (nn.LazyLinear(3), "layer 1 .LazyLinear. does not know its shape yet"),
        ]:
            module = nn.Sequential(built(lambda: nn.Linear(4, 4)), inner)
            refused_everywhere(module, message, include=["0.weight"])


def refused_everywhere(module, message, include=None):
    with pytest.raises(ValueError, match=message):
        Ensemble.from_mutations(module, QUADS, include=include)
    with pytest.raises(ValueError, match=message):
        Ensemble.from_mutations(module, QUADS, include=include, resident=False)
    with pytest.raises(ValueError, match=message):
        evaluate(module, QUADS, fitness=summed, include=include)
    with pytest.raises(ValueError, match=message):
        search_trust_region(module, noise(6, 4), search=Search(4, 2, include=include))


@case
def weights_without_values_or_precision_are_named():
    """Quantized layers, the meta device, float8, and weights that are not finite."""
    for value in (torch.inf, -torch.inf, torch.nan):
        module = built(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)))
        module[1].weight.data[1, 2] = value
        refused_everywhere(module, "1.weight of the parent is not finite")
    refused_everywhere(nn.Linear(4, 3, device="meta"), "weight of the Linear is on the meta device")
    coarse = built(lambda: nn.Linear(4, 3)).requires_grad_(False)
    coarse.weight.data = coarse.weight.data.to(torch.float8_e4m3fn)
    refused_everywhere(coarse, "weight is torch.float8_e4m3fn, which is too coarse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(
            built(lambda: nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 3, 1))), {nn.Linear}
        )
    refused_everywhere(quantized, "layer 0 .Linear. is quantized")


@case
def files_go_from_one_precision_to_another():
    """Members are rounded to the module's types; without restore the type is named."""
    ensemble = Ensemble.from_mutations(mlp(), QUADS)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        loaded = saved_and_loaded(ensemble, mlp(3).to(dtype), restore=True)
        for member, original in zip(loaded.members, ensemble.members, strict=True):
            rounded = copy.deepcopy(original).to(dtype)
            assert all_same_bits(member.state_dict(), rounded.state_dict())
        again = saved_and_loaded(loaded, mlp().to(dtype))
        assert all_same_bits(again.state_dict(), loaded.state_dict())
        whole = saved_and_loaded(Ensemble([mlp(1).to(dtype)]), mlp(2))
        assert all_same_bits(whole.members[0].state_dict(), mlp(1).to(dtype).float().state_dict())
        with pytest.raises(ValueError, match=f"weight is torch.float32 there and {dtype} in this"):
            saved_and_loaded(ensemble, mlp().to(dtype))
        with pytest.raises(ValueError, match=rf"torch.float32 there and {dtype}.*resident=True"):
            saved_and_loaded(ensemble, mlp().to(dtype), restore=True, resident=False)


@case
def members_of_several_architectures_save_and_load():
    """One module for each member; another number, or one for all, is said in a sentence."""
    wide = built(lambda: nn.Linear(5, 3), 1)
    ensemble = Ensemble([mlp(), wide, normalised()], weights=[1, 2, 3])
    loaded = saved_and_loaded(ensemble, [mlp(1), copy.deepcopy(wide), normalised(2)])
    assert torch.equal(loaded(noise(6, 5)), ensemble(noise(6, 5)))
    with pytest.raises(ValueError, match=r"member 2; members of several need a module for each"):
        saved_and_loaded(ensemble, mlp())
    with pytest.raises(ValueError, match="holds 3 members: give one module for all, or one for"):
        saved_and_loaded(ensemble, [mlp(), wide])
    with pytest.raises(ValueError, match=r"another architecture.*member 1"):
        saved_and_loaded(ensemble, [wide, mlp(), normalised()])
    with pytest.raises(ValueError, match="mutations of one parent: give that one module, got 2"):
        saved_and_loaded(Ensemble.from_mutations(mlp(), QUADS), [mlp(), mlp()])
    with pytest.raises(ValueError, match="holds members with all their weights, no recipes"):
        saved_and_loaded(ensemble, mlp(), resident=False)


@case
def interrupts_pass_through():
    """KeyboardInterrupt and its kin end an evaluation; on workers: tests/workers."""
    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):

        def fitness(model, kind=kind):
            raise kind("enough")

        with pytest.raises(kind, match="enough"):
            evaluate(mlp(), QUADS, fitness=fitness)


class Rows(nn.Module):
    """Any code over a convolution, so that members are worth a thread each."""

    def __init__(self, then) -> None:
        super().__init__()
        self.convolution, self.then = nn.Conv2d(3, 8, 3), then
        self.more = nn.Parameter(torch.zeros(10_000))  # to be worth threads

    def forward(self, x):
        return self.then(self.convolution(x).flatten(1)[:, :40])


class Code(nn.Module):
    def __init__(self, code) -> None:
        super().__init__()
        self.code, self.count, self.last = code, 0, None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        return self.code(self, x)


def counting(self, x):
    self.count += 1
    return x + self.count


def buffering(self, x):
    self.calls += 1
    return x + self.calls


def remembering(self, x):
    last, self.last = self.last, x
    return x if last is None else x + last.mean()


def time_first(make):
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = make()

        def forward(self, x):
            x = x.reshape(len(x), 4, 10)
            out = self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else (
                self.layer(x))  # fmt: skip
            return out[0] if isinstance(out, tuple) else out

    return Last


MIXING = [
    lambda: nn.BatchNorm1d(40, track_running_stats=False),
    lambda: nn.Softmax(dim=0),
    lambda: nn.Sequential(
        nn.Unflatten(1, (10, 2, 2)), nn.BatchNorm2d(10, track_running_stats=False)
    ),
    *(time_first(lambda make=make: make(10, 10)) for make in (nn.LSTM, nn.GRU, nn.RNN)),
    time_first(lambda: nn.MultiheadAttention(10, 2)),
    time_first(lambda: nn.TransformerEncoderLayer(10, 2, 16)),
    time_first(lambda: nn.LSTM(10, 10, batch_first=True)),
    time_first(lambda: nn.TransformerEncoderLayer(10, 2, 16, batch_first=True)),
    *(
        lambda code=code: Code(code)
        for code in (
            lambda self, x: x - x.mean(0),
            lambda self, x: x * len(x),
            lambda self, x: x.flip(0),
            lambda self, x: x.cumsum(0),
            lambda self, x: x + torch.randn(40),
            lambda self, x: nn.functional.dropout(x, 0.5),
            lambda self, x: x.softmax(-1) @ self.calls.new_ones(40, 3),
            lambda self, x: x if len(x) == 64 else -x,
            counting, buffering, remembering,
        )
    ),
    lambda: nn.utils.parametrizations.weight_norm(nn.Linear(40, 3)),
]  # fmt: skip


def keeping(self, x):
    self.last = x
    return x


@case
def members_that_keep_what_they_see_keep_all_of_it():
    """Features in an attribute are those of the whole batch, as in turn."""
    members = [built(lambda: Rows(Code(keeping)), seed) for seed in range(4)]
    ensemble = Ensemble(members, side_by_side=True)
    with torch.no_grad():
        ensemble(noise(64, 3, 8, 8))
    assert all(member.then.last.shape == (64, 40) for member in members)


@case
def members_say_side_by_side_what_they_say_in_turn():
    """Whatever they are: batch statistics, time-first layers, state, random numbers, own code."""
    x = noise(64, 3, 8, 8)
    for make in MIXING:
        members = [built(lambda make=make: Rows(make()), seed).eval() for seed in range(4)]
        same_as_in_turn(members, x)
        data = [(batch, torch.zeros(16)) for batch in x.split(16)]
        with torch.random.fork_rng(devices=[]):
            ensembles = [Ensemble(copy.deepcopy(members), outputs=Values()) for _ in range(2)]
            torch.manual_seed(0)
            expected = predict_members(ensembles[0], data)
            torch.manual_seed(0)
            found = predict_members(ensembles[1], data, side_by_side=True)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- What is a weight ---------------------------------------------------------------------------


class HeadFirst(nn.Module):
    """(batch, 5) to (batch, 3), whose head is registered before its body."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Linear(5, 8)

    def forward(self, x):
        return self.head(self.body(x).relu())


class Untraceable(HeadFirst):
    """torch.fx cannot follow it."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class GPT(nn.Module):
    """(batch, time) tokens to (batch, 11) logits of the next one; the head is the embedding."""

    def __init__(self):
        super().__init__()
        self.token_embedding = nn.Embedding(11, 8, padding_idx=0)
        self.positions = nn.Embedding(6, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.token_embedding.weight

    def forward(self, tokens):
        x = self.token_embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.head(self.norm(self.block(x))[:, -1])


class WithLora(nn.Module):
    """A frozen linear layer and what is trained beside it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(5, 3).requires_grad_(False)
        self.lora_A = nn.Parameter(noise(2, 5))
        self.lora_B = nn.Parameter(torch.zeros(3, 2))

    def forward(self, x):
        return self.base(x) + x @ self.lora_A.t() @ self.lora_B.t()


def moved(module, **options):
    """The names of the parameters that a mutation moves, everywhere the same."""
    parent = parameters(module)
    mutation = Mutation(3, 0.01, 0.0, 1.0)
    child = materialize(parent, mutation, **options)
    member = parameters(Ensemble.from_mutations(module, [mutation], **options).members[0])
    seen = []

    def fitness(model):
        seen.append(copied(parameters(model)))
        return 0.0

    evaluate(module, [mutation], fitness=fitness, **options)
    for other in (member, seen[0]):
        assert all(torch.equal(other[name], child[name]) for name in parent)
    return {name for name in parent if not torch.equal(child[name], parent[name])}


def revived(parent, child):
    """How many zeros of the parent are none in the child."""
    params = parameters(child)
    return sum(
        int(((weight == 0) & (params[name] != 0)).sum())
        for name, weight in parameters(parent).items()
    )


def sparse():
    """An mlp of which torch.nn.utils.prune removed half, and a unit of each layer altogether."""
    module = mlp()
    for layer in (module[0], module[2]):
        torch.nn.utils.prune.random_unstructured(layer, "weight", 0.5)
        torch.nn.utils.prune.remove(layer, "weight")
        layer.weight.data[0] = 0.0
    return module


@case
def zeros_of_a_sparse_parent_stay_zero_in_mutations():
    """What is zero stays zero in children, in ensembles and in their files; Whole lets it grow."""
    parent = built(sparse)
    mutations = quads(4, 0.1, density=0.5, seed=0)
    ensemble = Ensemble.from_mutations(parent, mutations)
    assert all(revived(parent, member) == 0 for member in ensemble.members)
    everything = Whole(parameters(parent).weights)
    free = Ensemble.from_mutations(parent, mutations, include=everything)
    assert all(revived(parent, member) > 0 for member in free.members)
    with tempfile.TemporaryDirectory() as folder:
        for one in (ensemble, free):
            one.save(f"{folder}/file")
            again = Ensemble.load(f"{folder}/file", parent)
            assert torch.equal(again(noise(4, 5)), one(noise(4, 5)))


@case
def zeros_of_a_sparse_parent_stay_zero_in_tuning():
    """Children of a sparse parent that are tuned grow nothing back, in the classifier neither."""
    parent = built(sparse)
    task = Task([(noise(8, 5), torch.arange(8) % 3)])
    for structure in ("connections", "neurons"):
        pruning = Pruning("halves", structure=structure)
        for child in Sparse(2, pruning, Tuning(2))(parent, task).ensemble.members:
            assert revived(parent, child) == 0
    for start in ("temperature", "iterative", "one-shot"):
        annealing = Annealing(start, 1) if start != "one-shot" else Annealing(start)
        for child in Stochastic(2, annealing, tuning=Tuning(2))(parent, task).ensemble.members:
            assert revived(parent, child) == 0


@case
def a_weight_that_is_zero_altogether_is_no_sparse_one():
    """LoRA's second matrix, zero convolutions: noise moves them."""
    module = built(WithLora)
    assert moved(module) == {"lora_A", "lora_B"}


@case
def the_head_may_be_registered_first():
    """The body is pruned, the head that makes the output is spared."""
    for make in (HeadFirst, Untraceable):
        module, inputs = built(make), noise(1, 5)
        assert classifier(module, inputs) == ["head.weight"]
        pruning = Pruning("halves")
        masks = pruning.masks(module, pruning.subnetworks(2, 0)[0], inputs=inputs)
        assert list(masks) == ["body.weight"]


@case
def a_network_with_two_heads_has_two_classifiers():
    """Actions and values of a policy are both outputs."""

    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.actions, self.value = nn.Linear(8, 3), nn.Linear(8, 1)
            self.body = nn.Linear(5, 8)

        def forward(self, x):
            x = self.body(x).relu()
            return {"actions": self.actions(x), "value": self.value(x)}

    class Branching(Policy):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    for make in (Policy, Branching):
        found = classifier(built(make), noise(1, 5))
        assert sorted(found) == ["actions.weight", "value.weight"]


@case
def a_classifier_may_be_a_convolution():
    """SqueezeNet's kind: the last 1x1 convolution is spared."""
    module = built(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
    )
    assert classifier(module) == ["2.weight"]
    task = Task([(noise(4, 1, 8, 8), torch.arange(4) % 3)])
    for child in Sparse(2, tuning=Tuning(1))(module, task).ensemble.members:
        assert (child[2].weight != 0).all()
        assert (child[0].weight == 0).any()


@case
def a_network_without_a_classifier_names_the_option():
    """Where it cannot be found, the message says classifier=True."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, x):
            return x * self.scale

    with pytest.raises(
        ValueError, match=r"Scaled with weights leads to its output.*classifier=True"
    ):
        classifier(Scaled())
    with pytest.raises(ValueError, match=r"cannot trace Untraceable .*inputs, or classifier=True"):
        classifier(built(Untraceable))
    pruning = Pruning("halves", classifier=True)
    assert len(pruning.masks(built(Untraceable), pruning.subnetworks(2, 0)[0])) == 2


@case
def norms_scales_positions_tokens_and_padding_are_no_weights():
    """Noise moves the weights of layers, and nothing else, whatever its shape."""

    class RMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 8))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.own_norm = nn.LayerNorm((4, 8)), RMSNorm()
            self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
            self.gamma = nn.Parameter(torch.ones(2, 8))
            self.pos_embedding = nn.Parameter(noise(1, 4, 8))
            self.positional_embedding = nn.Parameter(noise(4, 8))
            self.class_token, self.register_tokens = (nn.Parameter(noise(1, n, 8)) for n in (1, 4))
            self.relative_position_bias_table = nn.Parameter(noise(9, 2))
            self.position_embeddings = nn.Embedding(4, 8)
            self.words = nn.Embedding(6, 8, padding_idx=0)
            self.bag = nn.EmbeddingBag(6, 8, padding_idx=2)
            self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
            self.other = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
            self.recurrent, self.cell = nn.LSTM(8, 4, proj_size=2), nn.GRUCell(4, 4)
            self.up, self.pair = nn.ConvTranspose2d(2, 2, 2), nn.Bilinear(2, 2, 1)
            self.slope, self.one = nn.PReLU(4), nn.Linear(8, 1)

    module = built(Block)
    layers = ["words", "bag", "up", "pair", "one"]
    attention = ("in_proj_weight", "out_proj.weight")
    apart = ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
    expected = {f"{name}.weight" for name in layers}
    expected |= {f"attention.{name}" for name in attention} | {f"other.{name}" for name in apart}
    expected |= {f"recurrent.weight_{name}_l0" for name in ("ih", "hh", "hr")}
    expected |= {"cell.weight_ih", "cell.weight_hh"}
    assert moved(module) == expected
    module.bag.weight.data[2] = 1.0  # a padding row that is not zero stays as well
    child = materialize(parameters(module), Mutation(0, 0.1, 0.0, 1.0))
    for table, row in (("words", 0), ("bag", 2)):
        same = (child[f"{table}.weight"] == getattr(module, table).weight).all(dim=1)
        assert same.tolist() == [index == row for index in range(6)]


@case
def hand_written_layers_have_weights():
    """A bare matrix that a layer multiplies by is a weight; a convolution's of one channel too."""

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(noise(1, 5))
            self.kernel = nn.Parameter(noise(1, 2, 3, 3))
            self.experts = nn.ParameterList([nn.Parameter(noise(4, 5))])
            self.W = nn.Parameter(noise(3, 4, 5))
            self.bias, self.logit_scale = nn.Parameter(noise(3, 4)), nn.Parameter(noise(3, 1, 1))

    assert moved(Own()) == {"weight", "kernel", "experts.0", "W"}
    assert moved(Own(), include=["logit_scale"]) == {"logit_scale"}


@case
def parametrized_weights_are_their_layers():
    """Weight norm's directions are weights, their lengths are not, in both of torch's versions."""
    parametrized = nn.utils.parametrizations
    module = built(
        lambda: nn.Sequential(
            parametrized.weight_norm(nn.Linear(5, 4)), parametrized.spectral_norm(nn.Linear(4, 3))
        )
    )
    weights = [f"{i}.parametrizations.weight.original{end}" for i, end in ((0, "1"), (1, ""))]
    assert list(parameters(module).weights) == weights
    assert classifier(module) == weights[1:]
    masked = built(lambda: nn.utils.prune.random_unstructured(nn.Linear(4, 3), "weight", 0.5))
    assert parameters(masked).weights == ("weight_orig",)


@case
def frozen_parameters_are_left_alone_unless_named():
    """LoRA's matrices move, its base does not; a model that is frozen altogether moves."""
    module = built(WithLora)
    assert moved(module) == {"lora_A", "lora_B"}
    assert moved(module, include=["base.weight"]) == {"base.weight"}
    assert moved(mlp().requires_grad_(False)) == {"0.weight", "2.weight"}
    probe = mlp()
    probe[0].requires_grad_(False)
    assert moved(probe) == {"2.weight"}
    for name, parameter in probe.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    with pytest.raises(ValueError, match=r"not frozen beside .* with include"):
        materialize(parameters(probe), Mutation(0, 0.1, 0.0, 1.0))


@case
def tied_parameters_are_one():
    """Tied by name or by memory alone, in a child they are tied too."""
    by_memory = tied()
    by_memory.second.weight = nn.Parameter(by_memory.first.weight.data)
    transposed = tied()
    transposed.second.weight = nn.Parameter(transposed.first.weight.data.t())
    for module, also in (
        (tied(), set()),
        *((m, {"second.weight"}) for m in (by_memory, transposed)),
    ):
        assert moved(module) == {"first.weight"} | also
        child = materialize(parameters(module), Mutation(0, 0.1, 0.0, 1.0))
        if also:
            second = child["second.weight"]
            second = second.t() if module is transposed else second
            assert torch.equal(child["first.weight"], second)
        mutations = quads(4, 0.1, density=0.5, seed=0)
        member = Ensemble.from_mutations(module, mutations[:1]).members[0]
        child = materialize(parameters(module), mutations[0])
        x = noise(3, 5)
        assert torch.equal(torch.func.functional_call(module, dict(child), (x,)), member(x))


@case
def a_tied_gpt_goes_all_the_way():
    """Trust region, evolution, file, sparse children: the embedding is the classifier, and one."""
    module = built(GPT).eval()
    assert "positions.weight" not in parameters(module).weights
    assert classifier(module) == ["token_embedding.weight"]
    tokens = torch.tensor([[1, 2, 3], [4, 5, 0], [7, 0, 0]])
    region = search_trust_region(module, tokens, search=Search(4, 2))
    assert abs(region.divergence - 0.02) <= 0.002
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        evolution = evolve(
            module, lambda model: float(model(tokens)[:, 1].sum()), search=region.search
        )
        ensemble = evolution.ensemble
        for member in ensemble.members:
            assert member.head.weight is member.token_embedding.weight
            assert torch.equal(member.head.weight[0], module.head.weight[0])
        ensemble.save(f"{folder}/file")
        again = Ensemble.load(f"{folder}/file", module)
        assert torch.equal(again(tokens), ensemble(tokens))
    task = Task([(tokens, torch.tensor([4, 1, 2]))])
    for whole in (False, True):
        pruning = Pruning("halves", classifier=whole)
        for child in Sparse(2, pruning, Tuning(1))(module, task).ensemble.members:
            assert child.head.weight is child.token_embedding.weight
            assert (child.head.weight[1:] == 0).any() == whole
            assert (child.block.linear1.weight == 0).any()
    with pytest.raises(ValueError, match=r"no layer's neurons can be|cannot trace GPT"):
        compacted(module)


@case
def wrappers_do_not_change_names():
    """Of torch.compile and DataParallel, inside and outside: the same child, the same file."""
    plain, mutation, x = mlp().eval(), Mutation(3, 0.1, 0.0, 0.5), noise(4, 5)
    child = materialize(parameters(plain), mutation)
    inside = copy.deepcopy(plain)
    inside[0] = nn.DataParallel(inside[0])
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    wrapped = [compiled, nn.DataParallel(copy.deepcopy(plain)), inside, nn.DataParallel(compiled)]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        bare = Ensemble.from_mutations(plain, [mutation])
        bare.save(f"{folder}/bare")
        for module in wrapped:
            again = materialize(parameters(module), mutation)
            assert all_same_bits(dict(again), dict(child))
            assert list(again) == list(child)
            ensemble = Ensemble.from_mutations(module, [mutation])
            assert torch.allclose(ensemble(x), bare(x))
            ensemble.save(f"{folder}/wrapped")
            for file in ("bare", "wrapped"):
                for onto in (module, plain):
                    for restore in (False, True):
                        loaded = Ensemble.load(f"{folder}/{file}", onto, restore=restore)
                        assert torch.allclose(loaded(x), bare(x))
            found = search_trust_region(module, x, search=Search(4, 2))
            assert found.search == search_trust_region(plain, x, search=Search(4, 2)).search
            assert classifier(module) == ["2.weight"]


@case
def a_layer_that_lost_all_neurons_can_be_compacted():
    """Narrow ones, as of squeeze and excitation in EfficientNet: one silent neuron stays."""

    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 1)
            self.squeeze, self.excite = nn.Conv2d(8, 1, 1), nn.Conv2d(1, 8, 1)

        def forward(self, x):
            x = self.first(x).relu()
            return self.last(x + self.excite(self.squeeze(x).relu())).flatten(1)

    parent, pruning = built(Squeezed).eval(), Pruning("halves", structure="neurons")
    for subnetwork in pruning.subnetworks(2, 0):
        child = copy.deepcopy(parent)
        Pruned(child, pruning.masks(parent, subnetwork))
        small = compacted(child)
        assert small.first.out_channels < 8
        assert small.squeeze.out_channels == 1
        x = noise(4, 2, 3, 3)
        assert torch.allclose(small(x), child(x), atol=1e-6)


@case
def a_deep_network_of_small_weights_has_a_trust_region():
    """Forty layers scaled by 0.3: within a tenth of the target, after more bisections."""
    module = built(lambda: nn.Sequential(*[nn.Linear(16, 16) for _ in range(40)]))
    with torch.no_grad():
        for layer in module:
            layer.weight.mul_(0.3)
    region = search_trust_region(module, noise(16, 16), search=Search(4, 2))
    assert abs(region.divergence - 0.02) <= 0.002


@case
def a_trust_region_that_cannot_be_had_says_why():
    """Dead outputs, random outputs, steps in half precision, infinite weights: one sentence."""

    class Dead(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu() * 0.0 + x

    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(x.shape, generator=generator) * 9

    class Steps(nn.Linear):
        def forward(self, x):
            return (super().forward(x) * 0.02).round() * 99

    generator = torch.Generator().manual_seed(0)
    x = noise(6, 4)
    for make, why in (
        (Dead, "no sigma reaches a divergence of 0.02, the largest is 0"),
        (Noisy, "even sigma .* draw random numbers"),
        (Steps, "no sigma gives a divergence of 0.02: it is 0 at sigma"),
    ):
        with pytest.raises(ValueError, match=why):
            search_trust_region(built(lambda make=make: make(4, 4)), x, search=Search(4, 2))
    broken = mlp()
    broken[2].weight.data[0, 0] = math.inf
    with pytest.raises(ValueError, match=r"2\.weight of the parent is not finite"):
        search_trust_region(broken, noise(6, 5))


# --- Simulators, agents, folders of pictures, devices, seeds ------------------------------------


def agent_of(policy="MlpPolicy", **options) -> PPO:
    env = make_vec_env("CartPole-v1", 1, seed=0)
    env.close()
    return unseeded(lambda: PPO(policy, env, n_steps=8, batch_size=8, device="cpu", **options))


def refuses_agent(agent, why):
    with pytest.raises(ValueError, match=why):
        Actor.from_agent(agent)


@case
def simulator_options_that_end_the_process():
    """Each is refused by its name."""
    for options, name in (
        ({"seed": 1.5}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": math.nan}, "seed"),
        ({"num_threads": -1}, "num_threads"),
        ({"num_threads": 2.0}, "num_threads"),
        ({"num_threads": 10**6}, "num_threads"),
        ({"frame_stack": True}, "frame_stack"),
        ({"levels": (0, 5)}, "levels"),
        ({"levels": None}, "levels"),
        ({"mode": ["easy"]}, "mode"),
        ({"high_resolution": "no"}, "high_resolution"),
    ):
        with pytest.raises(ValueError, match=name):
            ProcgenSimulator("maze", 2, **options)
    for count in (0, 10**9, 2.0, "2", None):
        with pytest.raises(ValueError, match="num_envs"):
            ProcgenSimulator("maze", count)
    for levels in ((0.0, 5), (0, 5.0), (0, True), (np.float64(1), 2), (-1, 5), (0, 2**31)):
        with pytest.raises(ValueError, match="levels"):
            Levels(*levels)


@case
def numpy_integers_for_a_simulator():
    """They are integers, wherever one is asked for."""
    plain = ProcgenSimulator("maze", 2, seed=3, levels=Levels(5, 7), num_threads=1)
    other = ProcgenSimulator(
        "maze", np.int32(2), seed=np.int64(3), levels=Levels(np.uint8(5), np.int16(7)),
        num_threads=np.int8(1),
    )  # fmt: skip
    assert np.array_equal(plain.observation, other.observation)
    assert np.array_equal(plain.reset(4), other.reset(np.uint64(4)))
    vector = ProcgenVectorEnv(other)
    assert np.array_equal(plain.reset(5), vector.reset(seed=np.int64(5))[0])
    assert np.array_equal(plain.step([1, 2])[0], vector.step(np.array([1, 2], np.uint8))[0])
    plain.close(), other.close()


@case
def states_of_another_game():
    """Refused, as are those of another mode or frame stack and damaged ones; nothing changes."""
    env = ProcgenSimulator("maze", 1)
    (own,) = env.get_state()
    for game, options, why in (
        ("heist", {}, "plays maze in mode easy, the state is of heist"),
        ("maze", {"mode": "hard"}, "of maze in mode hard"),
        ("maze", {"frame_stack": 3}, "frame stacks must be the same"),
    ):
        other = ProcgenSimulator(game, 1, **options)
        with pytest.raises(ValueError, match=why):
            env.set_state(other.get_state())
        other.close()
    for wrong in (
        own._replace(simulator=own.simulator[:-9]),
        own._replace(simulator=own.simulator.replace(b"maze", b"mazy")),
        own._replace(elapsed=1.5),
        own._replace(frames=own.frames[..., 0]),
        own.simulator,
        None,
    ):
        with pytest.raises(ValueError, match=r"damaged|elapsed|frames|states of get_state"):
            env.set_state([wrong])
    assert env.get_state()[0].simulator == own.simulator
    env.close()


@case
def actions_that_there_are_none_of():
    """Refused, whatever the interface; lists and tensors of integers are actions."""
    env = ProcgenSimulator("maze", 2)
    for step in (env.step, ProcgenVectorEnv(env).step, ProcgenVecEnv(env).step):
        for wrong in ([0, 15], [-2, 0], [-1, 0], [1.5, 0], [1.0, 0], [True, False], ["1", "2"],
                      [math.nan, 0], [0], [[0, 1]], [[0], [1, 2]], None, [2**40, 0]):  # fmt: skip
            with pytest.raises(ValueError, match="actions"):
                step(wrong)
        step([0, 14]), step(torch.tensor([3, 4])), step(np.array([1, 2], np.uint8))
    env.close()


@case
def resets_of_some_environments():
    """Procgen has none: options are refused, an empty dictionary is none."""
    env = ProcgenSimulator("maze", 2)
    vector, vec_env = ProcgenVectorEnv(env), ProcgenVecEnv(env)
    for options in ({"reset_mask": np.array([True, False])}, {"level": 3}):
        for reset in (lambda given: vector.reset(options=given), vec_env.set_options):
            with pytest.raises(ValueError, match="Procgen has no reset options"):
                reset(options)
    vector.reset(options={}), vec_env.set_options({})
    for seed in ([1, 2], np.array([1, 2]), 1.5, "1"):
        with pytest.raises(ValueError, match="seed"):
            vector.reset(seed=seed)
    env.close()


@case
def copies_of_a_simulator():
    """They go on from where it is, and neither moves the other."""
    env = ProcgenSimulator("bossfight", 2, seed=1)
    env.step([1, 2])
    for make in (lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy, copy.copy):
        other, before = make(env), env.observation
        there = other.step([7, 8]).observation
        assert np.array_equal(env.observation, before)
        assert np.array_equal(env.step([7, 8]).observation, there)
        other.close()
    env.close()


@case
def policies_that_act_by_methods_of_their_own():
    """Refused by the method's name: the actor would drop it."""

    class Cooler(ActorCriticPolicy):
        def _get_action_dist_from_latent(self, latent_pi):
            return self.action_dist.proba_distribution(action_logits=self.action_net(latent_pi) / 2)

    class Masked(ActorCriticPolicy):
        def get_distribution(self, obs):
            found = super().get_distribution(obs)
            return found.proba_distribution(found.distribution.logits.clamp(min=-1))

    class Clever(ActorCriticPolicy):
        def _predict(self, observation, deterministic=False):
            return super()._predict(observation, deterministic=True)

        def forward(self, obs, deterministic=False):
            return super().forward(obs, deterministic=True)

    class Scaled(ActorCriticPolicy):
        def extract_features(self, obs, features_extractor=None):
            return super().extract_features(obs / 10, features_extractor)

    class Trained(ActorCriticPolicy):
        """Other losses: it acts as stable-baselines3's do."""

        def evaluate_actions(self, obs, actions):
            return super().evaluate_actions(obs, actions)

    refuses_agent(agent_of(Cooler), "_get_action_dist_from_latent of this agent's Cooler")
    refuses_agent(agent_of(Masked), "would leave out get_distribution")
    refuses_agent(agent_of(Clever), "would leave out _predict, forward of")
    refuses_agent(agent_of(Scaled), "would leave out extract_features")
    Actor.from_agent(agent_of(Trained))


@case
def agents_whose_parts_act_by_methods_of_their_own():
    """Refused as well: the agent, its distribution, its body, a method put onto the policy."""

    class Curious(PPO):
        def predict(self, *arguments, **options):
            return super().predict(*arguments, **options)

    class Soft(CategoricalDistribution):
        def proba_distribution(self, action_logits):
            return super().proba_distribution(action_logits / 2)

    class Gated(MlpExtractor):
        def forward_actor(self, features):
            return super().forward_actor(features).relu()

    agent = agent_of()
    agent.__class__ = Curious
    refuses_agent(agent, "would leave out predict of this agent's Curious")
    agent = agent_of()
    agent.policy.action_dist = Soft(2)
    refuses_agent(agent, "would leave out proba_distribution of this agent's Soft")
    agent = agent_of()
    agent.policy.mlp_extractor.__class__ = Gated
    refuses_agent(agent, "would leave out forward_actor of this agent's Gated")
    agent = agent_of()
    agent.policy.predict = agent.policy.predict
    refuses_agent(agent, "would leave out predict of this agent's ActorCriticPolicy")
    refuses_agent(agent.policy, "expected an agent of stable-baselines3")
    agent = agent_of()
    agent.policy.lstm_actor = built(lambda: nn.LSTM(4, 4))
    refuses_agent(agent, "is recurrent")


@case
def an_observation_with_its_info():
    """Said as stable-baselines3 says it: gymnasium's reset returns a pair."""
    env = gymnasium.make("CartPole-v1")
    policy = EnsemblePolicy(built(lambda: nn.Linear(4, 2)), env.observation_space)
    pair = env.reset(seed=0)
    for ask in (policy.predict, lambda given: policy.act(given, None), policy.log_probabilities):
        with pytest.raises(ValueError, match=r"a tuple of one and its info.*env\.reset\(\)"):
            ask(pair)
    with pytest.raises(ValueError, match="a tuple of one and its info"):
        policy.predict(env.step(0))
    for wrong in ({"position": pair[0]}, None, "left", [[1.0], [1.0, 2.0]], np.zeros(4, complex)):
        with pytest.raises(ValueError, match="expected observations as one array"):
            policy.predict(wrong)
    assert policy.predict(pair[0])[0] in env.action_space
    env.close()


@case
def observations_that_torch_takes_no_arrays_of():
    """They are what they show: mirrored, read-only, of the other byte order, long."""
    policy = EnsemblePolicy(mlp().double(), gymnasium.spaces.Box(-1, 1, (5,)))
    x = noise(6, 5).double().numpy()
    frozen = x.copy()
    frozen.setflags(write=False)
    for same in (
        x[::-1].copy()[::-1],
        x[:, ::-1].copy()[:, ::-1],
        frozen,
        x.astype(">f8"),
        x.astype(np.longdouble),
        np.asfortranarray(x),
        x.tolist(),
        torch.tensor(x),
    ):
        expected = policy.predict(x, deterministic=True)[0]
        assert np.array_equal(policy.predict(same, deterministic=True)[0], expected)


@case
def a_model_that_gives_nan_as_an_agent():
    """Refused: NaN is not action 0, however it acts."""
    space = gymnasium.spaces.Box(-1, 1, (5,))
    broken, x = mlp(), noise(5, 5).numpy()
    broken[-1].bias.data[1] = math.nan
    unlikely = mlp()
    unlikely[-1].bias.data.fill_(-math.inf)
    for model in (broken, unlikely, Ensemble([mlp(), broken])):
        for deterministic in (True, False):
            with pytest.raises(ValueError, match="give no action for 5 of 5 observations"):
                EnsemblePolicy(model, space).predict(x, deterministic=deterministic)
    for outputs in (Values(), Classes()):
        policy = EnsemblePolicy(mlp(), space, outputs=outputs)
        with pytest.raises(ValueError, match="give no action for 1 of 5 observations"):
            policy.predict(np.where(np.arange(5)[:, None] == 2, np.float32("nan"), x))
        policy.predict(x)


@case
def pictures_in_folders_of_their_own_and_of_other_formats():
    """Read as torchvision reads them; a broken link and what is turned or left out are named."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "pictures")
        places = ["cat/{}.png", "cat/old/{}.tiff", "dog/{}.gif", "dog/new/er/{}.TIF"]
        for number in range(20):
            file = Path(root, places[number % 4].format(number))
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey + np.uint8(number)).save(file)
        data = load(f"imagefolder:{root}", Path(folder, "cache"))
        every = torch.cat([part.pixels for part in (data.train, data.validation, data.test)])
        assert sorted(every[:, 0, 0, 0].tolist()) == list(range(20))
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.fromarray(grey).save(Path(root, "dog", "e.png"), exif=turned)
        with pytest.warns(RuntimeWarning, match=r"e\.png has an EXIF orientation"):
            load(f"imagefolder:{root}", Path(folder, "cache"))
        Path(root, "dog", "e.png").rename(Path(root, "e.png"))
        with pytest.warns(RuntimeWarning, match=r"e\.png is a picture that is left out"):
            load(f"imagefolder:{root}", Path(folder, "cache"))
        Path(root, "e.png").unlink()
        Path(root, "dog", "f.png").symlink_to("nowhere.png")
        with pytest.raises(ValueError, match=r"f\.png is a link to nothing"):
            load(f"imagefolder:{root}", Path(folder, "cache"))


@case
def seeds_that_are_none():
    """One sentence; numpy's integers are seeds (all that take one: test_seeds.py)."""
    for seed in (1.5, -1, True, "3", None, 2**63):
        for use in (
            lambda seed: Mutation(seed, 0.1, 0, 0.5),
            lambda seed: Search(4, 2, seed=seed),
            lambda seed: tune(mlp(), Task([]), tuning=Tuning(1), seed=seed),
        ):
            with pytest.raises(
                ValueError, match=r"^a seed must be an int in 0\.\.2\*\*63 - 1, got "
            ):
                use(seed)
    assert Mutation(np.int64(3), 0.1, 0, 0.5) == Mutation(3, 0.1, 0, 0.5)
    assert quads(4, 0.1, density=0.5, seed=np.uint8(3)) == quads(4, 0.1, density=0.5, seed=3)


@case
def a_device_without_float64():
    """Apple's: the CPU's children and trust region (more: test_without_float64.py)."""
    here = mlp()
    with apple() as device:
        there = mlp().to(device)
        children = [materialize(parameters(each), quads(4, 0.1, density=0.5, seed=0)[0])
                    for each in (here, there)]  # fmt: skip
        assert all_same_bits(children[0], {name: each.cpu() for name, each in children[1].items()})
        found = search_trust_region(there, noise(20, 5))
        said = Ensemble.from_mutations(there, found.search.mutations()[:4])(noise(20, 5).to(device))
    wanted = search_trust_region(here, noise(20, 5))
    assert found.sigma == pytest.approx(wanted.sigma, rel=1e-5)
    said_here = Ensemble.from_mutations(here, wanted.search.mutations()[:4])(noise(20, 5))
    torch.testing.assert_close(said.cpu(), said_here)


@case
def a_network_in_half_precision():
    """Float32's answers to that precision, from inputs of any; no training in float16."""
    network, x = mlp().half(), noise(20, 5)
    for inputs in (x, x.half(), x.double()):
        region = search_trust_region(network, inputs)
        assert region.sigma == pytest.approx(search_trust_region(mlp(), x).sigma, rel=0.05)
    said = Ensemble.from_mutations(network, quads(4, 0.1, density=0.5, seed=0))(x.half())
    wanted = Ensemble.from_mutations(mlp(), quads(4, 0.1, density=0.5, seed=0))(x)
    torch.testing.assert_close(said.float(), wanted, rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match=r"0\.weight is float16, in which small gradients become"):
        tune(network, Task([(x, torch.arange(20) % 3)]), tuning=Tuning(1, Constant(0.1), "adam"))


@case
def numbers_from_numpy_in_float64():
    """In the precision of the network's weights."""
    x, y = noise(20, 5).double(), torch.arange(20) % 3
    found, wanted = mlp(), mlp()
    for network, inputs in ((found, x), (wanted, x.float())):
        tune(network, Task([(inputs, y)]), tuning=Tuning(1, Constant(0.1), "adam"))
    assert all_same_bits(dict(found.named_parameters()), dict(wanted.named_parameters()))
    torch.testing.assert_close(predict(found, [(x, y)]), predict(wanted, [(x.float(), y)]))


@case
def norms_of_a_network_with_several_inputs():
    """Their statistics, of all inputs, and what was in eval mode stays in it."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, first, second):
            return self.norm(first + second)

    first, second, y = noise(8, 3), noise(8, 3, seed=1), torch.arange(8) % 3
    for inputs in ((first, second), {"first": first, "second": second}):
        network = Sum().eval()
        reestimate_norms(network, [(inputs, y)])
        torch.testing.assert_close(network.norm.running_mean, (first + second).mean(0))
        assert not network.training


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_what_users_expect(check, threads):
    torch.set_num_threads(threads)
    try:
        check()
    finally:
        torch.set_num_threads(1)
