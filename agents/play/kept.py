"""Play that a run keeps: what was played before it was stopped is not played again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from textwrap import indent

import torch
from torch import Tensor, nn

from agents.play.course import Course, Episodes
from agents.play.population import evaluate_population, play
from evo_subnets.evolution import Child, Evolution, keep_child, kept_children, show_fitness
from evo_subnets.generations import Evolved, Moving, move
from evo_subnets.mutation import Mutation
from evo_subnets.rl import Actor, EnsemblePolicy
from evo_subnets.runs import Run
from evo_subnets.runs.report import table
from evo_subnets.search import Search
from evo_subnets.trust_region import Trial, TrustRegion, search_trust_region
from evo_subnets.workers import Here, Workers

HERE = Here()


def find_region(
    parent: Actor, seen: Tensor, *, search: Search, target: float, run: Run
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


def evolve_together(
    parent: Actor,
    search: Search,
    *,
    course: Callable[[int], Course],
    episodes: int,
    generations: int = 1,
    moving: Moving | None = None,
    inputs: Tensor | None = None,
    deterministic: bool = False,
    device: torch.device | str = "cpu",
    run: Run,
    name: str = "children",
    workers: Workers = HERE,
) -> Evolved:
    """What `evo_subnets.evolve` returns with the mean return of `play` as the fitness.

    `course`: of each generation, from 0 on. `name`: of the population, where a run has several. See
    `evaluate_population`.
    """

    def judge(
        parent: nn.Module, mutations: Sequence[Mutation], *, generation: int, name: str
    ) -> list[Child]:
        assert isinstance(parent, Actor)
        with run.bar(name, len(mutations)) as advance:

            def on_child(child: Child) -> None:
                keep_child(run, child, name=name)
                advance(1, f"return {child.fitness:.2f}")

            return evaluate_population(
                parent,
                mutations,
                course=course(generation),
                episodes=episodes,
                deterministic=deterministic,
                device=device,
                on_child=on_child,
                done=kept_children(run, name=name),
                workers=workers,
            )

    return move(
        parent, judge, search=search, generations=generations, moving=moving, inputs=inputs,
        run=run, name=name,
    )  # fmt: skip


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


def play_all(
    contestants: Mapping[str, tuple[EnsemblePolicy, bool]],
    course: Course,
    *,
    episodes: int,
    run: Run,
    name: str = "test",
) -> dict[str, Episodes]:
    """The episodes of each policy, on the same levels. With each comes whether it acts greedily."""

    def played(policy: EnsemblePolicy, greedy: bool) -> dict[str, list[float]]:
        found = play(policy, course, episodes=episodes, deterministic=greedy)
        return found.as_lists()

    all_of_them = {}
    with run.bar(name, len(contestants)) as advance:
        for each, contestant in contestants.items():
            lists = run.once(f"{name} {each}", partial(played, *contestant))
            all_of_them[each] = Episodes.from_lists(lists)
            advance(1, f"{each}: return {all_of_them[each].returns.mean():.2f}")
            run.histogram(f"{name}/{each}", all_of_them[each].returns.tolist())
    return all_of_them


def as_code(text: str) -> str:
    """A table as Markdown that keeps its columns."""
    return indent(text, "    ")
