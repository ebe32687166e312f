"""Noisy subnetwork ensembles (Whitaker 2023, chapter 4, algorithm 1)."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from evo_subnets.data import Images
from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import Child, show_fitness
from evo_subnets.generations import evolve
from evo_subnets.lineage import Lineage
from evo_subnets.methods.apart import apart
from evo_subnets.methods.descent import as_ensembles, descended, with_norms
from evo_subnets.methods.races import Races
from evo_subnets.methods.result import HERE, NOTHING_KEPT, Result, begin, untrained
from evo_subnets.mutation import check_density
from evo_subnets.options import check_distinct, refuse_idle
from evo_subnets.outputs import Combine, check_combine
from evo_subnets.prediction import Validation, inputs_for
from evo_subnets.racing import DEFAULT, Rules
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import spreads
from evo_subnets.task import Data, Task
from evo_subnets.trust_region import Trial, search_trust_region
from evo_subnets.walk import Moving
from evo_subnets.workers import Here, Workers

INPUTS = 1000
"""Validation samples, at most, that the trust region is measured on, as in section 4.3.3: they are
set apart from those that children are selected on."""
TARGET_KL = 0.02
"""Nats, where none is asked for."""
MOVING = Moving()


@dataclass(frozen=True)
class Noisy:
    """The best of a population of a parent's mutations, judged on validation data; no training.

    With `generations` its children move the parent, again and again. What comes of it (the evolved
    parent, the best child, the ensemble and the mean of the last elites, an ensemble around the
    evolved parent) is compared on samples that are set apart before, and the best is the result.
    """

    starts_from: ClassVar[Literal["parent", "builder"]] = "parent"
    selects: ClassVar[bool] = True

    search: Search = Search()
    """The population. Without a sigma it comes from the trust region."""
    target_kl: float | None = None
    """Divergence of the children that the trust region aims at, of classes a KL in nats, else what
    the task's kind of outputs says; None: 0.02."""
    densities: tuple[float, ...] = ()
    """Densities to choose from, instead of the search's: of those the one whose children, each at
    the target's sigma, are the fittest on average on the trust region's samples (section 4.3.3)."""
    per_layer: bool = False
    """Sigma is in the unit of each layer's spread of weights (`subnetworks.spreads`), instead of in
    that of all weights."""
    combine: Combine = "mean"
    """What becomes of the members' outputs: of classes the mean of their probabilities ('mean'), of
    their logits ('logits', as in algorithm 1), or a count of their likeliest classes ('vote')."""
    include_parent: bool = False
    """The parent is a member as well, the first one, as in algorithm 1."""
    reestimate_norms: bool = False
    """Re-estimate the BatchNorm statistics of every child on the training data. Without, they are
    the parent's, as in the paper."""
    racing: bool = False
    """Judge children in blocks of validation samples and drop those that are hardly among the best:
    several times fewer evaluations, in this process alone; one that was killed races anew. With
    `generations` each has a race of its own."""
    rules: Rules = DEFAULT
    """Of the race."""
    generations: int = 1
    """Generations; with one, children are selected and the parent stays where it is."""
    moving: Moving = MOVING
    """How a generation moves the parent; the divergence of its children is `target_kl`, or follows
    from the sigma that is given."""

    def __post_init__(self) -> None:
        if self.search.sigma is not None:
            refuse_idle(self, ("target_kl", "densities"), because="a sigma that is given")
        if self.densities:
            refuse_idle(self.search, ("density",), because="densities to choose from")
            check_distinct("densities", self.densities)
            for density in self.densities:
                check_density(density)
        if not self.racing:
            refuse_idle(self, ("rules",), because="no race (racing)")
        if self.target_kl is not None and not 0 < self.target_kl < float("inf"):
            raise ValueError(f"target_kl must be positive, got {self.target_kl}")
        self._check_generations()
        if self.racing and self.reestimate_norms:
            raise ValueError(
                "a race judges children in blocks, and would re-estimate their BatchNorm "
                "statistics for every block: leave out racing or reestimate_norms"
            )

    def _check_generations(self) -> None:
        if self.generations < 1:
            raise ValueError(f"generations must be at least 1, got {self.generations}")
        if self.generations == 1:
            idle = [field.name for field in fields(Moving)]
            refuse_idle(self.moving, idle, because="one generation")
        refuse_idle(self.moving, ("noise",), because="target_kl or sigma, which say the same")
        because = "the accuracy of a whole sample, which does not say what noise explains"
        refuse_idle(self.moving, ("stop",), because=because)
        if self.generations > 1:
            because = "generations, whose evolved parent is a candidate of its own"
            refuse_idle(self, ("include_parent",), because=because)

    @property
    def ensemble_size(self) -> int:
        """Children that are kept, and the parent where it is a member."""
        return self.search.ensemble_size + self.include_parent

    @property
    def seed(self) -> int:
        """Of the population."""
        return self.search.seed

    def __call__(
        self, parent: nn.Module, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The elites of a generation of `parent`'s mutations, or the best that several come to."""
        if self.racing and not isinstance(workers, Here):
            raise ValueError("a race is run in this process: leave out racing or workers")
        check_combine(self.combine, task.outputs)
        begin(run, self, start=parent)
        search, inputs, found = self.search, None, dict[str, Any]()
        if self.per_layer:
            search = replace(search, include=spreads(parent, search.include))
        if search.sigma is None or self.generations > 1:
            some, others = apart(
                task.selection, most=INPUTS, seed=derive_seed(search.seed, "trust region")
            )
            task, inputs = replace(task, validation=others), _inputs(parent, some)
        if search.sigma is None:
            found = run.once(
                "trust region", partial(self._region, parent, search, inputs, some, task)
            )
            search = replace(search, sigma=found["sigma"], density=found["density"])
        if self.generations > 1:
            result = descended(
                parent, task, search=search, generations=self.generations,
                moving=replace(self.moving, noise=self._noise), inputs=inputs,
                norm_data=task.train if self.reestimate_norms else None, combine=self.combine,
                rules=self.rules if self.racing else None, run=run, workers=workers,
            )  # fmt: skip
        elif self.racing:
            result = self._raced(parent, task, search, run)
        else:
            result = self._evolved(parent, task, search, run, workers)
        trials = tuple(Trial(*numbers) for numbers in found.get("trials", ()))
        return replace(result, divergence=found.get("divergence"), trials=trials)

    @property
    def _noise(self) -> float | None:
        """Divergence of the children; None where sigma is given."""
        if self.search.sigma is not None:
            return None
        return TARGET_KL if self.target_kl is None else self.target_kl

    def _region(
        self, parent: nn.Module, search: Search, inputs: Any, some: Data, task: Task
    ) -> dict[str, Any]:
        target = self._noise
        assert target is not None
        norms = task.train if self.reestimate_norms else None
        region = search_trust_region(
            parent, inputs, search=search, target=target, outputs=task.outputs,
            densities=self.densities or None,
            fitness=Validation(some, task.metric, norms, task.outputs) if self.densities else None,
        )  # fmt: skip
        trials = [astuple(trial) for trial in region.table if trial.fitness is not None]
        found = {"sigma": region.sigma, "density": region.density, "trials": trials}
        return {**found, "divergence": region.divergence}

    def _evolved(
        self, parent: nn.Module, task: Task, search: Search, run: Run, workers: Workers
    ) -> Result:
        norms = task.train if self.reestimate_norms else None
        fitness = Validation(task.selection, task.metric, norms, task.outputs)
        found = evolve(
            parent, fitness, search=search, outputs=task.outputs, run=run, workers=workers
        )
        children, elites = tuple(found.children), tuple(found.elites)
        ensemble = self._ensemble(parent, elites, task, search)
        controls = as_ensembles(found.controls(), task=task, combine=self.combine, norm_data=norms)
        result = untrained(
            parent, ensemble, search=search, children=children, elites=elites, controls=controls
        )
        if norms is None:
            return result
        again = with_norms(parent, norms)
        return replace(result, ensemble=with_norms(result.ensemble, norms), reference=again)

    def _raced(self, parent: nn.Module, task: Task, search: Search, run: Run) -> Result:
        races = Races(task, search, self.rules, run)
        children = races(
            parent, search.mutations(), lineage=Lineage(), generation=0, name="children"
        )
        show_fitness(run, children)
        found = races.last
        assert found is not None
        return untrained(
            parent, self._ensemble(parent, found.chosen, task, search), search=search,
            children=found.children, elites=found.chosen, seen=found.seen,
        )  # fmt: skip

    def _ensemble(
        self, parent: nn.Module, elites: Sequence[Child], task: Task, search: Search
    ) -> Ensemble:
        return Ensemble.from_mutations(
            parent, [child.mutation for child in elites], include_parent=self.include_parent,
            combine=self.combine, outputs=task.outputs, include=search.include,
        )  # fmt: skip


def _inputs(parent: nn.Module, some: Data) -> Any:
    inputs: Any = list(inputs_for(parent, some))
    return torch.cat(inputs) if isinstance(some, Images) else inputs
