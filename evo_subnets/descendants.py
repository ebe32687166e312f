"""Children of a parent that has moved, as a recipe on the root: what workers are sent instead of
weights."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from evo_subnets.copies import copied
from evo_subnets.evolution import Child, Evaluator, Fitness, lost_child
from evo_subnets.lineage import PLAIN, Lineage, Rule, Step, add_step, wide
from evo_subnets.mutation import Mutation
from evo_subnets.subnetworks import Include, included, parameters, staying, unit_of


class Moved:
    """A module that moves along a lineage from its root, step by step: one copy of its weights, and
    what the rule remembers. `module` is another object after every step, the root left alone."""

    def __init__(self, root: nn.Module, *, rule: Rule = PLAIN, include: Include = None) -> None:
        self.module, self.lineage = root, Lineage(rule=rule)
        weights = parameters(root)
        self.names = included(weights, include)
        self.fixed = staying(weights, self.names)
        self.memories = {
            name: [torch.zeros_like(wide(weights[name])) for _ in range(rule.memories)]
            for name in self.names
        }
        self.sums = {  # where the weights themselves cannot hold what is added up
            name: wide(weights[name])
            for name in self.names
            if torch.promote_types(weights[name].dtype, torch.float32) != weights[name].dtype
        }

    def take(self, step: Step) -> None:
        """Moves the module."""
        moved = copied(self.module)
        self.write(step, moved, keep=True)
        self.module, self.lineage = moved, self.lineage.then(step)

    @torch.no_grad()
    def write(self, step: Step, moved: nn.Module, *, keep: bool = False) -> None:
        """Gives `moved` the weights behind a step; memories and sums move along only if asked."""
        old, new, number = parameters(self.module), parameters(moved), len(self.lineage.steps) + 1
        for name in self.names:
            memories = self.memories[name]
            if not keep:
                memories = [memory.clone() for memory in memories]
            if name in self.sums:
                total = self.sums[name] if keep else self.sums[name].clone()
            elif new[name].is_contiguous():  # in place, without a copy of the layer
                total = new[name].copy_(old[name]).view(-1)
            else:
                total = wide(old[name])
            add_step(
                name, total, memories=memories, step=step, rule=self.lineage.rule, number=number,
                unit=unit_of(self.names, name),
            )  # fmt: skip
            if total.data_ptr() != new[name].data_ptr():
                new[name].copy_(total.view(new[name].shape))
        for name, stays in self.fixed.items():
            torch.where(stays, old[name], new[name], out=new[name])

    @torch.no_grad()
    def stretch(self, moved: nn.Module, factor: float) -> bool:
        """Makes the step that `moved` is away a so much longer one, to the last digits, without a
        draw; False, and nothing done, where the weights are too coarse for that."""
        if self.sums or not math.isfinite(factor):
            return False
        old, new = parameters(self.module), parameters(moved)
        for name in self.names:
            torch.lerp(old[name], new[name], factor, out=new[name])
        return True


@dataclass(frozen=True)
class Descendant:
    """A child of an evolved parent, as a recipe on the root, and when it lives."""

    lineage: Lineage
    mutation: Mutation
    generation: int | None = None
    """Whose cases judge it, where a fitness has fresh ones in each; None: the fitness as it is."""


def lost_descendant(descendant: Descendant) -> Child:
    """One that failed because every worker that evaluated it died."""
    return lost_child(descendant.mutation)


class Descendants:
    """A descendant of the root to its child, evaluated (see `Evaluator`); it can be pickled where
    the fitness can, and its pickle holds the root alone.

    Who has it follows a lineage step by step; a lineage that does not go on from the last begins at
    the root again. A fitness with a method `in_generation(g)` is asked for that of the generation.
    """

    def __init__(self, root: nn.Module, fitness: Fitness, *, include: Include = None) -> None:
        self.root, self.fitness, self.include = root, fitness, include
        self._moved: Moved | None = None
        self._evaluator: tuple[Lineage, Evaluator] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_moved": None, "_evaluator": None}

    @contextmanager
    def knowing(self, lineage: Lineage, parent: nn.Module) -> Iterator[None]:
        """Spares this process the way to a parent that it has already, and holds on to nothing."""
        self._evaluator = lineage, self._evaluator_of(parent)
        try:
            yield
        finally:
            self._evaluator = None

    def __call__(self, descendant: Descendant) -> Child:
        lineage, number = descendant.lineage, descendant.generation
        if self._evaluator is None or self._evaluator[0] != lineage:
            self._evaluator = None  # one work copy at a time
            self._evaluator = lineage, self._evaluator_of(self._parent(lineage))
        evaluator, fresh = self._evaluator[1], getattr(self.fitness, "in_generation", None)
        evaluator.fitness = self.fitness if number is None or fresh is None else fresh(number)
        return evaluator(descendant.mutation)

    def _evaluator_of(self, parent: nn.Module) -> Evaluator:
        return Evaluator(parent, self.fitness, include=self.include)

    def _parent(self, lineage: Lineage) -> nn.Module:
        moved, steps = self._moved, lineage.steps
        if moved is None or moved.lineage != Lineage(_first(steps, moved.lineage), lineage.rule):
            moved = self._moved = Moved(self.root, rule=lineage.rule, include=self.include)
        for step in steps[len(moved.lineage.steps) :]:
            moved.take(step)
        return moved.module


def _first(steps: Sequence[Step], lineage: Lineage) -> tuple[Step, ...]:
    return tuple(steps[: len(lineage.steps)])
