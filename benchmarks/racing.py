"""How many evaluations racing saves, and whether it chooses as full evaluation does.

    python benchmarks/racing.py
    python benchmarks/racing.py --dataset cifar10

A classifier is trained for a few epochs; its children are judged on all validation images, once as
strong as the trust region has them and once stronger; then races are run on these tables of what
each child gets right, with other quads and another order of the images for each seed. A race is
right when the accuracies (over all images) of those it chose have a mean within 0.1 point of that
of the best. `in two halves`: images of which the parent is sure and of which it is not, as strata;
the parent's pass is counted. `a part for all` judges every child on as many images as the best of
the races saw on average, and takes the best: what stopping early does without racing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn

from benchmarks.timing import publish
from evo_subnets import evaluate, quads, search_trust_region
from evo_subnets.data import Dataset, Images, load
from evo_subnets.engines import keep_freed_memory
from evo_subnets.methods.races import halves_by_doubt
from evo_subnets.models import build
from evo_subnets.prediction import predict
from evo_subnets.racing import Rules, run_race
from evo_subnets.runs.report import table
from evo_subnets.schedules import Constant
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune

MARGIN = 0.001


@dataclass(frozen=True)
class Args:
    """Counts the evaluations that races need, against full evaluation."""

    dataset: str = "digits"
    """Data set, or imagefolder:PATH."""
    root: Path | None = None
    """Where data sets are kept."""
    validation: Literal["train", "test"] = "test"
    """Where validation images come from."""
    model: str = "lenet-s"
    """Architecture."""
    epochs: int = 2
    """Training epochs of the parent."""
    images: int = 5000
    """Validation images at least: of a smaller data set each comes again, under other noise."""
    targets: tuple[float, ...] = (0.02, 0.2)
    """KL divergences of the children from the parent."""
    pool: int = 128
    """Children that populations are drawn from, in quads."""
    children: int = 64
    """Population size."""
    places: int = 8
    """How many are chosen."""
    seeds: int = 100
    """Races of each kind."""
    threads: int = 2
    """torch's threads."""
    save: bool = False
    """Add the outcome to benchmarks/results/racing.md."""


@dataclass(frozen=True)
class Result:
    """One race: samples seen, as a share of all, and what choosing so costs in mean accuracy."""

    share: float
    regret: float


def main(args: Args) -> None:
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    dataset = load(args.dataset, args.root, validation=args.validation)
    dataset = replace(dataset, validation=repeated(dataset.validation, args.images))
    parent = trained(args, dataset)
    halves = halves_by_doubt(parent, dataset.validation)
    name = Path(args.dataset.removeprefix("imagefolder:")).name
    sections = [
        f"{args.model} after {args.epochs} epochs on {name}, accuracy "
        f"{correct(parent, dataset).mean():.4f}; {args.children} children, {args.places} places, "
        f"{len(halves):,} images."
    ]
    for target in args.targets:
        right, sigma = judged(args, parent, dataset, target)
        sections.append(races(args, right, halves, f"KL {target:g}, sigma {sigma:.4f}"))
    publish(__file__, "\n\n".join(sections), args.save)


