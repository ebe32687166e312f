"""The door to what is faster: the one file of this folder that the rest imports.

Every function returns None, or does the plain thing itself, where its engine is turned off, where
its file was deleted, and where it would not pay. `README.md` says what each engine brings.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from ctypes import CDLL
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from evo_subnets.draws import CarryOut

SWITCH = "EVO_SUBNETS_ENGINES"
"""The environment variable that turns all engines "off"; "on" is what it is without."""
WINOGRAD = Path(__file__).with_name("winograd.h")
"""A header among the sources of a `library` that includes it."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Item = TypeVar("Item")


def turned_on() -> bool:
    """Whether engines may serve; a ValueError where the switch has another value than on or off."""
    value = os.environ.get(SWITCH, "on")
    if value not in ("on", "off"):
        raise ValueError(f"{SWITCH} must be 'on' or 'off', got {value!r}")
    return value == "on"


def perturb(device: torch.device, elements: int) -> CarryOut | None:
    """What carries out draws of so many float32 elements on a device."""
    engine = _engine({"cpu": "philox_cpu", "cuda": "philox_gpu"}.get(device.type, ""))
    if engine is None or not engine.available(device, elements):
        return None
    found: CarryOut = engine.perturb
    return found


def ask_members(members: nn.ModuleList, inputs: Sequence[Tensor]) -> Tensor | None:
    """(members, batch, ...): what each says, a thread to a member, in slices of the batch.

    The caller promises that a row's output does not depend on the other rows, that no member has
    hooks, draws random numbers or keeps anything in a forward pass, and that no mode or transform
    of torch is on. None, too, where members fail so: asked in turn they say why.
    """
    engine = _engine("side_by_side")
    found: Tensor | None = engine and engine.ask_members(members, tuple(inputs))
    return found


def plainly(member: nn.Module, inputs: Any) -> Tensor:
    """What a member that takes and gives one tensor says."""
    outputs: Tensor = member(inputs)
    return outputs


def ask_batches(
    members: Sequence[nn.Module],
    batches: Iterable[Tensor],
    *,
    answer: Callable[[nn.Module, Any], Tensor] = plainly,
    promised: bool,
) -> list[Tensor] | None:
    """(members, batch, ...) of each batch, without gradients, a thread to a batch.

    `answer`: asks a member for the outputs of a batch.

    `promised`: what the caller promises for `ask_members`, but for the rows, as batches stay whole.
    Of networks of torch's own layers and of `evo_subnets.models` alone it is known that they draw
    and keep nothing. Where None comes back, no batch was taken.
    """
    engine = _engine("side_by_side")
    found: list[Tensor] | None = engine and engine.ask_batches(
        members, batches, answer=answer, promised=promised
    )
    return found


def with_fast_convolutions(
    module: nn.Module, instead: Sequence[tuple[Any, Any]] = ()
) -> nn.Module | None:
    """A copy of a module on a CPU that shares its parameters, its buffers and all modules without
    convolutions that can be faster; these are.

    `instead`: pairs of an object among its attributes and of what the copy has for it.
    """
    engine = _engine("twins")
    found: nn.Module | None = engine and engine.with_fast_convolutions(module, instead)
    return found


def keep_freed_memory() -> None:
    """Makes this process reuse memory that tensors no longer need: see `memory.py`."""
    engine = _engine("memory")
    if engine is not None:
        engine.keep_freed_memory()


def library(sources: Sequence[Path], without: str) -> CDLL | None:
    """C sources compiled once for this machine, that may include the C files of this folder.

    Sources beside those that are compiled are headers. Where they cannot be compiled, a warning
    says `without`.
    """
    engine = _engine("compiler")
    found: CDLL | None = engine and engine.fast_library(tuple(sources), without)
    return found


def share_out(job: Callable[[Item], None], items: Sequence[Item], *, threads: int) -> None:
    """Does `job` with each item, none of which is None, on so many threads of one torch thread."""
    engine = _engine("threads") if threads > 1 else None
    if engine is not None:
        engine.share_out(job, items, threads=threads)
        return
    for item in items:
        job(item)


def has_convolutions(module: nn.Module) -> bool:
    """Whether any layer is a convolution: small batches stay in the cache then."""
    return any(isinstance(layer, CONVOLUTIONS) for layer in module.modules())


def watched() -> bool:
    """Whether autocast, a compiler or a tracer of torch is at work: engines keep away then."""
    return (
        torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def _engine(name: str) -> Any:
    """The module of an engine; None where engines are off, or where a file of it was deleted."""
    return _loaded(name) if turned_on() and name else None


@cache
def _loaded(name: str) -> Any:
    try:
        return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(__name__):
            raise
        return None
