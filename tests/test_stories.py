"""The stories of docs/stories.md as they stand there, with somebody's own names before them."""

import re
import signal

import pytest
import torch
from networks import built, noise
from torch import nn

from docs.imports import ROOT
from evo_subnets import Ensemble

STORIES = dict(
    re.findall(
        r"^## (.+?)\n.*?^```python\n(.*?)^```", (ROOT / "docs/stories.md").read_text(), re.M | re.S
    )
)

AGENT = """
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

environment = make_vec_env("CartPole-v1", 2, seed=0)
agent = PPO("MlpPolicy", environment, n_steps=8, batch_size=16, seed=0, device="cpu")
"""

INTERRUPTED = """
import os, signal, sys

os.chdir(sys.argv[1])
calls, last, measure = 0, int(sys.argv[2]), fitness

def fitness(model):
    global calls
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    calls += 1
    return measure.cases(model)
"""


def told(story, names):
    """The names that somebody has after the story."""
    exec(compile(story, "docs/stories.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def data():
    """(inputs, targets) of a task that a line can learn."""
    inputs = noise(64, 6)
    return inputs, (inputs[:, :3] + 0.1 * noise(64, 3, seed=1)).argmax(1)


@pytest.fixture(scope="module")
def trained(data):
    inputs, targets = data
    network = built(lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def third():
    """What the third story leaves to the fourth and the fifth."""
    pytest.importorskip("stable_baselines3")
    with torch.random.fork_rng(devices=[]):
        names = told(AGENT, {})
    return told(STORIES["A stable-baselines3 agent"], names)


def test_there_are_five_and_none_is_longer_than_eight_lines():
    assert len(STORIES) == 5
    for story in STORIES.values():
        assert len(story.splitlines()) <= 8
        assert max(map(len, story.splitlines())) <= 100


def test_a_noise_ensemble_of_ones_own_module(data, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs, targets = data
    before = [parameter.clone() for parameter in trained.parameters()]

    def accuracy(model):
        with torch.no_grad():
            return (model(inputs).argmax(1) == targets).float().mean().item()

    story = STORIES["A noise ensemble of your own module"]
    names = told(story, {"network": trained, "inputs": inputs, "accuracy": accuracy})
    assert len(names["result"].children) == 16
    assert len(names["result"].ensemble.members) == 8
    assert abs(accuracy(names["result"].ensemble) - accuracy(trained)) < 0.1
    again = Ensemble.load("ensemble.safetensors", trained)
    assert torch.equal(again(inputs), names["log_probabilities"])
    assert all(map(torch.equal, before, trained.parameters()))


def test_prune_and_tune_of_ones_own_classifier(data, trained):
    inputs, targets = data
    pairs = torch.utils.data.TensorDataset(inputs, targets)
    loader = torch.utils.data.DataLoader(pairs, batch_size=8, shuffle=True)
    story = STORIES["Prune and tune your own classifier, from a DataLoader"]
    result = told(story, {"classifier": trained, "loader": loader})["result"]
    assert len(result.ensemble.members) == 4
    first, second = (member[0].weight != 0 for member in result.ensemble.members[:2])
    assert not (first & second).any()  # halves share nothing
    assert (result.ensemble(inputs).argmax(1) == targets).float().mean() > 0.7
    assert result.epochs == 8


def test_the_programs_of_the_readme(data, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs, labels = data
    first, second = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
    )
    mine = {"network": trained, "inputs": inputs, "labels": labels, "new_inputs": inputs[:5]}
    names = told(first, dict(mine))
    assert torch.equal(names["ensemble"](inputs[:5]), names["log_probabilities"])
    names = told(
        second, mine | {"loader": list(zip(inputs.split(16), labels.split(16), strict=True))}
    )
    assert names["log_probabilities"].shape == (5, 3)
    assert len(names["result"].ensemble.members) == 4


@pytest.mark.moves_generators
def test_a_stable_baselines3_agent(third):
    assert len(third["policy"].model.members) == 8
    mean, _ = third["evaluate_policy"](third["policy"], third["environment"], 4)
    assert mean >= 8  # no episode of CartPole is shorter


@pytest.mark.moves_generators
def test_the_same_on_ray(third):
    pytest.importorskip("ray")
    result = told(STORIES["The same on Ray"], dict(third))["result"]
    alone = third["evolve"](third["actor"], third["fitness"], search=third["search"])
    assert result.children == alone.children


def test_the_same_killed_and_resumed(server, third, tmp_path):
    lines = [AGENT, STORIES["A stable-baselines3 agent"], INTERRUPTED]
    lines += [STORIES["The same, killed and resumed"], "print(calls, result.children)"]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    killed = server.run(str(tmp_path / "mine"), tmp_path, 5)
    assert killed.status == -signal.SIGKILL, killed.stderr
    calls, children = server.printed(str(tmp_path / "mine"), tmp_path, -1).split(" ", 1)
    assert int(calls) == 16 - 5
    whole = third["evolve"](third["actor"], third["fitness"], search=third["search"])
    assert children == f"{whole.children}\n"
