"""Children of a classifier that are judged in a race."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from evo_subnets.evolution import Child, check_strength
from evo_subnets.lineage import Lineage
from evo_subnets.mutation import Mutation
from evo_subnets.outputs import Classes
from evo_subnets.prediction import predict
from evo_subnets.racing import Race, Rules, Score, race
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.streams import derive_seed
from evo_subnets.task import Task


@dataclass
class Races:
    """Judges each generation's children in a race on the task's validation samples, as a
    `generations.Judge`; a ValueError where these cannot be raced on.

    The fitness of a child that was dropped early comes from the samples it saw, so of ranks those
    of the best `ensemble_size` are the sure ones.
    """

    task: Task
    search: Search
    rules: Rules
    run: Run
    last: Race | None = None
    """Of the last generation."""

    def __post_init__(self) -> None:
        if not hasattr(self.task.selection, "labels"):
            raise ValueError("a race chooses among samples in memory (data.Images): leave it out")
        if self.task.metric is not None or self.task.outputs != Classes():
            raise ValueError(
                "a race scores samples of classes by being right: leave out racing or metric, and "
                "outputs"
            )

    def __call__(
        self,
        parent: nn.Module,
        mutations: Sequence[Mutation],
        *,
        lineage: Lineage,
        generation: int,
        name: str,
    ) -> list[Child]:
        data: Any = self.task.selection
        seed = self.search.seed
        check_strength(parent, mutations, include=self.search.include)
        with self.run.bar(name, len(mutations)) as advance:
            self.last = race(
                parent,
                mutations,
                score=right(data),
                samples=len(data),
                k=self.search.ensemble_size,
                rules=self.rules,
                strata=halves_by_doubt(parent, data),
                seed=derive_seed(seed, "generation", generation) if generation else seed,
                include=self.search.include,
                on_child=lambda child: advance(1, f"accuracy {100 * child.fitness:.2f}"),
            )
        return list(self.last.children)


def halves_by_doubt(parent: nn.Module, data: Any) -> Tensor:
    """(samples,) 1 for the half of which the parent is surer, else 0: strata of a race.

    Sure is who gives the two likeliest classes far different probabilities; there children seldom
    differ.
    """
    probabilities = predict(parent, data).softmax(dim=1)
    first, second = probabilities.topk(2, dim=1).values.unbind(dim=1)
    return ((first - second).argsort(stable=True).argsort() >= len(first) // 2).long().cpu()


def right(data: Any) -> Score:
    """What a race scores: 1.0 where a model is right on the samples of these numbers, else 0."""

    def scored(model: nn.Module, chosen: Tensor) -> Tensor:
        some = data[chosen.to(data.labels.device)]
        labels: Tensor = some.labels
        return (predict(model, some).argmax(dim=1) == labels).float()

    return scored
