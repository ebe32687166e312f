"""Which modules may be asked in slices and on threads, and give what they give when asked whole."""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evo_subnets.copies import Likeness, copied

Inputs = tuple[Tensor, ...]

BY_ROWS = frozenset({
    nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d,
    nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.BatchNorm1d,
    nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU,
    nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
    nn.Softplus, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Embedding,
})  # fmt: skip
"""Torch's layers whose rows are independent however they are called, unless torch refuses it."""
OURS = "evo_subnets.models."
TORCHS = "torch.nn.modules."
DRAWING = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
"""Of torch's layers those that draw random numbers in eval mode, too."""
TIME_FIRST = (
    nn.RNNBase, nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)  # fmt: skip
"""Whose first axis is no batch where they are not told so."""
TOLERANCE = 1e-4
"""Of the largest output: slices may be added up in another order."""

Key = tuple[Any, ...]
_tried: WeakKeyDictionary[nn.Module, tuple[list[nn.Module], dict[Key, bool]]] = WeakKeyDictionary()


def seen_to_change(layers: Sequence[nn.Module]) -> bool:
    """Whether any of these trains, has hooks or a `forward` of its own, or takes statistics of its
    batch: to be looked at in every call."""
    return any(
        each.training
        or each._forward_hooks
        or each._forward_pre_hooks
        or "forward" in vars(each)
        or (isinstance(each, _BatchNorm) and each.running_mean is None)
        for each in layers
    )


def keeps_and_draws_nothing(module: nn.Module) -> bool:
    """Whether that is known of each of its layers: of torch's own, and of our models."""
    return all(
        type(layer).__module__.startswith((TORCHS, OURS)) and not isinstance(layer, DRAWING)
        for layer in module.modules()
    )


def may_be_asked(member: nn.Module, inputs: Inputs, *, rows: int, may_keep: bool = False) -> bool:
    """Whether `member` gives for these inputs, `rows` at a time, what it gives for all at once.

    It is known of torch's layers that are `BY_ROWS`, and of our models. Others are tried once for
    each kind of inputs, on two copies with buffers and attributes of their own: both must give the
    same, and be what they were before, or with `may_keep` at least give the same again.
    """
    layers = list(member.modules())
    if seen_to_change(layers):
        return False
    known, answers = _tried.get(member, ([], {}))
    if known != layers[1:] or member not in _tried:
        answers = {}
        _tried[member] = (layers[1:], answers)
    key: Key = (
        may_keep,
        len(inputs[0]) > rows,
        *((tensor.ndim, tensor.dtype) for tensor in inputs),
    )
    if key not in answers:
        unfit = any(isinstance(each, DRAWING) or _time_first(each) for each in layers)
        fit = not unfit and all(map(_by_rows, layers))
        answers[key] = fit or (not unfit and _same_in_slices(member, inputs, rows, may_keep))
    return answers[key]


def _by_rows(layer: nn.Module) -> bool:
    flattens = type(layer) is nn.Flatten and layer.start_dim > 0
    return type(layer) in BY_ROWS or flattens or type(layer).__module__.startswith(OURS)


def _time_first(layer: nn.Module) -> bool:
    return isinstance(layer, TIME_FIRST) and not getattr(layer, "batch_first", True)


@torch.no_grad()
def _same_in_slices(member: nn.Module, inputs: Inputs, rows: int, may_keep: bool) -> bool:
    try:
        one, other = (copied(member, {id(own): own for own in member.parameters()}) for _ in "ab")
    except ValueError:
        return False
    before = Likeness(one)
    values = [tensor.clone() for tensor in before.tensors]
    with torch.random.fork_rng(devices=[]):
        try:
            whole = one(*inputs)
            again = one(*inputs) if may_keep else whole
            slices = zip(*(torch.split(tensor, rows) for tensor in inputs), strict=True)
            parts = [other(*some) for some in slices]
            if not all(type(each) is Tensor for each in (whole, again, *parts)):
                return False
            found = torch.cat(parts)
        except Exception:  # asked in turn, the member says what is wrong
            return False
    unchanged = may_keep or (all(map(torch.equal, values, before.tensors)) and before.holds())
    return unchanged and _close(whole, again) and _close(whole, found)


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    size = one.double().abs().amax().clamp(min=1e-6) if one.numel() else 1.0
    return bool(((one.double() - other.double()).abs() <= TOLERANCE * size).all())
