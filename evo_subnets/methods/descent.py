"""What generations of a parent come to, and which of it is best on samples that none has seen."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from evo_subnets.copies import copied
from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import show_fitness
from evo_subnets.generations import evolve, move
from evo_subnets.methods.apart import apart
from evo_subnets.methods.races import Races
from evo_subnets.methods.result import Result, untrained
from evo_subnets.outputs import Combine
from evo_subnets.prediction import Validation, reestimate_norms
from evo_subnets.racing import Rules
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.streams import derive_seed
from evo_subnets.task import Task
from evo_subnets.walk import Moving
from evo_subnets.workers import Workers

HELD_OUT = 3
"""One of so many parts of the validation samples chooses."""


def descended(
    parent: nn.Module,
    task: Task,
    *,
    search: Search,
    generations: int,
    moving: Moving,
    inputs: Any,
    norm_data: Any,
    combine: Combine,
    rules: Rules | None,
    run: Run,
    workers: Workers,
) -> Result:
    """The best of what `evolve` comes to: its `models`, judged on a third of the validation
    samples, which is set apart from those that children are judged on.

    inputs: of the divergences; combine: of the members of those that are ensembles; norm_data:
    None, or what BatchNorm's statistics are re-estimated on; rules: of the races in which children
    are judged, None: on all samples.
    """
    held_out, others = apart(
        task.selection, parts=HELD_OUT, seed=derive_seed(search.seed, "held out")
    )
    asked: dict[str, Any] = {
        "search": search, "generations": generations, "moving": moving, "inputs": inputs,
        "outputs": task.outputs, "run": run,
    }  # fmt: skip
    seen = None
    if rules is None:
        fitness = Validation(others, task.metric, norm_data, task.outputs)
        found = evolve(parent, fitness, workers=workers, **asked)
    else:
        races = Races(replace(task, validation=others), search, rules, run)
        found = move(parent, races, **asked)
        assert races.last is not None
        found.confirmed, seen = list(races.last.chosen), races.last.seen
        show_fitness(run, found.children, generation=found.generation - 1)
    candidates = as_ensembles(found.models(), task=task, combine=combine, norm_data=norm_data)
    reference = None if norm_data is None else with_norms(parent, norm_data)
    judge, scores = Validation(held_out, task.metric, None, task.outputs), dict[str, float]()
    judged = {"parent": reference or parent, **candidates}
    with run.bar("held out", len(judged)) as advance:
        for name, model in judged.items():
            scores[name] = run.once(f"held out: {name}", partial(judge, model))
            advance(1, f"{name}: {scores[name]:.4g}")
    able = [name for name in candidates if not math.isnan(scores[name])]
    if not able:
        raise ValueError(f"on held-out validation samples the metric is NaN for all of {scores}")
    chosen = max(able, key=lambda name: scores[name])
    return untrained(
        parent,
        candidates[chosen],
        chosen=chosen,
        search=found.search,
        children=tuple(found.children),
        elites=tuple(found.elites),
        candidates=candidates,
        controls=as_ensembles(found.controls(), task=task, combine=combine, norm_data=norm_data),
        held_out=scores,
        lineage=found.lineage,
        history=tuple(found.history),
        seen=seen,
        reference=reference,
    )


def as_ensembles(
    models: Mapping[str, nn.Module], *, task: Task, combine: Combine, norm_data: Any
) -> dict[str, Ensemble]:
    """Models by name, each as an ensemble that combines outputs so, with norms anew if asked."""
    found = {}
    for name, model in models.items():
        each = model if isinstance(model, Ensemble) else Ensemble([model], outputs=task.outputs)
        each.combine = combine
        found[name] = each if norm_data is None else with_norms(each, norm_data)
    return found


def with_norms(model: Any, norm_data: Any) -> Any:
    """A copy with re-estimated statistics; of an ensemble, whose recipes would not bring them back,
    one of such members."""
    if isinstance(model, Ensemble):
        members = [with_norms(member, norm_data) for member in model.members]
        return Ensemble(members, model.combine, outputs=model.outputs)
    again = copied(model)
    reestimate_norms(again, norm_data)
    return again
