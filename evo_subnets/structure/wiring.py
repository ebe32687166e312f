"""Which channels of a network belong together: its forward pass with numbers in place of data."""

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from evo_subnets.files import unwrapped
from evo_subnets.structure.channels import ZERO, Activation, Channels
from evo_subnets.structure.tracing import graph_of

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What follows keeps channels apart and maps zero to zero, so that a dead one stays dead behind it.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    F.relu, F.relu_, torch.relu, F.leaky_relu, F.gelu, F.silu, torch.tanh, F.dropout,
    "relu", "relu_", "tanh",
)  # fmt: skip
POOLING = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d,
)  # fmt: skip
ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
CONCATENATE = (torch.cat, torch.concat)
FLATTEN = (nn.Flatten, torch.flatten, "flatten")
MEAN = (torch.mean, "mean")


@dataclass(frozen=True)
class Step:
    """One operation of a forward pass, with what is known of its arguments."""

    channels: Channels
    name: str
    layer: nn.Module | None
    """The module that is called, for functions and methods None."""
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    computed: bool
    """Whether arguments behind the first come from the pass: from shapes that can change."""

    @property
    def x(self) -> Any:
        """The first argument."""
        return self.args[0] if self.args else None

    def option(self, position: int, name: str, *, default: Any) -> Any:
        """Another argument, or the attribute of a module that stands for it."""
        if self.layer is not None:
            return getattr(self.layer, name)
        return (
            self.args[position] if position < len(self.args) else self.keywords.get(name, default)
        )


def follow_channels(module: nn.Module) -> Channels:
    """The channels of a network; a ValueError where torch.fx cannot trace its forward pass."""
    module = unwrapped(module)
    try:
        graph = graph_of(module)
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the neurons cannot be found: torch.fx cannot trace {type(module).__name__} ({line}); "
            "prune connections instead"
        ) from None
    uses = Counter(
        str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0]
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    )
    owners = Counter(
        id(weight) for layer in module.modules() for weight in layer.parameters(recurse=False)
    )
    layers = {  # without those that are used twice, or whose weights are
        name: layer
        for name, layer in module.named_modules()
        if all(uses[name] == owners[id(weight)] == 1 for weight in layer.parameters())
    }
    found = Channels()
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        layer = layers.get(str(node.target)) if node.op == "call_module" else None
        args, keywords = (
            fx.node.map_arg(some, values.__getitem__) for some in (node.args, node.kwargs)
        )
        computed = len(node.all_input_nodes) > 1
        step = Step(found, str(node.target), layer, args, keywords, computed)
        value = _value(step, type(layer) if node.op == "call_module" else node.target)
        values[node] = found.fix(args, keywords) if value is None else value
    return found


def _value(step: Step, kind: Any) -> Any:
    """What an operation gives: an Activation or a plain value; None where it is not known."""
    if kind in LAYERS and not step.keywords:
        return _through_layer(step)
    if kind in CONCATENATE and isinstance(step.x, tuple | list):
        return _concatenated(step)
    if kind is operator.getitem and isinstance(step.x, tuple) and isinstance(step.args[1], int):
        return step.x[step.args[1]]
    if kind is operator.sub and all(isinstance(value, int) for value in step.args):
        return operator.sub(*step.args)
    if not isinstance(step.x, Activation):
        return None
    if kind in NORMS:
        return _through_norm(step)
    if kind in ELEMENTWISE or (kind in POOLING and step.x.spatial):
        return step.x
    for kinds, passed in OPERATIONS:
        if kind in kinds:
            return passed(step)
    return None


def _through_layer(step: Step) -> Activation | None:
    layer, x = step.layer, step.x
    assert isinstance(layer, LAYERS)
    groups = getattr(layer, "groups", 1)
    if groups > 1:  # channel by channel, or not known
        one_each = groups == layer.weight.shape[0] and layer.weight.shape[1] == 1
        return _in_place(step, groups) if one_each and isinstance(x, Activation) else None
    spatial = 0 if isinstance(layer, nn.Linear) else layer.weight.ndim - 2
    if isinstance(x, Activation):
        columns = _repeated(x.channels, layer.weight.shape[1])
        if columns is None or x.spatial != spatial:
            return None
        step.channels.inputs[step.name] = columns
    rows = step.channels.new(layer.weight.shape[0])
    step.channels.outputs[step.name] = rows
    return Activation(rows, spatial)


