"""Races: their bounds against formulas and coin flips, their choice against full evaluation."""

import math

import pytest
import torch
from networks import all_same_bits, built, copied, mlp, noise
from torch import nn

from evo_subnets import PopulationError, evaluate, quads, select
from evo_subnets.racing import Rules, race, run_race

BOUNDS = ("normal", "bernstein", "hoeffding")


def table(racers, samples, spread, seed=0):
    """(racers, samples) zeros and ones; racer i is right more often than i + 1, on average."""
    difficulty = torch.rand(samples, generator=torch.Generator().manual_seed(seed))
    skill = 0.9 - spread * torch.arange(racers) / racers
    flips = torch.rand(racers, samples, generator=torch.Generator().manual_seed(seed + 1)) < 0.05
    return ((difficulty[None] < skill[:, None]) ^ flips).float()


def best(scores, k):
    return scores.double().mean(1).argsort(descending=True, stable=True)[:k].tolist()


def judge_of(scores):
    return lambda racer, samples: scores[racer, samples]


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_clear_winners_are_chosen_in_their_order(bound, k):
    scores = table(8, 4000, 0.8)
    outcome = run_race(judge_of(scores), 8, samples=4000, k=k, rules=Rules(bound))
    assert set(outcome.chosen) == set(best(scores, k))
    estimates = [outcome.estimates[i] for i in outcome.chosen]
    assert estimates == sorted(estimates, reverse=True)
    assert sum(outcome.seen) < 8 * 4000


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_race_to_the_end_is_full_evaluation(bound):
    scores = table(12, 300, 0.01)
    outcome = run_race(
        judge_of(scores), 12, samples=300, k=4, rules=Rules(bound, margin=0, block=500)
    )
    assert outcome.seen == (300,) * 12
    means = scores.double().mean(1).tolist()
    assert outcome.estimates == pytest.approx(means, abs=1e-12)
    assert list(outcome.chosen) == best(scores, 4)


def test_what_promises_less_ends_earlier():
    scores = table(16, 5000, 0.6)
    spent = [
        sum(run_race(judge_of(scores), 16, samples=5000, k=4, rules=Rules(bound)).seen)
        for bound in BOUNDS
    ]
    assert spent[0] < 0.3 * 16 * 5000
    assert spent[0] < min(spent[1:]) < 16 * 5000


def test_bernsteins_bound_is_the_narrower_where_racers_seldom_differ():
    seldom, often = Rules("bernstein").half_width(
        torch.tensor([0.02, 1.0]), 5000, total=10**5, comparisons=1000
    )
    anyway = Rules("hoeffding").half_width(
        torch.tensor([0.02, 1.0]), 5000, total=10**5, comparisons=1000
    )
    assert seldom < anyway[0] == anyway[1] < often


@pytest.mark.parametrize("strata", [None, torch.arange(1000) % 3])
def test_all_see_the_same_samples_none_twice_until_they_are_out(strata):
    scores, asked = table(10, 1000, 0.5), {}

    def judge(racer, samples):
        asked.setdefault(racer, []).append(samples)
        return scores[racer, samples]

    outcome = run_race(judge, 10, samples=1000, k=3, rules=Rules(block=50), strata=strata, seed=3)
    longest = torch.cat(max(asked.values(), key=len))
    assert len(longest.unique()) == len(longest)
    for racer, blocks in asked.items():
        seen = torch.cat(blocks)
        assert torch.equal(seen, longest[: len(seen)])
        assert outcome.seen[racer] == len(seen)
    assert min(outcome.seen) < max(outcome.seen)


