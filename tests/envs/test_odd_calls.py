"""The simulator's C++ code ends the process where it is given what it does not expect: the copies,
the views and a thousand odd calls of what stands before it."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs import Levels, ProcgenSimulator, ProcgenVecEnv, ProcgenVectorEnv

ROOT = Path(__file__).parents[2]
COPIES = {
    "pickle": lambda one: pickle.loads(pickle.dumps(one)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.fixture
def simulator():
    env = ProcgenSimulator("bossfight", 3, seed=2, levels=Levels(40, 10))
    yield env
    env.close()


def random_actions(steps, seed=0):
    return np.random.default_rng(seed).integers(0, 15, (steps, 3))


def test_no_call_ends_the_process():
    child = [sys.executable, "-X", "faulthandler", "tests/envs/odd_calls.py", "1000", "0"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        child, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    last = ended.stdout.splitlines()[-1]
    assert ended.returncode == 0, f"{last}\n{ended.stderr[-3000:]}"
    assert last.startswith("done: ")


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_go_on_and_leave_the_original_alone(simulator, make):
    for actions in random_actions(20):
        simulator.step(actions)
    before = simulator.observation
    other = make(simulator)
    assert np.array_equal(other.observation, before)
    theirs = [other.step(actions) for actions in random_actions(60, 1)]
    assert np.array_equal(simulator.observation, before)
    assert simulator.elapsed.tolist() != other.elapsed.tolist()
    ours = [simulator.step(actions) for actions in random_actions(60, 1)]
    for one, two in zip(ours, theirs, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert (other.levels, other.mode) == (simulator.levels, simulator.mode)
    other.close()
    simulator.step([0, 1, 2])


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_of_a_closed_simulator_are_closed(simulator, make):
    simulator.close()
    other = make(simulator)
    with pytest.raises(ValueError, match=r"closed; reset\(seed\) opens it again"):
        other.step([0, 1, 2])
    assert np.array_equal(other.reset(4), simulator.reset(4))
    other.close()


@pytest.mark.parametrize("view", [ProcgenVectorEnv, ProcgenVecEnv])
def test_views_are_pickled_with_their_simulators(simulator, view):
    env = view(simulator)
    env.reset()
    other = pickle.loads(pickle.dumps(env))
    for actions in random_actions(30):
        assert np.array_equal(env.step(actions)[0], other.step(actions)[0])
    other.close()


def test_what_gymnasium_asks_of_a_vector_env():
    env = ProcgenVectorEnv(ProcgenSimulator("coinrun", 2, high_resolution=True))
    assert env.spec is None
    assert env.render_mode in env.metadata["render_modes"]
    env.reset(seed=np.int64(3))
    pictures = env.render()
    assert isinstance(pictures, tuple)
    assert [each.shape for each in pictures] == [(512, 512, 3)] * 2
    with pytest.raises(ValueError, match="a reset_mask neither"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.close()
    with pytest.raises(ValueError, match="closed"):
        env.render()


def test_pictures_are_refused_where_there_are_none(simulator):
    env = ProcgenVectorEnv(simulator)
    assert env.render_mode is None
    with pytest.raises(ValueError, match="high_resolution=True"):
        env.render()
    with pytest.raises(ValueError, match="opens no window"):
        ProcgenVecEnv(simulator).render("human")


def test_states_are_refused_before_any_is_taken(simulator):
    states = simulator.get_state()
    for actions in random_actions(10):
        simulator.step(actions)
    before, after = simulator.get_state(), simulator.observation
    data = states[2].simulator
    for damaged in (data[:-1], data[:40] + b"\xff" + data[41:], b"", bytes(len(data))):
        with pytest.raises(ValueError, match="damaged"):
            simulator.set_state([*states[:2], states[2]._replace(simulator=damaged)])
    assert np.array_equal(simulator.observation, after)
    assert [each.simulator for each in simulator.get_state()] == [e.simulator for e in before]
