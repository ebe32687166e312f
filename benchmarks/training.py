"""What the training loop costs beside the arithmetic: `tune` against a bare loop.

    python benchmarks/training.py

The bare loop has its batches ready: forward, backward and step on the same tensors, in the same
layout and with the same optimizer. `tune` draws, crops, flips and normalises its own, sets the
learning rate and keeps the loss; pruned, it holds half of the weights at zero besides. The script
first checks that both come to the same mean loss.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from benchmarks.mutation import commit_and_machine
from evo_subnets.data import Augmentation, Images, batches
from evo_subnets.memory import keep_freed_memory
from evo_subnets.methods import Pruning
from evo_subnets.models import build
from evo_subnets.pruning import Pruned
from evo_subnets.storage import write_atomically
from evo_subnets.streams import derive_seed
from evo_subnets.tracking import table
from evo_subnets.tuning import Constant, Tuning, tune

RESULTS = Path(__file__).parent / "results" / "training.md"


@dataclass(frozen=True)
class Args:
    """Times the training loop against bare arithmetic."""

    models: tuple[str, ...] = ("lenet-s", "lenet-l")
    """Architectures."""
    steps: int = 12
    """Training steps of 128 pictures that are timed together."""
    rounds: int = 7
    """Alternations; medians and extremes are reported."""
    threads: int = 2
    """torch's threads."""
    save: bool = False
    """Write benchmarks/results/training.md."""


def main(args: Args) -> None:
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    count = 128 * args.steps
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (count,), generator=generator))
    augmentation = Augmentation((0.5,) * 3, (0.25,) * 3)
    tuning = Tuning(1, Constant(0.001), "adam")
    drawn = torch.Generator().manual_seed(derive_seed(0, "images"))
    ready = list(batches(images, 128, augmentation, drawn))
    rows = []
    for name in args.models:
        module = build(name, seed=0)
        check(module, ready, images, augmentation, tuning)
        pruning = Pruning("random")
        masks = pruning.masks(module, pruning.subnetworks(1, 0)[0])
        seconds: dict[str, list[float]] = {"bare": [], "tune": [], "tune, pruned": []}
        for _ in range(args.rounds):
            plain, ours, pruned = (copy.deepcopy(module) for _ in range(3))
            binding = Pruned(pruned, masks)
            jobs: dict[str, Callable[[], object]] = {
                "bare": lambda plain=plain: bare(plain, ready, tuning),  # type: ignore[misc]
                "tune": lambda ours=ours: tune(ours, images, augmentation, tuning),  # type: ignore[misc]
                "tune, pruned": lambda pruned=pruned, binding=binding: tune(  # type: ignore[misc]
                    pruned, images, augmentation, tuning, binding=binding
                ),
            }
            for side, job in jobs.items():
                start = time.perf_counter()
                job()
                seconds[side].append((time.perf_counter() - start) / args.steps)
        for side, times in seconds.items():
            ratios = [a / b for a, b in zip(times, seconds["bare"], strict=True)]
            rows.append(
                [f"{name}, {side}", f"{1000 * statistics.median(times):.1f}",
                 f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} .. {max(ratios):.3f}"]
            )  # fmt: skip
    text = (
        f"{args.steps} steps of 128 pictures, {args.threads} threads, {args.rounds} alternations, "
        "Adam.\n\n" + table(["loop", "ms a step", "times bare", "spread"], rows)
    )
    print(text)
    if args.save:
        about = f"# benchmarks/training.py\n\n{commit_and_machine()}\n\n```\n{text}\n```\n"
        write_atomically(RESULTS, about.encode())


def bare(module: nn.Module, ready: list[tuple[Tensor, Tensor]], tuning: Tuning) -> Tensor:
    """Trains; the losses come back."""
    optimizer = tuning.make_optimizer(module)
    module.train()
    losses = []
    for inputs, labels in ready:
        loss = F.cross_entropy(module(inputs), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def check(
    module: nn.Module,
    ready: list[tuple[Tensor, Tensor]],
    images: Images,
    augmentation: Augmentation,
    tuning: Tuning,
) -> None:
    """Both sides come to the same losses; this also warms them up."""
    plain, ours, means = copy.deepcopy(module), copy.deepcopy(module), []
    losses = bare(plain, ready, tuning)
    tune(
        ours, images, augmentation, tuning, on_epoch=lambda epoch, mean: means.append(mean)
    )  # fmt: skip
    assert abs(losses.mean().item() / means[0] - 1) < 1e-3, (losses.mean(), means)


if __name__ == "__main__":
    main(tyro.cli(Args))
