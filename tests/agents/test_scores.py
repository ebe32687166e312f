"""Scores over games and runs: statistics against plain ones, and what is resampled."""

import numpy as np
import pytest
from scipy.stats import trim_mean

from agents.scores import (
    Played,
    aggregate_table,
    aggregates,
    interquartile_mean,
    over_runs,
    resampled,
)


def same(returns, game):
    return returns


def played(games, runs, *, episodes=20, better=0.0):
    draw = np.random.default_rng(0)
    found = []
    for game in range(games):
        for _ in range(runs):
            parent = draw.normal(game, 1, episodes)
            returns = {"parent": parent, "chosen": parent + better}
            found.append(Played(f"game {game}", returns))
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12, 48])
def test_the_interquartile_mean_is_scipys(count):
    scores = np.random.default_rng(count).normal(size=(5, count))
    expected = trim_mean(scores, 0.25, axis=-1)
    np.testing.assert_allclose(interquartile_mean(scores), expected, rtol=1e-12)


def test_what_was_measured_comes_first_and_differences_are_paired():
    runs = played(3, 1, better=0.5)
    scores = resampled(runs, ["parent", "chosen"], normalized=same)
    assert scores["parent"].shape == (2001, 3)
    np.testing.assert_allclose(scores["parent"][0], [run.returns["parent"].mean() for run in runs])
    np.testing.assert_allclose(scores["chosen"] - scores["parent"], 0.5)
    for each in aggregates(scores):
        wanted = 0.5 if each.policy == "chosen" else 0.0
        limits = (each.difference_low, each.difference, each.difference_high)
        assert limits == pytest.approx((wanted,) * 3)
        assert each.low < each.value < each.high


def test_runs_are_resampled_within_their_game_where_there_are_enough():
    runs = played(2, 3)
    assert over_runs(runs)
    scores = resampled(runs, ["parent"], normalized=same)["parent"]
    for column in range(6):
        own = scores[0, :3] if column < 3 else scores[0, 3:]
        assert set(scores[1:, column]) == set(own), "runs of this game, all of them, no others"
    assert not over_runs(runs[:5]), "two runs of a game span no interval"
    few = resampled(runs[:5], ["parent"], normalized=same)["parent"]
    assert len(set(few[1:, 0])) > 100, "episodes"


def test_an_interval_over_episodes_is_as_wide_as_theory_says():
    runs = played(1, 1, episodes=400)
    (mean, *_) = aggregates(resampled(runs, ["parent"], normalized=same))
    assert mean.high - mean.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_the_table_has_a_row_for_each_policy_and_those_printed():
    runs = played(2, 1, better=0.5)
    found = aggregates(resampled(runs, ["parent", "chosen"], normalized=same))
    lines = aggregate_table(found, {"printed": np.array([0.25, 0.75])}).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["parent", "chosen", "printed"]
    assert lines[-1].split() == ["printed", "0.500", "0.500"]
    assert "+0.500 [+0.500, +0.500]" in lines[3]
