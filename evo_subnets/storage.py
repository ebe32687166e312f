"""Files that are whole or absent, say what they are, and are never unpickled.

Tensors are safetensors files, everything else JSON. What cannot be read raises a `StorageError`,
whose one line names the file and says what is wrong with it.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VERSION = "1"


class StorageError(ValueError):
    """A file that is missing, damaged, or not what was asked for."""


def write_atomically(path: str | Path, data: bytes) -> None:
    """Writes a file so that a crash at any moment leaves the old one or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes JSON for people and programs; NaN becomes null, as JSON has none."""
    text = json.dumps(_without_nan(content), indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_json(path: str | Path) -> dict[str, Any]:
    """The content of a JSON file that holds one object."""
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise StorageError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise StorageError(f"{path}: expected a JSON object")
    return content


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and values: equal for equal parents alone, on any device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], kind: str, description: Mapping[str, Any]
) -> None:
    """Writes tensors and a JSON description as a safetensors file of the given kind."""
    from safetensors.torch import save  # importing the library must not need it

    # safetensors refuses tensors that share memory, as tied weights do
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(description)
    metadata = {
        "kind": kind,
        "version": VERSION,
        "description": text,
        "checksum": _checksum(own, kind, text),
    }
    write_atomically(path, save(own, metadata))


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description of a file that `save_tensors` wrote."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise StorageError(f"{path}: there is no such file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("kind")
            if found != kind:
                raise StorageError(f"{path}: expected a file of kind {kind}, got {found}")
            if metadata.get("version") != VERSION:
                raise StorageError(
                    f"{path}: format version {metadata.get('version')} is not {VERSION}, "
                    "which this release reads"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = metadata.get("description", "")
        if metadata.get("checksum") != _checksum(tensors, kind, text):
            raise StorageError(f"{path}: damaged (its checksum does not fit): write it again")
        return tensors, json.loads(text)
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path}: truncated or not a safetensors file ({error})") from None


def _checksum(tensors: Mapping[str, Tensor], kind: str, description: str) -> str:
    text = f"{kind}\n{VERSION}\n{description}\n{fingerprint(tensors)}"
    return hashlib.sha256(text.encode()).hexdigest()


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(key): _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    if isinstance(content, float) and content != content:
        return None
    return content
