"""Building children: this library against plain torch, in one process, in alternation.

    python benchmarks/mutation.py

The other side is what people write: `w + sigma * randn * (rand < density)`. All sides write into
existing buffers. The script first checks that the compiled draws give the same bits as the plain
torch definition and that both sides perturb with the same statistics.
"""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn

from benchmarks.memory import peak_bytes, resident_bytes
from benchmarks.timing import Device, alternate, comparison, publish, ratios, spread
from evo_subnets import Mutation, evaluate, materialize, materialize_siblings, quads
from evo_subnets.engines import SWITCH


@dataclass(frozen=True)
class Args:
    """Times mutation against plain torch and a memory copy."""

    weights: int = 36_500_000
    """Weights of the network (WRN-28-10 has 36.5 M)."""
    layers: int = 25
    """Matrices that they are spread over."""
    rounds: int = 7
    """Alternations; medians and extremes are reported."""
    threads: int = 2
    """torch's threads."""
    device: Device = "cpu"
    """Where the weights lie; memory and cold start are measured on a CPU alone."""
    save: bool = False
    """Add the outcome to benchmarks/results/mutation.md."""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    parent = {
        name: weight.to(args.device) for name, weight in network(args.weights, args.layers).items()
    }
    density, sigma = 0.2, 0.01
    population = quads(4, sigma, density=density, seed=0)
    child, plain_child = buffer(parent), buffer(parent)
    siblings = [child, *(buffer(parent) for _ in range(3))]
    generator = torch.Generator(args.device).manual_seed(0)
    check(parent, population[0], child, plain_child, generator)

    sides: dict[str, tuple[Callable[[], object], int]] = {
        "plain torch": (lambda: plain(parent, sigma, density, plain_child, generator), 1),
        "memory copy": (lambda: copy(parent, plain_child), 1),
        "one child": (lambda: materialize(parent, population[0], out=child), 1),
        "a quad": (lambda: materialize_siblings(parent, population, outs=siblings), 4),
    }
    seconds = alternate({name: build for name, (build, _) in sides.items()}, args.rounds)
    per_child = {
        name: [second / sides[name][1] for second in times] for name, times in seconds.items()
    }
    sections = [
        f"{args.weights:,} weights in {args.layers} matrices, {args.threads} threads, "
        f"{args.rounds} alternations.",
        comparison(per_child, "plain torch", "ms per child"),
        "Copies of the weights that a child of a quad takes the time of: "
        + spread(ratios(per_child["a quad"], per_child["memory copy"])),
        # a quad reads the weights once and writes them four times, a copy reads and writes once
        "Bytes a second that a quad reads and writes, in a copy's: "
        + spread(
            [5 / 8 * ratio for ratio in ratios(per_child["memory copy"], per_child["a quad"])]
        ),
    ]
    if args.device == "cpu":
        sections += [memory(args), cold_start(args)]
    text = "\n\n".join(sections)
    publish(__file__, text, args.save)


def network(weights: int, layers: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = weights // layers // 1000
    shapes = [(rows, 1000)] * (layers - 1) + [(weights // 1000 - rows * (layers - 1), 1000)]
    return {f"layer{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}


def buffer(parent: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in parent.items()}


def plain(
    parent: dict[str, Tensor],
    sigma: float,
    density: float,
    out: dict[str, Tensor],
    generator: torch.Generator,
) -> None:
    for name, weight in parent.items():
        noise = torch.randn(weight.shape, generator=generator, device=weight.device)
        uniform = torch.rand(weight.shape, generator=generator, device=weight.device)
        out[name].copy_(weight + sigma * noise * (uniform < density))


def copy(parent: dict[str, Tensor], out: dict[str, Tensor]) -> None:
    for name, weight in parent.items():
        out[name].copy_(weight)


def check(
    parent: dict[str, Tensor],
    mutation: Mutation,
    child: dict[str, Tensor],
    plain_child: dict[str, Tensor],
    generator: torch.Generator,
) -> None:
    """Both sides perturb the same fraction with the same spread; compiled equals plain."""
    materialize(parent, mutation, out=child)
    plain(parent, mutation.sigma, mutation.density, plain_child, generator)
    name = next(iter(parent))
    for side in (child, plain_child):
        change = (side[name] - parent[name])[side[name] != parent[name]].double()
        density = change.numel() / parent[name].numel()
        assert abs(density - mutation.density) < 0.005, density
        assert abs(change.std().item() / mutation.sigma - 1) < 0.01, change.std()
    os.environ[SWITCH] = "off"
    by_torch = materialize({name: parent[name]}, mutation)
    del os.environ[SWITCH]
    assert torch.equal(by_torch[name], child[name]), "compiled and plain children differ"


class Layers(nn.Module):
    """A module of the benchmark's size, for the evaluation loop's memory."""

    def __init__(self, parent: dict[str, Tensor]) -> None:
        super().__init__()
        for name, weight in parent.items():
            self.register_parameter(name, nn.Parameter(weight))


def memory(args: Args) -> str:
    """Peak memory beside the parent's, for children built one by one, in processes of their own."""
    lines = ["Peak memory beside the parent, in copies of its weights:"]
    for size in (16, 1024):
        command = [sys.executable, __file__, "--measure-memory", str(size), str(args.weights)]
        extra = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        lines.append(f"  population of {size:5}: {extra:.2f}")
    return "\n".join(lines)


def measure_memory(population_size: int, weights: int) -> None:
    """Evaluates a population and prints the growth of the peak, in copies of the weights."""
    torch.set_num_threads(2)
    warm = Layers(network(1_000_000, 2))
    evaluate(
        warm, quads(8, 0.01, density=0.2, seed=0), fitness=lambda _: 0.0
    )  # loads what is loaded once
    module = Layers(network(weights, 25))
    gc.collect()
    before = resident_bytes()
    evaluate(module, quads(population_size, 0.01, density=0.2, seed=0), fitness=lambda _: 0.0)
    print((peak_bytes() - before) / (4 * weights))


def cold_start(args: Args) -> str:
    """Seconds to a process's first child, without and with a compiled library on disk."""
    code = (
        "import time, torch; from evo_subnets import Mutation, materialize\n"
        "parent = {{'w': torch.zeros({rows}, 1000)}}\n"
        "start = time.perf_counter(); materialize(parent, Mutation(0, 0.01, 0.0, 0.2))\n"
        "print(time.perf_counter() - start)"
    )
    lines = ["Seconds to the first child of a process (imports not counted):"]
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"XDG_CACHE_HOME": cache}
        for title, weights in (
            ("LeNet-S, nothing on disk", 253_000),
            ("Impala 16-32-32, nothing on disk", 626_000),
            ("large, nothing on disk", args.weights),
            ("large, library on disk", args.weights),
            ("Impala 16-32-32, library on disk", 626_000),
        ):
            command = [sys.executable, "-c", code.format(rows=weights // 1000)]
            output = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
            lines.append(f"  {title:34} {float(output.stdout):.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure-memory"]:
        measure_memory(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main(tyro.cli(Args))
