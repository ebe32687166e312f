"""Which kind of outputs a module has, and how a file keeps it."""

import dataclasses
from typing import Any

from torch import nn

from evo_subnets.actions import ActionValues, Categoricals, Deterministic, Gaussian
from evo_subnets.outputs import CLASSES, Binary, Classes, Outputs, Values, read

KEPT = {kind.__name__: kind for kind in (
    Classes, Binary, Values, Categoricals, Gaussian, ActionValues, Deterministic
)}  # fmt: skip


def as_json(kind: Outputs) -> list[Any] | None:
    """A kind as a file keeps it; None where it has functions of its own, which no file can keep."""
    if KEPT.get(type(kind).__name__) is not type(kind):
        return None
    options = {each.name: getattr(kind, each.name) for each in dataclasses.fields(kind)}
    return None if options.pop("read") is not read else [type(kind).__name__, *options.values()]


def from_json(found: list[Any]) -> Outputs:
    """The kind that `as_json` described."""
    name, *options = found
    kind: Outputs = KEPT[name](*options)
    return kind


def kind_of(module: nn.Module, outputs: Outputs | None = None) -> Outputs:
    """The kind that is asked for; None: what the module says in its attribute `outputs`, as actors
    and ensembles do, or `Classes()`."""
    return outputs or said_by(module) or CLASSES


def said_by(module: nn.Module) -> Outputs | None:
    """What a module says of its outputs; None: nothing."""
    own: Any = getattr(module, "outputs", None)
    says = all(callable(getattr(own, each, None)) for each in ("tensor", "divergence", "combined"))
    return own if says else None
