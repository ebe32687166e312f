"""Files that are whole or absent, say what they are, and are never unpickled.

Tensors are safetensors files, everything else JSON. What cannot be read raises a `StorageError`,
whose one line names the file and says what is wrong with it.
"""

import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evo_subnets.files.packing import pack, unpack

VERSION = "1"
BITS, VALUES = ".bits", ".values"
"""Ends of the names of a packed tensor's two parts."""
LARGEST_JSON = 2**28
"""Bytes; this library writes none that come near, and what is larger is not read at all."""

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")
"""Names of files that are not whole yet."""


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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say where
        raise


def remove(path: str | Path) -> None:
    """Removes a file or a folder, if there is one."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Removes what a process that was killed within `write_atomically` has left in a folder.

    Only where no other process writes there.
    """
    for path in Path(folder).glob(".*"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_json(path: str | Path, content: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Writes JSON for people and programs; NaN and infinities become null, as JSON has none.

    The last key, `format`, holds the version and a checksum of the others. Without `indent` it is
    one line, three times as fast.
    """
    if "format" in content:
        raise ValueError("the key 'format' is storage's own: use another")
    plain = as_json(content)
    stamp = {"version": VERSION, "checksum": _json_checksum(plain)}
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
    if stamp.get("version") != VERSION:
        raise StorageError(
            f"{path}: format version {stamp.get('version')} is not {VERSION}, "
            "which this release reads"
        )
    if stamp.get("checksum") != _json_checksum(content):
        raise StorageError(f"{path}: damaged or edited (its checksum does not fit): write it again")
    return dict(content)


def _json_checksum(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{VERSION}\n{text}".encode()).hexdigest()


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and values: equal for equal parents alone, on any device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():  # numpy's empty arrays have strides that torch cannot view
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], kind: str, description: Mapping[str, Any]
) -> None:
    """Writes tensors and a JSON description as a safetensors file of the given kind.

    Tensors with many zeros are packed (see `packing`); what is loaded is the same, bit by bit.
    """
    from safetensors.torch import save  # importing the library must not need it

    # safetensors refuses tensors that share memory, as tied weights do
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(description)
    checksum = _checksum(own, kind, text)
    packed = {}
    for name, tensor in list(own.items()):
        if (parts := pack(tensor)) and not {name + BITS, name + VALUES} & set(own):
            packed[name] = list(own.pop(name).shape)
            own[name + BITS], own[name + VALUES] = parts
    metadata = {
        "kind": kind,
        "version": VERSION,
        "description": text,
        "checksum": checksum,
    }
    if packed:
        metadata["packed"] = json.dumps(packed)
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
        for name, shape in json.loads(metadata.get("packed", "{}")).items():
            tensors[name] = unpack(tensors.pop(name + BITS), tensors.pop(name + VALUES), shape)
        text = metadata.get("description", "")
        if metadata.get("checksum") != _checksum(tensors, kind, text):
            raise StorageError(f"{path}: damaged (its checksum does not fit): write it again")
        description = json.loads(text)
    except StorageError:
        raise
    except (AttributeError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: its packed tensors are not whole ({error})") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path}: truncated or not a safetensors file ({error})") from None
    if not isinstance(description, dict):
        raise StorageError(f"{path}: its description is no JSON object")
    return tensors, description


def load_state(
    path: str | Path, module: nn.Module, tensors: Mapping[str, Tensor], assign: bool = False
) -> None:
    """Gives `module` the weights and buffers of a file, which must be its own, name by name.

    `assign` puts the tensors themselves into the module, which may be on the meta device.
    """
    expected, found = (
        {name: (tensor.shape, tensor.dtype) for name, tensor in side.items()}
        for side in (module.state_dict(), tensors)
    )
    different = sorted(
        name for name in {*expected, *found} if expected.get(name) != found.get(name)
    )
    if different:
        raise StorageError(
            f"{path} holds weights of another architecture than this module's: they differ in "
            f"{', '.join(different[:3])}{' and more' if len(different) > 3 else ''}"
        )
    module.load_state_dict(dict(tensors), assign=assign)


def _checksum(tensors: Mapping[str, Tensor], kind: str, description: str) -> str:
    text = f"{kind}\n{VERSION}\n{description}\n{fingerprint(tensors)}"
    return hashlib.sha256(text.encode()).hexdigest()


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
