"""Networks without their silent neurons: smaller, dense and as fast as they are small."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evo_subnets.copies import copied
from evo_subnets.files import unwrapped
from evo_subnets.structure.neurons import STAYS, Neurons, every_neuron, find_neurons


def compacted(module: nn.Module) -> nn.Module:
    """A smaller dense network with the same outputs: a copy without the neurons that nobody reads.

    For children of `Pruning(structure="neurons")`: all weights that read a pruned neuron are zero,
    and nothing else has to be known of it. A ValueError for networks that `find_neurons` cannot
    follow: they stay as they are, with zeros.
    """
    module = unwrapped(module)
    neurons = find_neurons(module)
    return compact(module, neurons, kept=neurons.split(_read(module, neurons)))


def _read(module: nn.Module, neurons: Neurons) -> Tensor:
    """(neurons,) BoolTensor: those that some layer gives a weight other than zero."""
    found = torch.zeros(neurons.total + 1, dtype=torch.bool)
    for name, numbers in neurons.inputs.items():
        weight = module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        found[numbers[weight.detach().ne(0).transpose(0, 1).flatten(1).any(dim=1).cpu()]] = True
    return found[:STAYS]


def compact(module: nn.Module, neurons: Neurons, *, kept: Mapping[str, Tensor]) -> nn.Module:
    """A smaller dense network with the same outputs: a copy without the neurons that are not kept.

    `module` must have them silenced (see `neuron_masks`). A layer of which none is kept, as narrow
    ones of squeeze and excitation happen to be, has one silent neuron left.
    """
    small = copied(unwrapped(module))
    keep = every_neuron(neurons, kept)
    for numbers in neurons.outputs.values():
        if not keep[numbers].any():
            keep[numbers[0]] = True
    for name, numbers in neurons.outputs.items():
        rows = keep[numbers].nonzero()[:, 0]
        layer = small.get_submodule(name)
        _select(layer, ("weight", "bias", "running_mean", "running_var"), 0, rows)
        _resize(layer, ("out_features", "out_channels", "num_features"), len(rows))
        if getattr(layer, "groups", 1) > 1:  # channel by channel
            _resize(layer, ("in_channels", "groups"), len(rows))
    for name, numbers in neurons.inputs.items():
        columns = keep[numbers].nonzero()[:, 0]
        layer = small.get_submodule(name)
        _select(layer, ("weight",), 1, columns)
        _resize(layer, ("in_features", "in_channels"), len(columns))
    return small


def _select(module: nn.Module, names: tuple[str, ...], dimension: int, index: Tensor) -> None:
    for name in names:
        tensor = getattr(module, name, None)
        if tensor is None:
            continue
        chosen = tensor.detach().index_select(dimension, index.to(tensor.device))
        setattr(module, name, nn.Parameter(chosen) if isinstance(tensor, nn.Parameter) else chosen)


def _resize(module: nn.Module, names: tuple[str, ...], size: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, size)
