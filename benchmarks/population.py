"""A population judged: this library against EvoTorch's SupervisedNE and plain forward passes.

    python benchmarks/population.py

All sides judge the same children of one network by their accuracy on the same images; the script
first checks that they agree. EvoTorch and the plain loops are given the children's weights and
normalised images; this library builds its children and normalises its images within its time.
`--others` adds, on a CPU, `a child a thread`, two side by side. Then the speed of the processor's
matrix products, which bounds all sides that convolve directly, and the peak memory of a small and
of a large population.
"""

import copy
import gc
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
import tyro
from evotorch import SolutionBatch
from evotorch.neuroevolution import SupervisedNE
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.memory import peak_bytes, resident_bytes
from benchmarks.timing import Device, alternate, comparison, publish, spread
from evo_subnets import evaluate, materialize, parameters, quads
from evo_subnets.data import Augmentation, Images
from evo_subnets.engines import keep_freed_memory
from evo_subnets.metrics.cost import multiply_adds
from evo_subnets.models import build
from evo_subnets.prediction import Validation
from evo_subnets.subnetworks import Params

AUGMENTATION = Augmentation((0.5,) * 3, (0.25,) * 3)
SIGMA, DENSITY = 0.02, 0.5


@dataclass(frozen=True)
class Args:
    """Times a population's evaluation against EvoTorch and plain passes."""

    model: str = "lenet-l"
    """Architecture."""
    children: int = 4
    """Population size, a multiple of four: all times are per child."""
    images: int = 2000
    """Validation images of 3x32x32."""
    batches: tuple[int, ...] = (100, 500)
    """Batch sizes of EvoTorch and of plain passes, divisors of the images."""
    others: bool = False
    """Time other ways too; what they leave in memory helps the sides after them."""
    keep_memory: bool = False
    """Freed memory stays with the process, for all sides, as this project's scripts have it."""
    rounds: int = 5
    """Alternations; medians and extremes are reported."""
    threads: int = 2
    """torch's threads."""
    device: Device = "cpu"
    """Where networks and images lie; memory and matrix products are measured on a CPU alone."""
    populations: tuple[int, ...] = (16, 1024)
    """Sizes whose peak memory is measured, with few images; none: leaves it out."""
    save: bool = False
    """Add the outcome to benchmarks/results/population.md."""


Judged = Callable[[], list[float]]
"""Evaluates the population: its accuracies."""


@dataclass(frozen=True)
class Setting:
    """What all sides are given."""

    module: nn.Module
    images: Images
    inputs: Tensor
    children: Sequence[Params]
    threads: int


def main(args: Args) -> None:
    logging.getLogger("evotorch").setLevel(logging.WARNING)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # sides must agree image by image
    if args.keep_memory:
        keep_freed_memory()
    module, images = network(args.model).to(args.device), pictures(args.images).to(args.device)
    mutations = quads(args.children, SIGMA, density=DENSITY, seed=0)
    children = [materialize(parameters(module), mutation) for mutation in mutations]
    inputs = AUGMENTATION.normalize(images.pixels).contiguous()
    given = Setting(module, images, inputs, children, args.threads)

    def ours() -> list[float]:
        found = evaluate(module, mutations, fitness=Validation(images))
        return [child.fitness for child in found]

    sides: dict[str, Judged] = {}
    for size in args.batches[::-1]:
        sides[f"SupervisedNE, batches of {size}"] = evotorch_side(given, size)
        sides[f"plain passes, batches of {size}"] = partial(plain, given, size)
    if args.others and args.device == "cpu":
        sides["a child a thread"] = partial(side_by_side, given)
    sides["evaluate"] = ours
    check({name: judged() for name, judged in sides.items()}, args.images)  # warms them, too
    seconds = alternate(sides, args.rounds, warm=False)
    per_child = {
        name: [second / args.children for second in times] for name, times in seconds.items()
    }
    work = 2 * sum(multiply_adds(module, inputs[:1]).values()) * args.images
    rates = [work / second / 1e9 for second in per_child["evaluate"]]
    sections = [
        f"{args.model}, {args.children} children, {args.images:,} images of 3x32x32, "
        f"{args.device}, {args.threads} threads, {args.rounds} alternations"
        f"{', freed memory kept' if args.keep_memory else ''}. Accuracies agree.",
        comparison(per_child, next(iter(sides)), "ms per child"),
        f"evaluate: {spread(rates, 0)} GFLOP/s of direct convolutions; "
        f"matrix products of 2048x2048: {spread(product_rates(), 0)} GFLOP/s.",
    ]
    if args.populations and args.device == "cpu":
        sections.append(memory(args))
    publish(__file__, "\n\n".join(sections), args.save)


