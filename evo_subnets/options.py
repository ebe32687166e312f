"""Options that act, or are refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from evo_subnets.subnetworks import Whole


def refuse_idle(options: Any, names: Sequence[str], *, because: str) -> None:
    """A ValueError where an option of a dataclass is set although nothing looks at it.

    names: of the fields that have no effect; because: with what, as the message says it.
    """
    for field in fields(options):
        given = getattr(options, field.name)
        default = field.default
        if default is MISSING and field.default_factory is not MISSING:
            default = field.default_factory()
        if field.name in names and given != default:
            raise ValueError(
                f"{field.name} has no effect with {because}: leave it out (got {given!r})"
            )


def check_distinct(name: str, values: Sequence[Any]) -> None:
    """A ValueError where a value is there twice."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{name} has {value} twice: once is enough")


def described(value: Any) -> Any:
    """Options as JSON that is the same in every process: dataclasses by their fields and their
    name, functions by theirs."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = {field.name: described(getattr(value, field.name)) for field in fields(value)}
        return {"type": type(value).__name__, **shown}
    if isinstance(value, Mapping):
        return {str(key): described(each) for key, each in value.items()}
    if isinstance(value, Whole):
        return {"type": "Whole", "names": list(value)}
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)