def test_the_order_is_drawn_from_the_seed():
    scores = table(16, 2000, 0.2)
    one, again, other = (
        run_race(judge_of(scores), 16, samples=2000, k=4, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again
    assert one.estimates != other.estimates


def test_equals_race_to_the_last_sample_but_for_the_margin():
    scores = torch.cat((torch.ones(1, 2000), table(1, 2000, 0).repeat(5, 1)))
    patient = run_race(judge_of(scores), 6, samples=2000, k=3, rules=Rules(margin=0, block=100))
    assert patient.chosen == (0, 1, 2)
    assert max(patient.seen) == 2000
    assert patient.seen[0] < 2000  # accepted: no more samples are spent on it
    hasty = run_race(judge_of(scores), 6, samples=2000, k=3, rules=Rules(margin=0.05, block=100))
    assert max(hasty.seen) < 2000


def test_a_stratum_in_which_all_agree_gets_few_samples_and_means_stay_right():
    scores = table(8, 4000, 0.3)
    scores[:, ::2] = 1.0
    strata = 1 - torch.arange(4000) % 2  # the even ones are stratum 1
    asked = []

    def judge(racer, samples):
        asked.append(samples)
        return scores[racer, samples]

    outcome = run_race(judge, 8, samples=4000, k=2, rules=Rules(block=100), strata=strata)
    even = (torch.cat(asked) % 2 == 0).double().mean()
    assert even < 0.3
    assert set(outcome.chosen) == set(best(scores, 2))
    means = scores.double().mean(1)
    for i in outcome.chosen:
        assert outcome.estimates[i] == pytest.approx(means[i].item(), abs=0.05)


@pytest.mark.parametrize("seen", [10, 400, 600, 999])
def test_bounds_are_those_of_the_papers(seen):
    """Hoeffding and Serfling; Bardenet and Maillard 2015, theorem 4.3; scores in [0, 2]."""
    total, doubt, span = 1000, 0.1 / 7, 2.0
    variance = torch.tensor([0.0, 0.5], dtype=torch.float64)
    early, late = 1 - (seen - 1) / total, (1 - seen / total) * (1 + 1 / seen)
    rho = early if seen <= total / 2 else late
    width = 2 * span  # of a difference
    rules = {bound: Rules(bound, confidence=0.9, span=span) for bound in BOUNDS}
    hoeffding = width * math.sqrt(rho * math.log(1 / doubt) / (2 * seen))
    found = rules["hoeffding"].half_width(variance, seen, total=total, comparisons=7)
    assert found.tolist() == pytest.approx([hoeffding] * 2)
    log = math.log(5 / doubt)
    bernstein = [
        math.sqrt(v) * math.sqrt(2 * rho * log / seen)
        + (7 / 3 + 3 / math.sqrt(2)) * width * log / seen
        for v in (0.0, 0.5)
    ]
    found = rules["bernstein"].half_width(variance, seen, total=total, comparisons=7)
    assert found.tolist() == pytest.approx(bernstein)
    for bound in BOUNDS:
        assert not rules[bound].half_width(variance, total, total=total, comparisons=7).any()


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("seen", [50, 300])
def test_bounds_hold_as_often_as_they_promise(bound, seen):
    rules, total, repeats = Rules(bound, confidence=0.9), 400, 2000
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-1, 2, (total,), generator=generator).double()
    order = torch.rand(repeats, total, generator=generator).argsort(1)[:, :seen]
    samples = values[order]
    half = rules.half_width(
        samples.var(1, correction=0), seen, total=total, comparisons=1
    )  # fmt: skip
    missed = (values.mean() > samples.mean(1) + half).double().mean().item()
    assert missed <= 0.1 + 0.02
    if bound == "normal":
        assert missed >= 0.06


def test_racers_that_fail_are_never_chosen():
    scores = table(6, 1000, 0.6)
    outcome = run_race(
        lambda racer, samples: None if racer == 0 else scores[racer, samples], 6, samples=1000, k=2
    )
    assert set(outcome.chosen) == {1, 2}
    assert math.isnan(outcome.estimates[0])
    assert run_race(lambda *_: None, 4, samples=100, k=2).chosen == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bound": "guess"}, "bound must be one of"),
        ({"confidence": 1.0}, r"confidence must be in \(0.5, 1\), got 1.0"),
        ({"margin": -1.0}, "margin must be at least 0"),
        ({"block": 1}, "block at least 2"),
        ({"span": 0.0}, "span more than 0"),
    ],
)
def test_bad_rules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rules(**arguments)


def test_a_race_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match=r"k must be in 1\.\.4, .* got 5"):
        run_race(pytest.fail, 4, samples=100, k=5)
    with pytest.raises(ValueError, match=r"strata must be \(100,\)"):
        run_race(pytest.fail, 4, samples=100, k=2, strata=torch.zeros(99))


def classifier():
    """A linear classifier, its points, and a score of who is right on them."""
    module = built(lambda: nn.Linear(8, 4))
    points = noise(3000, 8, seed=1)
    with torch.no_grad():
        labels = module(points).argmax(1)

    def score(model, numbers):
        with torch.no_grad():
            return (model(points[numbers]).argmax(1) == labels[numbers]).float()

    return module, score


def test_children_race_as_they_are_evaluated():
    module, score = classifier()
    state, mutations = copied(module.state_dict()), quads(16, 0.3, density=0.5, seed=0)
    everything = torch.arange(3000)
    full = evaluate(module, mutations, fitness=lambda model: score(model, everything).mean().item())
    slow = race(
        module, mutations, score=score, samples=3000, k=4, rules=Rules(margin=0, block=3000)
    )
    assert [child.mutation for child in slow.children] == mutations
    assert [c.fitness for c in slow.children] == pytest.approx([c.fitness for c in full], abs=1e-6)
    assert [c.mutation for c in slow.chosen] == [c.mutation for c in select(full, 4)]
    fast = race(module, mutations, score=score, samples=3000, k=4, rules=Rules(block=100))
    fitness = {child.mutation: child.fitness for child in full}
    chosen = sum(fitness[child.mutation] for child in fast.chosen) / 4
    assert chosen >= sum(child.fitness for child in select(full, 4)) / 4 - 0.005
    assert 3 * sum(fast.seen) < sum(slow.seen)
    assert all_same_bits(copied(module.state_dict()), state)


def test_a_child_that_raises_leaves_the_race_with_its_reason():
    module, score = classifier()
    mutations, calls = quads(8, 0.3, density=0.5, seed=0), []

    def fragile(model, numbers):
        calls.append(len(numbers))
        if len(calls) == 2:
            raise RuntimeError("no more memory")
        return score(model, numbers)

    found = race(module, mutations, score=fragile, samples=3000, k=2)
    assert found.children[1].reason == "RuntimeError: no more memory"
    assert found.children[1].failed
    assert found.children[1] not in found.chosen
    assert len(found.chosen) == 2
    assert not any(child.failed for child in found.chosen)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        (lambda _, numbers: torch.full((len(numbers),), math.nan), "fitness is NaN"),
        (lambda *_: torch.zeros(3), r"ValueError: expected 250 scores, got \(3,\)"),
    ],
)
def test_a_race_most_of_which_fails_is_stopped(scores, reason):
    with pytest.raises(PopulationError, match=f"5 of 8 so far, the last with: {reason}"):
        race(mlp(), quads(8, 0.1, density=0.5, seed=0), score=scores, samples=1000, k=2)
