"""How a network is asked: inputs of any shape, on its device, in a layout that it can take."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from evo_subnets.streams import WITHOUT_DOUBLE

Inputs = Any
"""A tensor; a tuple of tensors, which are positional arguments; or a mapping of keyword ones."""


class Form(NamedTuple):
    """What a module wants of the inputs that it is given."""

    plain: bool = False
    """The plain layout: it flattens by `view`."""
    dtype: torch.dtype | None = None
    """Real numbers of this precision, its weights'."""


_forms: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Form]] = WeakKeyDictionary()
"""Of modules that answered, for each kind of inputs."""
PRECISIONS = ("dtype", "scalar type", "should be the same")
"""What torch's messages say where the precision of inputs is not a module's."""


def ask(module: nn.Module, inputs: Inputs) -> Any:
    """The module's outputs for a batch's inputs.

    Pictures come in float32 and in the channels-last layout, in which convolutions are fast, and
    which `view` cannot flatten. A network that does so gets the plain layout, and one that cannot
    take the inputs' precision gets real numbers in its weights'; whatever its first, failed pass
    has drawn or counted is undone.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return _called(module, inputs)
    tensors = _tensors(inputs)
    kind = tuple((each.dtype, each.ndim == 4 and not each.is_contiguous()) for each in tensors)
    known = _forms.setdefault(module, {})
    if kind in known:
        return _called(module, _formed(inputs, known[kind]))
    form, before = Form(), _state(module)
    while True:
        try:
            outputs = _called(module, _formed(inputs, form))
        except RuntimeError as error:
            other = _other_form(module, form, tensors=tensors, message=str(error))
            if other == form:
                raise
            form = other
            _restore(module, before)
        else:
            known[kind] = form
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
        parts = inputs
    else:
        raise ValueError(
            "inputs are a tensor, a tuple of tensors, a mapping of keyword arguments, or an "
            f"iterable of such batches, got a {type(inputs).__name__}"
        )
    first = next(coming := iter(parts), None)
    if first is None:
        raise ValueError("there are no inputs: at least one sample is needed")
    return itertools.chain([first], coming)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters and buffers are; the CPU where it has none."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        return tensor.device
    return torch.device("cpu")


def moved(value: Any, device: torch.device) -> Any:
    """Tensors, and tuples, lists and mappings of them, on a device.

    What is float64 becomes float32 where the device has none.
    """
    if isinstance(value, Tensor):
        if value.dtype == torch.float64 and device.type in WITHOUT_DOUBLE:
            value = value.float()
        return value if value.device == device else value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: moved(each, device) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return tuple(moved(each, device) for each in value)
    return value


def _called(module: nn.Module, inputs: Inputs) -> Any:
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple | list) else module(inputs)


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


def _other_form(module: nn.Module, form: Form, *, tensors: list[Tensor], message: str) -> Form:
    """What may help after such an error; the form itself where nothing does."""
    if "view size is not compatible" in message:
        return form._replace(plain=True)
    weights = (each.dtype for each in module.parameters() if each.is_floating_point())
    own = next(weights, None)  # of the first layer, most likely
    if any(each in message for each in PRECISIONS) and any(
        each.is_floating_point() and each.dtype != own for each in tensors
    ):
        return form._replace(dtype=own)
    return form


def _formed(inputs: Inputs, form: Form) -> Inputs:
    if form == (False, None):
        return inputs
    if isinstance(inputs, Tensor):
        inputs = inputs.contiguous() if form.plain else inputs
        return inputs.to(form.dtype) if form.dtype and inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {key: _formed(value, form) for key, value in inputs.items()}
    several = isinstance(inputs, tuple | list)
    return tuple(_formed(each, form) for each in inputs) if several else inputs


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
