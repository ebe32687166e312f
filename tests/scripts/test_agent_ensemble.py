"""The job for any agent: a parent that it trains, agents of other kinds, resume, refusals."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from script_client import check_refusal
from small_agents import unseeded

from evo_subnets import Ensemble, Lineage, files, parameters
from evo_subnets.rl import Actor, EnsemblePolicy, episode_returns
from evo_subnets.rl.zips import read_agent
from evo_subnets.streams import derive_seed

from stable_baselines3 import DQN, SAC, TD3  # isort: skip
from stable_baselines3.common.env_util import make_vec_env  # isort: skip
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize  # isort: skip

SMALL = {"buffer_size": 10, "seed": 0, "device": "cpu"}
TRAINED = ["--tiny", "--total-timesteps", "1024", "--further-training"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that trains its parent, in a process of its own, as users call it."""
    out = tmp_path_factory.mktemp("trained")
    command = [sys.executable, "scripts/agent_ensemble.py", "--out", str(out), *TRAINED]
    return out, subprocess.run(command, capture_output=True, text=True)


def test_a_small_parent_is_trained_where_there_is_none(trained):
    out, process = trained
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("parent: PPO, 1,024 steps; outputs: Classes\n")
    results = files.read_json(out / "results.json")
    names = [row["policy"] for row in results["test"]]
    assert names[:3] == ["parent", "parent, without chance", "best child"]
    assert names[-2:] == ["2 random children", "parent, trained further"]
    assert results["chosen"] in names[2:-2]
    steps = int(process.stdout.split("further training of the parent: ")[1].split()[0])
    parent = read_agent(out / "parent.zip")
    assert read_agent(out / "further.zip").num_timesteps >= parent.num_timesteps + steps > 1024
    assert all(len(child["cases"]) == 4 for child in results["children"])
    with open(out / "episodes.csv") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["policy"] for row in rows] == [name for name in names for _ in range(4)]
    parent = Actor.from_zip(out / "parent.zip")
    returns = episode_returns(
        "CartPole-v1", parent, episodes=4, seed=derive_seed(0, "test"), num_envs=2
    )
    assert [float(row["return"]) for row in rows[:4]] == returns.tolist()
    ensemble = Ensemble.load(out / "ensemble.safetensors", parent)
    assert len(ensemble.members) == 2
    assert EnsemblePolicy(ensemble).predict(np.zeros(4, np.float32))[0] in (0, 1)
    assert not {"procgen", "gym3"} & set(process.stderr.split()), "it needs no Procgen"


def test_the_same_again_plays_nothing_anew(server, trained):
    out, process = trained
    before = (out / "results.json").read_bytes()
    again = server.run("agent_ensemble", "--out", out, *TRAINED)
    assert again.status == 0, again.stderr
    assert again.stdout.splitlines()[:-1] == process.stdout.splitlines()[:-1]
    assert files.read_json(out / "results.json")["test"]
    assert len((out / "results.json").read_bytes()) == pytest.approx(len(before), abs=200)
    other = server.run("agent_ensemble", "--tiny", "--out", out, "--seed", 1)
    check_refusal(other, 1, "seed", "total_timesteps")


def agent_of(kind, folder, env, **options):
    network = {"net_arch": [8]}  # to which agents add
    agent = unseeded(lambda: kind("MlpPolicy", env, policy_kwargs=network, **SMALL, **options))
    agent.save(folder / "agent.zip")
    return folder / "agent.zip"


@pytest.mark.parametrize(
    ("kind", "env", "outputs"),
    [(SAC, "Pendulum-v1", "Gaussian"), (TD3, "Pendulum-v1", "Deterministic"),
     (DQN, "CartPole-v1", "ActionValues")],
)  # fmt: skip
def test_agents_of_other_kinds_go_all_the_way(server, tmp_path, kind, env, outputs):
    envs = make_vec_env(env, 1, seed=0)
    if kind is SAC:  # statistics that lie beside it
        envs = VecNormalize(envs)
        envs.obs_rms.update(np.random.default_rng(0).normal(0, 3, (50, 3)))
        envs.save(tmp_path / "vecnormalize.pkl")
    path = agent_of(kind, tmp_path, envs)
    extra = ["--generations", 1, "--ensemble-size", 1] if kind is TD3 else ["--generations", 2]
    options = ["--agent", path, "--env", env, "--tiny", "--out", tmp_path / "out", *extra]
    result = server.run("agent_ensemble", *options)
    assert result.status == 0, result.stderr
    first = result.stdout.splitlines()[0]
    assert f"outputs: {outputs}" in first
    assert ("normalised observations" in first) == (kind is SAC)
    results = files.read_json(tmp_path / "out" / "results.json")
    names = [row["policy"] for row in results["test"]]
    assert ("evolved parent" in names) == (extra[1] == 2)
    assert ("parent, without chance" in names) == (kind is not TD3)
    actor = Actor.from_zip(path)
    lineage, _ = Lineage.load(tmp_path / "out" / "lineage.json", parameters(actor))
    assert len(lineage.steps) == (2 if extra[1] == 2 else 0)


def test_an_agent_that_stacked_frames_says_how_many(server, tmp_path):
    envs = VecFrameStack(make_vec_env("CartPole-v1", 1, seed=0), 3)
    path = agent_of(DQN, tmp_path, envs)
    options = ["--agent", path, "--tiny", "--out", tmp_path / "out"]
    refused = server.run("agent_ensemble", *options)
    check_refusal(refused, 1, "(4,)", "(12,)", "frame_stack")
    assert not (tmp_path / "out").exists()
    result = server.run("agent_ensemble", *options, "--frame-stack", 3)
    assert result.status == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("missing.zip", "", ["there is no such file"]),
        ("text.zip", "", ["not a zip of stable-baselines3"]),
        ("agent.zip", "--further-training", ["DQN learns from what its zip does not hold"]),
        ("agent.zip", "--env Pendulum-v1", ["observations are", "the agent's"]),
        ("agent.zip", "--algorithm SAC", ["no agent of stable-baselines3's SAC can be read"]),
        ("agent.zip", "--normalization nowhere.pkl", ["no statistics of a VecNormalize"]),
    ],
)
def test_agents_that_cannot_be_parents_are_refused(server, tmp_path, name, options, words):
    agent_of(DQN, tmp_path, make_vec_env("CartPole-v1", 1, seed=0))
    (tmp_path / "text.zip").write_text("hello")
    out = tmp_path / "out"
    result = server.run(
        "agent_ensemble", "--agent", tmp_path / name, "--tiny", "--out", out, *options.split()
    )
    check_refusal(result, 1, *words)
    assert not out.exists()
