"""JSON with a version and a checksum."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evo_subnets.files import writing
from evo_subnets.files.writing import StorageError, write_atomically

LARGEST_JSON = 2**28
"""Bytes; this library writes none that come near, and what is larger is not read at all."""


def write_json(path: str | Path, content: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Writes JSON for people and programs; NaN and infinities become null, as JSON has none.

    The last key, `format`, holds the version and a checksum of the others. Without `indent` it is
    one line, three times as fast.
    """
    if "format" in content:
        raise ValueError("the key 'format' is the format's own: use another")
    plain = as_json(content)
    stamp = {"version": writing.VERSION, "checksum": _json_checksum(plain)}
    text = json.dumps({**plain, "format": stamp}, indent=indent, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_json(path: str | Path) -> dict[str, Any]:
    """The content of a file that `write_json` wrote."""
    path = Path(path)
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise StorageError(f"{path}: too large for a file of this library")
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StorageError(f"{path}: there is no such file") from None
    except StorageError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path}: truncated or not a JSON file ({error})") from None
    stamp = content.pop("format", None) if isinstance(content, dict) else None
    if not isinstance(stamp, dict):
        raise StorageError(f"{path}: not a JSON file of this library")
    if stamp.get("version") != writing.VERSION:
        raise StorageError(
            f"{path}: format version {stamp.get('version')} is not {writing.VERSION}, "
            "which this release reads"
        )
    if stamp.get("checksum") != _json_checksum(content):
        raise StorageError(f"{path}: damaged or edited (its checksum does not fit): write it again")
    return dict(content)


def _json_checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{writing.VERSION}\n{text}".encode()).hexdigest()


def as_json(content: Any) -> Any:
    """What comes back when this is written and read: lists for tuples, null for NaN and inf."""
    return json.loads(json.dumps(_finite(content), allow_nan=False))


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
