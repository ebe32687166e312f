"""Files of tensors."""

import torch

from evo_subnets.files import load_tensors, save_tensors


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    tensors = {"b": torch.arange(3.0), "a": torch.zeros(64), "ü": torch.ones(2, dtype=torch.int8)}
    written = set()
    for _ in range(8):  # safetensors orders the metadata anew each time
        save_tensors(tmp_path / "file", tensors, kind="kind", description={"ä": [1, "two"]})
        written.add((tmp_path / "file").read_bytes())
    assert len(written) == 1
    found, description = load_tensors(tmp_path / "file", "kind")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    assert description == {"ä": [1, "two"]}
