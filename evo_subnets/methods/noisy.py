"""Noisy subnetwork ensembles (Whitaker 2023, chapter 4, algorithm 1)."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from evo_subnets.copies import copied
from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import show_fitness
from evo_subnets.generations import evolve
from evo_subnets.inputs import Inputs
from evo_subnets.methods.result import HERE, NOTHING_KEPT, Result, begin
from evo_subnets.metrics import count_parameters
from evo_subnets.options import refuse_idle
from evo_subnets.outputs import Classes
from evo_subnets.prediction import Validation, batches_for, predict, reestimate_norms
from evo_subnets.racing import DEFAULT, Rules, Score, race
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.task import Data, Task, samples_in
from evo_subnets.trust_region import search_trust_region
from evo_subnets.workers import Here, Workers

INPUTS = 1000
"""Validation samples that the trust region is measured on, as in section 4.3.3."""
TARGET_KL = 0.02
"""Nats, where none is asked for."""


@dataclass(frozen=True)
class Noisy:
    """The best of a population of a parent's mutations, judged on validation data; no training."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "parent"
    selects: ClassVar[bool] = True

    search: Search = Search()
    """The population. Without a sigma it comes from the trust region."""
    target_kl: float | None = None
    """Divergence of the children that the trust region aims at, of classes a KL in nats, else what
    the task's kind of outputs says; None: 0.02."""
    reestimate_norms: bool = False
    """Re-estimate the BatchNorm statistics of every child on the training data. Without, they are
    the parent's, as in the paper."""
    racing: bool = False
    """Judge children in blocks of validation samples and drop those that are hardly among the best:
    several times fewer evaluations, in this process alone; one that was killed races anew."""
    rules: Rules = DEFAULT
    """Of the race."""

    def __post_init__(self) -> None:
        if self.search.sigma is not None:
            refuse_idle(self, ("target_kl",), because="a sigma that is given")
        if not self.racing:
            refuse_idle(self, ("rules",), because="no race (racing)")
        if self.target_kl is not None and not 0 < self.target_kl < float("inf"):
            raise ValueError(f"target_kl must be positive, got {self.target_kl}")
        if self.racing and self.reestimate_norms:
            raise ValueError(
                "a race judges children in blocks, and would re-estimate their BatchNorm "
                "statistics for every block: leave out racing or reestimate_norms"
            )

    @property
    def ensemble_size(self) -> int:
        """Children that are kept."""
        return self.search.ensemble_size

    @property
    def seed(self) -> int:
        """Of the population."""
        return self.search.seed

    def __call__(
        self, parent: nn.Module, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The elites of a generation of `parent`'s mutations."""
        if self.racing and not isinstance(workers, Here):
            raise ValueError("a race is run in this process: leave out racing or workers")
        begin(run, self, start=parent)
        search, divergence = self.search, None
        if search.sigma is None:
            found = run.once("trust region", partial(self._region, parent, task))
            search = replace(search, sigma=found["sigma"])
            divergence = found["divergence"]
        judge = self._raced if self.racing else self._evolved
        return replace(judge(parent, task, search, run, workers), divergence=divergence)

    def _region(self, parent: nn.Module, task: Task) -> dict[str, float]:
        inputs = first_inputs(parent, task.selection)
        target = TARGET_KL if self.target_kl is None else self.target_kl
        region = search_trust_region(
            parent, inputs, search=self.search, target=target, outputs=task.outputs
        )
        return {"sigma": region.sigma, "divergence": region.divergence}

    def _evolved(
        self, parent: nn.Module, task: Task, search: Search, run: Run, workers: Workers
    ) -> Result:
        norms = task.train if self.reestimate_norms else None
        fitness = Validation(task.selection, task.metric, norms, task.outputs)
        found = evolve(
            parent, fitness, search=search, outputs=task.outputs, run=run, workers=workers
        )
        result = replace(
            _result(parent, found.ensemble, search),
            children=tuple(found.children),
            elites=tuple(found.elites),
        )
        if norms is None:
            return result
        # recipes alone would not bring the statistics back
        members = [copied(member) for member in result.ensemble.members]
        again = copied(parent)
        for network in (*members, again):
            reestimate_norms(network, norms)
        return replace(result, ensemble=Ensemble(members, outputs=task.outputs), reference=again)

    def _raced(
        self, parent: nn.Module, task: Task, search: Search, run: Run, workers: Workers
    ) -> Result:
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
                rules=self.rules,
                strata=halves_by_doubt(parent, data),
                seed=search.seed,
                include=search.include,
                on_child=lambda child: advance(1, f"accuracy {100 * child.fitness:.2f}"),
            )
        show_fitness(run, found.children)
        mutations = [child.mutation for child in found.chosen]
        ensemble = Ensemble.from_mutations(parent, mutations, include=search.include)
        return replace(
            _result(parent, ensemble, search),
            children=found.children,
            elites=found.chosen,
            seen=found.seen,
        )


def _result(parent: nn.Module, ensemble: Ensemble, search: Search) -> Result:
    count = len(ensemble.members)  # fewer than asked for where many failed
    kept = count * count_parameters(parent)
    return Result(ensemble, 0.0, 0.0, float(count), kept, search=search)


def first_inputs(module: nn.Module, data: Data) -> Inputs:
    """The inputs of the first `INPUTS` samples, in batches where their shapes differ."""
    found: list[Inputs] = []
    samples = 0
    for inputs, targets in batches_for(module, data):
        found.append(inputs)
        samples += samples_in(targets)
        if samples >= INPUTS:
            break
    shapes = {each.shape[1:] if isinstance(each, Tensor) else None for each in found}
    if len(shapes) == 1 and None not in shapes:
        return torch.cat(found)[:INPUTS]
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
