"""Kinds of outputs that are decisions, against torch's distributions and plain references."""

import math

import pytest
import torch
from networks import noise
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    kl_divergence,
)
from torch.distributions.transforms import TanhTransform

from evo_subnets.actions import ActionValues, Categoricals, Deterministic, Gaussian
from evo_subnets.outputs import Classes
from evo_subnets.trust_region import divergence

SIZES = (3, 2, 4)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2])


def choices(outputs):
    return [Categorical(logits=part) for part in outputs.double().split(SIZES, dim=1)]


def normals(outputs):
    means, scales = outputs.double().unbind(dim=1)
    return Normal(means, scales.exp())


def test_several_choices_diverge_by_the_sum_of_torchs_categoricals():
    parent, child = noise(7, 9), noise(7, 9, seed=1)
    pairs = zip(choices(parent), choices(child), strict=True)
    expected = torch.stack([kl_divergence(*pair) for pair in pairs]).sum(0)
    found = Categoricals(SIZES).divergence(parent.double(), child.double())
    assert torch.allclose(found, expected)
    assert divergence(parent, child, outputs=Categoricals(SIZES)) == pytest.approx(
        expected.mean().item(), rel=1e-6
    )


@pytest.mark.parametrize("how", ["mean", "vote", "logits"])
def test_several_choices_are_combined_one_by_one(how):
    members = noise(3, 5, 9)
    found = Categoricals(SIZES).combined(members, WEIGHTS, how=how).split(SIZES, dim=1)
    for part, given in zip(found, members.split(SIZES, dim=2), strict=True):
        assert torch.equal(part, Classes().combined(given, WEIGHTS, how=how))


def test_losses_of_several_choices_are_negative_log_likelihoods():
    outputs, targets = noise(6, 9), torch.tensor([[0, 1, 3], [2, 0, 1]] * 3)
    each = [one.log_prob(target) for one, target in zip(choices(outputs), targets.T, strict=True)]
    kind = Categoricals(SIZES)
    assert kind.loss(outputs, targets).item() == pytest.approx(-sum(each).mean().item())
    likely = torch.stack([one.probs.argmax(1) for one in choices(outputs)], dim=1)
    assert kind.metric(outputs, likely) == 1
    assert kind.metric(outputs.fill_(torch.nan), likely) == 0
    with pytest.raises(ValueError, match=r"targets of 3 choices are \(batch, 3\) labels"):
        kind.loss(outputs, targets[:, 0])


@pytest.mark.parametrize("squashed", [False, True])
def test_normal_values_diverge_as_torch_says_before_and_after_squashing(squashed):
    parent, child = noise(7, 2, 3), noise(7, 2, 3, seed=1)
    pair = [normals(each) for each in (parent, child)]
    if squashed:
        pair = [TransformedDistribution(each, [TanhTransform()]) for each in pair]
    expected = kl_divergence(*pair).sum(1)
    assert torch.allclose(Gaussian(squashed).divergence(parent.double(), child.double()), expected)
    found = divergence(parent, child, outputs=Gaussian(squashed))
    assert found == pytest.approx(expected.mean().item(), rel=1e-6)


def test_the_divergence_of_squashed_values_is_that_of_what_they_do():
    """By integration over actions: no step of it knows that squashing is a bijection."""
    parent, child = torch.tensor([[[0.3], [-0.5]]]), torch.tensor([[[-0.2], [0.1]]])
    actions = torch.linspace(-1, 1, 400_001, dtype=torch.float64)[1:-1]
    logs = [
        TransformedDistribution(normals(each), [TanhTransform()]).log_prob(actions[:, None])[:, 0]
        for each in (parent, child)
    ]
    step = (actions[1] - actions[0]).item()
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum().item() * step
    assert Gaussian(True).divergence(parent, child).item() == pytest.approx(expected, rel=1e-4)


def test_a_tiny_divergence_of_normal_values_is_not_lost():
    parent = noise(50, 2, 3)
    child = parent + 1e-4 * noise(50, 2, 3, seed=1)
    found = Gaussian().divergence(parent, child)
    expected = Gaussian().divergence(parent.double(), child.double())
    assert (found >= 0).all()
    assert torch.allclose(found.double(), expected, rtol=5e-3)
    assert torch.equal(Gaussian().divergence(parent, parent), torch.zeros(50))


