"""Networks without their silent neurons: smaller, dense and as fast as they are small."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from evo_subnets.neurons import Neurons, find_neurons, reader_columns


def compacted(module: nn.Module) -> nn.Module:
    """A smaller dense network with the same outputs: a copy without the neurons that nobody reads.

    For children of `Pruning(structure="neurons")`: all weights that read a pruned neuron are zero,
    and nothing else has to be known of it. A ValueError where no neuron of a layer is read, and for
    networks that `find_neurons` cannot follow.
    """
    neurons = find_neurons(module)
    return compact(module, neurons, {group.layer: _read(module, group) for group in neurons})


def _read(module: nn.Module, group: Neurons) -> Tensor:
    """(count,) BoolTensor: the neurons that some layer gives a weight other than zero."""
    found = torch.zeros(group.count, dtype=torch.bool)
    for name in group.readers:
        weight = module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        used = weight.detach().ne(0).transpose(0, 1).flatten(1).any(dim=1)
        found |= used.view(group.count, -1).any(dim=1).cpu()
    return found


def compact(module: nn.Module, neurons: list[Neurons], kept: Mapping[str, Tensor]) -> nn.Module:
    """A smaller dense network with the same outputs: a copy without the neurons that are not kept.

    `module` must have them silenced (see `neuron_masks`). Every layer keeps a neuron at least.
    """
    small = copy.deepcopy(module)
    for group in neurons:
        keep = kept[group.layer]
        if not keep.any():
            raise ValueError(f"no neuron of {group.layer} is left: lower the sparsity")
        rows = keep.nonzero()[:, 0]
        layer = small.get_submodule(group.layer)
        _select(layer, ("weight", "bias"), 0, rows)
        _resize(layer, ("out_features", "out_channels"), len(rows))
        for name in group.norms:
            norm = small.get_submodule(name)
            _select(norm, ("weight", "bias", "running_mean", "running_var"), 0, rows)
            _resize(norm, ("num_features",), len(rows))
        for name in group.readers:
            reader = small.get_submodule(name)
            weight = reader.weight
            assert isinstance(weight, Tensor)
            columns = reader_columns(keep, weight).nonzero()[:, 0]
            _select(reader, ("weight",), 1, columns)
            _resize(reader, ("in_features", "in_channels"), len(columns))
    return small


def _select(module: nn.Module, names: tuple[str, ...], dimension: int, index: Tensor) -> None:
    for name in names:
        tensor = getattr(module, name)
        if tensor is None:
            continue
        chosen = tensor.detach().index_select(dimension, index.to(tensor.device))
        setattr(module, name, nn.Parameter(chosen) if isinstance(tensor, nn.Parameter) else chosen)


def _resize(module: nn.Module, names: tuple[str, ...], size: int) -> None:
    for name in names:
        if hasattr(module, name):
            setattr(module, name, size)
