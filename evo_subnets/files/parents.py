"""Trained classifiers as files, with what they were trained on."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from evo_subnets import files

KIND = "evo_subnets.parent"


def save_parent(path: str | Path, network: nn.Module, *, about: Mapping[str, Any]) -> None:
    """Writes weights and buffers, and JSON that says what they are."""
    files.save_tensors(path, files.state_of(network), kind=KIND, description=about)


def load_parent(
    path: str | Path, network: nn.Module, *, about: Mapping[str, Any], must: Collection[str]
) -> dict[str, Any]:
    """Gives `network` the weights of a file, in eval mode; what the file says of itself comes back.

    What the file says of itself under the names `must` has to be what `about` says, else a
    ValueError names the difference.
    """
    tensors, found = files.load_tensors(path, KIND)
    for key in must:
        if found.get(key) != about[key]:
            raise ValueError(
                f"{path} is a parent with {key} {found.get(key)}, this run asks for {about[key]}: "
                "change the option or the output folder (--out)"
            )
    files.load_state(path, network, tensors=tensors)
    network.eval()
    return found
