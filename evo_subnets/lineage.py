"""Generations as recipes: what was added to a root, step by step, and how a step is made.

A step is a weighted sum of its generation's noise, and a weight times a mutation is a mutation of
another sigma. So the parent that a hundred generations of 64 children have moved is some thousand
mutations: 200 kB that give the same bits in every process.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from evo_subnets import engines, files
from evo_subnets.draws import CarryOut, Draw, draw_plainly
from evo_subnets.mutation import Mutation, change_of, fastest
from evo_subnets.streams import check_seed
from evo_subnets.subnetworks import (
    Include,
    Params,
    Units,
    Whole,
    included,
    staying,
    unit_of,
)

KIND = "evo_subnets.lineage"
PIECE = 2**16
"""Elements that go through all mutations of a step while they are in the cache; a multiple of
streams.TILE."""


@dataclass(frozen=True)
class Step:
    """θ + length * update(sum of the mutations' noise): how one generation moves its parent."""

    mutations: tuple[Mutation, ...]
    """Noise times its weight: the mutations' sigma, in the weights' unit."""
    length: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.length):
            raise ValueError(f"a step's length must be finite, got {self.length}")


class Rule(Protocol):
    """What becomes of the sum of a step's noise: `Plain`, `Momentum`, `Adam`, or one's own."""

    @property
    def memories(self) -> int:
        """Tensors of the weights' size that it keeps from step to step."""

    def update(self, noise: Tensor, memories: Sequence[Tensor], *, number: int) -> Tensor:
        """What is added, of `noise`'s shape; `memories` are changed in place, zero before step 1,
        the first `number`. It works element by element."""


@dataclass(frozen=True)
class Plain:
    """The sum as it is."""

    memories: int = 0

    def update(self, noise: Tensor, memories: Sequence[Tensor], *, number: int) -> Tensor:
        """The sum itself."""
        return noise


@dataclass(frozen=True)
class Momentum:
    """A sum over generations, in which a step of g generations ago counts decay**g."""

    decay: float = 0.9
    memories: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"momentum's decay must be in [0, 1), got {self.decay}")

    def update(self, noise: Tensor, memories: Sequence[Tensor], *, number: int) -> Tensor:
        """The velocity, which it keeps."""
        return memories[0].mul_(self.decay).add_(noise)


@dataclass(frozen=True)
class Adam:
    """The sum over generations, each weight by its own spread (Kingma and Ba 2015, algorithm 1)."""

    decay: float = 0.9
    square_decay: float = 0.999
    epsilon: float = 1e-8
    memories: int = 2

    def __post_init__(self) -> None:
        if not (0 <= self.decay < 1 and 0 <= self.square_decay < 1 and self.epsilon > 0):
            raise ValueError(f"Adam's decays must be in [0, 1) and epsilon positive, got {self}")

    def update(self, noise: Tensor, memories: Sequence[Tensor], *, number: int) -> Tensor:
        """The bias-corrected ratio of the mean to the root of the mean square."""
        mean, square = memories
        mean.lerp_(noise, 1 - self.decay)
        square.mul_(self.square_decay).addcmul_(noise, noise, value=1 - self.square_decay)
        root = (square / (1 - self.square_decay**number)).sqrt_().add_(self.epsilon)
        return mean / (1 - self.decay**number) / root


PLAIN = Plain()
RULES = {"Plain": Plain, "Momentum": Momentum, "Adam": Adam}
"""Those that a file can name."""


