"""What a `VecNormalize` has learned of observations, as a part of an actor."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evo_subnets import files

ONE = "observations"
"""The name of observations that are one array."""


class Normalized(nn.Module):
    """(batch, ...) observations less their mean, in standard deviations, clipped: as
    stable-baselines3's `VecNormalize` gives them, in float32."""

    mean: Tensor
    rest: Tensor
    deviation: Tensor

    def __init__(self, mean: Any, variance: Any, *, epsilon: float, clip: float) -> None:
        super().__init__()
        exact = torch.as_tensor(np.asarray(mean, np.float64))
        spread = torch.as_tensor(np.asarray(variance, np.float64)) + float(epsilon)
        if exact.shape != spread.shape or not bool((exact.isfinite() & (spread > 0)).all()):
            raise ValueError(
                "statistics are finite means and variances of one shape, got shapes "
                f"{tuple(exact.shape)} and {tuple(spread.shape)}"
            )
        self.clip = float(clip)
        self.register_buffer("mean", exact.float())
        # what float32 leaves of a mean that is large beside its deviation
        self.register_buffer("rest", (exact - exact.float()).float())
        self.register_buffer("deviation", spread.sqrt().float())

    def forward(self, observations: Tensor) -> Tensor:
        centred = (observations - self.mean) - self.rest
        return (centred / self.deviation).clamp(-self.clip, self.clip).float()


def normalization_of(source: Any) -> nn.ModuleDict:
    """A `Normalized` for each part of the observations that a `VecNormalize` normalises, under
    its name ("observations" where they are one array); of one that leaves them as they are none.

    `source`: the `VecNormalize`, or the path of its file; None and False: there is none.
    """
    if source is None or source is False or isinstance(source, nn.ModuleDict):
        return source or nn.ModuleDict()
    found = read(source) if isinstance(source, str | Path) else vars(source)
    try:
        if not found["norm_obs"]:
            return nn.ModuleDict()
        statistics = found["obs_rms"]
        options = {"epsilon": found["epsilon"], "clip": found["clip_obs"]}
        several = statistics if isinstance(statistics, Mapping) else {ONE: statistics}
        return nn.ModuleDict(
            {
                name: Normalized(vars(each)["mean"], vars(each)["var"], **options)
                for name, each in several.items()
            }
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{source}: holds no statistics of a VecNormalize ({error})") from None


def read(path: str | Path) -> dict[str, Any]:
    """What a `VecNormalize` has written: its numbers alone.

    The file is a pickle. Nothing in it is run: arrays are made, and of every other class an empty
    stand-in that keeps its attributes.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise files.StorageError(
            f"{path}: no statistics of a VecNormalize can be read: {error.strerror}"
        ) from None
    try:
        found: dict[str, Any] = vars(_Numbers(io.BytesIO(data)).load())
        return found
    except Exception as error:  # a pickle can be damaged in many ways
        line = " ".join(str(error).split())[:200]
        raise files.StorageError(f"{path}: no statistics of a VecNormalize: {line}") from None


class _StandIn:
    """An object of a class that is not made."""

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __call__(self, *given: Any, **named: Any) -> "_StandIn":
        return _StandIn()

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, Mapping):
                vars(self).update(part)

    def __setitem__(self, name: Any, value: Any) -> None:
        vars(self)[str(name)] = value

    def extend(self, values: Any) -> None:
        """As a list is filled."""


_MAKERS: tuple[Any, ...] = (
    np.dtype, np.ndarray, np.zeros(1).__reduce__()[0], np.zeros(1).__reduce_ex__(5)[0],
    np.float64(0).__reduce__()[0],
)  # fmt: skip
ARRAYS = {made.__name__: made for made in _MAKERS}
"""What arrays and numbers are made by; where numpy keeps it differs between its versions."""


class _Numbers(pickle.Unpickler):
    """Makes arrays and numbers of numpy, and stand-ins of whatever else is named."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ARRAYS:
            return ARRAYS[name]
        if (module, name) == ("_codecs", "encode"):  # of arrays' bytes in old protocols
            return _encoded
        if name == "bytes":  # empty ones, in old protocols
            return bytes
        return dict if (module, name) == ("collections", "OrderedDict") else _StandIn


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "ascii")


def check_shapes(parts: nn.ModuleDict, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A ValueError where statistics are of other observations than the network's."""
    for name, part in parts.items():
        assert isinstance(part, Normalized)
        found = tuple(part.mean.shape)
        if name not in shapes or shapes[name] != found:
            raise ValueError(
                f"statistics of {name} of shape {found} are not those of observations "
                f"{dict(shapes)}: give this agent's own; frames that were stacked after they were "
                "normalised need environments that do both (normalization=False)"
            )
