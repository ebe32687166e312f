"""Evaluation: a fixed quota of episodes, common levels, intervals, observations, clips."""

import os
import signal
import threading
import time
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from networks import built
from PIL import Image
from torch import nn

from agents.evaluation import bootstrap_interval
from agents.impala import impala_actor
from agents.play import course as courses
from agents.play.course import Course
from agents.play.observations import collect_observations
from agents.play.population import play
from agents.play.records import record_clip
from envs import TEST_LEVELS, TRAIN_LEVELS, Levels, ProcgenSimulator
from envs.procgen import Transition
from evo_subnets.rl import EnsemblePolicy

SPACE = gymnasium.spaces.Box(0, 255, (6, 64, 64), np.uint8)


class Presses(nn.Module):
    """Presses keys whatever it sees: all equally often, or one of them more often by `force`."""

    def __init__(self, action=0, force=0.0):
        super().__init__()
        self.register_buffer("logits", torch.zeros(15))
        self.logits[action] = force

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def presses(action=0, force=0.0):
    return EnsemblePolicy(Presses(action, force), SPACE)


def looks(seed=0):
    """A policy that sees: an Impala network with weights strong enough to prefer some actions."""
    actor = built(lambda: impala_actor((2, 2, 2), frame_stack=2), seed)
    with torch.no_grad():
        actor.head.weight *= 5
    return EnsemblePolicy(actor, SPACE)


@pytest.fixture
def threads():
    """A function that sets torch's threads until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def course(game="bossfight", num_envs=64, seed=1, levels=TRAIN_LEVELS):
    return Course(game, levels, seed=seed, num_envs=num_envs)


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


# --- the quota, in a game whose episodes are known


def lengths_of(seed, slot, count):
    """The first episodes of a slot: 1 step or 10 steps long, as likely."""
    return np.random.default_rng([seed, slot]).choice([1, 10], count)


class Lottery:
    """A game of such episodes, with a reward of 1 a step, in place of the simulator."""

    made: list["Lottery"] = []

    def __init__(self, game, num_envs, *, levels, mode, frame_stack, seed):
        self.num_envs, self.closed = num_envs, False
        self.lengths = np.array([lengths_of(seed, slot, 1_000) for slot in range(num_envs)])
        self.episode, self.step_number = np.zeros((2, num_envs), int)
        self.number = np.arange(num_envs)
        self.observation = np.zeros((num_envs, 6, 64, 64), np.uint8)
        self.seed = seed
        Lottery.made.append(self)

    def step(self, actions):
        assert np.shape(actions) == (self.num_envs,)
        self.step_number += 1
        done = self.step_number == self.lengths[np.arange(self.num_envs), self.episode]
        self.step_number[done] = 0
        self.episode[done] += 1
        ones = np.ones(self.num_envs, np.float32)
        cut = done & (np.arange(self.num_envs) % 2 == 0)
        return Transition(self.observation, ones, done & ~cut, cut, self.observation)

    def info(self, key):
        assert key == "prev_level_seed"
        return self.number * 1_000 + self.episode - 1

    def get_state(self):
        assert not self.episode.any()
        return [(lengths, slot) for slot, lengths in enumerate(self.lengths)]

    def set_state(self, states, first):
        for slot, (lengths, number) in enumerate(states, first):
            self.lengths[slot], self.number[slot] = lengths, number
            self.episode[slot] = self.step_number[slot] = 0
        return self.observation

    def close(self):
        self.closed = True


@pytest.fixture
def lottery(monkeypatch):
    monkeypatch.setattr(courses, "ProcgenSimulator", Lottery)
    Lottery.made = []
    return Lottery.made


def expected_episodes(made, episodes):
    """What each slot's first episodes are, slot by slot, with the quota spread evenly."""
    slots = [(each.seed, slot) for each in made for slot in range(each.num_envs)]
    returns, levels = [], []
    for number, (seed, slot) in enumerate(slots):
        quota = episodes // len(slots) + (number < episodes % len(slots))
        returns += lengths_of(seed, slot, 1_000)[:quota].tolist()
        levels += [slot * 1_000 + episode for episode in range(quota)]
    return returns, levels


@pytest.mark.parametrize(
    ("episodes", "num_envs", "groups"),
    [(1, 64, [1]), (7, 64, [4, 3]), (64, 64, [32, 32]), (65, 64, [32, 32]), (100, 33, [17, 16]),
     (50, 8, [4, 4]), (80, 70, [32, 32, 6])],
)  # fmt: skip
def test_every_environment_plays_its_quota(lottery, episodes, num_envs, groups):
    played = play(presses(), course(num_envs=num_envs), episodes=episodes)
    first = lottery[: len(groups)]  # before the simulators that are played in
    assert [each.num_envs for each in first] == groups
    assert all(each.closed for each in lottery)
    returns, levels = expected_episodes(first, episodes)
    assert played.returns.tolist() == played.lengths.tolist() == returns
    assert played.level_seeds.tolist() == levels
    assert len(returns) == episodes


