"""What it costs to send children to other processes, as recipes and as weights.

    python benchmarks/scaleout.py

Three parts: 1,024 Impala children dispatched to two actors, against plain EvoTorch which ships
their weights; a LeNet-M population on two actors against one; and the dispatch of up to 1,000
simulated actors, which sleep where others evaluate, with a cost model fitted to it
(`docs/scaling.md`).
"""

import math
import pickle
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import tyro
from evotorch import Problem, SolutionBatch
from torch import Tensor, nn

from agents.impala import COBBE_WIDTHS, impala_actor
from benchmarks.timing import publish, spread
from configs.command_line import run
from evo_subnets import Child, Mutation, quads
from evo_subnets.evolution import Evaluator
from evo_subnets.models import build
from evo_subnets.runs.report import table
from evo_subnets.workers.crew import Crew, piece_size

SLOTS = 100
"""Simulated actors in one process."""


@dataclass(frozen=True)
class Args:
    """Times dispatch, scaling over processes, and simulated actors."""

    parts: tuple[Literal["dispatch", "scaling", "model"], ...] = ("dispatch", "scaling", "model")
    """What to measure."""
    children: int = 1024
    """Of the dispatch."""
    population: int = 16
    """LeNet-M children of the scaling part."""
    images: int = 1000
    """That each of them is judged on."""
    simulated: tuple[int, ...] = (10, 100, 1000)
    """Numbers of simulated actors."""
    sleep: float = 2.0
    """Seconds that a simulated evaluation takes."""
    rounds: int = 5
    """Alternations; medians and extremes are reported."""
    save: bool = False
    """Add the outcome to benchmarks/results/scaleout.md."""


def main(args: Args) -> None:
    torch.set_num_threads(1)
    jobs: dict[str, Callable[[Args], str]] = {
        "dispatch": dispatch, "scaling": scaling, "model": model,
    }  # fmt: skip
    texts = []
    for part in args.parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        texts.append(jobs[part](args))
    publish(__file__, "\n\n".join(texts), args.save)


# --- recipes against weights


class Shipped(Problem):  # type: ignore[misc]
    """Plain EvoTorch: a solution is all the weights of a child, its fitness the first of them."""

    def __init__(self, length: int) -> None:
        super().__init__(
            "max", solution_length=length, initial_bounds=(-1, 1), num_actors=2,
            store_solution_stats=False,
        )  # fmt: skip

    def _evaluate_batch(self, solutions: SolutionBatch) -> None:
        solutions.set_evals(solutions.values[:, 0].clone())


def first_weight(module: nn.Module) -> float:
    """A trivial fitness of a child that is there."""
    return next(module.parameters()).view(-1)[0].item()


def recipe_alone(mutation: Mutation) -> float:
    """A trivial fitness of a child that is not even built."""
    return mutation.sigma


def timed(job: Callable[[], Any]) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def dispatch(args: Args) -> str:
    """Seconds and bytes of a generation, in alternation."""
    parent = impala_actor(COBBE_WIDTHS, 2)
    length = sum(weight.numel() for weight in parent.parameters())
    mutations = quads(args.children, 0.01, density=0.2, seed=0)
    evaluator = Evaluator(parent, first_weight)
    shipped = Shipped(length)
    batch = SolutionBatch(shipped, args.children, empty=True)
    weights = torch.zeros(args.children, length)
    batch.set_values(weights)
    seconds: dict[str, list[float]] = {"weights": [], "recipes": [], "recipes, children built": []}
    with Crew(recipe_alone, 2) as plain, Crew(evaluator, 2) as building:
        jobs: dict[str, Callable[[], Any]] = {
            "weights": lambda: shipped.evaluate(batch),
            "recipes": lambda: list(plain.results(mutations)),
            "recipes, children built": lambda: list(building.results(mutations)),
        }
        for job in jobs.values():  # the actors start
            job()
        for _ in range(args.rounds):
            for name, job in jobs.items():
                seconds[name].append(timed(job))
    shipped.kill_actors()
    size = piece_size(args.children, 2)
    pieces = [mutations[at : at + size] for at in range(0, args.children, size)]
    answers = [[Child(mutation, 0.0) for mutation in piece] for piece in pieces]
    sent = sum(len(pickle.dumps(piece)) for piece in (*pieces, *answers))
    shipped_bytes = weights.numel() * weights.element_size()
    cargo = len(pickle.dumps(evaluator))
    rows = []
    for name, values in seconds.items():
        bytes_sent = shipped_bytes if name == "weights" else sent
        ratios = [a / b for a, b in zip(seconds["weights"], values, strict=True)]
        rows.append(
            [name, spread(values, 3), spread(ratios, 1), f"{bytes_sent / 1e6:.3f}",
             f"{shipped_bytes / bytes_sent:,.0f}"]
        )  # fmt: skip
    headings = ["children sent as", "seconds", "times faster", "MB", "times fewer"]
    return (
        f"{args.children:,} children of an Impala with {length:,} weights to 2 actors, trivial "
        f"fitness, {args.rounds} alternations.\nThe parent travels once: {cargo / 1e6:.2f} MB more "
        f"for the first generation ({shipped_bytes / (sent + cargo):,.0f} times fewer then).\n\n"
        + table(headings, rows)
    )


# --- one actor and two


