"""Generations of ours against EvoTorch's PGPE and SNES: fitness over evaluations, and their cost.

    nice python benchmarks/evolution.py --save

Fitness: every side starts from the same weights and gets the same number of evaluations; the cases
(episodes, pictures) are the same for all children of a generation and others in the next. Each side
has the settings that its makers give, and the best of a grid of seven, by seeds of their own.
Judged is its centre or evolved parent, on cases that no child has seen.

Cost: seconds and peak memory of a generation of an MLP of four million weights, in a process of its
own for each side and round, with a fitness of one forward pass. The memory is what is held beside
the network after generations of a small one. Of 50 generations of 36.5 million weights:

    python benchmarks/evolution.py --tasks --sides ours --rounds 1 --width 2131 \
        --depth 8 --population-size 4 --cost-generations 49
"""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks.evolution_tasks import TASKS, Task, wide_mlp
from benchmarks.memory import peak_bytes, resident_bytes
from benchmarks.timing import publish, spread
from evo_subnets import Moving, Search, evolve, parameters
from evo_subnets.lineage import log_weights
from evo_subnets.runs.report import table

MIB = 2**20
Settings = dict[str, Any]

OURS: tuple[Settings, ...] = (
    {"noise": 0.3, "step": 0.06},
    {"noise": 0.1, "step": 0.02},
    {"noise": 0.3, "step": 0.02},
    {"noise": 0.1, "step": 0.06},
    {"noise": 0.3, "step": 0.3},
    {"noise": 1.0, "step": 0.3},
    {"noise": 0.1, "step": 0.02, "recombine": log_weights},
)
"""The first of each grid are the defaults: of ours those of `Moving`; of EvoTorch's, which has none
for all, those of its example for LunarLander (PGPE with ClipUp, whose rules make the others of the
radius; Toklu et al. 2020) and of its page on supervised learning (SNES)."""
RADII = (0.3, 1.0, 9.0, 18.0, 36.0)
PGPE: tuple[Settings, ...] = tuple({"radius": radius} for radius in (4.5, 2.0, *RADII))
SNES: tuple[Settings, ...] = tuple({"radius": radius} for radius in (2.25, 4.5, *RADII))
GRIDS = {"ours": OURS, "PGPE": PGPE, "SNES": SNES}


@dataclass(frozen=True)
class Args:
    """Evolves the same networks with every side."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Which tasks."""
    population_size: int = 32
    """Children of a generation."""
    generations: int = 40
    """How many."""
    seeds: int = 3
    """Of the figures: each its own first weights and cases."""
    tuning_seeds: int = 2
    """On which a grid's best is found; others."""
    rounds: int = 3
    """Processes of each side for the cost; 0: fitness alone."""
    sides: tuple[str, ...] = tuple(GRIDS)
    """Whose cost."""
    width: int = 1400
    """Of the network for the cost."""
    depth: int = 2
    """Its square layers."""
    cost_generations: int = 3
    """That are timed, after the first."""
    tiny: bool = False
    """Two generations of few children, one seed, a small network for the cost."""
    save: bool = False
    """Add the outcome to benchmarks/results/evolution.md."""
    cost_of: str | None = None
    """Internal: the side that this process runs for its cost."""


def main(args: Args) -> None:
    if args.tiny:
        args = replace(args, population_size=4, generations=2, seeds=1, tuning_seeds=1)
        args = replace(args, rounds=min(args.rounds, 1), width=32)
    if args.cost_of is not None:
        print(json.dumps(cost(args.cost_of, args)))
        return
    texts = [fitness_of(TASKS[name], args) for name in args.tasks]
    if args.rounds:
        texts.append(costs(args))
    publish(__file__, "\n\n".join(texts), args.save)


def fitness_of(task: Task, args: Args) -> str:
    """Fitness over evaluations, as a table."""
    quarters = sorted({max(1, round(args.generations * part)) for part in (0.25, 0.5, 1.0)})
    first = [task.judged(task.network(seed), seed) for seed in range(args.seeds)]
    rows = [["start", "", *[""] * (len(quarters) - 1), spread(first)]]
    for side, grid in GRIDS.items():
        grid = grid[:2] if args.tiny else grid
        last = []
        for settings in grid:
            seeds = range(100, 100 + args.tuning_seeds)
            found = [curve(side, settings, task, seed, args, [args.generations]) for seed in seeds]
            last.append(np.mean([values[-1] for values in found]))
            print(f"{task.name}, {side} {settings}: {last[-1]:.3f} on tuning seeds", flush=True)
        best = int(np.nanargmax(last))
        for name, chosen in (("defaults", 0), ("tuned", best)):
            curves = [
                curve(side, grid[chosen], task, seed, args, quarters) for seed in range(args.seeds)
            ]
            columns = zip(*curves, strict=True)
            rows.append([side, f"{name}: {_told(grid[chosen])}", *map(spread, columns)])
            print("  ".join(rows[-1]), flush=True)
    headings = ["side", "settings", *(f"{q * args.population_size:,}" for q in quarters)]
    return (
        f"{task.title}: {task.measure} after so many evaluations of a child; median [extremes] of "
        f"{args.seeds} seeds, populations of {args.population_size}.\n\n{table(headings, rows)}"
    )


def curve(
    side: str, settings: Settings, task: Task, seed: int, args: Args, at: Sequence[int]
) -> list[float]:
    """What a side's network is worth after so many generations."""
    if side == "ours":
        return _ours(settings, task, seed, args, at)
    return _evotorch(side, settings, task, seed, args, at)


