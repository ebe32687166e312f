"""Play that a run keeps: what was played before it was stopped is not played again."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from agents.kept import played_once
from agents.play.course import Course, Episodes
from agents.play.population import evaluate_population, play
from evo_subnets.evolution import Child, keep_child, kept_children
from evo_subnets.generations import Evolved, Moving, move
from evo_subnets.mutation import Mutation
from evo_subnets.rl import Actor, EnsemblePolicy
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.workers import Here, Workers

HERE = Here()


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
                include=search.include,
                on_child=on_child,
                done=kept_children(run, name=name),
                workers=workers,
            )

    return move(
        parent, judge, search=search, generations=generations, moving=moving, inputs=inputs,
        run=run, name=name,
    )  # fmt: skip


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

    found = played_once(contestants, played, run=run, name=name)
    return {each: Episodes.from_lists(lists) for each, lists in found.items()}
