"""Children that play together: each plays what it would alone, bit for bit."""

import copy
import math
import re
import threading
import time
from dataclasses import astuple

import numpy as np
import pytest
import torch
from networks import built
from torch import nn

from agents.impala import impala_actor
from agents.parents import save_actor
from agents.play.course import Course
from agents.play.population import evaluate_population, play, play_population
from envs import TRAIN_LEVELS, ProcgenSimulator
from evo_subnets import Ensemble, evaluate, quads
from evo_subnets.evolution import PopulationError
from evo_subnets.outputs import Values
from evo_subnets.rl import EnsemblePolicy


@pytest.fixture
def threads():
    """A function that sets torch's threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def actor():
    actor = built(lambda: impala_actor((2, 2, 2), frame_stack=2))
    with torch.no_grad():
        actor.head.weight *= 5
    return actor


COURSE = Course("fruitbot", TRAIN_LEVELS, seed=3, num_envs=3)
POPULATION = quads(4, sigma=0.6, density=0.5, seed=1)


def child_policies(actor, mutations=POPULATION):
    members = Ensemble.from_mutations(actor, mutations).members
    return [EnsemblePolicy(member, actor.observation_space) for member in members]


def makers(policies):
    return [lambda policy=policy: policy for policy in policies]


def alone(policy, course, episodes, deterministic=False):
    """(returns, lengths, levels): a plain loop over a course's simulators, one after the other."""
    simulators = course.simulators(episodes)
    slots = sum(simulator.num_envs for simulator in simulators)
    found, start = [], 0
    for group, simulator in enumerate(simulators):
        draw = np.random.default_rng([course.seed, group])
        size = simulator.num_envs
        quota = [episodes // slots + (n < episodes % slots) for n in range(start, start + size)]
        start += size
        ended, running = [[] for _ in range(size)], [[] for _ in range(size)]
        while active := [slot for slot in range(size) if len(ended[slot]) < quota[slot]]:
            uniforms = draw.random(size)[active]
            actions = np.full(size, 4)
            shown = simulator.observation[active]
            actions[active] = policy.act(shown, None if deterministic else uniforms)
            step = simulator.step(actions)
            done = step.terminated | step.truncated
            levels = simulator.info("prev_level_seed") if done.any() else None
            for slot in range(size):
                running[slot].append(float(step.reward[slot]))
                if done[slot]:
                    ended[slot].append((sum(running[slot]), len(running[slot]), levels[slot]))
                    running[slot] = []
        simulator.close()
        for slot in range(size):
            found += ended[slot][: quota[slot]]
    return [list(column) for column in zip(*found, strict=True)]


def lists(episodes):
    return [column.tolist() for column in astuple(episodes)]


@pytest.fixture(scope="module", params=[False, True], ids=["sampling", "greedy"])
def played_alone(actor, request):
    """Whether greedily, and what each child plays alone: an uneven course of two groups."""
    policies = child_policies(actor)
    return request.param, [alone(policy, COURSE, 4, request.param) for policy in policies]


@pytest.mark.parametrize(("count", "blocks"), [(1, 1), (2, 1), (2, 3), (1, 8)])
def test_each_child_plays_what_it_plays_alone(actor, threads, played_alone, count, blocks):
    """For any number of threads and of blocks."""
    greedy, expected = played_alone
    threads(count)
    policies = makers(child_policies(actor))
    found = dict(play_population(policies, COURSE, episodes=4, deterministic=greedy, blocks=blocks))
    assert [lists(found[index]) for index in range(4)] == expected
    assert len({tuple(lengths) for _, lengths, _ in expected}) > 1
    assert len({tuple(levels) for *_, levels in expected}) == 1


def test_playing_together_is_evaluating_one_by_one(actor, threads):
    """The same children, so that a script's results do not depend on how they were judged."""

    def fitness(model):
        policy = EnsemblePolicy(model, actor.observation_space)
        return play(policy, COURSE, episodes=4).returns.tolist()

    expected = evaluate(actor, POPULATION, fitness=fitness)
    threads(2)
    told = []
    found = evaluate_population(actor, POPULATION, course=COURSE, episodes=4, on_child=told.append)
    assert found == expected
    assert sorted(told, key=lambda child: POPULATION.index(child.mutation)) == expected
    again = []
    rest = evaluate_population(
        actor, POPULATION, course=COURSE, episodes=4, on_child=again.append, done=found[1:3]
    )
    assert rest == expected
    assert again[:2] == found[1:3]
    assert evaluate_population(actor, POPULATION, course=COURSE, episodes=4, done=found) == expected


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("no policy")


def test_a_policy_that_fails_costs_the_others_nothing(actor, threads):
    policies = child_policies(actor)
    expected = [lists(play(policy, COURSE, episodes=2)) for policy in policies]
    policies[1] = EnsemblePolicy(Fails(), actor.observation_space)
    jobs = makers(policies)
    jobs[2] = lambda: 1 / 0
    for count in (1, 2):
        threads(count)
        found = dict(play_population(jobs, COURSE, episodes=2, blocks=4))
        assert [repr(found[index]) for index in (1, 2)] == [
            "RuntimeError('no policy')", "ZeroDivisionError('division by zero')",
        ]  # fmt: skip
        assert [lists(found[index]) for index in (0, 3)] == [expected[0], expected[3]]


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_policy_without_an_action_fails_alone(actor, deterministic):
    """One that gives NaN, and one whose actions are real values."""
    options = {"episodes": 2, "deterministic": deterministic}
    policies = child_policies(actor)
    expected = [lists(play(policy, COURSE, **options)) for policy in policies]
    broken = copy.deepcopy(actor)
    broken.head.bias.data[1] = math.nan
    policies[1] = EnsemblePolicy(broken, actor.observation_space)
    policies[2] = EnsemblePolicy(actor, actor.observation_space, outputs=Values())
    found = dict(play_population(makers(policies), COURSE, blocks=4, **options))
    assert "give no action for" in str(found[1])
    assert "actions are numbered, this policy gives real values" in str(found[2])
    assert [lists(found[index]) for index in (0, 3)] == [expected[0], expected[3]]


def test_a_population_of_failures_stops(actor, monkeypatch):
    def refuse(*arguments, **options):
        raise MemoryError("too large")

    monkeypatch.setattr("agents.play.population.materialize", refuse)
    before = threading.active_count()
    with pytest.raises(PopulationError, match="3 of 4 so far, most often with: MemoryError: too"):
        evaluate_population(actor, POPULATION, course=COURSE, episodes=4)
    assert threading.active_count() == before


class Broken(ProcgenSimulator):
    """Steps fail from the fifth on, in one of the simulators."""

    def step(self, actions):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 5:
            raise OSError("the simulator is gone")
        return super().step(actions)


def test_a_broken_simulator_stops_all(actor, threads, monkeypatch):
    monkeypatch.setattr("agents.play.course.ProcgenSimulator", Broken)
    threads(2)
    before = threading.active_count()
    with pytest.raises(OSError, match="simulator is gone"):
        evaluate_population(actor, POPULATION, course=COURSE, episodes=4)
    assert threading.active_count() == before
    assert torch.get_num_threads() == 2


def test_whoever_listens_can_end_the_play(actor, threads):
    """An error, or Ctrl-C, in what is done with a child."""

    def interrupt(child):
        raise KeyboardInterrupt

    threads(2)
    course = Course("bossfight", TRAIN_LEVELS, seed=3, num_envs=2)
    started, before = time.monotonic(), threading.active_count()
    with pytest.raises(KeyboardInterrupt) as raised:
        evaluate_population(
            actor,
            quads(400, sigma=0.2, density=0.5, seed=1),
            course=course,
            episodes=2,
            on_child=interrupt,
        )
    assert threading.active_count() == before, "threads play on"
    assert time.monotonic() - started < 20
    assert raised.traceback, "which held on to the frames until here"
    assert torch.get_num_threads() == 2


def test_policies_are_made_when_they_play_and_not_kept(actor):
    """At most as many at a time as there are blocks."""
    alive, most = [0], [0]

    class Counted(EnsemblePolicy):
        def __init__(self):
            super().__init__(actor, actor.observation_space)
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    found = list(play_population([Counted] * 12, COURSE, episodes=2, blocks=3))
    assert len(found) == 12
    assert most[0] == 3
    assert alive[0] == 0


def test_no_policies_is_no_play():
    assert list(play_population([], COURSE, episodes=4)) == []


def test_the_benchmark_runs_to_its_end(server, tmp_path, actor):
    save_actor(tmp_path / "policy.safetensors", actor, about={})
    text = server.printed(
        "benchmarks/procgen_population", "--game", "bossfight", "--parent",
        tmp_path / "policy.safetensors", "--children", 4, "--episodes", 2, "--other-envs", 2,
        "--rounds", 1, "--threads", 1,
    )  # fmt: skip
    rows = re.findall(r"^(together|evaluate_policy, 2 environments) +\d", text, re.M)
    assert rows == ["together", "evaluate_policy, 2 environments"]
