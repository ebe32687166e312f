"""Model soups: one network out of many that were tuned from one parent (Wortsman et al. 2022)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from evo_subnets import files
from evo_subnets.copies import copied
from evo_subnets.ensemble import Ensemble
from evo_subnets.methods.result import HERE, NOTHING_KEPT, Result, begin, train_members
from evo_subnets.metrics import count_parameters
from evo_subnets.prediction import Validation, reestimate_norms
from evo_subnets.runs import Run
from evo_subnets.schedules import Constant
from evo_subnets.streams import check_seed, derive_seed
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune
from evo_subnets.workers import Workers


@dataclass(frozen=True)
class Soup:
    """The mean of the weights of networks that a parent was tuned to, apart from each other.

    The greedy one adds them, best first, as long as the mean does not get worse on validation data
    (recipe 1); the uniform one takes all.
    """

    starts_from: ClassVar[Literal["parent", "builder"]] = "parent"
    selects: ClassVar[bool] = True

    ingredients: int = 8
    """Networks that are tuned."""
    recipe: Literal["greedy", "uniform"] = "greedy"
    """Which of them are in the mean."""
    tuning: Tuning = Tuning(1, Constant(0.001), "adam")
    """Of each."""
    seed: int = 0
    """Of the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.ingredients < 1:
            raise ValueError(f"ingredients must be at least 1, got {self.ingredients}")
        if self.recipe not in ("greedy", "uniform"):
            raise ValueError(f"recipe must be 'greedy' or 'uniform', got {self.recipe!r}")

    @property
    def ensemble_size(self) -> int:
        """One network."""
        return 1

    def __call__(
        self, parent: nn.Module, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The soup of networks tuned from `parent`."""
        begin(run, self, start=parent)

        def train(
            index: int, checkpoint: Path | None, on_epoch: Callable[[int, float], None]
        ) -> nn.Module:
            network = copied(parent)
            tune(
                network, task, tuning=self.tuning, seed=derive_seed(self.seed, "tuning", index),
                on_epoch=on_epoch, checkpoint=checkpoint,
            )  # fmt: skip
            return network

        tunings = [self.tuning] * self.ingredients
        networks = train_members(train, tunings, what="soup", run=run, workers=workers)
        chosen = list(range(len(networks)))
        if self.recipe == "greedy":
            chosen = run.once("greedy", partial(greedy, networks, task, run=run))
        soup = mean_of([networks[index] for index in chosen], task)
        epochs = self.ingredients * self.tuning.epochs * self.tuning.bagging
        ensemble = Ensemble([soup], outputs=task.outputs)
        return Result(ensemble, epochs, epochs, 1.0, count_parameters(soup))


@torch.no_grad()
def mean_of(networks: Sequence[nn.Module], task: Task) -> nn.Module:
    """A network of the mean weights, its BatchNorm statistics estimated anew on training data."""
    soup = copied(networks[0])
    params = [files.parameters_of(network) for network in networks]
    for name, weight in files.parameters_of(soup).items():
        weight.copy_(torch.stack([each[name] for each in params]).mean(0))
    if len(networks) > 1:
        reestimate_norms(soup, task.train)
    return soup.eval()


def greedy(networks: Sequence[nn.Module], task: Task, *, run: Run = NOTHING_KEPT) -> list[int]:
    """The numbers of those in the greedy soup, in the order in which they were added.

    One whose metric is NaN is in none; a ValueError where it is NaN of all.
    """
    fitness = Validation(task.selection, task.metric, None, task.outputs)
    alone = [fitness(network) for network in networks]
    able = [index for index, value in enumerate(alone) if not math.isnan(value)]
    if not able:
        raise ValueError(
            f"on validation samples the metric is NaN for all of {len(alone)} networks"
        )
    order = sorted(able, key=lambda index: -alone[index])
    chosen, best = [order[0]], alone[order[0]]
    with run.bar("greedy", len(order) - 1) as advance:
        for index in order[1:]:
            value = fitness(mean_of([networks[each] for each in (*chosen, index)], task))
            if value >= best:
                chosen, best = [*chosen, index], value
            advance(1, f"{len(chosen)} in the mean: {best:.4g}")
    return chosen
