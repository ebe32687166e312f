"""Files that earlier code has written: the same members, bit by bit."""

from pathlib import Path

import pytest
import torch
from networks import all_same_bits, built
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from evo_subnets import Ensemble, quads

BEFORE = Path(__file__).parent / "before"


def tiny():
    """Of the architecture of the files, with weights of its own."""
    return built(
        lambda: nn.Sequential(nn.Linear(8, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 3))
    )


@pytest.mark.parametrize(("name", "count", "size"), [("quads", 5, 2600), ("sparse", 2, 3400)])
def test_files_of_before_give_the_same_members(name, count, size):
    path = BEFORE / f"{name}.safetensors"
    assert path.stat().st_size < size
    ensemble = Ensemble.load(path, tiny(), restore=True)
    expected = load_file(BEFORE / "expected.safetensors")
    assert len(ensemble.members) == count
    for index, member in enumerate(ensemble.members):
        start = f"{name}.{index}."
        states = {
            key.removeprefix(start): tensor
            for key, tensor in expected.items()
            if key.startswith(start)
        }
        found = dict(sorted(member.state_dict().items()))
        assert all_same_bits(found, dict(sorted(states.items())))
    with torch.no_grad():
        outputs = ensemble(expected["inputs"])
    # another processor may add up in another order
    torch.testing.assert_close(outputs, expected[f"{name}.outputs"], rtol=0, atol=1e-6)


def test_their_recipes_are_those_of_today():
    ensemble = Ensemble.load(BEFORE / "quads.safetensors", tiny(), restore=True)
    assert ensemble.recipe.mutations[0] == quads(4, 0.05, density=0.3, seed=7)[0]
    assert ensemble.combine == "mean"
    assert ensemble.given_weights == [1, 2, 3, 4, 5]


def content(path):
    """Metadata, which are in no order, and tensors, some of them packed, of a safetensors file."""
    with safe_open(path, "pt") as file:
        names = sorted(file.keys())
        return file.metadata(), {name: file.get_tensor(name).tolist() for name in names}


def test_what_is_written_today_is_what_was_written_then(tmp_path):
    for name in ("quads", "sparse"):
        path = BEFORE / f"{name}.safetensors"
        Ensemble.load(path, tiny(), restore=True).save(tmp_path / name)
        assert content(tmp_path / name) == content(path)