def test_normal_values_are_combined_to_the_mean_of_what_members_do():
    members = noise(3, 5, 2, 4) * 3
    mixture = (members[:, :, 0] * WEIGHTS[:, None, None]).sum(0)
    assert torch.allclose(Gaussian().combined(members, WEIGHTS, how="mean"), mixture)
    squashed = (members[:, :, 0].tanh() * WEIGHTS[:, None, None]).sum(0)
    assert torch.allclose(Gaussian(True).combined(members, WEIGHTS, how="mean"), squashed)
    broken = members.clone()
    broken[1, 2] = torch.nan
    found = Gaussian().combined(broken, WEIGHTS, how="mean")
    assert found.isnan().any(dim=1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("squashed", [False, True])
def test_losses_of_normal_values_are_negative_log_likelihoods(squashed):
    outputs, targets = noise(6, 2, 3), noise(6, 3, seed=2).tanh()
    made = normals(outputs)
    if squashed:
        made = TransformedDistribution(made, [TanhTransform()])
    expected = made.log_prob(targets.double()).sum(1).mean().item()
    kind = Gaussian(squashed)
    assert kind.loss(outputs, targets).item() == pytest.approx(-expected, rel=1e-5)
    assert kind.metric(outputs, targets) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"targets of normal values are \(6, 3\), got \(6, 2\)"):
        kind.loss(outputs, targets[:, :2])


def test_the_likelihood_of_a_mixture_of_normal_values_is_torchs():
    members, targets = noise(3, 6, 2, 4), noise(6, 4, seed=2)
    parts = Independent(normals(members.transpose(0, 1).flatten(0, 1)), 1)
    each = parts.log_prob(targets.double().repeat_interleave(3, dim=0)).view(6, 3)
    expected = (each + WEIGHTS.double().log()).logsumexp(1).mean().item()
    found = Gaussian().mixture_metric(members, WEIGHTS, targets=targets)
    assert found == pytest.approx(expected, rel=1e-5)
    alone = Gaussian().mixture_metric(members, torch.tensor([0.0, 1.0, 0.0]), targets=targets)
    assert alone == pytest.approx(Gaussian().metric(members[1], targets))


def test_actions_without_chance_diverge_as_normal_ones_around_them():
    parent, child = noise(7, 3), noise(7, 3, seed=1)
    pair = [Normal(each.double(), 0.2) for each in (parent, child)]
    found = Deterministic().divergence(parent.double(), child.double())
    assert torch.allclose(found, kl_divergence(*pair).sum(1))


def explored(values, exploration):
    """The probabilities of a policy that takes any action at all now and then."""
    best = torch.nn.functional.one_hot(values.argmax(1), values.shape[1]).double()
    return best * (1 - exploration) + exploration / values.shape[1]


@pytest.mark.parametrize("exploration", [0.05, 0.3])
def test_values_of_actions_diverge_as_the_policies_that_explore(exploration):
    parent, child = noise(40, 3), noise(40, 3, seed=1)
    pair = [Categorical(probs=explored(each, exploration)) for each in (parent, child)]
    expected = kl_divergence(*pair)
    kind = ActionValues(exploration)
    assert torch.allclose(kind.divergence(parent.double(), child.double()), expected)
    assert kind.divergence(parent, 5 * parent + 3).abs().max() == 0, "no action changes"
    assert kind.divergence(parent, torch.full_like(parent, torch.nan)).isnan().all()


def test_values_of_actions_are_averaged_or_vote():
    members = torch.tensor([[[0.0, 9.0]], [[3.0, 0.0]], [[3.0, 0.0]]])
    kind, equal = ActionValues(), torch.full((3,), 1 / 3)
    assert kind.combined(members, equal, how="mean").argmax() == 1
    assert torch.allclose(kind.combined(members, equal, how="vote"), torch.tensor([[2 / 3, 1 / 3]]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categoricals(()), "choices are of at least one"),
        (lambda: Categoricals((2, 0)), "choices are of at least one"),
        (lambda: ActionValues(0.0), "exploration is between 0 and 1, got 0.0"),
        (lambda: Categoricals((2, 2)).tensor(noise(5, 3)), r"expected \(batch, 4\) logits of its"),
        (lambda: Gaussian().tensor(noise(5, 4)), r"expected \(batch, 2, n\) means and logarithms"),
        (lambda: ActionValues().tensor(noise(5)), r"expected \(batch, n\) values of actions"),
        (lambda: ActionValues().tensor(torch.zeros(5, 2, dtype=torch.int)), "of torch.int32"),
    ],
)
def test_what_these_outputs_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mixtures_are_mixtures():
    """The reference above agrees with torch's own mixture in one dimension."""
    members, targets = noise(3, 6, 2, 1), noise(6, 1, seed=2)
    parts = normals(members[:, :, :, 0].permute(1, 2, 0))
    mixture = MixtureSameFamily(Categorical(WEIGHTS.double().expand(6, 3)), parts)
    expected = mixture.log_prob(targets[:, 0].double()).mean().item()
    found = Gaussian().mixture_metric(members, WEIGHTS, targets=targets)
    assert found == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(found)