def _through_norm(step: Step) -> Activation | None:
    norm = step.layer
    assert isinstance(norm, NORMS)
    return _in_place(step, norm.num_features) if norm.affine else None


def _in_place(step: Step, size: int) -> Activation | None:
    """Through weights of each channel's own, which go with it."""
    rows = _repeated(step.x.channels, size)
    if rows is None or ZERO in rows:  # a shift makes something of zeros
        return None
    step.channels.outputs[step.name] = rows
    return Activation(step.x.channels, step.x.spatial)


def _repeated(channels: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    """`size` numbers, each as often as flattening repeats it; None where they do not fit."""
    times, rest = divmod(size, len(channels))
    return None if rest else tuple(number for number in channels for _ in range(times))


def _alike(values: Any) -> bool:
    return all(
        isinstance(value, Activation) and value.spatial == values[0].spatial for value in values
    )


def _concatenated(step: Step) -> Activation | None:
    parts = step.x
    if (
        not parts
        or not _alike(parts)
        or not parts[0].spatial
        or step.option(1, "dim", default=0) != 1
    ):
        return None
    return Activation(tuple(n for part in parts for n in part.channels), parts[0].spatial)


def _sum(step: Step) -> Activation | None:
    if len(step.args) != 2 or step.keywords or not _alike(step.args):
        return None
    first, second = (value.channels for value in step.args)
    if len(first) != len(second):
        return None
    return Activation(step.channels.join(first, second), step.x.spatial)


def _flattened(step: Step) -> Activation | None:
    one_each = (step.option(1, "start_dim", default=0), step.option(2, "end_dim", default=-1)) == (
        1,
        -1,
    )
    return Activation(step.x.channels, 0) if one_each and step.x.spatial else None


def _mean(step: Step) -> Activation | None:
    dims = step.option(1, "dim", default=())
    every = tuple(dims) if isinstance(dims, tuple | list) else (dims,)
    if not every or not all(isinstance(dim, int) for dim in every):
        return None
    behind = {dim % (2 + step.x.spatial) for dim in every}
    if behind & {0, 1}:
        return None
    left = (
        step.x.spatial if step.option(2, "keepdim", default=False) else step.x.spatial - len(behind)
    )
    return Activation(step.x.channels, left)


def _padded(step: Step) -> Activation | None:
    """Channels of zeros, if their count is computed: one that is written down will not follow."""
    sides = step.option(1, "pad", default=None)
    if not isinstance(sides, tuple | list):
        return None
    plain = (step.option(2, "mode", default="constant"), step.option(3, "value", default=None)) in (
        ("constant", None), ("constant", 0),
    )  # fmt: skip
    new = sides[2 * step.x.spatial :] or (0, 0)
    if not plain or len(new) > 2 or not all(isinstance(n, int) and n >= 0 for n in new):
        return None
    if any(new) and not step.computed:
        return None
    before, behind = new
    return Activation((ZERO,) * before + step.x.channels + (ZERO,) * behind, step.x.spatial)


def _part(step: Step) -> Activation | None:
    """x[:, :, ...]: pixels go, channels stay."""
    index = step.args[1]
    whole = isinstance(index, tuple) and index[:2] == (slice(None), slice(None))
    kept = whole and all(isinstance(one, slice) for one in index)
    return step.x if kept and step.x.spatial else None


def _attribute(step: Step) -> tuple[Any, ...] | None:
    return step.x.shape if step.args[1] == "shape" else None


OPERATIONS = (
    (ADD, _sum),
    (FLATTEN, _flattened),
    (MEAN, _mean),
    ((F.pad,), _padded),
    ((operator.getitem,), _part),
    ((getattr,), _attribute),
)