def test_the_quota_is_unbiased_where_the_first_to_finish_are_short(lottery):
    """The true mean is 5.5; the first 192 episodes to finish average far less."""
    means, quick = [], []
    for seed in range(10):
        lottery.clear()
        means.append(play(presses(), course(seed=seed), episodes=192).returns.mean())
        finished = []
        for each in lottery[:2]:
            for lengths in each.lengths:
                finished += zip(np.cumsum(lengths), lengths, strict=True)
        quick.append(np.mean([length for _, length in sorted(finished)[:192]]))
    error = 4.5 / np.sqrt(10 * 192)
    assert abs(np.mean(means) - 5.5) < 4 * error
    assert np.mean(quick) < 5.5 - 4 * error


def test_every_finished_episode_is_reported(lottery):
    seen = []
    played = play(presses(), course(), episodes=100, on_episode=seen.append)
    assert sorted(seen) == sorted(played.returns.tolist())
    assert all(type(value) is float for value in seen)


@pytest.mark.parametrize("episodes", [0, -3])
def test_the_number_of_episodes_must_be_positive(episodes):
    with pytest.raises(ValueError, match=f"episodes must be an integer .*, got {episodes}"):
        play(presses(), course(), episodes=episodes)


@pytest.mark.parametrize("count", [1, 2])
def test_simulators_are_closed_where_a_policy_fails(lottery, threads, count):
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no policy")

    threads(count)
    with pytest.raises(RuntimeError, match="no policy"):
        play(EnsemblePolicy(Fails(), SPACE), course(), episodes=64)
    assert lottery
    assert all(each.closed for each in lottery)


@pytest.mark.parametrize(("episodes", "num_envs"), [(20, 20), (64, 64)])
def test_play_leaves_the_number_of_threads_alone(lottery, threads, episodes, num_envs):
    threads(2)
    play(presses(), course(num_envs=num_envs), episodes=episodes)
    assert torch.get_num_threads() == 2
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2], "of threads to come"


def test_an_interruption_ends_the_play_at_once(lottery, threads, monkeypatch):
    """Ctrl-C, which the main thread sees while the groups play in threads of their own."""
    slow = Lottery.step

    def step(each, actions):
        time.sleep(0.02)
        return slow(each, actions)

    monkeypatch.setattr(Lottery, "step", step)
    threads(2)
    started = time.monotonic()
    pressed = threading.Event()

    def press_ctrl_c(_):
        if not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            play(presses(), course(), episodes=6_400, on_episode=press_ctrl_c)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 5, "the groups played on"


# --- common levels, in the real simulator


