"""Procgen agents that other projects have trained, recognised by the names of their weights.

All of them have the network of train-procgen (Espeholt et al. 2018, Cobbe et al. 2020), see
pictures as numbers in [0, 1] with channels first, and have Procgen's own fifteen actions, so that
only the names differ.
"""

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.impala import impala_actor
from evo_subnets import files
from evo_subnets.rl import Actor

SHOWN = 12
"""Names of an unknown layout that its refusal lists."""
WRAPPED = ("model_state_dict", "state_dict", "model")
"""Under which a checkpoint has its network, beside the optimizer's state."""
SIDE = 64
"""Of Procgen's pictures."""


@dataclass(frozen=True)
class Layout:
    """How a project names layers. `{i}`: a block, from `first` on; `{after}`: blocks and two."""

    project: str
    convolution: str
    residuals: tuple[str, str, str, str]
    """Both convolutions of both residual blocks, in the order of the data."""
    hidden: str
    policy: str
    critic: str
    first: int = 0

    def names(self, blocks: int) -> dict[str, str]:
        """Our layers to theirs."""
        own = ("0", "2.first", "2.second", "3.first", "3.second")
        found = {
            f"features.blocks.{index}.{ours}": theirs.format(i=index + self.first)
            for index in range(blocks)
            for ours, theirs in zip(own, (self.convolution, *self.residuals), strict=True)
        }
        found["features.hidden"] = self.hidden.format(after=blocks + 2)
        found["head"] = self.policy
        return found

    def blocks(self, tensors: Mapping[str, Tensor]) -> int:
        """How many there are of these names."""
        count = 0
        while f"{self.convolution.format(i=count + self.first)}.weight" in tensors:
            count += 1
        return count

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether these are the names of such an agent, and no others."""
        layers = {*self.names(self.blocks(tensors)).values(), self.critic}
        expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
        return bool(self.blocks(tensors)) and set(tensors) == expected


LAYOUTS = (
    Layout(
        "train-procgen-pytorch",
        "embedder.block{i}.conv",
        tuple(f"embedder.block{{i}}.res{r}.conv{c}" for r in (1, 2) for c in (1, 2)),  # type: ignore[arg-type]
        "embedder.fc", "fc_policy", "fc_value", first=1,
    ),
    Layout(
        "train-procgen-pfrl",
        "conv_seqs.{i}.conv",
        tuple(f"conv_seqs.{{i}}.res_block{r}.conv{c}" for r in (0, 1) for c in (0, 1)),  # type: ignore[arg-type]
        "hidden_fc", "logits_fc", "value_fc",
    ),
    Layout(
        "CleanRL's ppo_procgen",
        "network.{i}.conv",
        tuple(f"network.{{i}}.res_block{r}.conv{c}" for r in (0, 1) for c in (0, 1)),  # type: ignore[arg-type]
        "network.{after}", "actor", "critic",
    ),
)  # fmt: skip


def load_foreign(path: Path) -> Actor:
    """The actor of a state dictionary of one of LAYOUTS, read without running code of the file.

    A StorageError where it is none: with the names that it has.
    """
    tensors = _tensors(path)
    layout = next((each for each in LAYOUTS if each.fits(tensors)), None)
    if layout is None:
        listed = ", ".join(list(tensors)[:SHOWN]) + (", ..." if len(tensors) > SHOWN else "")
        known = ", ".join(each.project for each in LAYOUTS)
        raise files.StorageError(
            f"{path}: not the names of a feed-forward Impala agent of {known}; found {listed or 0}"
        )
    names = layout.names(layout.blocks(tensors))
    state = {
        f"{ours}.{kind}": tensors[f"{theirs}.{kind}"].float()
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
    }
    widths = tuple(
        len(state[f"features.blocks.{index}.0.weight"]) for index in range(layout.blocks(tensors))
    )
    channels = state["features.blocks.0.0.weight"].shape[1]
    hidden, head = state["features.hidden.weight"], state["head.weight"]
    side = SIDE
    for _ in widths:
        side = (side + 1) // 2
    if channels % 3 or hidden.shape[1] != widths[-1] * side * side:
        raise files.StorageError(
            f"{path}: an agent of {layout.project} whose pictures are not ({SIDE}, {SIDE}) in "
            f"colour: {channels} channels, {hidden.shape[1]} features before its hidden layer "
            f"where {widths[-1] * side * side} were expected"
        )
    with torch.device("meta"):
        actor = impala_actor(widths, channels // 3, actions=len(head), features_dim=len(hidden))
    files.load_state(path, actor, tensors=state, assign=True)
    return actor


def _tensors(path: Path) -> dict[str, Tensor]:
    """The weights of a file that torch.save wrote, by name."""
    if not path.is_file():
        raise files.StorageError(f"{path}: there is no such file")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise files.StorageError(
            f"{path}: it asks for more than tensors, or is no file of torch.save's: save its "
            "state_dict() alone"
        ) from None
    except (EOFError, OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        line = " ".join(str(error).split())[:200]
        raise files.StorageError(f"{path}: damaged, or no file of torch.save's: {line}") from None
    for name in WRAPPED:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(each, Tensor) for each in found.values()):
        raise files.StorageError(f"{path}: expected tensors by name, a state dictionary")
    return {str(name).removeprefix("module."): tensor for name, tensor in found.items()}
