"""What a journal can hold: JSON that keeps its types, and NaN and infinities as well."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

NOT_FINITE = "not finite"
"""The only key of what stands for NaN and infinities in a file."""


def plain(value: Any) -> Any:
    """`value` as a journal gives it back: of None, bool, int, float, str, list and dict alone.

    Lists for tuples, strings for paths, numbers for scalars of numpy and torch; a dataclass is a
    dict that names its class, a function the name it has in its module. A ValueError refuses the
    rest: it has no text that would be the same in the next process.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.ndim == 0):
        return plain(value.item())
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, PurePath | torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Mapping):
        if NOT_FINITE in value:
            raise ValueError(f"the key {NOT_FINITE!r} is a journal's own: use another")
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, partial):
        parts = {"arguments": value.args, "keywords": value.keywords}
        return {"class": "partial", "function": plain(value.func), **plain(parts)}
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return {"class": type(value).__name__, **named}  # no field can be called class
    if name := getattr(value, "__qualname__", None):
        return f"{value.__module__}.{name}"
    raise ValueError(
        f"a {type(value).__name__} cannot be kept: expected numbers, texts, lists, mappings, "
        f"dataclasses or functions, got {value!r:.80}"
    )


def encoded(value: Any) -> Any:
    """A `plain` value as JSON has it."""
    if isinstance(value, dict):
        return {key: encoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {NOT_FINITE: str(value)}
    return value


def decoded(value: Any) -> Any:
    """The inverse of `encoded`."""
    if isinstance(value, dict):
        if set(value) == {NOT_FINITE}:
            return float(value[NOT_FINITE])
        return {key: decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """ "sigma 0.1 (now 0.2)" for each of two encoded sets of options that differs."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"{key} {_shown(old, key)} (now {_shown(new, key)})"
        for key in sorted({*old, *new})
        if key not in old or key not in new or not _same(old[key], new[key])
    ]


def _leaves(options: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping) and value and set(value) != {NOT_FINITE}:
            yield from _leaves(value, f"{start}{key}.")
        else:
            yield f"{start}{key}", decoded(value)


def _same(one: Any, other: Any) -> bool:
    """As `==`, but True is not 1, and NaN is itself."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other) or (one != one and other != other)


def _shown(options: Mapping[str, Any], key: str) -> str:
    return repr(options[key]) if key in options else "absent"
