"""How a file keeps a kind of outputs."""

import dataclasses
from typing import Any

from evo_subnets.actions import ActionValues, Categoricals, Gaussian
from evo_subnets.outputs import Binary, Classes, Outputs, Values, read

KEPT = {kind.__name__: kind for kind in (
    Classes, Binary, Values, Categoricals, Gaussian, ActionValues
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
