"""What networks are asked: a tensor, a tuple or a mapping of tensors, in batches, on any device."""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Any
"""A tensor; a tuple of tensors, which are positional arguments; or a mapping of keyword ones."""
BATCH = 256
"""Rows of one tensor that go through a network together, where nothing else is asked for."""


def ask(module: nn.Module, inputs: Inputs) -> Any:
    """The module's outputs for a batch's inputs (see `Inputs`)."""
    positional, named = arguments(inputs)
    try:
        return module(*positional, **named)
    except TypeError as error:
        _check_call(module, positional, named, error)
        raise


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments that inputs stand for."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def _check_call(
    module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], error: TypeError
) -> None:
    """A ValueError where a network's forward does not take as many arguments, or other names."""
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*positional, **named)
    except TypeError as why:
        given = f"{len(positional)} by position" + "".join(f", {name}" for name in named)
        raise ValueError(
            f"a {type(module).__name__} takes {signature}, a batch's inputs give {given} ({why}): "
            "inputs are a tensor, a tuple of positional or a mapping of keyword arguments"
        ) from error


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


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of inputs or targets, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | tuple | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(each)


def samples_in(value: Any) -> int:
    """How many samples a batch's inputs or targets are of: the rows of their first tensor."""
    first = next(tensors_in(value), None)
    return len(first) if first is not None and first.ndim else 1


def first_of(inputs: Inputs) -> Inputs:
    """The first sample of a batch, as a batch of one."""
    samples = samples_in(inputs)

    def cut(value: Any) -> Any:
        return value[:1] if isinstance(value, Tensor) and value.ndim else value

    if isinstance(inputs, Tensor):
        return cut(inputs)
    if any(tensor.ndim and len(tensor) != samples for tensor in tensors_in(inputs)):
        return inputs  # a graph perhaps, whose rows are no samples
    if isinstance(inputs, Mapping):
        return {name: cut(value) for name, value in inputs.items()}
    return tuple(map(cut, inputs)) if isinstance(inputs, tuple | list) else inputs


def in_batches(given: Any, batch_size: int | None) -> list[Inputs]:
    """All inputs in batches: of one tensor `batch_size` rows (256) each.

    A tuple and a mapping are one batch; of any other iterable, such as a `DataLoader`, each item is
    one, or a pair of (inputs, targets), whose targets are left out. It is passed through once.
    """
    if isinstance(given, Tensor):
        return list(torch.split(given, batch_size or BATCH)) if len(given) else []
    if batch_size is not None:
        raise ValueError(
            "batch_size has no effect on inputs that are in batches already: leave it out"
        )
    if isinstance(given, tuple | Mapping):
        return [given]
    if callable(getattr(given, "in_order", None)):  # a task's data; a DataLoader's is a flag
        given = given.in_order(None)
    if not isinstance(given, Iterable):
        raise ValueError(
            "inputs are a tensor, a tuple or a mapping of tensors, or an iterable of those, got a "
            f"{type(given).__name__}"
        )
    return [_without_targets(item) for item in seeded(given, 0)]


def _without_targets(item: Any) -> Inputs:
    if not isinstance(item, tuple | list):
        return item
    if len(item) not in (1, 2):
        raise ValueError(
            "an iterable gives a tensor, a mapping, or a pair of (inputs, targets) at a time, got "
            f"{len(item)}: of several positional arguments make (tuple, targets)"
        )
    return item[0]


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


def wants_rows(module: nn.Module, inputs: Inputs) -> bool:
    """Whether pictures must lie channel by channel for `module`, as networks that flatten by `view`
    want them; others are faster where the channels of a pixel lie side by side.

    It is asked with two samples, in eval mode, and left as it was.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim < 4 or _in_rows(inputs):
        return False
    device = [inputs.device] if inputs.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(device), same_modes(module):
            module.eval()(inputs[:2])
        return False
    except Exception as error:  # another one says why when it is asked with whole batches
        return flattens(error)


def flattens(error: Exception) -> bool:
    """Whether it is torch's of a `view` of pictures whose channels lie side by side."""
    return isinstance(error, RuntimeError) and "view size is not compatible" in str(error)


@contextmanager
def same_modes(module: nn.Module) -> Iterator[None]:
    """Afterwards every layer is in training or eval mode as before."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


def rows(inputs: Tensor) -> Tensor:
    """The same pictures, channel by channel."""
    return inputs.clone(memory_format=torch.contiguous_format)


def _in_rows(inputs: Tensor) -> bool:
    """By the strides: of one channel `is_contiguous` is true either way."""
    return inputs.stride() == torch.empty(inputs.shape, device="meta").stride()
