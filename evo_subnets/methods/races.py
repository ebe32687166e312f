"""Children of a classifier that are judged in a race."""

from typing import Any

from torch import Tensor, nn

from evo_subnets.evolution import show_fitness
from evo_subnets.outputs import Classes
from evo_subnets.prediction import predict
from evo_subnets.racing import Race, Rules, Score, race
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.task import Task


def raced(parent: nn.Module, task: Task, *, search: Search, rules: Rules, run: Run) -> Race:
    """The race of a generation of `parent`'s mutations on the task's validation samples; a
    ValueError where these cannot be raced on."""
    data: Any = task.selection
    if not hasattr(data, "labels"):
        raise ValueError("a race chooses among samples in memory (data.Images): leave it out")
    if task.metric is not None or task.outputs != Classes():
        raise ValueError(
            "a race scores samples of classes by being right: leave out racing or metric, and "
            "outputs"
        )
    with run.bar("children", search.population_size) as advance:
        found = race(
            parent,
            search.mutations(),
            score=right(data),
            samples=len(data),
            k=search.ensemble_size,
            rules=rules,
            strata=halves_by_doubt(parent, data),
            seed=search.seed,
            include=search.include,
            on_child=lambda child: advance(1, f"accuracy {100 * child.fitness:.2f}"),
        )
    show_fitness(run, found.children)
    return found


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
