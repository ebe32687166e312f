"""Copies of users' modules, and whether one still is what it was, its weights' values aside."""

import copy
import enum
import functools
import pathlib
import re
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

PLAIN = frozenset({type(None), type(...), bool, int, float, complex, str, bytes, range, slice})
"""Compared by value."""
SHARED = (
    type, types.FunctionType, types.BuiltinFunctionType, types.CodeType, property, weakref.ref,
    enum.Enum, re.Pattern, pathlib.PurePath, torch.dtype, torch.device, torch.Size, torch.layout,
    torch.memory_format,
)  # fmt: skip
"""What `copy.deepcopy` shares, or nobody can change: compared by identity."""
LISTS = (list, tuple, set, frozenset, deque)
COMPILER = "torch._dynamo"
"""Whose wrappers are told apart by the module in them."""


def copied(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A copy of a module that shares nothing with it.

    Tensors that a forward pass has left behind are copied without their gradients' history, as
    those of `torch.nn.utils.prune`. A ValueError names the layer and the attribute that cannot be
    copied. `memo`: what there is a copy of already, as `copy.deepcopy` has it; it gets all others.
    """
    memo = {} if memo is None else memo
    check(module)
    for each in _reached(module):
        if isinstance(each, Tensor) and not each.is_leaf and id(each) not in memo:
            memo[id(each)] = each.detach().clone().requires_grad_(False)
    try:
        return copy.deepcopy(module, memo)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of what it holds
        raise ValueError(f"{_culprit(module)}: {_line(error)}") from None


def check(module: nn.Module) -> None:
    """A ValueError names the layer of which there can be no children, and says what to do."""
    for name, layer in module.named_modules():
        where = _named(name, layer)
        if ".nn.quantized." in type(layer).__module__:
            raise ValueError(
                f"{where} is quantized, so that its weights are no parameters: give the network as "
                "it was before, and quantize its members"
            )
        tensors = (layer.named_parameters(recurse=False), layer.named_buffers(recurse=False))
        for own, tensor in chain(*tensors):
            if is_lazy(tensor):
                raise ValueError(
                    f"{where} does not know its shape yet ({own} is lazy): call the module once on "
                    "a batch"
                )
            if tensor.layout != torch.strided:
                raise ValueError(
                    f"{own} of {where} is {tensor.layout}, and only dense tensors can be copied "
                    "and mutated: give its to_dense()"
                )
            if tensor.is_meta:
                raise ValueError(
                    f"{own} of {where} is on the meta device, without values: load the weights"
                )
    if any(
        isinstance(each, types.FunctionType) and _holds(each, module) for each in _reached(module)
    ):
        raise ValueError(
            f"{_holder(module)} a function that holds the module itself, whose copies would use "
            "these weights: make it a method"
        )


def _holder(module: nn.Module) -> str:
    """The attribute with a function that holds the module."""
    for name, layer in module.named_modules():
        for own, value in vars(layer).items():
            if own != "_modules" and any(
                isinstance(each, types.FunctionType) and _holds(each, module)
                for each in _reached(value)
            ):
                return f"{own} of {_named(name, layer)} is or has"
    return f"the {type(module).__name__} has"


def _holds(function: types.FunctionType, module: nn.Module) -> bool:
    """Whether a function's variables are layers of this module."""
    held = []
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # empty
            continue
        held += [content, getattr(content, "__self__", None)]
    layers = [each for each in held if isinstance(each, nn.Module)]
    return bool(layers) and any(each is layer for each in layers for layer in module.modules())


def _culprit(module: nn.Module) -> str:
    """The first attribute that cannot be copied by itself, of the innermost layer."""
    for name, layer in reversed(list(module.named_modules())):
        for own, value in vars(layer).items():
            if own == "_modules":
                continue
            try:
                inside = (each for each in _reached(value) if isinstance(each, Tensor | nn.Module))
                copy.deepcopy(value, {id(each): each for each in inside})
            except Exception:
                return (
                    f"{own} of {_named(name, layer)}, a {type(value).__name__}, cannot be copied, "
                    "and members are copies: make it when it is called, or give its class a "
                    "__deepcopy__"
                )
    return f"a {type(module).__name__} cannot be copied, and members are copies"


def _named(name: str, layer: nn.Module) -> str:
    return f"layer {name} ({type(layer).__name__})" if name else f"the {type(layer).__name__}"


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


class Likeness:
    """All that a module is but its tensors' values, to be compared later.

    Its layers and their types, the names, shapes, types, places and gradients' need of its
    parameters and buffers, hooks, plain attributes. What cannot be looked into is never the same.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.marks: list[Any] = []
        self.tensors: list[Tensor] = []
        """Of attributes: what a forward pass may write into, beside the buffers."""
        self._kept = list(_reached(module, self.marks))  # so that no identity is used twice
        for each in self._kept:
            if isinstance(each, Tensor) and not isinstance(each, nn.Parameter) and _writable(each):
                self.tensors.append(each)

    def holds(self) -> bool:
        """Whether the module still is so."""
        marks: list[Any] = []
        for _ in _reached(self.module, marks):
            pass
        return marks == self.marks


def _reached(root: Any, marks: list[Any] | None = None) -> Iterator[Any]:
    """What a deep copy of an object would reach, each once, in an order that does not change.

    `marks` gets what can be compared of each: identities, and values that are `PLAIN`.
    """
    mark, seen, left = ([] if marks is None else marks).append, set[int](), [root]
    while left:
        each = left.pop()
        kind = type(each)
        mark(kind)
        if kind in PLAIN:
            mark(each)
            continue
        mark(id(each))
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, nn.Module):
            left += _attributes(each, mark)
        elif isinstance(each, dict):
            for key, value in each.items():
                mark(key if type(key) in PLAIN else id(key))
                left.append(value)
        elif isinstance(each, Tensor):
            mark(_layout(each))
        elif isinstance(each, LISTS):
            mark(len(each))
            left += each
        elif isinstance(each, types.MethodType):
            left.append(each.__self__)
        elif isinstance(each, functools.partial):
            left += (each.func, each.args, each.keywords)
        elif isinstance(each, SHARED):
            continue
        elif hasattr(each, "__dict__") and not kind.__module__.startswith("torch._"):
            left.append(vars(each))
        else:
            mark(object())  # never equal


def _attributes(module: nn.Module, mark: Callable[[Any], None]) -> Iterator[Any]:
    """What is in a module's attributes, empty dictionaries left out."""
    if type(module).__module__.startswith(COMPILER):  # what it has compiled is not the module's
        yield module._modules
        return
    for name, value in vars(module).items():
        if name != "training" and not (isinstance(value, dict) and not value):
            mark(name)
            yield value


def _writable(tensor: Tensor) -> bool:
    """Whether each element has a place of its own."""
    return tensor.layout == torch.strided and not any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _layout(tensor: Tensor) -> Any:
    """All but the values; what is never equal where those cannot be put back."""
    if not _writable(tensor):
        return object()
    hooks = tensor._backward_hooks
    return (
        tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.requires_grad,
        len(hooks) if hooks else 0,
    )  # fmt: skip


Dtypes = dict[str, torch.dtype]


def dtypes_of(state: Mapping[str, Any]) -> Dtypes:
    """Of the floating-point tensors of a state dict, by name."""
    return {
        name: value.dtype
        for name, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


def differing_dtypes(module: Mapping[str, torch.dtype], file: Mapping[str, torch.dtype]) -> str:
    """A sentence about the first tensor whose type is another in a file; empty without one."""
    for name in module:
        if file.get(name, module[name]) != module[name]:
            return f"{name} is {file[name]} there and {module[name]} in this module"
    return ""


def set_dtypes(module: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Converts floating-point parameters and buffers in place; tied ones stay tied."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in dtypes and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes[name])
