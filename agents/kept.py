"""What a run keeps and shows, in any environment: the trust region, children, who played."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import indent
from typing import Any

from evo_subnets import files
from evo_subnets.evolution import Evolution, show_fitness
from evo_subnets.rl import Actor
from evo_subnets.runs import Run
from evo_subnets.runs.report import table
from evo_subnets.search import Search
from evo_subnets.trust_region import Trial, TrustRegion, search_trust_region


def find_region(
    parent: Actor, seen: Any, *, search: Search, target: float, run: Run
) -> TrustRegion:
    """What `search_trust_region` finds on observations, which a run need not find twice."""

    def measured() -> list[list[float]]:
        found = search_trust_region(parent, seen, search=search, target=target)
        trials = [(found.sigma, found.density, found.divergence)]
        trials += [(trial.sigma, trial.density, trial.divergence) for trial in found.table]
        return [list(trial) for trial in trials]

    (sigma, density, divergence), *trials = run.once("trust region", measured)
    rows = [[f"{trial[0]:.5f}", f"{trial[1]:g}", f"{trial[2]:.5f}"] for trial in trials]
    run.text("trust_region", as_code(table(["sigma", "density", "KL"], rows)))
    kept = tuple(Trial(*trial) for trial in trials)
    return TrustRegion(replace(search, sigma=sigma, density=density), divergence, kept)


def show_children(run: Run, evolution: Evolution) -> None:
    """The children in TensorBoard: a distribution, and a table, for they follow no time; those
    that failed are printed."""
    show_fitness(run, evolution.children)
    for child in evolution.children:
        if child.failed:
            print(f"  {child.mutation} failed: {child.reason}")
    ranked = sorted(evolution.children, key=lambda child: (child.failed, -child.fitness))
    rows = [[str(child.mutation), child.reason or f"{child.fitness:.2f}"] for child in ranked]
    run.text("children/recipes", as_code(table(["mutation", "return"], rows)))


def played_once(
    contestants: Mapping[str, tuple[Any, bool]],
    play: Callable[[Any, bool], dict[str, list[float]]],
    *,
    run: Run,
    name: str = "test",
) -> dict[str, dict[str, list[float]]]:
    """What `play` says of each contestant, in lists of which one is called "returns": what an
    earlier part of the run has played is not played again. With each comes whether it acts
    greedily."""
    found = {}
    with run.bar(name, len(contestants)) as advance:
        for each, contestant in contestants.items():
            found[each] = run.once(f"{name} {each}", partial(play, *contestant))
            returns = found[each]["returns"]
            advance(1, f"{each}: return {sum(returns) / len(returns):.2f}")
            run.histogram(f"{name}/{each}", returns)
    return found


def as_code(text: str) -> str:
    """A table as Markdown that keeps its columns."""
    return indent(text, "    ")


def write_returns(path: Path, returns: Mapping[str, Iterable[float]]) -> None:
    """One line an episode and policy; the n-th episodes of all are the same."""
    text = io.StringIO()
    lines = [(name, n, float(x)) for name, each in returns.items() for n, x in enumerate(each)]
    csv.writer(text).writerows([("policy", "episode", "return"), *lines])
    files.write_atomically(path, text.getvalue().encode())
