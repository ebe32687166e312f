"""From outputs to actions: chance against exact probabilities, and what is never an action."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, MultiBinary, MultiDiscrete
from networks import noise
from torch import nn
from torch.distributions import Normal

from evo_subnets import Ensemble
from evo_subnets.actions import ActionValues, Categoricals, Deterministic, Gaussian
from evo_subnets.outputs import Binary, Values
from evo_subnets.rl import EnsemblePolicy

LINE = Box(-1, 1, (4,))
SIZES = (3, 2)


class Says(nn.Module):
    """The same outputs for every observation."""

    observation_space = LINE

    def __init__(self, found, outputs):
        super().__init__()
        self.register_buffer("found", torch.as_tensor(found, dtype=torch.float32))
        self.outputs = outputs

    def forward(self, x):
        return self.found.expand(len(x), *self.found.shape)


def drawn(model, count=40_000, **options):
    policy = EnsemblePolicy(model, seed=1, **options)
    return policy.predict(np.zeros((count, 4), np.float32))[0]


def test_several_choices_are_those_of_the_mixture_and_not_of_its_marginals():
    kind, space = Categoricals(SIZES), MultiDiscrete(SIZES)
    given = [torch.tensor([2.0, 0, -1, 2, 0]), torch.tensor([-2.0, 0, 1, -2, 1])]
    actions = drawn(
        Ensemble([Says(one, kind) for one in given], weights=[3, 1]), action_space=space
    )
    parts = [[part.softmax(0) for part in one.split(SIZES)] for one in given]
    expected = sum(
        share * torch.outer(*part) for share, part in zip((0.75, 0.25), parts, strict=True)
    ).numpy()
    shares = np.zeros(SIZES)
    np.add.at(shares, tuple(actions.T), 1 / len(actions))
    assert np.abs(shares - expected).max() < 4 * 0.5 / np.sqrt(len(actions))
    marginals = np.outer(expected.sum(1), expected.sum(0))
    assert np.abs(marginals - expected).max() > 0.02, "else this shows nothing"


@pytest.mark.parametrize("squashed", [False, True])
def test_normal_values_are_those_of_the_mixture(squashed):
    """By the distribution function, at many points."""
    kind = Gaussian(squashed)
    given = [[[-1.0, 0.3], [-1.5, 0.0]], [[0.5, -0.2], [0.2, -1.0]]]
    low, high = (-np.ones(2), np.ones(2)) if squashed else (np.full(2, -9.0), np.full(2, 9.0))
    space = Box(low.astype(np.float32), high.astype(np.float32))
    model = Ensemble([Says(one, kind) for one in given], weights=[3, 1])
    actions = drawn(model, action_space=space).astype(np.float64)
    values = np.arctanh(actions.clip(-1 + 1e-7, 1 - 1e-7)) if squashed else actions
    for dimension in (0, 1):
        parts = [Normal(one[0][dimension], np.exp(one[1][dimension])) for one in given]
        for point in (-2.0, -1.0, -0.3, 0.0, 0.4, 1.0):
            value = torch.tensor(point)
            expected = 0.75 * parts[0].cdf(value) + 0.25 * parts[1].cdf(value)
            share = (values[:, dimension] <= point).mean()
            assert abs(share - expected.item()) < 4 * 0.5 / np.sqrt(len(values))


def test_normal_values_without_chance_are_the_mean_of_what_members_do():
    given = [noise(2, 3, seed=seed) for seed in (0, 1, 2)]
    space = Box(-np.array([9, 2, 1], np.float32), np.array([9, 4, 1], np.float32))
    found = EnsemblePolicy(
        Ensemble([Says(one, Gaussian(True)) for one in given]), action_space=space
    ).predict(np.zeros(4, np.float32), deterministic=True)[0]
    mean = sum(one[0].tanh() for one in given).numpy() / 3
    assert np.allclose(found, space.low + (mean + 1) / 2 * (space.high - space.low), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "width", "space"),
    [
        (Categoricals(SIZES), (5,), MultiDiscrete(SIZES)),
        (Gaussian(), (2, 3), Box(-1, 1, (3,))),
        (ActionValues(), (4,), gymnasium.spaces.Discrete(4)),
        (Values(), (3,), Box(-1, 1, (3,))),
        (Deterministic(), (3,), Box(-1, 1, (3,))),
    ],
)
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_member_that_gives_nan_is_never_an_action(kind, width, space, deterministic):
    sound, broken = noise(*width), noise(*width, seed=1)
    broken.view(-1)[0] = torch.nan
    zeros = np.zeros((30, 4), np.float32)
    for members in ([broken], [sound, broken]):
        models = [Says(each, kind) for each in members]
        for model in (Ensemble(models), *models[-1:]):
            policy = EnsemblePolicy(model, action_space=space)
            with pytest.raises(ValueError, match="give no action for 30 of 30 observations"):
                policy.predict(zeros, deterministic=deterministic)
    without = Ensemble([Says(each, kind) for each in (sound, broken)], weights=[1, 0])
    EnsemblePolicy(without, action_space=space).predict(zeros, deterministic=deterministic)


def test_an_impossible_choice_is_none():
    found = [0.0, 0.0, -np.inf, -np.inf, 0.0]
    actions = drawn(Says(found, Categoricals(SIZES)), 500, action_space=MultiDiscrete(SIZES))
    assert {tuple(row) for row in actions.tolist()} == {(0, 1), (1, 1)}
    nothing = Says([-np.inf] * 3 + [0.0] * 2, Categoricals(SIZES))
    with pytest.raises(ValueError, match="give no action"):
        drawn(nothing, 5, action_space=MultiDiscrete(SIZES))


def test_numbers_at_the_ends_are_normal_numbers():
    policy = EnsemblePolicy(Says([[0.0], [0.0]], Gaussian()), action_space=Box(-99, 99, (1,)))
    numbers = np.array([[0, 0], [0, 0.5], [0, 1 - 2**-53]])
    found = policy.act(np.zeros((3, 4), np.float32), numbers)[:, 0]
    assert found[0] < -8
    assert found[1] == 0
    assert 8 < found[2] < 9


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Gaussian(), {}, "as many numbers as its actions have: give action_space"),
        (
            Gaussian(),
            {"temperature": 2.0},
            "leave it out with Gaussian",
        ),
        (ActionValues(), {"temperature": 2.0}, "temperature is of numbered actions"),
        (Binary(), {}, "an agent acts by Classes, Values, Categoricals, Gaussian, ActionValues"),
    ],
)
def test_policies_that_mean_nothing_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        EnsemblePolicy(Says([[0.0], [0.0]], kind), **options)


def test_a_temperature_sharpens_every_choice():
    model = Says(np.log([0.5, 0.25, 0.25, 0.8, 0.2]), Categoricals(SIZES))
    actions = drawn(model, action_space=MultiDiscrete(SIZES), temperature=0.5)
    assert abs((actions[:, 0] == 0).mean() - 0.25 / 0.375) < 0.01
    assert abs((actions[:, 1] == 0).mean() - 0.64 / 0.68) < 0.01


def test_yes_and_no_are_bits_of_the_space():
    model = Says([0.0, 9.0, 0.0, -9.0], Categoricals((2, 2)))
    policy = EnsemblePolicy(model, action_space=MultiBinary(2))
    action = policy.predict(np.zeros(4, np.float32), deterministic=True)[0]
    assert action.tolist() == [1, 0]
    assert policy.action_space.contains(action)
