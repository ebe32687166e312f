"""DST and static sparse ensembles: networks that are sparse from the start (Liu et al. 2022)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from evo_subnets.methods.result import HERE, NOTHING_KEPT, Build, Result, begin, train_members
from evo_subnets.methods.sparse import finished
from evo_subnets.pruning import Masks, Pruned
from evo_subnets.rewiring import Distribution, Rewired, Rewiring, layer_densities, random_masks
from evo_subnets.runs import Run
from evo_subnets.schedules import Steps
from evo_subnets.streams import check_seed, derive_seed
from evo_subnets.subnetworks import included, parameters
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune
from evo_subnets.workers import Workers

BUDGET = Tuning(16, Steps())
"""The paper's rates; it has 250 epochs."""


@dataclass(frozen=True)
class StaticSparse:
    """Sparse networks whose connections, drawn at random, stay as they are: what dynamic sparse
    training is compared with (Liu et al. 2022, appendix C)."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "builder"
    selects: ClassVar[bool] = False

    ensemble_size: int = 3
    """Networks."""
    sparsity: float = 0.8
    """Fraction of all weights that are out."""
    distribution: Distribution = "erk"
    """How it is shared out among layers (see `rewiring.layer_densities`)."""
    tuning: Tuning = BUDGET
    """Of each network."""
    seed: int = 0
    """Of initial weights, connections, the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        check_sparse(self.ensemble_size, self.sparsity)

    def __call__(
        self, build: Build, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The networks that `build` makes, sparse and trained."""
        return _trained(self, None, build, task, run, workers)


@dataclass(frozen=True)
class DST:
    """Dynamic sparse training, so many times: networks that are sparse from the start and move
    their connections while they are trained (algorithm 3)."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "builder"
    selects: ClassVar[bool] = False

    ensemble_size: int = 3
    """Networks."""
    sparsity: float = 0.8
    """Fraction of all weights that are out."""
    distribution: Distribution = "erk"
    """How it is shared out among layers (see `rewiring.layer_densities`)."""
    rewiring: Rewiring = Rewiring()
    """When and how connections move."""
    tuning: Tuning = BUDGET
    """Of each network."""
    seed: int = 0
    """Of initial weights, connections, the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        check_sparse(self.ensemble_size, self.sparsity)

    def __call__(
        self, build: Build, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The networks that `build` makes, sparse and trained."""
        return _trained(self, self.rewiring, build, task, run, workers)


def check_sparse(ensemble_size: int, sparsity: float) -> None:
    """A ValueError for what no ensemble of sparse networks has."""
    if ensemble_size < 1:
        raise ValueError(f"ensemble_size must be at least 1, got {ensemble_size}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")


def first_masks(
    module: nn.Module, sparsity: float, *, distribution: Distribution, seed: int
) -> Masks:
    """A network's connections at the beginning: sparse initialisation, drawn from the seed."""
    params = parameters(module)
    weights = {name: params[name] for name in included(params)}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    densities = layer_densities(shapes, sparsity, distribution=distribution)
    return random_masks(weights, densities, seed=derive_seed(seed, "connections"))


def _trained(
    method: StaticSparse | DST,
    rewiring: Rewiring | None,
    build: Build,
    task: Task,
    run: Run,
    workers: Workers,
) -> Result:
    begin(run, method, start=build)
    tuning = method.tuning
    steps = tuning.steps(task.train)

    def start(index: int) -> tuple[nn.Module, Masks]:
        seed = derive_seed(method.seed, "network", index)
        network = build(seed)
        return network, first_masks(
            network, method.sparsity, distribution=method.distribution, seed=seed
        )

    def train(
        index: int, checkpoint: Path | None, on_epoch: Callable[[int, float], None]
    ) -> nn.Module:
        network, masks = start(index)
        binding = (
            Pruned(network, masks)
            if rewiring is None
            else Rewired(
                network, masks, rewiring=rewiring, steps=steps,
                seed=derive_seed(method.seed, "rewiring", index),
            )
        )  # fmt: skip
        tune(
            network, task, tuning=tuning, seed=derive_seed(method.seed, "tuning", index),
            binding=binding, on_epoch=on_epoch, checkpoint=checkpoint,
        )  # fmt: skip
        return network

    network, masks = start(0)  # refuses what cannot be sparse before anything is trained
    if rewiring is not None:
        rewiring.every(steps)
    tunings = [tuning] * method.ensemble_size
    what = type(method).__name__.lower()
    networks = train_members(train, tunings, what=what, run=run, workers=workers)
    every = [masks] * len(networks)  # others have other connections, and as many of each layer
    result = finished(networks, every, parent=network, task=task, tuning=tuning)
    if rewiring is None:
        return result
    density = result.inference / len(networks)
    return with_looking(result, rewiring, density=density, steps=steps)


def with_looking(result: Result, rewiring: Rewiring, *, density: float, steps: int) -> Result:
    """The same, and what dense gradients cost: an update has two sparse thirds and a dense one
    (Evci et al. 2020, appendix H).

    density: a step's relative cost.
    """
    if rewiring.growth == "random":
        return result
    updates = sum(rewiring.dropped(step, steps) > 0 for step in range(1, steps + 1))
    more = result.epochs * updates / steps * (1 - density) / 3
    return replace(result, training=result.training + more)
