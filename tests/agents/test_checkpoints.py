"""PPO goes on from a checkpoint as if it had never been stopped, and unpickles nothing."""

import os
import pickle
import random
import shutil
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import all_same_bits, copied
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.checkpoints import (
    checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    save_milestone,
)
from agents.fast.ppo import FastPPO
from agents.ppo import PPOSettings, make_ppo, make_training_env, train
from envs.games import GAMES
from envs.procgen import ProcgenSimulator
from evo_subnets import files
from evo_subnets.files import StorageError

from stable_baselines3 import PPO  # isort: skip  # after agents, which silences gym

GAME, SEED = "fruitbot", 6
"""Rewards are frequent, and the first episodes short."""
SETTINGS = PPOSettings(num_envs=2, rollout_steps=32, minibatches=2, epochs=2, widths=(2, 2, 2))
UPDATE, TOTAL = 64, 384


@pytest.fixture(autouse=True, scope="module")
def short_time_limit():
    """Episodes that outlast a rollout count as cut short: the steps that are done matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GAMES, GAME, replace(GAMES[GAME], time_limit=UPDATE // 2))
        yield


def go_on(out, steps=TOTAL, settings=SETTINGS, **options):
    """Training in a folder, whatever state the global generators are in."""
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    options = {"seed": SEED, "device": "cpu", "checkpoint_every": 2 * UPDATE} | options
    game = options.pop("game", GAME)
    return train(game, settings, total_timesteps=steps, out=out, **options)


def names(out):
    return [path.stem for path in checkpoints(out)]


def end(out):
    """All that a run left: its newest checkpoint and its curve."""
    tensors, description = files.load_tensors(newest_checkpoint(out), "evo_subnets.ppo_checkpoint")
    return copied(tensors), description, (out / "curve.csv").read_text()


def check_same_end(out, other):
    (tensors, *rest), (other_tensors, *other_rest) = end(out), end(other)
    differ = [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])]
    assert not differ
    assert all_same_bits(tensors, other_tensors)
    assert rest == other_rest


def check_same_agent(agent, other):
    assert agent.num_timesteps == other.num_timesteps
    assert all_same_bits(agent.policy.state_dict(), other.policy.state_dict())
    states = [each.policy.optimizer.state_dict()["state"] for each in (agent, other)]
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) == len(list(agent.policy.parameters()))
    for index in states[0]:
        one, two = (dict(sorted(each[index].items())) for each in states)
        assert all_same_bits(one, two)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of six updates, with a checkpoint after every second: its folder and its agent."""
    out = tmp_path_factory.mktemp("run")
    return out, go_on(out)


@pytest.fixture
def copy(uninterrupted, tmp_path):
    """A copy of that run's folder."""
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    return tmp_path / "run"


# --- going on


