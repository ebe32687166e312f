"""Errors of real values and the calibration of members' spread, against other ways to them."""

import math

import pytest
import torch
from networks import built, noise
from scipy import stats
from sklearn.metrics import r2_score
from torch import nn

from evo_subnets import Ensemble, Values, quads
from evo_subnets.metrics import judge_values, spread_against_error, unexplained, value_report


def test_numbers_are_those_of_scipy_and_scikit_learn():
    members, targets = noise(5, 60, 2).double(), noise(60, 2, seed=1).double()
    found = value_report(members, targets)
    mean, spread = members.mean(0), members.std(0, correction=0)
    off = (mean - targets).numpy()
    assert found.mse == pytest.approx((off**2).mean())
    assert found.rmse == pytest.approx(found.mse**0.5)
    assert found.r2 == pytest.approx(r2_score(targets.numpy(), mean.numpy()))
    assert found.member_mse == pytest.approx((members - targets).square().mean().item())
    assert found.spread**2 == pytest.approx(spread.square().mean().item())
    assert found.member_mse == pytest.approx(found.mse + found.spread**2)  # about their mean
    normal = stats.norm(mean.numpy(), spread.numpy())
    assert found.nll == pytest.approx(-normal.logpdf(targets.numpy()).mean())
    for level, share in found.coverage.items():
        low, high = normal.interval(level)
        assert share == ((low <= targets.numpy()) & (targets.numpy() <= high)).mean()
    expected = stats.spearmanr(spread.flatten(), abs(off).flatten()).statistic
    assert found.correlation == pytest.approx(expected)


def test_ties_share_their_mean_rank():
    members = torch.tensor([[0.0, 0, 0, 0, 0, 0], [1, 1, 2, 2, 3, 3]])
    targets = torch.tensor([0.0, 0, 1, 0, 4, 0])
    off = (members.mean(0) - targets).abs()
    expected = stats.spearmanr(members.std(0, correction=0), off).statistic
    assert value_report(members, targets).correlation == pytest.approx(expected)


def test_a_calibrated_spread_is_found_calibrated():
    scale = noise(20_000, seed=2).exp()
    draws = scale * noise(41, 20_000)
    found = value_report(draws[:40], draws[40])
    for level, share in found.coverage.items():
        assert share == pytest.approx(level, abs=0.03)
    assert found.correlation > 0.4
    bins = spread_against_error(draws[:40], draws[40])
    assert len(bins) == 5
    for spread, error in bins:
        assert error == pytest.approx(spread, rel=0.15)
    assert [spread for spread, _ in bins] == sorted(spread for spread, _ in bins)


def test_noise_of_targets_is_estimated_and_added():
    members, targets = 0.3 * noise(50, 20_000), noise(20_000, seed=1)
    left = unexplained(members, targets)
    assert left == pytest.approx(0.95, abs=0.02)  # 1 + 0.09/50 - 0.09, rooted
    assert value_report(members, targets).coverage[0.95] < 0.6
    assert value_report(members, targets, noise=left).coverage[0.95] == pytest.approx(
        0.95, abs=0.01
    )
    assert unexplained(torch.stack([targets - 9, targets + 9]), targets) == 0.0


def test_one_member_has_no_spread():
    found = value_report(noise(1, 9), noise(9, seed=1))
    assert (found.spread, found.nll, found.coverage[0.95]) == (0, math.inf, 0)
    assert math.isnan(found.correlation)
    assert value_report(noise(1, 9), noise(1, 9)[0]).mse == 0


def test_an_ensemble_is_judged_by_its_weights():
    module, x, y = built(lambda: nn.Linear(4, 1)), noise(30, 4), noise(30, seed=1)
    mutations = quads(4, 0.3, density=0.5, seed=0)
    weights = [0.5, 0.25, 0.25, 0]
    ensemble = Ensemble.from_mutations(module, mutations, weights=weights, outputs=Values())
    found = judge_values(ensemble, [(x[:20], y[:20]), (x[20:], y[20:])])
    with torch.no_grad():
        assert found.mse == pytest.approx((ensemble(x)[:, 0] - y).square().mean().item(), rel=1e-5)
        squares = ensemble.spread(x).square().mean()
    assert found.spread**2 == pytest.approx(squares.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"outputs=Classes: classes have metrics\.report"):
        judge_values(Ensemble([module]), [(x, y)])


@pytest.mark.parametrize(
    ("members", "targets", "options", "words"),
    [
        (noise(6), noise(6), {}, r"expected \(members, samples, \.\.\.\) values"),
        (noise(2, 6, 1), noise(5), {}, r"go with targets of shape \(6, 1\), got \(5,\)"),
        (noise(2, 6), noise(6), {"noise": -1}, "noise is a standard deviation"),
        (noise(2, 6), noise(6), {"levels": [95]}, "between 0 and 1, got"),
        (noise(2, 6), noise(6), {"weights": torch.zeros(2)}, "a weight for each of 2 members"),
    ],
)
def test_what_cannot_be_judged_is_refused(members, targets, options, words):
    with pytest.raises(ValueError, match=words):
        value_report(members, targets, **options)
