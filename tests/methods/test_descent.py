"""Generations of a classifier: what comes of them, chosen on samples that none of them saw."""

import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from networks import built, noise, pictures
from networks import small_classifier as network

from evo_subnets import Ensemble, Search, singles
from evo_subnets.lineage import best_child
from evo_subnets.methods import Noisy
from evo_subnets.methods.apart import apart
from evo_subnets.outputs import Values
from evo_subnets.prediction import Validation, predict
from evo_subnets.racing import Rules
from evo_subnets.schedules import Constant
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import parameters
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune
from evo_subnets.walk import Moving


def parent():
    module = network(0)
    tune(module, Task(pictures()), tuning=Tuning(2, Constant(0.001), "adam", batch_size=16))
    return module


def numbered(count=90):
    """Pictures whose pixels say which one each is."""
    images = pictures(count)
    images.pixels[:] = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return images


@pytest.mark.parametrize("sampler", [{}, {"sampler": singles}], ids=["quads", "singles"])
def test_the_best_on_held_out_samples_is_the_result(sampler):
    module, task = parent(), Task(pictures(), pictures(200, seed=5))
    search = Search(8, 2, seed=3, **sampler)
    found = Noisy(search, generations=3, moving=Moving(step=0.02))(module, task)
    assert set(found.held_out) == {"parent", *found.candidates}
    assert found.chosen == max(found.candidates, key=lambda name: found.held_out[name])
    assert found.ensemble is found.candidates[found.chosen]
    assert [g.divergence for g in found.history] == pytest.approx([0.02] * 3, rel=0.1)
    assert found.divergence == pytest.approx(0.02, rel=0.1)
    evolved = found.candidates["evolved parent"].members[0]
    for name, weight in found.lineage.replay(parameters(module)).items():
        assert torch.equal(weight, parameters(evolved)[name])
    assert len(found.children) == 8
    assert set(found.story()) >= {"chosen", "held_out", "generations"}
    assert found.text().endswith(f"before the test: {found.chosen}")


def test_a_candidate_without_a_metric_is_never_chosen():
    """A NaN is no metric, wherever it stands among the others."""
    calls, module = [], parent()

    def metric(outputs, targets):
        calls.append(len(targets))
        held_out = len(targets) == 24  # a third of four fifths of 90
        return float("nan") if held_out and calls.count(24) != 4 else float(len(calls))

    task = Task(pictures(), pictures(90), metric=metric)
    found = Noisy(Search(4, 2, 0.05), generations=2)(module, task)
    assert found.chosen == list(found.candidates)[2], "the fourth: the parent is judged first"
    nan = replace(task, metric=lambda outputs, _: math.nan if len(outputs) == 24 else 1.0)
    with pytest.raises(ValueError, match="on held-out validation samples the metric is NaN"):
        Noisy(Search(4, 2, 0.05), generations=2)(module, nan)


def test_no_generation_sees_what_the_choice_is_made_on():
    seen = []

    class Watching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 4)

        def forward(self, x):
            seen.append({round(float(v), 3) for v in x.flatten(1)[:, 0]})
            return self.layer(x.flatten(1))

    task = Task(numbered(), numbered())
    Noisy(Search(4, 2, 0.1), generations=2)(built(Watching), task)
    sets = {frozenset(each) for each in seen}
    region, others, held_out = (
        next(each for each in sets if len(each) == count) for count in (18, 48, 24)
    )
    assert not others & held_out
    assert not others & region
    assert not held_out & region
    assert len(others | held_out | region) == 90
    last = max(i for i, each in enumerate(seen) if each == others)
    first = min(i for i, each in enumerate(seen) if each == held_out)
    assert last < first, "chosen when all is judged"


def test_generations_of_races_to_the_end_move_as_those_that_judge_on_everything():
    module, task = parent(), Task(pictures(), pictures(200, seed=5))
    whole = Noisy(Search(8, 2, seed=3), generations=3, moving=Moving(step=0.02))
    full = whole(module, task)
    slow = replace(whole, racing=True, rules=Rules(margin=0, block=400))(module, task)
    assert len(set(slow.seen)) == 1
    assert slow.lineage == full.lineage
    assert [child.mutation for child in slow.elites] == [child.mutation for child in full.elites]
    fast = replace(whole, racing=True, rules=Rules(block=10))(module, task)
    assert sum(fast.seen) < sum(slow.seen)
    assert len(fast.lineage.steps) == 3
    raced = {(child.mutation, child.fitness) for child in fast.children}
    assert {(child.mutation, child.fitness) for child in fast.elites} < raced


