import math

import numpy as np
import pytest
from scipy import stats

from evo_subnets.spread import spread_of


def drawn(children, cases, *, between, noise, seed=0):
    """(children, cases) fitness with true spreads between children, between cases and of noise."""
    generator = np.random.default_rng(seed)
    return (
        between * generator.standard_normal((children, 1))
        + 3 * generator.standard_normal((1, cases))
        + noise * generator.standard_normal((children, cases))
    )


def test_spreads_are_found_on_average():
    found = [spread_of(drawn(32, 64, between=0.5, noise=2, seed=seed)) for seed in range(200)]
    assert np.mean([each.children**2 for each in found]) == pytest.approx(0.25, rel=0.05)
    assert np.mean([each.error for each in found]) == pytest.approx(2 / 8, rel=0.02)


def test_equal_children_are_seldom_told_apart_and_others_are():
    equal = [spread_of(drawn(16, 32, between=0, noise=1, seed=seed)) for seed in range(400)]
    assert 0.02 < np.mean([each.told_apart for each in equal]) < 0.08
    other = [spread_of(drawn(16, 32, between=0.5, noise=1, seed=seed)) for seed in range(50)]
    assert np.mean([each.told_apart for each in other]) > 0.95


@pytest.mark.parametrize(("children", "cases"), [(2, 2), (2, 40), (16, 32), (64, 16)])
def test_the_chance_is_fishers(children, cases):
    for seed in range(20):
        values = drawn(children, cases, between=0.2, noise=1, seed=seed)
        rows = values.mean(1)
        rest = values - rows[:, None] - values.mean(0) + values.mean()
        freedom = (children - 1) * (cases - 1)
        ratio = cases * rows.var(ddof=1) / ((rest**2).sum() / freedom)
        tolerance = 0.1 if children < 3 else 0.006  # far from where it is decided
        exact = stats.f.sf(ratio, children - 1, freedom)
        found = spread_of(values)
        assert found.chance == pytest.approx(exact, abs=tolerance)
        assert found.told_apart == (exact < 0.05) or abs(exact - 0.05) < 0.003


def test_what_is_common_to_a_case_counts_for_nothing():
    values = drawn(8, 16, between=0.5, noise=1)
    one, two = spread_of(values), spread_of(values + 100 * np.arange(16))
    assert (one.children, one.error) == pytest.approx((two.children, two.error))


def test_as_many_cases_as_are_needed():
    spread = spread_of(drawn(64, 256, between=0.5, noise=4))
    assert spread.cases_needed == pytest.approx((4 / 0.5) ** 2, rel=0.5)


def test_equal_fitness_has_no_spread_and_failed_children_none_either():
    same = spread_of([[1.0, 2.0, 3.0]] * 4)
    assert (same.children, same.error, same.told_apart) == (0, 0, False)
    assert math.isinf(same.cases_needed)
    assert "cannot be told apart (none was seen)" in str(same)
    apart = spread_of([[1.0, 2.0], [2.0, 3.0], [math.nan, 1.0]])
    assert apart.told_apart
    assert apart.children == pytest.approx(math.sqrt(0.5))


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="common cases"):
        spread_of([[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match="two children and two cases, got 1 children"):
        spread_of([[1.0, 2.0], [math.nan, 1.0]])
