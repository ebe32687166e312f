"""How a network is asked: inputs of any shape, on its device, in a layout that it can take."""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from evo_subnets.streams import WITHOUT_DOUBLE, check_seed

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
    kind = tuple((each.dtype, _channels_last(each)) for each in tensors)
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
        torch.manual_seed(check_seed(seed))
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
    """Tensors, and tuples, lists and mappings of them, on a device.

    What is float64 becomes float32 where the device has none.
    """
    if isinstance(value, Tensor):
        if value.dtype == torch.float64 and device.type in WITHOUT_DOUBLE:
            value = value.float()
        return value.to(device)  # and waits: what is read next may be on the CPU
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


def _channels_last(tensor: Tensor) -> bool:
    # one channel is contiguous in either layout; its strides choose the convolutions'
    return tensor.ndim == 4 and (tensor.stride(1) == 1 or not tensor.is_contiguous())


def _formed(inputs: Inputs, form: Form) -> Inputs:
    if form == (False, None):
        return inputs
    if isinstance(inputs, Tensor):
        inputs = inputs.clone(memory_format=torch.contiguous_format) if form.plain else inputs
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
