"""One sigma for all weights against sigma in units of each layer's spread: what children lose.

    nice python benchmarks/units.py

Nothing is timed. Children of both kinds at the same divergence from their parent, found by a trust
region each: what their fitness loses against the parent's. Of classifiers of scikit-learn's digits
it is the accuracy on 359 test pictures, over several trained parents; of agents the return on
training levels. Intervals are over children (and parents), of one another's the common noise.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
import tyro
from torch import nn

from agents.evaluation import bootstrap_interval
from agents.play.course import Course
from agents.play.population import evaluate_population
from benchmarks.density import PARENTS, subject
from benchmarks.timing import publish
from envs.games import TRAIN_LEVELS
from evo_subnets import Mutation, Search, search_trust_region, singles, spreads
from evo_subnets.data import load
from evo_subnets.evolution import evaluate
from evo_subnets.prediction import Validation
from evo_subnets.rl import Actor
from evo_subnets.runs.report import table
from evo_subnets.subnetworks import Units

Losses = list[float]


@dataclass(frozen=True)
class Args:
    """Judges children of both kinds at the same divergences."""

    networks: tuple[str, ...] = ("mlp", "lenet-s", "resnet-20", "fruitbot")
    """Classifiers of digits, and games of which there is a parent."""
    targets: tuple[float, ...] = (0.02, 0.1, 0.3)
    """KL divergences, in nats."""
    seeds: int = 3
    """Parents of each classifier; of games there is one."""
    children: int = 128
    """Children of each kind, of one parent and target."""
    episodes: int = 16
    """Of an agent's child, on levels that are the same for all."""
    density: float = 0.5
    """Fraction of the weights that is perturbed."""
    tiny: bool = False
    """One small network, few children."""
    save: bool = False
    """Add the outcome to benchmarks/results/units.md."""


def main(args: Args) -> None:
    if args.tiny:
        args = replace(args, networks=("mlp",), targets=(0.05,), seeds=1, children=8)
    rows = []
    for name in args.networks:
        seeds = range(1 if (PARENTS / name).is_dir() else args.seeds)
        for target in args.targets:
            found = [lost(name, target, seed, args) for seed in seeds]
            one, each = ([loss for both in found for loss in both[i]] for i in range(2))
            differences = np.array(one) - np.array(each)
            low, high = bootstrap_interval(differences)
            rows.append(
                [name, f"{target:g}", f"{len(one)}", f"{statistics.fmean(one):.3f}",
                 f"{statistics.fmean(each):.3f}",
                 f"{differences.mean():+.3f} [{low:+.3f}, {high:+.3f}]"]
            )  # fmt: skip
            print("  ".join(rows[-1]), flush=True)
    headings = [
        "network",
        "KL",
        "children",
        "lost, one sigma",
        "lost, units of layers",
        "difference",
    ]
    text = (
        f"Density {args.density:g}, singles; lost: points of accuracy (classifiers, {args.seeds} "
        f"parents), return (agents, {args.episodes} episodes a child). A positive difference: "
        f"units of layers lose less; 95 % intervals over children.\n\n{table(headings, rows)}"
    )
    publish(__file__, text, args.save)


def lost(name: str, target: float, seed: int, args: Args) -> tuple[Losses, Losses]:
    """What children lose with one sigma, and in units of each layer."""
    module, inputs = subject(name, inputs=256, seed=seed, tiny=args.tiny)
    judged = agents_return if (PARENTS / name).is_dir() else accuracies
    losses = []
    for include in (None, spreads(module)):
        search = Search(
            args.children, 1, density=args.density, seed=seed, sampler=singles, include=include
        )
        region = search_trust_region(module, inputs, search=search, target=target)
        fresh = list(islice(region.search.measured(region.sigma, args.density), args.children))
        losses.append(judged(name, module, fresh, include, args))
    return losses[0], losses[1]


def accuracies(
    name: str, module: nn.Module, mutations: Sequence[Mutation], include: Units | None, args: Args
) -> Losses:
    """Points of accuracy on test pictures."""
    judge: Callable[[nn.Module], float] = Validation(load("digits").test)
    children = evaluate(module, mutations, fitness=judge, include=include)
    before = judge(module)
    return [100 * (before - child.fitness) for child in children]


def agents_return(
    name: str, module: nn.Module, mutations: Sequence[Mutation], include: Units | None, args: Args
) -> Losses:
    """Return on training levels."""
    assert isinstance(module, Actor)
    course = Course(name, TRAIN_LEVELS, seed=7, frame_stack=module.observation_shape[0] // 3)
    nothing = replace(mutations[0], sigma=0.0)
    both = [nothing, *mutations]
    children = evaluate_population(
        module, both, course=course, episodes=args.episodes, include=include
    )
    return [children[0].fitness - child.fitness for child in children[1:]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Args))
