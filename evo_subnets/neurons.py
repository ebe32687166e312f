"""Neurons as the unit of pruning: which weights belong to one."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from evo_subnets.pruning import Masks
from evo_subnets.streams import uniform_levels
from evo_subnets.subnetworks import Params, Subnetwork

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# These keep channels apart and map zero to zero, so that a dead neuron stays dead behind them.
MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Identity, nn.Flatten,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
FUNCTIONS = (
    F.relu, F.relu_, torch.relu, F.leaky_relu, F.gelu, F.silu, torch.tanh, F.dropout,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.flatten,
)  # fmt: skip
METHODS = ("relu", "relu_", "flatten", "tanh")


@dataclass
class Neurons:
    """The output neurons of one layer, which is not the classifier, and what hangs on them."""

    layer: str
    """The layer's module name."""
    count: int
    norms: list[str] = field(default_factory=list)
    """Batch norms between the layer and its readers."""
    readers: list[str] = field(default_factory=list)
    """The layers that read these neurons, and nothing else."""


def find_neurons(module: nn.Module) -> list[Neurons]:
    """The layers whose neurons can be removed one by one, in the order of the forward pass.

    A layer is among them when its outputs reach only linear and convolution layers, through
    operations that keep channels apart and map zero to zero. One that writes to a residual sum, to
    a concatenation or to the output is not: its neurons have no life of their own. Where torch.fx
    cannot follow the forward pass a ValueError says so.
    """
    try:
        graph = fx.symbolic_trace(module).graph
    except Exception as error:
        raise ValueError(
            f"the neurons cannot be found: torch.fx cannot trace the network ({error}); "
            "prune connections instead"
        ) from None
    modules = dict(module.named_modules())
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if (
            isinstance(layer, LAYERS)
            and calls.count(str(node.target)) == 1
            and _grouped(layer) == 1
        ):
            neurons = Neurons(str(node.target), int(layer.weight.shape[0]))
            if _follow(node, modules, calls, neurons) and neurons.readers:
                found.append(neurons)
    if not found:
        raise ValueError(
            "no layer's neurons can be removed one by one in this network; "
            "prune connections instead"
        )
    return found


def _grouped(layer: nn.Module) -> int:
    return int(getattr(layer, "groups", 1))


def _follow(
    node: fx.Node, modules: Mapping[str, nn.Module], calls: list[str], neurons: Neurons
) -> bool:
    """Collects what reads a node; False where something does that cannot do without a neuron."""
    for user in node.users:
        target = str(user.target)
        if user.op == "call_module":
            reader = modules[target]
            if isinstance(reader, LAYERS):
                if calls.count(target) > 1 or _grouped(reader) > 1:
                    return False
                neurons.readers.append(target)
                continue
            if isinstance(reader, NORMS):
                if not reader.affine or calls.count(target) > 1:
                    return False
                if reader.num_features != neurons.count:
                    return False
                neurons.norms.append(target)
            elif not isinstance(reader, MODULES):
                return False
        elif user.op == "call_function":
            if user.target is operator.getitem or user.target not in FUNCTIONS:
                return False
        elif user.op != "call_method" or target not in METHODS:
            return False
        if not _follow(user, modules, calls, neurons):
            return False
    return True


def kept_neurons(
    neurons: list[Neurons], subnetwork: Subnetwork, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """(count,) BoolTensors by layer: the neurons in a subnetwork, of one draw of u a neuron."""
    return {
        group.layer: subnetwork.interval.contains(
            uniform_levels(subnetwork.seed, f"{group.layer} neurons", group.count, device=device)
        )
        for group in neurons
    }


def neuron_norms(neurons: list[Neurons], params: Mapping[str, Tensor]) -> Params:
    """(count,) root mean square of each neuron's incoming weights, by layer."""
    return {
        group.layer: params[f"{group.layer}.weight"].flatten(1).square().mean(dim=1).sqrt()
        for group in neurons
    }


def neuron_masks(
    neurons: list[Neurons], kept: Mapping[str, Tensor], params: Mapping[str, Tensor]
) -> Masks:
    """Masks that silence the neurons that are not kept.

    A neuron's incoming weights and bias, its batch norm's scale and shift, and the weights that
    read it go together: its output is then zero in training as well as afterwards.
    """
    masks: Masks = {}

    def require(name: str, keep: Tensor, dimension: int) -> None:
        if name not in params:
            return  # a layer without a bias
        shape = [1] * params[name].ndim
        shape[dimension] = -1
        if name not in masks:
            masks[name] = torch.ones(params[name].shape, dtype=torch.bool, device=keep.device)
        masks[name] &= keep.view(shape)

    for group in neurons:
        keep = kept[group.layer].to(params[f"{group.layer}.weight"].device)
        for owner in (group.layer, *group.norms):
            require(f"{owner}.weight", keep, 0)
            require(f"{owner}.bias", keep, 0)
        for reader in group.readers:
            name = f"{reader}.weight"
            require(name, reader_columns(keep, params[name]), 1)
    return masks


def reader_columns(keep: Tensor, weight: Tensor) -> Tensor:
    """One entry for each input of the reader: flattened pictures have several a neuron."""
    return keep.repeat_interleave(weight.shape[1] // len(keep))
