"""Tensors with a kind, a description and a checksum, as safetensors files; never unpickled."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evo_subnets.files import writing
from evo_subnets.files.names import plain_names
from evo_subnets.files.packing import pack, unpack
from evo_subnets.files.writing import StorageError, write_atomically

BITS, VALUES = ".bits", ".values"
"""Ends of the names of a packed tensor's two parts."""


EXTRA = "_extra_state"
"""End of torch's name of what `get_extra_state` has given."""
JSON = ".json"
"""End of the name of what is no tensor in a state dict, as UTF-8."""


def fingerprint(tensors: Mapping[str, Any]) -> str:
    """A hash of names, types, shapes and values: equal for equal parents alone, on any device."""
    digest = hashlib.sha256()
    tensors = _as_tensors(tensors)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():  # numpy's empty arrays have strides that torch cannot view
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(
    path: str | Path, tensors: Mapping[str, Any], *, kind: str, description: Mapping[str, Any]
) -> None:
    """Writes tensors and a JSON description as a safetensors file of the given kind.

    Tensors with many zeros are packed (see `packing`); what is loaded is the same, bit by bit.
    What else is in a state dict (`get_extra_state`) must be JSON.
    """
    from safetensors.torch import save  # importing the library must not need it

    # safetensors refuses tensors that share memory, as tied weights do
    own = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in _as_tensors(tensors).items()
    }
    text = json.dumps(description)
    checksum = _checksum(own, kind, text)
    packed = {}
    for name, tensor in list(own.items()):
        if (parts := pack(tensor)) and not {name + BITS, name + VALUES} & set(own):
            packed[name] = list(own.pop(name).shape)
            own[name + BITS], own[name + VALUES] = parts
    metadata = {
        "kind": kind,
        "version": writing.VERSION,
        "description": text,
        "checksum": checksum,
    }
    if packed:
        metadata["packed"] = json.dumps(packed)
    write_atomically(path, _ordered(save(own, metadata)))


def _ordered(file: bytes) -> bytes:
    """The same file with its metadata by name: safetensors' order changes from process to process,
    and what is computed again must be the same, byte for byte."""
    start = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format's alignment of what follows
    return len(text).to_bytes(8, "little") + text + file[start:]


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
            if metadata.get("version") != writing.VERSION:
                raise StorageError(
                    f"{path}: format version {metadata.get('version')} is not {writing.VERSION}, "
                    "which this release reads"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, shape in json.loads(metadata.get("packed", "{}")).items():
            tensors[name] = unpack(
                tensors.pop(name + BITS), tensors.pop(name + VALUES), shape=shape
            )
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
    path: str | Path, module: nn.Module, *, tensors: Mapping[str, Tensor], assign: bool = False
) -> None:
    """Gives `module` the weights and buffers of a file, which must be its own, name by name.

    Names are those of what torch.compile or DataParallel is wrapped around. `assign` puts the
    tensors themselves into the module, which may be on the meta device.
    """
    own = list(module.state_dict())
    names = dict(zip(plain_names(module, own), own, strict=True))
    state = dict(zip(names, module.state_dict(keep_vars=True).values(), strict=True))
    expected, found = map(_kinds, (_as_tensors(state), tensors))
    different = sorted(
        name for name in {*expected, *found} if expected.get(name) != found.get(name)
    )
    if different:
        if all(expected.get(name, [0])[0] == found.get(name, [1])[0] for name in different):
            name = different[0]
            raise StorageError(
                f"{path} holds weights of another precision than this module's: {name} is "
                f"{found[name][1]} there and {expected[name][1]} here, convert the module first"
            )
        raise StorageError(
            f"{path} holds weights of another architecture than this module's: they differ in "
            f"{', '.join(different[:3])}{' and more' if len(different) > 3 else ''}"
        )
    tied = {name: first for name, first in _tied(state).items() if name in tensors}
    for name, first in tied.items():
        if len({fingerprint({"": tensors[one]}) for one in (name, first)}) > 1:
            raise StorageError(
                f"{path} holds two weights for {first} and {name}, which are one in this module"
            )
    given: dict[str, Any] = {}
    for name, tensor in tensors.items():
        text = name.endswith(JSON) and name not in state
        given[name.removesuffix(JSON) if text else name] = (
            json.loads(tensor.numpy().tobytes()) if text else tensor
        )
    full = module.state_dict()  # with the versions of the layers
    full.update({names[name]: value for name, value in given.items()})
    try:
        module.load_state_dict(full, assign=assign)
    except RuntimeError as error:  # elements that share memory, perhaps
        raise StorageError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    if assign:
        _tie(module, {names[name]: names[first] for name, first in tied.items()})


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, Any]]:
    """Shape and type of each; what `get_extra_state` has given may be anything."""
    return {
        name.removesuffix(JSON): ((), None)
        if name.removesuffix(JSON).endswith(EXTRA)
        else (tensor.shape, tensor.dtype)
        for name, tensor in tensors.items()
    }


def _as_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict whose other entries are tensors as well: of JSON, by another name."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            found[name] = value
            continue
        try:
            text = json.dumps(value, sort_keys=True)
            if json.loads(text) != value:
                raise TypeError("JSON gives back another value")
        except (TypeError, ValueError) as error:
            raise StorageError(
                f"{name} is neither a tensor nor JSON ({error}): what get_extra_state returns "
                "must be one of them"
            ) from None
        found[name + JSON] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return found


def _tied(state: Mapping[str, Any]) -> dict[str, str]:
    """The further names of parameters and buffers that have several, to their first ones."""
    first: dict[int, str] = {}
    names = {name: id(value) for name, value in state.items() if isinstance(value, Tensor)}
    return {name: first[of] for name, of in names.items() if first.setdefault(of, name) != name}


def _tie(module: nn.Module, tied: Mapping[str, str]) -> None:
    """Makes one of the weights that `assign` has put into a module one by one."""
    for name, first in tied.items():
        layer, own = name.rpartition(".")[::2]
        place, there = first.rpartition(".")[::2]
        setattr(module.get_submodule(layer), own, getattr(module.get_submodule(place), there))


def _checksum(tensors: Mapping[str, Tensor], kind: str, description: str) -> str:
    text = f"{kind}\n{writing.VERSION}\n{description}\n{fingerprint(tensors)}"
    return hashlib.sha256(text.encode()).hexdigest()