def network(model: str) -> nn.Module:
    return build(model, seed=0).eval()


def pictures(count: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return Images(pixels, labels, AUGMENTATION)


def evotorch_side(given: Setting, size: int) -> Judged:
    """As EvoTorch's documentation has it; one pass over all images for each solution."""

    def error(outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.argmax(dim=1) != labels).float().mean()

    problem = SupervisedNE(
        TensorDataset(given.inputs, given.images.labels),
        copy.deepcopy(given.module),
        error,
        minibatch_size=size,
        num_minibatches=len(given.images) // size,
        device=given.inputs.device,
    )
    flat = [torch.cat([weight.reshape(-1) for weight in one.values()]) for one in given.children]
    values = torch.stack(flat)

    def judged() -> list[float]:
        batch = SolutionBatch(problem, len(values), empty=True)
        batch.set_values(values)
        problem.evaluate(batch)
        return [1 - value for value in batch.evals[:, 0].tolist()]

    return judged


def plain(given: Setting, size: int) -> list[float]:
    work = copy.deepcopy(given.module)
    found = []
    for weights in given.children:
        work.load_state_dict(weights)
        found.append(accuracy(work, given.inputs, given.images.labels, size))
    return found


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, size: int) -> float:
    parts = zip(torch.split(inputs, size), torch.split(labels, size), strict=True)
    right = [int((model(some).argmax(dim=1) == answers).sum()) for some, answers in parts]
    return sum(right) / len(labels)


def side_by_side(given: Setting) -> list[float]:
    """As many children at once as there are threads, each with a network of its own."""
    inputs = given.inputs.contiguous(memory_format=torch.channels_last)

    def some(first: int) -> list[float]:
        torch.set_num_threads(1)
        work = copy.deepcopy(given.module)
        found = []
        for weights in given.children[first :: given.threads]:
            work.load_state_dict(weights)
            found.append(accuracy(work, inputs, given.images.labels, 100))
        return found

    with ThreadPoolExecutor(given.threads) as pool:
        shares = list(pool.map(some, range(given.threads)))
    torch.set_num_threads(given.threads)
    count = range(len(given.children))
    return [shares[i % given.threads][i // given.threads] for i in count]


def check(found: dict[str, list[float]], images: int) -> None:
    """The sides agree on every child but for an image whose best classes are equal to rounding."""
    first = next(iter(found.values()))
    for name, fitness in found.items():
        far = max(abs(a - b) for a, b in zip(first, fitness, strict=True))
        assert far <= 1.5 / images, f"{name} differs by {far}: {fitness} and {first}"
    assert len(set(first)) > 1, "all children are equally fit: the check would miss mistakes"


def product_rates() -> list[float]:
    """GFLOP/s of float32 matrix products, with all threads."""
    a, b, c = (torch.ones(2048, 2048) for _ in range(3))
    rates = []
    for _ in range(7):
        start = time.perf_counter()
        torch.mm(a, b, out=c)
        rates.append(2 * 2048**3 / (time.perf_counter() - start) / 1e9)
    return rates[1:]


def memory(args: Args) -> str:
    """Growth of the peak while a population is evaluated, each in a process of its own."""
    weights = 4 * sum(parameter.numel() for parameter in network(args.model).parameters())
    lines = [f"Peak memory of evaluate beside the parent's weights ({weights / 2**20:.1f} MiB):"]
    for size in args.populations:
        command = [sys.executable, __file__, "--measure-memory", args.model, str(size)]
        extra = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        lines.append(
            f"  population of {size:5}: {extra / 2**20:7.1f} MiB "
            f"(as rows of a SolutionBatch: {size * weights / 2**20:7.1f} MiB)"
        )
    return "\n".join(lines)


def measure_memory(model: str, population_size: int) -> None:
    """Prints the bytes by which the peak grows; few images, which add the same to every size."""
    torch.set_num_threads(2)
    fitness = Validation(pictures(20))
    evaluate(
        network("lenet-s"), quads(4, SIGMA, density=DENSITY, seed=0), fitness=fitness
    )  # loads what is loaded once
    module = network(model)
    gc.collect()
    before = resident_bytes()
    evaluate(module, quads(population_size, SIGMA, density=DENSITY, seed=0), fitness=fitness)
    print(peak_bytes() - before)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure-memory"]:
        measure_memory(sys.argv[2], int(sys.argv[3]))
    else:
        main(tyro.cli(Args))
