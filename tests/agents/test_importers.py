"""Agents of other projects, against a forward pass written from what those projects say."""

import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agents.importers import LAYOUTS, load_foreign
from agents.parents import load_parent
from evo_subnets import files

BLOCKS = {  # (convolution, four of the residual blocks) of a block
    "train-procgen-pytorch": lambda i: [f"embedder.block{i + 1}.conv"]
    + [f"embedder.block{i + 1}.{name}" for name in
       ("res1.conv1", "res1.conv2", "res2.conv1", "res2.conv2")],
    "train-procgen-pfrl": lambda i: [f"conv_seqs.{i}.conv"]
    + [f"conv_seqs.{i}.{name}" for name in
       ("res_block0.conv0", "res_block0.conv1", "res_block1.conv0", "res_block1.conv1")],
    "CleanRL's ppo_procgen": lambda i: [f"network.{i}.conv"]
    + [f"network.{i}.{name}" for name in
       ("res_block0.conv0", "res_block0.conv1", "res_block1.conv0", "res_block1.conv1")],
}  # fmt: skip
HEADS = {  # hidden layer, policy, critic
    "train-procgen-pytorch": ("embedder.fc", "fc_policy", "fc_value"),
    "train-procgen-pfrl": ("hidden_fc", "logits_fc", "value_fc"),
    "CleanRL's ppo_procgen": ("network.5", "actor", "critic"),  # after flatten and a ReLU
}


def weights(project, *, widths=(4, 6, 6), channels=3, hidden=10, actions=15, side=8):
    """Random ones of a layout."""
    generator = torch.Generator().manual_seed(0)
    found = {}

    def layer(name, *shape):
        found[f"{name}.weight"] = 0.2 * torch.randn(shape, generator=generator)
        found[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)

    for i, width in enumerate(widths):
        first, *others = BLOCKS[project](i)
        layer(first, width, channels, 3, 3)
        for name in others:
            layer(name, width, width, 3, 3)
        channels = width
    dense, policy, critic = HEADS[project]
    layer(dense, hidden, widths[-1] * side * side)
    layer(policy, actions, hidden)
    layer(critic, 1, hidden)
    return found


def logits(project, found, frames):
    """Pictures by 255; of each block convolution, pooling of 3 by 2, twice x + conv(relu(conv(relu
    x))); ReLU, all channels flat, a layer with ReLU, the policy."""

    def layer(f, name, x, **options):
        return f(x, found[f"{name}.weight"], found[f"{name}.bias"], **options)

    x = torch.from_numpy(frames).float() / 255
    for i in range(3):
        first, a, b, c, d = BLOCKS[project](i)
        x = F.max_pool2d(layer(F.conv2d, first, x, padding=1), 3, stride=2, padding=1)
        for one, two in ((a, b), (c, d)):
            inner = F.relu(layer(F.conv2d, one, F.relu(x), padding=1))
            x = x + layer(F.conv2d, two, inner, padding=1)
    dense, policy, _ = HEADS[project]
    x = F.relu(layer(F.linear, dense, F.relu(x).flatten(1)))
    return layer(F.linear, policy, x)


@pytest.mark.parametrize("project", HEADS)
@pytest.mark.parametrize("channels", [3, 12])
def test_an_agent_of_another_project_acts_as_there(tmp_path, project, channels):
    assert {each.project for each in LAYOUTS} == set(HEADS)
    found = weights(project, channels=channels)
    wrapped = {"model_state_dict": {f"module.{name}": each for name, each in found.items()}}
    for number, kept in enumerate((found, wrapped)):
        path = tmp_path / f"{number}.pth"
        torch.save(kept, path)
        actor = load_parent(path, game="coinrun").eval()
        assert actor.observation_shape == (channels, 64, 64)
        frames = np.random.default_rng(1).integers(0, 256, (3, channels, 64, 64), dtype=np.uint8)
        with torch.no_grad():
            here = actor(torch.from_numpy(frames))
        torch.testing.assert_close(here, logits(project, found, frames), rtol=1e-4, atol=1e-4)


class Runs:
    """A pickle that wants to run code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_what_is_none_is_refused_in_one_sentence(tmp_path):
    project = "CleanRL's ppo_procgen"
    good = weights(project)
    recurrent = {**good, "gru.weight": torch.ones(2, 2)}
    torch.save(good, tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"a": Runs(tmp_path / "made")}, protocol=2))
    cases = {
        "recurrent": (recurrent, r"not the names of a feed-forward Impala agent.*network\.0\.conv"),
        "other": ({"layer.weight": torch.ones(2)}, r"found layer\.weight"),
        "nothing": ({}, "found 0"),
        "side": (weights(project, side=9), r"pictures are not \(64, 64\)"),
        "grey": (weights(project, channels=4), "4 channels"),
        "actions": (weights(project, actions=9), "has 15 actions, this one sees .* and has 9"),
        "list": ([1, 2], "a state dictionary"),
    }
    for name, (kept, _) in cases.items():
        torch.save(kept, tmp_path / f"{name}.pth")
    words = {name: message for name, (_, message) in cases.items()}
    words |= {
        "half": "damaged", "text": "more than tensors|damaged", "empty": "damaged",
        "code": "more than tensors", "missing": "no such file",
    }  # fmt: skip
    for name, message in words.items():
        with pytest.raises(ValueError, match=message) as refused:
            load_parent(tmp_path / f"{name}.pth", game="coinrun")
        assert "\n" not in str(refused.value), name
    assert not (tmp_path / "made").exists()
    with pytest.raises(files.StorageError):
        load_foreign(tmp_path / "half.pth")
