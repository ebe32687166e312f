"""Neurons as the unit of pruning: which weights belong to one."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evo_subnets.pruning import Masks
from evo_subnets.streams import uniform_levels
from evo_subnets.structure.wiring import follow_channels
from evo_subnets.subnetworks import Params, Subnetwork

STAYS = -1
"""In place of a neuron's number: an output or input that cannot be removed."""


@dataclass(frozen=True)
class Neurons:
    """The neurons of a network that can be removed one by one, numbered from 0.

    A neuron is an output of a layer; in a sum, as in a residual network, the outputs that are added
    to each other are one neuron, which all their layers write.
    """

    counts: dict[str, int]
    """How many there are, by the layer that comes first in the forward pass; in this order."""
    outputs: dict[str, Tensor]
    """(outputs,) the neuron that each output of a layer or batch norm is, or STAYS."""
    inputs: dict[str, Tensor]
    """(inputs,) the neuron that each column of a layer's weight reads, or STAYS."""

    @property
    def total(self) -> int:
        """How many there are in all."""
        return sum(self.counts.values())

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """(neurons,) values by layer."""
        parts = torch.split(values, list(self.counts.values()))
        return dict(zip(self.counts, parts, strict=True))


def find_neurons(module: nn.Module) -> Neurons:
    """The neurons whose removal nobody has to know of but the layers and norms around them.

    Their values reach only linear and convolution layers, through sums, concatenations and
    operations that keep channels apart and map zero to zero: not the network's output, and nothing
    that `evo_subnets.wiring` does not know. A ValueError where there are none, or where torch.fx
    cannot trace the forward pass.
    """
    found = follow_channels(module)
    read = {found.find(channel) for columns in found.inputs.values() for channel in columns}
    removable = read - {found.find(channel) for channel in found.fixed}
    numbers: dict[int, int] = {}
    counts: dict[str, int] = {}
    for name, channels in found.outputs.items():
        own = dict.fromkeys(map(found.find, channels))  # each once
        new = [channel for channel in own if channel in removable and channel not in numbers]
        if new:
            counts[name] = len(new)
            numbers |= {channel: len(numbers) + i for i, channel in enumerate(new)}
    if not numbers:
        raise ValueError(
            "no layer's neurons can be removed one by one in this network; "
            "prune connections instead"
        )

    def numbered(channels: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        found_ones = {
            name: torch.tensor([numbers.get(found.find(channel), STAYS) for channel in some])
            for name, some in channels.items()
        }
        return {name: some for name, some in found_ones.items() if (some != STAYS).any()}

    return Neurons(counts, numbered(found.outputs), numbered(found.inputs))


def kept_neurons(
    neurons: Neurons, subnetwork: Subnetwork, *, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """(count,) BoolTensors by layer: the neurons in a subnetwork, of one draw of u a neuron."""
    return {
        layer: subnetwork.interval.contains(
            uniform_levels(subnetwork.seed, f"{layer} neurons", count, device=device)
        )
        for layer, count in neurons.counts.items()
    }


def neuron_norms(neurons: Neurons, params: Mapping[str, Tensor]) -> Params:
    """(count,) root mean square of each neuron's incoming weights, of all layers that write it."""
    device = next(iter(params.values())).device
    squares = torch.zeros(neurons.total + 1, device=device)
    weights = squares.clone()
    for name, numbers in neurons.outputs.items():
        weight = params[f"{name}.weight"]
        if weight.ndim > 1:  # a norm's scale is no incoming weight
            rows = weight.flatten(1).square()
            index = numbers.to(device) % len(squares)  # those that stay go last
            squares.index_add_(0, index, rows.sum(dim=1))
            weights.index_add_(0, index, torch.full_like(rows[:, 0], rows.shape[1]))
    return neurons.split((squares / weights).sqrt()[:-1])


def neuron_masks(
    neurons: Neurons, kept: Mapping[str, Tensor], *, params: Mapping[str, Tensor]
) -> Masks:
    """Masks that silence the neurons that are not kept.

    A neuron's incoming weights and bias, its batch norms' scale and shift, and the weights that
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

    keep = every_neuron(neurons, kept)
    for name, numbers in neurons.outputs.items():
        require(f"{name}.weight", keep[numbers], 0)
        require(f"{name}.bias", keep[numbers], 0)
    for name, numbers in neurons.inputs.items():
        require(f"{name}.weight", keep[numbers], 1)
    device = next(iter(params.values())).device
    return {name: mask.to(device) for name, mask in masks.items()}


def every_neuron(neurons: Neurons, kept: Mapping[str, Tensor]) -> Tensor:
    """(neurons + 1,) BoolTensor on the CPU for all numbers; STAYS, the last one, is kept."""
    parts = [kept[layer].cpu() for layer in neurons.counts]
    return torch.cat([*parts, torch.ones(1, dtype=torch.bool)])