def repeated(images: Images, count: int) -> Images:
    """At least `count` images: those given, and copies of all under Gaussian noise of sd 32."""
    times = -(-count // len(images))
    noise = torch.randn(
        (times * len(images), *images.pixels.shape[1:]), generator=torch.Generator().manual_seed(0)
    )
    noise[: len(images)] = 0
    pixels = images.pixels.repeat(times, 1, 1, 1) + 32 * noise
    pixels = pixels.clamp(0, 255).round().byte()
    return Images(pixels, images.labels.repeat(times), images.augmentation)


def trained(args: Args, dataset: Dataset) -> nn.Module:
    channels, height, width = dataset.train.pixels.shape[1:]
    parent = build(args.model, (channels, height, width), classes=len(dataset.classes), seed=0)
    tuning = Tuning(args.epochs, Constant(0.001), "adam")
    tune(parent, Task(dataset.train), tuning=tuning)
    return parent


def correct(model: nn.Module, dataset: Dataset) -> Tensor:
    """(images,) 1.0 where the model is right."""
    images = dataset.validation
    outputs = predict(model, images, batch_size=100)
    return (outputs.argmax(dim=1) == images.labels).float()


def judged(args: Args, parent: nn.Module, dataset: Dataset, target: float) -> tuple[Tensor, float]:
    """(children, images) of what each child gets right, and the children's sigma."""
    inputs = dataset.augmentation.normalize(dataset.validation.pixels[:1000])
    sigma = search_trust_region(parent, inputs, target=target).sigma
    rows: list[Tensor] = []

    def fitness(child: nn.Module) -> float:
        rows.append(correct(child, dataset))
        return 0.0

    evaluate(parent, quads(args.pool, sigma, density=0.5, seed=0), fitness=fitness)
    return torch.stack(rows), sigma


def races(args: Args, right: Tensor, halves: Tensor, title: str) -> str:
    accuracy = 100 * right.double().mean(dim=1)
    apart = (right[0] != right[1:]).float().mean()
    kinds: dict[str, Callable[[Tensor, int], Result]] = {
        "hoeffding, confidence 0.95": race(args, Rules("hoeffding", 0.95, MARGIN)),
        "bernstein, confidence 0.95": race(args, Rules("bernstein", 0.95, MARGIN)),
        "bernstein, in two halves": race(args, Rules("bernstein", 0.95, MARGIN), strata=halves),
        "normal, confidence 0.97": race(args, Rules(margin=MARGIN)),
        "normal, in two halves": race(args, Rules(margin=MARGIN), strata=halves),
    }
    results: dict[str, list[Result]] = {}
    for name, run in kinds.items():
        # bounds that seldom decide anything make a race long, and need no hundred seeds to show it
        seeds = args.seeds if name.startswith("normal") else -(-args.seeds // 10)
        results[name] = [run(population(args, right, seed), seed) for seed in range(seeds)]
    share = sum(one.share for one in results["normal, in two halves"]) / args.seeds
    results["a part for all"] = [
        part(args, population(args, right, seed), share, seed) for seed in range(args.seeds)
    ]
    rows = []
    for name, found in results.items():
        shares = [one.share for one in found]
        regrets = [one.regret for one in found]
        rows.append([
            name, str(len(found)), f"{len(shares) / sum(shares):.2f}", f"{1 / max(shares):.2f}",
            f"{100 * sum(r < 1e-9 for r in regrets) / len(found):.0f} %",
            f"{100 * sum(r <= MARGIN + 1e-9 for r in regrets) / len(found):.0f} %",
            f"{100 * sum(regrets) / len(found):.3f}", f"{100 * max(regrets):.3f}",
        ])  # fmt: skip
    headings = [
        "race",
        "seeds",
        "times fewer",
        "worst",
        "as fit",
        "within 0.1 point",
        "points lost",
        "most",
    ]
    return (
        f"{title}: accuracies {accuracy.mean():.2f} +- {accuracy.std():.2f}, two children differ "
        f"on {100 * apart:.1f} % of the images.\n\n{table(headings, rows)}"
    )


def population(args: Args, right: Tensor, seed: int) -> Tensor:
    """(children, images): quads drawn from the pool."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(right) // 4, generator=generator)[: args.children // 4]
    return right[(4 * chosen[:, None] + torch.arange(4)).reshape(-1)]


def race(args: Args, rules: Rules, strata: Tensor | None = None) -> Callable[[Tensor, int], Result]:
    def run(right: Tensor, seed: int) -> Result:
        found = run_race(
            lambda child, images: right[child, images],
            len(right),
            samples=right.shape[1],
            k=args.places,
            rules=rules,
            strata=strata,
            seed=seed,
        )
        looked_up = 0 if strata is None else right.shape[1]
        return Result(
            (sum(found.seen) + looked_up) / right.numel(), regret(right, list(found.chosen))
        )

    return run


def part(args: Args, right: Tensor, share: float, seed: int) -> Result:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randperm(right.shape[1], generator=generator)[: round(share * right.shape[1])]
    chosen = right[:, images].mean(dim=1).argsort(descending=True, stable=True)[: args.places]
    return Result(share, regret(right, chosen.tolist()))


def regret(right: Tensor, chosen: list[int]) -> float:
    """Mean accuracy of the best minus that of the chosen, over all images."""
    accuracy = right.double().mean(dim=1)
    best = accuracy.topk(len(chosen)).values
    return (best.mean() - accuracy[chosen].mean()).item()


if __name__ == "__main__":
    main(tyro.cli(Args))