@dataclass(frozen=True)
class Accuracy:
    """The fitness of a classifier: its accuracy on images."""

    inputs: Tensor
    labels: Tensor

    @torch.no_grad()
    def __call__(self, module: nn.Module) -> float:
        guesses = torch.cat([module(part).argmax(1) for part in torch.split(self.inputs, 500)])
        return (guesses == self.labels).double().mean().item()


def scaling(args: Args) -> str:
    """A LeNet-M population on one actor and on two, each with one thread."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(args.images, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (args.images,), generator=generator)
    evaluator = Evaluator(build("lenet-m", seed=0), Accuracy(inputs, labels))
    mutations = quads(args.population, 0.01, density=0.5, seed=0)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    tables = {}
    with Crew(evaluator, 1) as one, Crew(evaluator, 2) as two:
        crews = {1: one, 2: two}
        for count, crew in crews.items():
            tables[count] = sorted((index, child) for index, child in crew.results(mutations))
        assert tables[1] == tables[2]
        for _ in range(args.rounds):
            for count, crew in crews.items():
                seconds[count].append(timed(lambda crew=crew: list(crew.results(mutations))))  # type: ignore[misc]
    ratios = [a / b for a, b in zip(seconds[1], seconds[2], strict=True)]
    rows = [
        [f"{count}", spread(values, 3), f"{1000 * statistics.median(values) / args.population:.1f}"]
        for count, values in seconds.items()
    ]
    return (
        f"{args.population} LeNet-M children on {args.images:,} images, one thread an actor, "
        f"{args.rounds} alternations.\n\n"
        + table(["actors", "seconds", "ms a child"], rows)
        + f"\n\ntwo actors: {spread(ratios, 2)} times as fast as one; the same fitness table"
    )


# --- the cost model


class Simulated(Crew):
    """Actors that only sleep, so that a process can be a hundred of them."""

    def __init__(self, work: Callable[[Any], Any], simulated: int) -> None:
        self.slots = min(simulated, SLOTS)
        super().__init__(work, math.ceil(simulated / self.slots))

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "max_concurrency": self.slots}

    def _parallelize(self) -> None:
        starts = self._actors is None
        super()._parallelize()
        if starts:
            self._actors *= self.slots


def asleep(seconds: float, item: Any) -> Any:
    """Evaluates as a GPU elsewhere would: without this machine's cores."""
    time.sleep(seconds)
    return item


def model(args: Args) -> str:
    """Latency and dispatch fitted to short jobs, and what they predict for longer ones."""
    pieces = 300
    with Crew(partial(asleep, 0.0), 1) as crew:
        list(crew.results(range(2)))
        latency = min(
            timed(lambda: list(crew._done(range(pieces), [range(i, i + 1) for i in range(pieces)])))
            for _ in range(args.rounds)
        ) / pieces  # fmt: skip
    rows, busy = [], []
    for simulated in args.simulated:
        with Simulated(partial(asleep, 0.0), simulated) as crew:
            list(crew.results(range(simulated)))
            count = max(simulated, pieces)
            single = [range(i, i + 1) for i in range(count)]
            busy.append(
                min(timed(lambda: list(crew._done(range(count), single))) for _ in range(3)) / count  # noqa: B023
            )
    serial = statistics.median(busy)
    for simulated in args.simulated:
        items = 4 * simulated
        with Simulated(partial(asleep, args.sleep), simulated) as crew:
            list(crew.results(range(simulated)))
            measured = timed(lambda: list(crew.results(range(items))))  # noqa: B023
        predicted = predicted_seconds(items, simulated, args.sleep, latency, serial)
        rows.append(
            [f"{simulated:,}", f"{items:,}", f"{4 * args.sleep:.1f}", f"{predicted:.2f}",
             f"{measured:.2f}", f"{4 * args.sleep / measured:.1%}"]
        )  # fmt: skip
    children, gpus = 10_000, 1_000
    lines = [
        f"{children:,} children on {gpus:,} GPUs, {seconds:g} s each: "
        f"{predicted_seconds(children, gpus, seconds, latency, serial):.1f} s, of which the "
        f"evaluations are {seconds * children / gpus:.1f} s"
        for seconds in (1.0, 10.0, 60.0)
    ]
    headings = [
        "simulated actors",
        "children",
        "ideal s",
        "predicted s",
        "measured s",
        "efficiency",
    ]
    return (
        f"A piece's way there and back: {1000 * latency:.2f} ms. The sender is busy for "
        f"{1000 * serial:.2f} ms a piece ({', '.join(f'{1000 * value:.2f}' for value in busy)} ms "
        f"with {', '.join(map(str, args.simulated))} actors).\n"
        f"Evaluations of {args.sleep:g} s, four an actor:\n\n{table(headings, rows)}\n\n"
        + "\n".join(lines)
    )


def predicted_seconds(
    items: int, actors: int, seconds: float, latency: float, serial: float
) -> float:
    """`docs/scaling.md`: the slowest actor's pieces, behind the sender's first and last round."""
    size = piece_size(items, actors)
    pieces = math.ceil(items / size)
    rounds = math.ceil(pieces / actors)
    waiting = min(pieces, actors) * serial
    return max(rounds * (size * seconds + latency) + waiting, pieces * serial)


if __name__ == "__main__":
    run(lambda: tyro.cli(Args), main)
