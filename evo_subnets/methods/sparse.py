"""Sparse subnetwork ensembles: prune and tune (Whitaker 2023, chapter 5; Whitaker 2022)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from evo_subnets.copies import copied
from evo_subnets.ensemble import Ensemble
from evo_subnets.inputs import Inputs
from evo_subnets.methods.result import HERE, NOTHING_KEPT, Result, begin, train_members
from evo_subnets.metrics import count_parameters, inference_flops
from evo_subnets.options import refuse_idle
from evo_subnets.pruning import (
    Masks,
    Pruned,
    Scope,
    density_of,
    keep_highest,
    magnitudes,
)
from evo_subnets.runs import Run
from evo_subnets.schedules import Constant
from evo_subnets.streams import check_seed, derive_seed, uniform
from evo_subnets.structure.classifier import classifier
from evo_subnets.structure.neurons import (
    Neurons,
    find_neurons,
    kept_neurons,
    neuron_masks,
    neuron_norms,
)
from evo_subnets.subnetworks import Parameters, Params, Subnetwork, included, parameters, parts
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune
from evo_subnets.workers import Workers


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
    """Whether the layer that makes the output is pruned as well. Its neurons, the classes, never
    are. A weight that it shares with others, as a tied embedding, is the classifier's."""

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
        if self.sampling != "random":
            refuse_idle(self, ("scope",), because=f"sampling {self.sampling!r}")
        if self.structure == "neurons":
            refuse_idle(self, ("classifier",), because="structure 'neurons'")

    @property
    def parts(self) -> int:
        """How many children share out one copy of the parent; 1 where they do not."""
        return 1 if self.sampling == "random" else round(1 / (1 - self.sparsity))

    def check_size(self, ensemble_size: int) -> None:
        """Refuses a number of members that leaves a part without the others."""
        if ensemble_size < 1 or ensemble_size % self.parts:
            raise ValueError(
                f"{self.sampling} come in sets of {self.parts}: ensemble_size must be a multiple "
                f"of {self.parts}, got {ensemble_size}"
            )

    def subnetworks(self, members: int, seed: int) -> list[Subnetwork]:
        """The recipe of each member's subnetwork."""
        self.check_size(members)
        if self.sampling == "random":
            density = 1 - self.sparsity
            return [Subnetwork(derive_seed(seed, "set", i), 0, density) for i in range(members)]
        sets = [
            parts(derive_seed(seed, "set", i), self.parts) for i in range(members // self.parts)
        ]
        return [subnetwork for one_set in sets for subnetwork in one_set]

    def masks(
        self, module: nn.Module, subnetwork: Subnetwork, *, inputs: Inputs | None = None
    ) -> Masks:
        """The masks that a subnetwork means in `module`.

        What is zero in a sparse parent stays out: magnitudes count it among what they remove,
        others take their fraction of what is left. Padding rows stay in. `inputs`, of one sample,
        are for networks that torch.fx cannot trace (see `structure.classifier`).
        """
        params = parameters(module)
        if self.structure == "connections":
            masks = self._connections(
                params, subnetwork, prunable(module, self.classifier, inputs=inputs)
            )
        else:
            masks = self._neurons(find_neurons(module), subnetwork, params)
        for name in params.weights:
            if (stays := params.stays(name)) is not None:
                there = params[name] != 0
                masks[name] = torch.where(stays, there, masks[name]) if name in masks else there
        return masks

    def _connections(self, params: Parameters, subnetwork: Subnetwork, names: list[str]) -> Masks:
        if self.by == "magnitude":
            return keep_highest(magnitudes(params, names), subnetwork.density, scope=self.scope)
        if self.scope == "global" and self.sampling == "random":
            ranks = _ranks(params, names, subnetwork.seed)
            return keep_highest(ranks, subnetwork.density, scope="global")
        return subnetwork.mask(params, names)

    def _neurons(self, neurons: Neurons, subnetwork: Subnetwork, params: Params) -> Masks:
        if self.by == "magnitude":
            norms = neuron_norms(neurons, params)
            kept = keep_highest(norms, subnetwork.density, scope=self.scope)
        elif self.scope == "global" and self.sampling == "random":
            ones = {layer: torch.ones(count) for layer, count in neurons.counts.items()}
            ranks = _ranks(ones, list(ones), subnetwork.seed)
            kept = keep_highest(ranks, subnetwork.density, scope="global")
        else:
            kept = kept_neurons(neurons, subnetwork)
        return neuron_masks(neurons, kept, params=params)


def prunable(
    module: nn.Module, with_classifier: bool, *, inputs: Inputs | None = None
) -> list[str]:
    """The parameters whose connections are pruned: weights, without the classifier by default.

    Where nothing but the classifier has weights, it is pruned all the same.
    """
    names = list(included(parameters(module)))
    last = [] if with_classifier else classifier(module, inputs)
    return [name for name in names if name not in last] or names


def _ranks(params: Params, names: list[str], seed: int) -> dict[str, Tensor]:
    """1 - u for every element: the highest are those with the lowest u."""
    return {
        name: 1
        - uniform(seed, name, count=params[name].numel(), device=params[name].device).view(
            params[name].shape
        )
        for name in names
    }


@dataclass(frozen=True)
class Sparse:
    """Children that are pruned copies of a parent, each tuned alone (algorithm 2).

    The parent is no member: algorithm 2 averages its outputs as well, but the tables count the
    children alone.
    """

    starts_from: ClassVar[Literal["parent", "builder"]] = "parent"
    selects: ClassVar[bool] = False

    ensemble_size: int = 8
    """Children."""
    pruning: Pruning = Pruning()  # frozen
    """Which weights they keep."""
    tuning: Tuning = Tuning(1, Constant(0.001), "adam")
    """Of each child."""
    seed: int = 0
    """Of subnetworks, the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        self.pruning.check_size(self.ensemble_size)

    def __call__(
        self, parent: nn.Module, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The children of `parent`."""
        begin(run, self, start=parent)
        subnetworks = self.pruning.subnetworks(self.ensemble_size, self.seed)
        inputs = task.example()

        def masks(index: int) -> Masks:
            return self.pruning.masks(parent, subnetworks[index], inputs=inputs)

        def train(
            index: int, checkpoint: Path | None, on_epoch: Callable[[int, float], None]
        ) -> nn.Module:
            child = copied(parent)
            tune(
                child, task, tuning=self.tuning, seed=derive_seed(self.seed, "tuning", index),
                binding=Pruned(child, masks(index)), on_epoch=on_epoch, checkpoint=checkpoint,
            )  # fmt: skip
            return child

        tunings = [self.tuning] * self.ensemble_size
        children = train_members(train, tunings, what="sparse", run=run, workers=workers)
        found = (masks(index) for index in range(self.ensemble_size))
        return finished(children, found, parent=parent, task=task, tuning=self.tuning)


def sparse_cost(parent: nn.Module, masks: Masks, *, inputs: Any) -> tuple[float, int]:
    """FLOPs of a pass relative to the dense parent, and the number of parameters kept.

    NaN of a network without the layers that are counted (see `metrics.multiply_adds`).
    """
    dense = inference_flops(parent, inputs)
    flops = inference_flops(parent, inputs, densities=density_of(masks)) / dense if dense else nan
    removed = sum(int((~mask).sum()) for mask in masks.values())
    return flops, count_parameters(parent) - removed


def finished(
    children: list[nn.Module],
    masks: Iterable[Masks],
    *,
    parent: nn.Module,
    task: Task,
    tuning: Tuning,
) -> Result:
    """The children as an ensemble, with the sum of their costs."""
    inputs = task.example()
    costs = [sparse_cost(parent, one, inputs=inputs) for one in masks]
    epochs, passes = tuning.epochs * tuning.bagging, sum(flops for flops, _ in costs)
    return Result(
        Ensemble(children, outputs=task.outputs),
        epochs * len(children),
        epochs * passes,
        passes,
        sum(kept for _, kept in costs),
    )
