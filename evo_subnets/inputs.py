"""How a network is asked: inputs of any shape, on its device, in a layout that it can take."""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

Inputs = Any
"""A tensor; a tuple of tensors, which are positional arguments; or a mapping of keyword ones."""

_asked: WeakSet[nn.Module] = WeakSet()
_flattens: WeakSet[nn.Module] = WeakSet()
"""Modules that answered, and those that want plain layouts: they flatten by `view`."""


def ask(module: nn.Module, inputs: Inputs) -> Any:
    """The module's outputs for a batch's inputs.

    Pictures come in the channels-last layout, in which convolutions are fast, and which `view`
    cannot flatten. A network that does so gets the plain layout from then on; whatever its first,
    failed pass has drawn or counted is undone.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return _called(module, inputs)
    if module in _flattens:
        return _called(module, _plain(inputs))
    if module in _asked or not _channels_last(inputs):
        return _called(module, inputs)
    before = _state(module)
    try:
        outputs = _called(module, inputs)
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        _restore(module, before)
        outputs = _called(module, _plain(inputs))
        _flattens.add(module)
        return outputs
    _asked.add(module)
    return outputs


def batches_of(inputs: Any, size: int) -> Iterator[Inputs]:
    """Inputs in batches of `size` rows; an iterable of batches, as a loader is, in its own.

    A ValueError where there is nothing, or tensors differ in their number of rows.
    """
    if isinstance(inputs, Tensor):
        parts: Iterable[Inputs] = torch.split(inputs, size) if len(inputs) else ()
    elif isinstance(inputs, Mapping):
        columns = [torch.split(value, size) for value in _rows(tuple(inputs.values()))]
        parts = (dict(zip(inputs, row, strict=True)) for row in zip(*columns, strict=True))
    elif isinstance(inputs, tuple):
        columns = [torch.split(value, size) for value in _rows(inputs)]
        parts = zip(*columns, strict=True)
    elif isinstance(inputs, Iterable) and not isinstance(inputs, str | bytes):
        parts = inputs if isinstance(inputs, Iterator) else seeded(inputs, 0)
    else:
        raise ValueError(
            "inputs are a tensor, a tuple of tensors, a mapping of keyword arguments, or an "
            f"iterable of such batches, got a {type(inputs).__name__}"
        )
    first = next(coming := iter(parts), None)
    if first is None:
        raise ValueError("there are no inputs: at least one sample is needed")
    return itertools.chain([first], coming)


def seeded(batches: Iterable[Any], seed: int) -> Iterator[Any]:
    """One pass, whose draws from torch's global generator are its own, and move it for nobody."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        coming = iter(batches)
        state = torch.get_rng_state()
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            try:
                batch = next(coming)
            except StopIteration:
                return
            state = torch.get_rng_state()
        yield batch


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters and buffers are; the CPU where it has none."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        return tensor.device
    return torch.device("cpu")


def moved(value: Any, device: torch.device) -> Any:
    """Tensors, and tuples, lists and mappings of them, on a device."""
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: moved(each, device) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return tuple(moved(each, device) for each in value)
    return value


@contextmanager
def same_modes(module: nn.Module) -> Iterator[None]:
    """Inside, modes may change; then every layer has its own again: a frozen norm in a network
    that is being trained stays frozen."""
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def joined(parts: Sequence[Tensor], *, axis: int = 0) -> Tensor:
    """Batches as one; a ValueError where they differ in more than their number of samples."""
    shapes = sorted({tuple(part.shape[:axis] + part.shape[axis + 1 :]) for part in parts})
    if len(shapes) > 1:
        raise ValueError(
            f"batches give different shapes of a sample, {shapes[0][axis:]} and "
            f"{shapes[-1][axis:]}: pad them to one"
        )
    return torch.cat(list(parts), dim=axis)


def _called(module: nn.Module, inputs: Inputs) -> Any:
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    given = () if named else tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    try:
        return module(*given, **named)
    except TypeError as error:
        _check_arguments(module, given, named, error)
        raise


def _check_arguments(
    module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], error: TypeError
) -> None:
    """A ValueError where the module does not take these."""
    try:
        takes = inspect.signature(module.forward)
    except (TypeError, ValueError):  # none is known
        return
    try:
        takes.bind(*given, **named)
    except TypeError:
        came = f"{', '.join(named)} by name" if named else f"{len(given)} by position"
        raise ValueError(
            f"a {type(module).__name__} takes {takes}, got {came}: a tuple is of several inputs, "
            "and of (inputs, targets) pairs give the inputs alone"
        ) from error


def _rows(tensors: tuple[Any, ...]) -> tuple[Tensor, ...]:
    kinds = {type(each).__name__ for each in tensors if not isinstance(each, Tensor)}
    lengths = {len(each) for each in tensors if isinstance(each, Tensor) and each.ndim}
    if kinds or len(lengths) != 1:
        raise ValueError(
            "inputs of several tensors have as many rows each, got "
            + (f"a {min(kinds)} among them" if kinds else f"{sorted(lengths)} rows")
        )
    return tensors if lengths != {0} else ()


def _tensors(inputs: Inputs) -> list[Tensor]:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    several = (
        values if isinstance(values, tuple | list) or isinstance(inputs, Mapping) else [values]
    )
    return [each for each in several if isinstance(each, Tensor)]


def _channels_last(inputs: Inputs) -> bool:
    # one channel is contiguous in either layout; its strides choose the convolutions'
    return any(
        each.ndim == 4 and (each.stride(1) == 1 or not each.is_contiguous())
        for each in _tensors(inputs)
    )


def _plain(inputs: Inputs) -> Inputs:
    if isinstance(inputs, Tensor):
        return inputs.clone(memory_format=torch.contiguous_format)
    if isinstance(inputs, Mapping):
        return {key: _plain(value) for key, value in inputs.items()}
    return tuple(map(_plain, inputs)) if isinstance(inputs, tuple | list) else inputs


def _state(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What a pass in training mode may change: buffers, and the generators of the devices."""
    if not module.training:
        return [], []
    device = device_of(module)
    drawn = [torch.get_rng_state()]
    drawn += [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [buffer.clone() for buffer in module.buffers()], drawn


def _restore(module: nn.Module, before: tuple[list[Tensor], list[Tensor]]) -> None:
    buffers, drawn = before
    with torch.no_grad():
        for buffer, value in zip(module.buffers(), buffers, strict=False):
            buffer.copy_(value)
    for state, put in zip(drawn, (torch.set_rng_state, torch.cuda.set_rng_state), strict=False):
        put(state)