@dataclass(frozen=True)
class Lineage:
    """An evolved parent: steps, in order, on the weights of a root."""

    steps: tuple[Step, ...] = ()
    rule: Rule = PLAIN

    def then(self, step: Step) -> "Lineage":
        """The lineage that is one generation older."""
        return replace(self, steps=(*self.steps, step))

    def at_random(self, *, seed: int) -> "Lineage":
        """A control: the same noise and lengths, but chance decides the sign of every recipe, so
        that the walk is as long and leads nowhere."""
        draw = np.random.default_rng(check_seed(seed))

        def turned(step: Step) -> Step:
            signs = draw.choice((-1.0, 1.0), len(step.mutations))
            mutations = [
                replace(mutation, sigma=mutation.sigma * float(sign))
                for mutation, sign in zip(step.mutations, signs, strict=True)
            ]
            return replace(step, mutations=tuple(mutations))

        return replace(self, steps=tuple(map(turned, self.steps)))

    @torch.no_grad()
    def replay(
        self, root: Mapping[str, Tensor], *, out: Params | None = None, include: Include = None
    ) -> Params:
        """The evolved parent's parameters, in the dtype and on the device of the root's.

        As for `materialize`, `out` is overwritten, and parameters that are not mutated are the
        root's own. Sums are in float32 (float64 for float64 weights), and rounded once: the same
        bits for any number of threads, on every device.
        """
        out = {} if out is None else out
        chosen = included(root, include)
        names, fixed = set(chosen), staying(root, chosen)
        for name, weight in root.items():
            if name not in names:
                out[name] = weight
                continue
            total = wide(weight)
            memories = [torch.zeros_like(total) for _ in range(self.rule.memories)]
            for number, step in enumerate(self.steps, start=1):
                add_step(
                    name, total, memories=memories, step=step, rule=self.rule, number=number,
                    unit=unit_of(chosen, name),
                )  # fmt: skip
            held = out.setdefault(name, torch.empty_like(weight))
            held.copy_(total.view(weight.shape))
            if name in fixed:
                torch.where(fixed[name], weight, held, out=held)
        return out

    def save(self, path: str | Path, root: Mapping[str, Tensor], *, include: Include) -> None:
        """Writes the recipes, the root's fingerprint and the names of what is mutated."""
        name = type(self.rule).__name__
        if RULES.get(name) is not type(self.rule):
            raise ValueError(f"a file can name the rules {sorted(RULES)}, not {name}")
        names = included(root, include)
        content = {
            "kind": KIND,
            "fingerprint": files.fingerprint(dict(root)),
            "include": names,
            **({"whole": True} if isinstance(names, Whole) else {}),
            "rule": [name, *astuple(self.rule)],  # type: ignore[call-overload]
            "steps": [
                [step.length, *(each.numbers for each in step.mutations)] for step in self.steps
            ],
        }
        files.write_json(path, content, indent=None)

    @classmethod
    def load(
        cls, path: str | Path, root: Mapping[str, Tensor]
    ) -> tuple["Lineage", list[str] | Whole | Units]:
        """The lineage of a file that `save` wrote, and what it mutates, as `replay` takes it.

        A StorageError where the file is no lineage, or one of another root.
        """
        content = files.read_json(path)
        found = files.fingerprint(dict(root))
        try:
            if content["kind"] != KIND:
                raise ValueError(f"its kind is {content['kind']}")
            rule, *options = content["rule"]
            steps = [
                Step(tuple(Mutation(*numbers) for numbers in mutations), length)
                for length, *mutations in content["steps"]
            ]
            lineage, names = cls(tuple(steps), RULES[rule](*options)), content["include"]
            if isinstance(names, dict):
                names = Units(names)
            else:
                names = Whole(names) if content.get("whole") else list(names)
            other = content["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise files.StorageError(f"{path}: not a whole lineage: {error}") from None
        if other != found:
            raise files.StorageError(
                f"{path} is of another root: fingerprint {other[:12]}, these weights have "
                f"{found[:12]}"
            )
        return lineage, names


def wide(weight: Tensor) -> Tensor:
    """A flat, row-major copy in the dtype in which steps are added up."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.detach().reshape(-1).to(dtype, copy=True)


def add_step(
    name: str,
    total: Tensor,
    *,
    memories: Sequence[Tensor],
    step: Step,
    rule: Rule,
    number: int,
    unit: float = 1.0,
) -> None:
    """Adds a step, the `number`-th from 1 on, to the flat weights of one parameter, in place; its
    sigma is in a `unit`.

    A piece at a time goes through all mutations: the weights are read and written once, however
    many there are.
    """
    way = fastest(total.device, len(total) * len(step.mutations))

    def add(start: int) -> None:
        piece = slice(start, start + PIECE)
        noise = _sum(name, torch.zeros_like(total[piece]), start, step.mutations, way, unit)
        update = rule.update(noise, [memory[piece] for memory in memories], number=number)
        total[piece].add_(update, alpha=step.length)

    threads = torch.get_num_threads() if total.device.type == "cpu" else 1
    pieces = [_Start(start) for start in range(0, len(total), PIECE)]
    engines.share_out(add, pieces, threads=min(threads, len(pieces)))


class _Start(int):
    """An element's number, not None."""


def _sum(
    name: str,
    zeros: Tensor,
    start: int,
    mutations: Sequence[Mutation],
    way: CarryOut,
    unit: float,
) -> Tensor:
    """The mutations' noise of the elements from `start` on, added in order."""
    total, other = zeros, torch.empty_like(zeros)
    for mutation in mutations:
        change = change_of(mutation, unit)
        one = draw_plainly if mutation.mean else way
        one([Draw(name, total, [other], mutation.seed, [change], start)])
        total, other = other, total
    return total


def centred_ranks(fitness: Sequence[float]) -> list[float]:
    """Weights from 0.5 for the fittest to -0.5 for the least fit, equals share theirs (Salimans et
    al. 2017, section 2.1). Failed children, whose fitness is NaN, weigh nothing: of the others
    alone ranks are made."""
    values = np.asarray(fitness, dtype=np.float64)
    alive = np.flatnonzero(~np.isnan(values))
    weights = np.zeros(len(values))
    if len(alive) > 1:
        found = values[alive]
        below = (found[:, None] > found[None, :]).sum(1)
        equal = (found[:, None] == found[None, :]).sum(1)
        weights[alive] = (below + (equal - 1) / 2) / (len(alive) - 1) - 0.5
    return [float(weight) for weight in weights]


def log_weights(fitness: Sequence[float]) -> list[float]:
    """Weights of the best half that fall with the logarithm of the rank and add up to one (Hansen
    2016, equations 49 and 53), equals share theirs; zero for the others and for failed ones."""
    values = np.asarray(fitness, dtype=np.float64)
    alive = np.flatnonzero(~np.isnan(values))
    weights = np.zeros(len(values))
    half = len(alive) / 2
    ranked = np.maximum(0.0, math.log(half + 0.5) - np.log(np.arange(1, len(alive) + 1)))
    if ranked.sum() > 0:
        order = alive[np.argsort(-values[alive], kind="stable")]
        for value in np.unique(values[order]):
            equal = np.flatnonzero(values[order] == value)
            weights[order[equal]] = ranked[equal].mean() / ranked.sum()
    elif len(alive):
        weights[alive[np.argmax(values[alive])]] = 1.0
    return [float(weight) for weight in weights]


def best_child(fitness: Sequence[float]) -> list[float]:
    """One for the fittest, the first of equals: it is the next parent."""
    values = np.asarray(fitness, dtype=np.float64)
    weights = [0.0] * len(values)
    if not np.isnan(values).all():
        weights[int(np.nanargmax(values))] = 1.0
    return weights


def weighted(mutations: Sequence[Mutation], weights: Sequence[float]) -> tuple[Mutation, ...]:
    """The weighted sum of mutations as mutations: those of the same noise become one, those that
    cancel none."""
    sums: dict[tuple[int, float, float, float], float] = {}
    for mutation, weight in zip(mutations, weights, strict=True):
        key = (mutation.seed, mutation.low, mutation.high, mutation.mean)
        sums[key] = sums.get(key, 0.0) + weight * mutation.sigma
    return tuple(
        Mutation(seed, sigma, low, high, mean)
        for (seed, low, high, mean), sigma in sums.items()
        if sigma
    )


def pairs(mutations: Sequence[Mutation]) -> Iterator[tuple[int, int]]:
    """The indices of mutations that are each other's mirrors."""
    first: dict[Mutation, int] = {}
    for index, mutation in enumerate(mutations):
        other = first.pop(mutation.mirrored(), None)
        if other is None:
            first[mutation] = index
        else:
            yield other, index