def test_a_run_leaves_the_two_newest_checkpoints_and_a_curve(uninterrupted):
    out, agent = uninterrupted
    assert agent.num_timesteps == TOTAL
    assert names(out) == ["checkpoint-256", "checkpoint-384"]
    assert newest_checkpoint(out).name == "checkpoint-384.safetensors"
    heading, *rows = (out / "curve.csv").read_text().splitlines()
    assert heading == "steps,mean_return"
    steps = [int(row.split(",")[0]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-1] == TOTAL
    assert list(out.glob("events.out.tfevents.*"))
    assert not list(out.glob(".*")), "nothing half-written"


def shown_steps(out):
    """Where TensorBoard has points of the return."""
    events = EventAccumulator(str(out))
    events.Reload()
    return [point.step for point in events.Scalars("rollout/ep_rew_mean")]


class Interrupted(Exception):
    pass


def interrupt(patch, owner, method, calls):
    """Ends a run at a call of a method."""
    original, left = getattr(owner, method), [calls]

    def counted(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            raise Interrupted
        return original(*args, **kwargs)

    patch.setattr(owner, method, counted)


@pytest.mark.moves_generators
@pytest.mark.parametrize(
    ("owner", "method", "calls", "left"),
    [
        (FastPPO, "train", 4, ["checkpoint-128"]),
        (ProcgenSimulator, "step", 32 * 4 + 7, ["checkpoint-128", "checkpoint-256"]),
        (FastPPO, "train", 2, []),
    ],
    ids=["update 4", "rollout 5", "before any checkpoint"],
)  # fmt: skip
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    uninterrupted, tmp_path, monkeypatch, owner, method, calls, left
):
    with monkeypatch.context() as patch:
        interrupt(patch, owner, method, calls)
        with pytest.raises(Interrupted):
            go_on(tmp_path)
    assert names(tmp_path) == left
    for events in tmp_path.glob("events.*"):  # their names tell seconds, and no more
        events.rename(events.with_name(events.name.replace("tfevents.", "tfevents.0")))
    agent = go_on(tmp_path)
    check_same_agent(agent, uninterrupted[1])
    check_same_end(tmp_path, uninterrupted[0])
    assert shown_steps(tmp_path) == shown_steps(uninterrupted[0])


@pytest.mark.moves_generators
def test_a_run_in_parts_is_the_run_in_one(uninterrupted, tmp_path):
    for steps in (UPDATE, 4 * UPDATE, TOTAL):
        agent = go_on(tmp_path, steps)
        assert agent.num_timesteps == steps
    check_same_agent(agent, uninterrupted[1])
    check_same_end(tmp_path, uninterrupted[0])


@pytest.mark.moves_generators
def test_a_finished_run_comes_back_at_once(uninterrupted, copy, monkeypatch):
    interrupt(monkeypatch, ProcgenSimulator, "step", 1)
    check_same_agent(go_on(copy, TOTAL), uninterrupted[1])
    with pytest.raises(ValueError, match="holds a run of 384 steps already: total_timesteps 64 "):
        go_on(copy, UPDATE)
    check_same_end(copy, uninterrupted[0])


def test_a_killed_process_goes_on_with_the_same_command(server, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def command(out):
        return (
            "train_parent", "cpu", "--env", "bossfight", "--out", out, "--card-episodes", 2,
            "--total-timesteps", 320, "--checkpoint-every", 64, "--device", "cpu",
            "--ppo.num-envs", 4, "--ppo.rollout-steps", 8, "--ppo.minibatches", 2,
            "--ppo.widths", 2, 2, 2,
        )  # fmt: skip

    pid = server.start(*command(killed))
    for _ in range(2000):
        if checkpoints(killed):
            break
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert server.finish(5).status == -signal.SIGKILL
    assert names(killed)[-1] in ("checkpoint-64", "checkpoint-128")
    for out in (killed, whole):
        result = server.run(*command(out))
        assert result.status == 0, result.stderr
    check_same_end(killed, whole)
    cards = [files.read_json(out / "card.json") for out in (killed, whole)]
    assert cards[0] | {"command": ""} == cards[1] | {"command": ""}
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.moves_generators
def test_a_run_goes_on_with_the_settings_given_now(copy):
    other = replace(
        SETTINGS, gamma=0.9, normalizer_gamma=0.8, learning_rate=1e-4, clip_range=0.1,
        rollout_steps=16, minibatches=2, epochs=1, gae_lambda=0.8,
        entropy_coefficient=0.02, value_coefficient=0.3,
        max_gradient_norm=0.4, target_kl=0.07,
    )  # fmt: skip
    agent = go_on(copy, TOTAL + 32, other)
    assert agent.num_timesteps == TOTAL + 32
    assert (agent.gamma, agent.rollout_buffer.gamma, agent.batch_size) == (0.9, 0.9, 16)
    assert (agent.n_steps, agent.rollout_buffer.buffer_size, agent.n_epochs) == (16, 16, 1)
    assert (agent.gae_lambda, agent.rollout_buffer.gae_lambda) == (0.8, 0.8)
    assert agent.clip_range(1.0) == agent.clip_range_vf(1.0) == 0.1
    assert (agent.ent_coef, agent.vf_coef, agent.max_grad_norm) == (0.02, 0.3, 0.4)
    assert agent.target_kl == 0.07
    assert agent.policy.optimizer.param_groups[0]["lr"] == 1e-4
    assert agent.get_vec_normalize_env().gamma == 0.8
    moments = agent.policy.optimizer.state_dict()["state"].values()
    assert {state["step"].item() for state in moments} == {6 * 4 + 2}


@pytest.mark.moves_generators
@pytest.mark.parametrize(
    ("settings", "options", "name"),
    [
        ({}, {"game": "maze"}, "game fruitbot (now maze)"),
        ({}, {"mode": "hard"}, "mode easy (now hard)"),
        ({}, {"seed": 4}, "seed 6 (now 4)"),
        ({"num_envs": 4}, {}, "num_envs 2 (now 4)"),
        ({"widths": (2, 3, 2)}, {}, "widths [2, 2, 2] (now [2, 3, 2])"),
        ({"frame_stack": 1}, {}, "frame_stack 2 (now 1)"),
    ],
)
def test_a_run_of_another_kind_is_refused(copy, settings, options, name):
    before = names(copy)
    with pytest.raises(ValueError, match="is of a run with") as error:
        go_on(copy, 2 * TOTAL, replace(SETTINGS, **settings), **options)
    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert names(copy) == before


# --- files


@pytest.mark.moves_generators
def test_what_is_loaded_is_what_was_saved(uninterrupted, tmp_path):
    """Also what the rest of a run depends on little or not at all."""
    out, other = uninterrupted
    env = make_training_env(GAME, SETTINGS, seed=SEED)
    agent = make_ppo(env, SETTINGS, seed=SEED, device="cpu")
    random.seed(99)  # nothing in a run draws from it, but it is seeded
    load_checkpoint(agent, newest_checkpoint(out))
    save_checkpoint(agent, tmp_path)
    env.close()
    shutil.copy(out / "curve.csv", tmp_path)
    check_same_end(tmp_path, out)
    check_same_agent(agent, other)
    assert agent._last_obs.strides == other._last_obs.strides, "they choose torch's kernels"
    assert (agent._last_obs == other._last_obs).all()
    assert agent._last_episode_starts.tolist() == other._last_episode_starts.tolist()
    assert agent._n_updates == other._n_updates == 6 * SETTINGS.epochs
    for key in "rl":
        found, expected = ([info[key] for info in each.ep_info_buffer] for each in (agent, other))
        assert found == expected
        assert len(found) > 2
        assert type(found[0]) is type(expected[0])


@pytest.mark.moves_generators
def test_nothing_is_unpickled(uninterrupted, copy, tmp_path):
    """Python tells of every object that an unpickler looks up, whoever calls it."""
    found = []
    watch(found)
    uninterrupted[1].save(tmp_path / "agent.zip")
    PPO.load(tmp_path / "agent.zip", device="cpu")
    assert pickle.loads(pickle.dumps(PPOSettings)) is PPOSettings
    assert ("agents.ppo", "PPOSettings") in found
    assert ("agents.impala", "ImpalaCNN") in found
    found.clear()
    go_on(copy, TOTAL + UPDATE)
    assert found == []
    watch(None)


WATCHED = []


def watch(found):
    """Lets a list take what is unpickled from now on; None ends it."""
    if not WATCHED:
        sys.addaudithook(
            lambda event, args: (
                WATCHED[0].append(args)
                if event == "pickle.find_class" and WATCHED[0] is not None
                else None
            )
        )
        WATCHED.append(None)
    WATCHED[0] = found


@pytest.mark.moves_generators
@pytest.mark.parametrize("damage", ["truncated", "empty", "header", "weights", "last byte"])
def test_a_damaged_checkpoint_is_one_line_that_says_what_to_do(uninterrupted, copy, damage):
    path = newest_checkpoint(copy)
    data = bytearray(path.read_bytes())
    if damage in ("truncated", "empty"):
        data = data[: len(data) // 2 if damage == "truncated" else 0]
    else:
        data[{"header": 100, "weights": len(data) // 2, "last byte": -1}[damage]] ^= 4
    path.write_bytes(data)
    with pytest.raises(StorageError) as error:
        go_on(copy)
    assert str(error.value).startswith(f"{path}: ")
    assert "remove this file to go on from the checkpoint before it" in str(error.value)
    assert "\n" not in str(error.value)
    path.unlink()
    go_on(copy)
    check_same_end(copy, uninterrupted[0])


@pytest.mark.moves_generators
def test_checkpoints_of_the_older_format_are_refused(uninterrupted, tmp_path):
    (tmp_path / "checkpoint-4096").mkdir()
    with pytest.raises(ValueError, match="checkpoints of an older format alone") as error:
        go_on(tmp_path)
    assert str(error.value).startswith(f"{tmp_path} holds")
    assert "\n" not in str(error.value)
    shutil.copy(newest_checkpoint(uninterrupted[0]), tmp_path)
    check_same_agent(go_on(tmp_path), uninterrupted[1])


@pytest.mark.moves_generators
def test_what_a_killed_process_left_is_removed(copy):
    left = copy / ".checkpoint-448.safetensors.0a1b2c3d"
    left.write_bytes(b"half")
    others = [copy / "checkpoint-best.safetensors", copy / ".checkpoint-notes"]
    for other in others:
        other.write_text("mine")
    go_on(copy, TOTAL + UPDATE)
    assert not left.exists()
    assert names(copy) == ["checkpoint-384", "checkpoint-448"]
    assert [other.read_text() for other in others] == ["mine", "mine"]


@pytest.mark.moves_generators
def test_a_failing_write_leaves_no_half_checkpoint(uninterrupted, copy, monkeypatch):
    replace_file = os.replace

    def fail(source, target):
        if target.name.startswith("checkpoint-"):
            raise OSError("No space left on device")
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            go_on(copy, TOTAL + UPDATE)
    assert names(copy) == ["checkpoint-256", "checkpoint-384"]
    assert not list(copy.glob(".*"))
    go_on(copy)
    check_same_end(copy, uninterrupted[0])


# --- milestones


@pytest.fixture
def milestone(uninterrupted, tmp_path):
    path = tmp_path / "milestone.safetensors"
    assert save_milestone(newest_checkpoint(uninterrupted[0]), path) == TOTAL
    return path


@pytest.mark.moves_generators
def test_a_run_begins_at_a_milestone_with_weights_in_half_precision(
    uninterrupted, milestone, tmp_path
):
    whole = newest_checkpoint(uninterrupted[0])
    assert milestone.stat().st_size < whole.stat().st_size / 4
    begun = go_on(tmp_path / "begun", TOTAL, warm_start=milestone)  # nothing is left to do
    assert begun.num_timesteps == TOTAL
    expected = uninterrupted[1].policy.state_dict()
    for name, weight in begun.policy.state_dict().items():
        assert torch.equal(weight, expected[name].half().float()), name
    normalizers = [each.get_vec_normalize_env().ret_rms for each in (begun, uninterrupted[1])]
    one, other = ((each.mean, each.var, each.count) for each in normalizers)
    assert one == pytest.approx(other)
    further = go_on(tmp_path / "further", TOTAL + UPDATE, warm_start=milestone, seed=SEED + 1)
    assert further.num_timesteps == TOTAL + UPDATE
    again = go_on(tmp_path / "further", TOTAL + 2 * UPDATE, warm_start=milestone, seed=SEED + 1)
    assert again.num_timesteps == TOTAL + 2 * UPDATE, "from its own checkpoint"


@pytest.mark.moves_generators
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"game": "coinrun"}, "game fruitbot .now coinrun."),
        ({"mode": "hard"}, "mode easy .now hard."),
        ({"settings": replace(SETTINGS, widths=(2, 2, 4))}, "widths"),
    ],
)
def test_a_milestone_of_another_game_or_network_is_refused(changes, message, milestone, tmp_path):
    with pytest.raises(ValueError, match=message):
        go_on(tmp_path / "other", warm_start=milestone, **changes)


@pytest.mark.moves_generators
def test_a_damaged_milestone_is_refused(milestone, tmp_path):
    milestone.write_bytes(milestone.read_bytes()[:-9])
    with pytest.raises(StorageError, match="truncated"):
        go_on(tmp_path / "other", warm_start=milestone)
