"""Sparse subnetwork ensembles: prune and tune (Whitaker 2023, chapter 5; Whitaker 2022)."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from evo_subnets.data import Augmentation, Images
from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import Mapper
from evo_subnets.methods.trained import (
    OnEpoch,
    Trained,
    checkpoint_of,
    epochs_of,
    trained_members,
)
from evo_subnets.metrics import count_parameters, inference_flops
from evo_subnets.pruning import (
    Masks,
    Pruned,
    Scope,
    classifier,
    density_of,
    keep_highest,
    magnitudes,
)
from evo_subnets.streams import derive_seed, uniform
from evo_subnets.structure.neurons import find_neurons, kept_neurons, neuron_masks, neuron_norms
from evo_subnets.subnetworks import Params, Subnetwork, included, parameters, parts
from evo_subnets.tuning import Tuning, tune
from evo_subnets.workers import Here


@dataclass(frozen=True)
class Pruning:
    """φ for sparse children: which weights of the parent each of them keeps."""

    sampling: Literal["random", "halves", "parts"] = "halves"
    """'random': every child its own draw. 'halves': pairs of a random half and its complement
    (neural partitioning, eq. 5.2 and 5.3). 'parts': k children that share out the parent."""
    sparsity: float = 0.5
    """Fraction of the weights that is removed: 1/2 for halves, 1 - 1/k for parts."""
    structure: Literal["connections", "neurons"] = "connections"
    """The unit that is kept or removed."""
    by: Literal["random", "magnitude"] = "random"
    """'magnitude' keeps the largest weights, or the neurons with the largest ones."""
    scope: Scope = "layer"
    """Whether the sparsity holds in each layer or in the network as a whole."""
    classifier: bool = False
    """Whether the last layer is pruned as well. Its neurons, the classes, never are."""

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {self.sparsity}")
        if self.by == "magnitude" and self.sampling != "random":
            raise ValueError(
                "magnitudes choose the same weights for every child: they go with "
                f"sampling='random', not {self.sampling!r}"
            )
        if self.sampling == "halves" and self.sparsity != 0.5:
            raise ValueError(f"halves have a sparsity of 0.5, got {self.sparsity}")
        if self.sampling == "parts" and (
            self.parts < 2 or abs(1 - 1 / self.parts - self.sparsity) > 0.005
        ):
            raise ValueError(
                "k parts have a sparsity of 1 - 1/k (1/2, 2/3, 3/4, 4/5, 5/6, ...), "
                f"got {self.sparsity}"
            )

    @property
    def parts(self) -> int:
        """How many children share out one copy of the parent; 1 where they do not."""
        return 1 if self.sampling == "random" else round(1 / (1 - self.sparsity))

    def check_members(self, members: int) -> None:
        """Refuses a number of members that leaves a part without the others."""
        if members < 1 or members % self.parts:
            raise ValueError(
                f"{self.sampling} come in sets of {self.parts}: members must be a multiple of "
                f"{self.parts}, got {members}"
            )

    def subnetworks(self, members: int, seed: int) -> list[Subnetwork]:
        """The recipe of each member's subnetwork."""
        self.check_members(members)
        if self.sampling == "random":
            density = 1 - self.sparsity
            return [Subnetwork(derive_seed(seed, "set", i), 0, density) for i in range(members)]
        sets = [
            parts(derive_seed(seed, "set", i), self.parts) for i in range(members // self.parts)
        ]
        return [subnetwork for one_set in sets for subnetwork in one_set]

    def masks(self, module: nn.Module, subnetwork: Subnetwork) -> Masks:
        """The masks that a subnetwork means in `module`."""
        params = parameters(module)
        density = subnetwork.density
        if self.structure == "connections":
            names = prunable(module, self.classifier)
            if self.by == "magnitude":
                return keep_highest(magnitudes(params, names), density, self.scope)
            if self.scope == "global" and self.sampling == "random":
                return keep_highest(_ranks(params, names, subnetwork.seed), density, "global")
            return subnetwork.mask(params, names)
        neurons = find_neurons(module)
        if self.by == "magnitude":
            kept = keep_highest(neuron_norms(neurons, params), density, self.scope)
        elif self.scope == "global" and self.sampling == "random":
            ones = {layer: torch.ones(count) for layer, count in neurons.counts.items()}
            kept = keep_highest(_ranks(ones, list(ones), subnetwork.seed), density, "global")
        else:
            kept = kept_neurons(neurons, subnetwork)
        return neuron_masks(neurons, kept, params)


def prunable(module: nn.Module, with_classifier: bool) -> list[str]:
    """The parameters whose connections are pruned: weights, without the classifier by default."""
    names = included(parameters(module))
    last = None if with_classifier else classifier(module)
    return [name for name in names if name != last] or names


def _ranks(params: Params, names: list[str], seed: int) -> dict[str, Tensor]:
    """1 - u for every element: the highest are those with the lowest u."""
    return {
        name: 1
        - uniform(seed, name, params[name].numel(), device=params[name].device).view(
            params[name].shape
        )
        for name in names
    }


def sparse(
    parent: nn.Module,
    images: Images,
    augmentation: Augmentation,
    tuning: Tuning,
    pruning: Pruning = Pruning(),
    members: int = 8,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    folder: Path | None = None,
    mapper: Mapper = Here().map,
) -> Trained:
    """Children that are pruned copies of `parent`, each tuned alone (algorithm 2).

    `parent` stays as it is and is no member: algorithm 2 averages its outputs as well, but the
    tables count the children alone. `folder`, `mapper`: see `independent`.
    """
    subnetworks = pruning.subnetworks(members, seed)

    def train(index: int) -> nn.Module:
        child = copy.deepcopy(parent)
        tune(
            child, images, augmentation, tuning, derive_seed(seed, "tuning", index),
            Pruned(child, pruning.masks(parent, subnetworks[index])),
            epochs_of(on_epoch, f"child {index + 1} of {members}"),
            checkpoint_of(folder, index),
        )  # fmt: skip
        return child

    children = trained_members(train, members, mapper)
    masks = (pruning.masks(parent, subnetwork) for subnetwork in subnetworks)
    return finished(children, masks, parent, augmentation.normalize(images.pixels[:1]), tuning)


def sparse_cost(parent: nn.Module, masks: Masks, inputs: Tensor) -> tuple[float, int]:
    """FLOPs of a pass relative to the dense parent, and the number of parameters kept."""
    dense = inference_flops(parent, inputs)
    flops = inference_flops(parent, inputs, density_of(masks)) / dense
    removed = sum(int((~mask).sum()) for mask in masks.values())
    return flops, count_parameters(parent) - removed


def finished(
    children: list[nn.Module],
    masks: Iterable[Masks],
    parent: nn.Module,
    inputs: Tensor,
    tuning: Tuning,
) -> Trained:
    """The children as an ensemble, with the sum of their costs."""
    costs = [sparse_cost(parent, one, inputs) for one in masks]
    epochs = tuning.epochs * tuning.bagging
    return Trained(
        Ensemble(children),
        epochs * len(children),
        epochs * sum(flops for flops, _ in costs),
        sum(kept for _, kept in costs),
    )
