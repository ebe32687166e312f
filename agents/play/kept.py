"""Play that a run keeps: what was played before it was stopped is not played again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from agents.kept import played_once
from agents.play.course import Course, Episodes
from agents.play.population import evaluate_population, play
from evo_subnets.evolution import Child, keep_child, kept_children
from evo_subnets.generations import Evolved, judging, move
from evo_subnets.lineage import Lineage
from evo_subnets.mutation import Mutation
from evo_subnets.rl import Actor, EnsemblePolicy
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.walk import Moving
from evo_subnets.workers import Here, Workers

HERE = Here()


@dataclass(frozen=True)
class Played:
    """The returns of `play` as a fitness: what travels to workers that play children one by one."""

    course: Callable[[int], Course]
    """Of each generation, from 0 on."""
    episodes: int
    deterministic: bool = False
    device: torch.device | str = "cpu"
    generation: int = 0

    def in_generation(self, number: int) -> "Played":
        """The same on that generation's course."""
        return replace(self, generation=number)

    def __call__(self, model: nn.Module) -> list[float]:
        assert isinstance(model, Actor)
        policy = EnsemblePolicy(model, model.observation_space, device=self.device)
        played = play(
            policy,
            self.course(self.generation),
            episodes=self.episodes,
            deterministic=self.deterministic,
        )
        returns: list[float] = played.returns.tolist()
        return returns


def evolve_together(
    parent: Actor,
    search: Search,
    *,
    course: Callable[[int], Course],
    episodes: int,
    generations: int = 1,
    moving: Moving | None = None,
    inputs: Tensor | None = None,
    again: int = 0,
    deterministic: bool = False,
    device: torch.device | str = "cpu",
    run: Run,
    name: str = "children",
    workers: Workers = HERE,
) -> Evolved:
    """What `evo_subnets.evolve` returns with the mean return of `play` as the fitness.

    `course`: of each generation, from 0 on. `name`: of the population, where a run has several. In
    this process children play together (see `evaluate_population`), in others one by one.
    """
    moved = partial(
        move, parent, search=search, generations=generations, moving=moving, inputs=inputs,
        again=again, run=run, name=name,
    )  # fmt: skip
    if not isinstance(workers, Here):
        fitness = Played(course, episodes, deterministic, device)
        with judging(
            parent, fitness, search=search, shown="return {:.2f}", run=run, workers=workers
        ) as judge:
            return moved(judge)

    def together(
        parent: nn.Module,
        mutations: Sequence[Mutation],
        *,
        lineage: Lineage,
        generation: int,
        name: str,
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
            )

    return moved(together)


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
