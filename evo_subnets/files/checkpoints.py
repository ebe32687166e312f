"""A training run between two epochs, in a file: enough to go on as if nothing had happened."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from evo_subnets import files

KIND = "evo_subnets.checkpoint"
PARTS = ("module", "optimizer", "binding", "random")
SECONDS = 10.0
"""Between two writes at least: a small network's epochs are shorter than writing them down."""


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer remembers of each parameter, as "index.name" to tensor."""
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; rates and other settings stay the optimizer's own."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


class Stateful(Protocol):
    """What is kept beside network and optimizer, as a `bindings.Binding`."""

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Checkpoint:
    """The file of one training run; `about` says which run it is.

    A file of another run is refused: a ValueError names what differs.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path, self.about = Path(path), dict(about)
        self.written = time.monotonic()

    def restore(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        binding: Stateful,
        generator: torch.Generator,
        device: torch.device,
    ) -> list[float]:
        """The losses of the epochs that are done, none where there is no file; all else as then.

        The global generators are among what comes back: call it where they may be moved.
        """
        if not self.path.exists():
            return []
        tensors, description = files.load_tensors(self.path, KIND)
        try:
            self._check(description["about"])
            parts: dict[str, dict[str, Tensor]] = {name: {} for name in PARTS}
            for key, value in tensors.items():
                part, _, name = key.partition(".")
                parts[part][name] = value
            losses = [float(loss) for loss in description["losses"]]
            files.load_state(self.path, module, tensors=parts["module"])
            restore_optimizer(optimizer, parts["optimizer"])
            binding.load_state_dict({name: kept.clone() for name, kept in parts["binding"].items()})
            if states := parts["random"]:
                generator.set_state(states["0"])
                torch.set_rng_state(states["cpu"])
                if device.type == "cuda" and "cuda" in states:
                    torch.cuda.set_rng_state(states["cuda"], device)
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            line = " ".join(str(error).split())[:200]
            raise files.StorageError(f"{self.path}: no whole checkpoint: {line}") from None
        return losses

    def _check(self, found: Mapping[str, Any]) -> None:
        for key, value in self.about.items():
            if found.get(key) != value:
                raise ValueError(
                    f"{self.path} belongs to a run with {key} {found.get(key)}, this one has "
                    f"{value}: use another folder, or remove that file"
                )

    def save(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        binding: Stateful,
        generator: torch.Generator,
        device: torch.device,
        losses: Sequence[float],
        last: bool,
    ) -> None:
        """Writes the state after an epoch; after the last one the weights and the binding's."""
        if not last and time.monotonic() - self.written < SECONDS:
            return
        tensors = {f"module.{name}": value for name, value in files.state_of(module).items()}
        tensors |= {f"binding.{name}": value for name, value in binding.state_dict().items()}
        if not last:
            states = optimizer_tensors(optimizer).items()
            tensors |= {f"optimizer.{name}": value for name, value in states}
            tensors["random.0"] = generator.get_state()
            tensors["random.cpu"] = torch.get_rng_state()
            if device.type == "cuda":
                tensors["random.cuda"] = torch.cuda.get_rng_state(device)
        files.save_tensors(
            self.path, tensors, kind=KIND, description={"about": self.about, "losses": list(losses)}
        )
        self.written = time.monotonic()