def first_levels(each_course, episodes):
    """The levels of every slot as the simulator gives them, by resets and not by playing."""
    simulators = each_course.simulators(episodes)
    levels = [[] for each in simulators for _ in range(each.num_envs)]
    most = -(-episodes // len(levels))
    start = 0
    for simulator in simulators:
        for _ in range(most):
            for slot, level in enumerate(simulator.info("level_seed").tolist(), start):
                levels[slot].append(level)
            simulator.reset()
        start += simulator.num_envs
        simulator.close()
    quota = [episodes // len(levels) + (n < episodes % len(levels)) for n in range(len(levels))]
    return [level for slot, count in zip(levels, quota, strict=True) for level in slot[:count]]


@pytest.mark.parametrize("levels", [TRAIN_LEVELS, TEST_LEVELS])
def test_two_policies_face_the_same_levels_in_the_same_order(levels):
    each_course = course(num_envs=4, levels=levels)
    one, two = (
        play(presses(), each_course, episodes=11),
        play(presses(2, 1.0), each_course, episodes=11),
    )
    assert one.level_seeds.tolist() == two.level_seeds.tolist()
    assert one.level_seeds.tolist() == first_levels(each_course, 11)
    assert not np.array_equal(one.lengths, two.lengths)
    assert all(level in levels for level in one.level_seeds.tolist())
    assert len(one.returns) == len(one.lengths) == 11
    assert (one.lengths >= 1).all()


def test_another_seed_is_another_course():
    wide = Levels(0, 10**6)
    one, two = (play(presses(), course(seed=seed, levels=wide), episodes=8) for seed in (1, 2))
    assert not set(one.level_seeds) & set(two.level_seeds)


def test_the_groups_of_a_course_have_levels_of_their_own():
    simulators = course(levels=Levels(0, 10**9)).simulators(64)
    assert [simulator.num_envs for simulator in simulators] == [32, 32]
    levels = np.concatenate([simulator.info("level_seed") for simulator in simulators])
    assert len(set(levels.tolist())) == 64
    for simulator in simulators:
        simulator.close()


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_policy_twice_gives_the_same_episodes(deterministic):
    one, two = (
        play(looks(), course("fruitbot", 6), episodes=9, deterministic=deterministic)
        for _ in range(2)
    )
    assert same(one, two)
    assert len(set(one.returns.tolist())) > 1


def test_sampling_and_acting_greedily_differ():
    assert not same(
        play(looks(), course("fruitbot", 6), episodes=6),
        play(looks(), course("fruitbot", 6), episodes=6, deterministic=True),
    )


def test_the_temperature_is_used():
    """A temperature near zero samples what acting greedily takes."""
    cold = EnsemblePolicy(looks().model, SPACE, temperature=1e-6)
    each_course = course("fruitbot", 6)
    assert same(
        play(cold, each_course, episodes=6),
        play(looks(), each_course, episodes=6, deterministic=True),
    )


def test_episodes_do_not_depend_on_the_number_of_threads(threads):
    played = []
    for count in (1, 2):
        threads(count)
        played.append(play(looks(), course(num_envs=5), episodes=12))
    assert same(*played)


def test_returns_are_sums_of_raw_rewards():
    """Against a loop over one slot at a time, with the key pressed that always is."""
    each_course = course("fruitbot", 3)
    played = play(presses(7, 1.0), each_course, episodes=6, deterministic=True)
    expected = []
    for simulator in each_course.simulators(6):
        slots = simulator.num_envs
        episodes, running = [[] for _ in range(slots)], [[] for _ in range(slots)]
        while min(map(len, episodes)) < 2:
            step = simulator.step(np.full(slots, 7))
            for slot in range(slots):
                running[slot].append(float(step.reward[slot]))
                if step.terminated[slot] or step.truncated[slot]:
                    level = int(simulator.info("prev_level_seed")[slot])
                    episodes[slot].append((sum(running[slot]), len(running[slot]), level))
                    running[slot] = []
        simulator.close()
        expected += [episode for slot in episodes for episode in slot[:2]]
    found = zip(played.returns, played.lengths, played.level_seeds, strict=True)
    assert list(found) == expected


# --- intervals


@pytest.mark.parametrize("count", [64, 256])
def test_the_bootstrap_interval_is_near_the_normal_one(count):
    values = np.random.default_rng(count).normal(3, 2, count)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(count)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap_interval(values) == (low, high)
    narrow = bootstrap_interval(values, level=0.5)
    assert narrow[1] - narrow[0] == pytest.approx((high - low) * 0.6745 / 1.96, rel=0.1)


def test_the_bootstrap_interval_of_two_values_by_hand():
    """Four resamples are as likely: both values twice each (a quarter), and one of each."""
    assert bootstrap_interval(np.array([0.0, 1.0])) == (0.0, 1.0)
    assert bootstrap_interval(np.array([0.0, 1.0]), level=0.4) == (0.5, 0.5)


def test_the_bootstrap_interval_of_one_value_or_constants_is_a_point():
    assert bootstrap_interval(np.full(10, 2.5)) == (2.5, 2.5)
    assert bootstrap_interval(np.array([4.0])) == (4.0, 4.0)


def test_the_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    draw, hits = np.random.default_rng(0), 0
    for _ in range(200):
        low, high = bootstrap_interval(draw.exponential(1.0, 50), resamples=400)
        hits += low <= 1 <= high
    assert 0.86 <= hits / 200 <= 0.99


# --- observations and clips


@pytest.mark.parametrize(("count", "num_envs"), [(10, 4), (8, 4), (3, 64)])
def test_observations_of_a_policys_own_play(count, num_envs):
    each_course = course(num_envs=num_envs)
    observations = collect_observations(looks(), each_course, count=count)
    assert observations.shape == (count, 6, 64, 64)
    assert observations.dtype == torch.uint8
    assert torch.equal(observations, collect_observations(looks(), each_course, count=count))
    assert len({row.numpy().tobytes() for row in observations}) == count
    assert observations[:, :3].any()


def test_a_clip_shows_every_frame(tmp_path):
    path = tmp_path / "clips" / "clip.gif"
    value = record_clip(presses(), course("starpilot"), path=path, max_steps=12)
    assert isinstance(value, float)
    with Image.open(path) as clip:
        assert (clip.format, clip.size, clip.n_frames) == ("GIF", (256, 256), 12)
        frames = []
        for number in range(clip.n_frames):
            clip.seek(number)
            frames.append(np.asarray(clip.convert("RGB")))
    assert all((a != b).any() for a, b in pairwise(frames))
    assert [file.name for file in path.parent.iterdir()] == ["clip.gif"]


def test_a_clip_ends_with_its_episode(tmp_path):
    """Against the same play, at the same seed, without pictures."""
    each_course, policy = course("bossfight", seed=18), presses(4, 1.0)
    value = record_clip(policy, each_course, path=tmp_path / "clip.gif", deterministic=True)
    simulator = ProcgenSimulator("bossfight", 1, seed=18)
    total, steps, done = 0.0, 0, False
    while not done:
        step = simulator.step([4])
        total, steps = total + float(step.reward[0]), steps + 1
        done = step.terminated[0] or step.truncated[0]
    simulator.close()
    assert steps == 22
    assert value == pytest.approx(total)
    with Image.open(tmp_path / "clip.gif") as clip:
        durations = []
        for number in range(clip.n_frames):
            clip.seek(number)
            durations.append(clip.info["duration"])
    assert steps * 60 <= sum(durations) <= steps * 66  # equal pictures are one that lasts longer
