"""Children that are built into one work copy, which is the parent again before each of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from evo_subnets.copies import Likeness, check, copied
from evo_subnets.files import state_of
from evo_subnets.files.names import plain_names
from evo_subnets.mutation import Mutation, materialize
from evo_subnets.subnetworks import (
    Include,
    Parameters,
    Units,
    Whole,
    included,
    parameters,
)

FLOAT8 = 1
"""Bytes of an element: there is no noise of that precision."""


def mutated(module: nn.Module, include: Include = None) -> list[str] | Whole | Units:
    """The names of the parameters that mutations change; a ValueError, with the layer's or weight's
    name, where children of the module cannot be built.
    """
    check(module)
    found = parameters(module)
    names = included(found, include)
    for name in names:
        weight = found[name]
        if weight.element_size() == FLOAT8:
            raise ValueError(
                f"{name} is {weight.dtype}, which is too coarse for noise: keep it in bfloat16 or "
                "float32, or leave it out of include"
            )
        ends = torch.aminmax(weight.detach()) if weight.numel() else ()  # isfinite would copy it
        if not all(map(torch.isfinite, ends)):
            raise ValueError(f"{name} of the parent is not finite everywhere: train it anew")
    return names


class WorkCopy:
    """One module for all children of a parent, one after the other, each as if it were the first.

    What the last child was made into is taken back: buffers and tensors in attributes are the
    parent's again, and where anything else is another (a layer, a hook, a type, a plain attribute)
    a new copy is made. Pickles and copies of it leave that module out.
    """

    def __init__(self, module: nn.Module, include: Include = None) -> None:
        self.module, self.names = module, mutated(module, include)
        self._made: _Made | None = None
        self._weights: tuple[list[Any], Parameters] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_made": None, "_weights": None}

    def child(self, mutation: Mutation) -> nn.Module:
        """The child, in eval mode, until the next call."""
        work = self._fresh()
        materialize(self.weights, mutation, out=parameters(work), include=self.names)
        return work

    def parent(self) -> nn.Module:
        """The parent itself, likewise."""
        work = self._fresh()
        own = parameters(work)
        for name, weight in parameters(self.module).items():
            own[name].copy_(weight)
        return work

    @property
    def weights(self) -> Parameters:
        """The parent's, which know what of them stays: looked for again where they have changed."""
        stamps = [_stamp(each) for each in self.module.parameters()]
        if self._weights is None or self._weights[0] != stamps:
            self._weights = stamps, parameters(self.module)
        return self._weights[1]

    @torch.no_grad()
    def _fresh(self) -> nn.Module:
        """The work copy, which is the parent but for its parameters' values."""
        source = [(id(each), each.dtype, each.device) for each in _tensors(self.module)]
        if self._made is None or self._made.source != source or not self._made.likeness.holds():
            self._made = None  # one copy at a time
            self._made = _Made(self.module, source)
        for own, tensor in self._made.pairs:
            own.copy_(tensor)
        for parameter in self._made.work.parameters():
            parameter.grad = None
        return self._made.work.eval()


class _Made:
    """A work copy, and what it was when it was made."""

    def __init__(self, module: nn.Module, source: list[Any]) -> None:
        memo: dict[int, Any] = {}
        self.source = source
        self.work = copied(module, memo).eval()
        self.likeness = Likeness(self.work)
        originals = {id(memo[id(each)]): each for each in Likeness(module).tensors}
        self.pairs = [
            (each, originals[id(each)]) for each in self.likeness.tensors if id(each) in originals
        ]


def _stamp(tensor: Tensor) -> Any:
    """Another one after a tensor was given other memory or was written into, not through `data`."""
    return id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


class Kept(nn.Module):
    """A member that is a recipe: it is built into `work`, which others share, when it is asked."""

    def __init__(self, work: WorkCopy, mutation: Mutation | None) -> None:
        super().__init__()
        self.work, self.mutation = work, mutation
        self.training = False

    def forward(self, *inputs: Any, **options: Any) -> Any:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise self._refused("exported")
        if torch.is_grad_enabled() and any(_needs_gradients(each) for each in inputs):
            raise self._refused("asked for gradients")
        if torch.compiler.is_dynamo_compiling():  # it would take seconds, and gain nothing
            return torch.compiler.disable(self._answer)(*inputs, **options)  # type: ignore[no-untyped-call]
        return self._answer(*inputs, **options)

    @torch.no_grad()
    def _answer(self, *inputs: Any, **options: Any) -> Any:
        built = self.work.parent() if self.mutation is None else self.work.child(self.mutation)
        return built(*inputs, **options)

    def train(self, mode: bool = True) -> "Kept":
        if mode:
            raise self._refused("trained")
        return self

    def state_dict(self, *_: Any, **__: Any) -> Any:
        raise self._refused("taken for a module with weights of its own")

    load_state_dict = named_parameters = named_buffers = state_dict

    def _refused(self, what: str) -> ValueError:
        return ValueError(
            f"members that are kept as recipes (resident=False) cannot be {what}: make the "
            "ensemble with resident=True"
        )


def _needs_gradients(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


@dataclass(frozen=True)
class Recipe:
    """What an ensemble of mutations is made of."""

    parent: dict[str, Any]
    """Its state dict; empty where the ensemble has the `parent` itself."""
    include: tuple[str, ...] | Units
    mutations: tuple[Mutation, ...]
    include_parent: bool
    held: bool = False
    """Whether zeros or padding rows of the parent stayed as they are; else all was mutated."""

    def gives(self, members: Sequence[nn.Module]) -> bool:
        """Whether these are the members, bit by bit, buffers as well."""
        every: list[Mutation | None] = [None] if self.include_parent else []
        every += self.mutations
        states = [state_of(member) for member in members]
        if len(members) != len(every) or any(map(_differ, states, [self.parent] * len(states))):
            return False
        try:
            parent = copied(members[0])
            state = parent.state_dict()  # with the versions of the layers
            for name, plain in zip(state, plain_names(parent, list(state)), strict=True):
                state[name] = self.parent[plain]
            parent.load_state_dict(state)
            work = WorkCopy(parent, self.include)
        except (RuntimeError, ValueError):  # no child of theirs could be built
            return False
        for mutation, state in zip(every, states, strict=True):
            built = work.parent() if mutation is None else work.child(mutation)
            if not all(map(same_bits, state_of(built).values(), state.values())):
                return False
        return True


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """In names, shapes or types."""
    return list(map(_kind, one.items())) != list(map(_kind, other.items()))


def _kind(named: tuple[str, Any]) -> Any:
    name, value = named
    return (name, value.shape, value.dtype) if isinstance(value, Tensor) else (name, type(value))


def same_bits(one: Any, other: Any) -> bool:
    """Whether two entries of state dicts of one kind are equal: a NaN equals itself, -0 not 0."""
    if not isinstance(one, Tensor):
        return bool(one == other)
    flat = (each.detach().cpu().contiguous().view(-1).view(torch.uint8) for each in (one, other))
    return torch.equal(*flat)