def _ours(settings: Settings, task: Task, seed: int, args: Args, at: Sequence[int]) -> list[float]:
    module, size = task.network(seed), args.population_size
    search = Search(size, 1, density=1.0, seed=seed)
    evolved = evolve(
        module,
        task.fitness(seed),
        search=search,
        generations=args.generations,
        moving=Moving(**settings),
        inputs=task.inputs(seed),
        outputs=task.outputs,
    )
    values = []
    for generation in at:
        lineage = replace(evolved.lineage, steps=evolved.lineage.steps[:generation])
        there = task.network(seed)
        lineage.replay(parameters(module), out=parameters(there))
        values.append(task.judged(there, seed))
    return values


def _evotorch(
    side: str, settings: Settings, task: Task, seed: int, args: Args, at: Sequence[int]
) -> list[float]:
    module = task.network(seed)
    searcher, center = _searcher(
        side, settings, module, task.fitness(seed), size=args.population_size, seed=seed
    )
    values = []
    for generation in range(1, args.generations + 1):
        searcher.step()
        if generation in at:
            vector_to_parameters(center(), module.parameters())
            values.append(task.judged(module, seed))
    return values


def _searcher(
    side: str, settings: Settings, module: nn.Module, fitness: Any, *, size: int, seed: int
) -> tuple[Any, Any]:
    """An algorithm of EvoTorch's around the module's weights, and what gives its centre."""
    from evotorch import Problem, algorithms

    logging.getLogger("evotorch").setLevel(logging.WARNING)
    start = parameters_to_vector(module.parameters()).detach()
    fresh = getattr(fitness, "in_generation", None)

    class Weights(Problem):  # type: ignore[misc]
        """Flat weights, judged one after the other on the cases of their generation."""

        generation = -1

        def _evaluate_batch(self, batch: Any) -> None:
            self.generation += 1
            judged = fitness if fresh is None else fresh(self.generation)
            values = []
            for row in batch.access_values(keep_evals=True):
                vector_to_parameters(row, module.parameters())
                values.append(float(np.mean(judged(module))))
            batch.set_evals(torch.tensor(values))

    problem = Weights("max", solution_length=len(start), dtype=torch.float32, seed=seed)
    common = {"popsize": size, "center_init": start.clone(), "radius_init": settings["radius"]}
    if side == "SNES":
        searcher = algorithms.SNES(problem, **common)
    else:
        speed = settings["radius"] / 15
        searcher = algorithms.PGPE(
            problem,
            **common,
            center_learning_rate=speed / 2,
            stdev_learning_rate=0.1,
            optimizer="clipup",
            optimizer_config={"max_speed": speed},
        )
    return searcher, lambda: searcher.status["center"]


def _told(settings: Settings) -> str:
    return " ".join(
        f"{name} {getattr(value, '__name__', value)}" for name, value in settings.items()
    )


def costs(args: Args) -> str:
    """Seconds and peak memory of a generation, as a table."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in args.sides}
    command = [sys.executable, str(Path(__file__))]
    for name in ("width", "depth", "population_size", "cost_generations"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    for _ in range(args.rounds):
        for side, values in found.items():
            done = subprocess.run(
                [*command, "--cost-of", side], capture_output=True, text=True, check=True
            )
            values.append(json.loads(done.stdout.splitlines()[-1]))
            print(side, values[-1], flush=True)
    rows = [
        [side, spread([each["seconds"] for each in values]),
         spread([each["copies"] for each in values]), spread([each["mib"] for each in values], 0)]
        for side, values in found.items()
    ]  # fmt: skip
    weights = next(iter(found.values()))[0]["weights"]
    headings = ["side", "seconds", "copies of the weights", "MiB"]
    return (
        f"Cost of a generation of {args.population_size} children, an MLP of {weights:,.0f} "
        f"weights, and peak memory of {1 + args.cost_generations}, beside the "
        f"network; median [extremes] of {args.rounds} processes, 2 threads.\n\n"
        f"{table(headings, rows)}"
    )


def cost(side: str, args: Args) -> dict[str, float]:
    """Of generations after the first, whose compiling and allocating is not counted in seconds."""
    torch.set_num_threads(2)
    module, inputs = wide_mlp(args.width, args.depth)
    weights = sum(each.numel() for each in module.parameters())

    def fitness(model: nn.Module) -> list[float]:
        with torch.no_grad():
            values: list[float] = model(inputs).log_softmax(-1)[:, 0].tolist()
        return values

    def ours(network: nn.Module, size: int, generations: int) -> None:
        search = Search(size, 1, density=1.0)
        evolve(
            network, fitness, search=search, generations=generations, moving=Moving(), inputs=inputs
        )

    small, _ = wide_mlp(32)
    fitness(module)
    if side == "ours":
        ours(small, 4, 2)  # compiles
        before = resident_bytes()
        seconds = []
        for generations in (1, 1 + args.cost_generations):
            start = time.perf_counter()
            ours(module, args.population_size, generations)
            seconds.append(time.perf_counter() - start)
        each = (seconds[1] - seconds[0]) / args.cost_generations
    else:
        for _ in range(2):  # imports; its own memory is not a generation's
            _searcher(side, GRIDS[side][0], small, fitness, size=4, seed=0)[0].step()
        before = resident_bytes()
        searcher, _ = _searcher(
            side, GRIDS[side][0], module, fitness, size=args.population_size, seed=0
        )
        searcher.step()
        start = time.perf_counter()
        for _ in range(args.cost_generations):
            searcher.step()
        each = (time.perf_counter() - start) / args.cost_generations
    beside = peak_bytes() - before
    return {
        "seconds": each, "mib": beside / MIB, "copies": beside / (4 * weights), "weights": weights
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Args))