def test_a_stream_of_one_batch_is_divided_as_well():
    module = built(lambda: torch.nn.Linear(5, 3))
    batch = [(noise(40, 5), torch.arange(40) % 3)]
    found = Noisy(Search(4, 2), generations=2)(module, Task(batch, batch))
    assert found.chosen in found.candidates


def test_norms_are_those_of_the_weights_in_every_candidate():
    module, task = parent(), Task(pictures(), pictures(90, seed=5))
    plain = Noisy(Search(4, 2, 0.05), generations=2, moving=Moving(best_child))
    own = Noisy(plain.search, reestimate_norms=True, generations=2, moving=plain.moving)
    found = own(module, task)
    for candidate in (*found.candidates.values(), found.reference):
        for member in getattr(candidate, "members", [candidate]):
            again = Validation(task.selection, norm_data=task.train)
            before = member[1].running_mean.clone()
            again(member)
            assert torch.equal(before, member[1].running_mean)
    assert plain(module, task).reference is None


def test_members_are_combined_as_asked_with_the_parent_or_without():
    module, task = parent(), Task(pictures(), pictures(100, seed=5))
    images = pictures(20, seed=7)
    found = Noisy(Search(8, 3, 0.2), combine="logits", include_parent=True)(module, task)
    raced = Noisy(Search(8, 3, 0.2), combine="logits", include_parent=True, racing=True)
    for ensemble in (found.ensemble, raced(module, task).ensemble):
        logits = torch.stack([predict(member, images) for member in ensemble.members])
        torch.testing.assert_close(logits[0], predict(module, images))
        assert len(logits) == 4
        expected = logits.mean(0).log_softmax(1)  # softmax(mean(outputs)) of algorithm 1
        torch.testing.assert_close(predict(ensemble, images), expected)
    votes = Noisy(Search(8, 3), combine="vote", generations=2)(module, task)
    assert {each.combine for each in votes.candidates.values()} == {"vote"}


def test_a_way_to_combine_that_means_nothing_is_refused_before_anything_is_judged():
    module, asked = built(lambda: torch.nn.Linear(5, 1)), []
    module.register_forward_hook(lambda *_: asked.append(1))
    data = [(noise(8, 5), noise(8, 1))] * 3
    with pytest.raises(ValueError, match="combine 'vote' means nothing for Values"):
        Noisy(Search(4, 2), combine="vote")(module, Task(data, data, outputs=Values()))
    assert not asked


def test_the_density_whose_children_are_the_fittest_is_taken():
    module, task = parent(), Task(pictures(), pictures(200, seed=5))
    found = Noisy(Search(4, 2, seed=2), target_kl=0.1, densities=(0.05, 0.5, 0.9))(module, task)
    assert [trial.density for trial in found.trials] == [0.05, 0.5, 0.9]
    assert all(trial.divergence == pytest.approx(0.1, rel=0.1) for trial in found.trials)
    sigmas = [trial.sigma for trial in found.trials]
    assert sigmas == sorted(sigmas, reverse=True), "sigma falls as density grows"
    best = max(found.trials, key=lambda trial: trial.fitness)
    assert (found.search.density, found.search.sigma) == (best.density, best.sigma)
    densities = sorted({child.mutation.density for child in found.children})
    assert densities == pytest.approx(sorted({best.density, 1 - best.density}))
    assert f"density {best.density:g}" in found.text().splitlines()[-1]
    some, _ = apart(task.selection, most=1000, seed=derive_seed(2, "trust region"))
    mutations = islice(found.search.measured(best.sigma, best.density), best.children)
    drawn = Ensemble.from_mutations(module, list(mutations))
    right = [predict(child, some).argmax(1) == some.labels for child in drawn.members]
    assert best.fitness == pytest.approx(torch.stack(right).double().mean().item())
