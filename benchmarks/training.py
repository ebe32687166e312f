"""What the training loop costs beside the arithmetic: `tune` against a bare loop.

    python benchmarks/training.py

The bare loop has its batches ready: forward, backward and step on the same tensors, in the same
layout and with the same optimizer. `tune` draws, crops, flips and normalises its own, sets the
learning rate and keeps the loss; pruned, it holds half of the weights at zero besides. The script
first checks that both come to the same mean loss.
"""

import copy
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from benchmarks.timing import alternate, publish, ratios, spread
from evo_subnets.data import Augmentation, Images, batches
from evo_subnets.engines import keep_freed_memory
from evo_subnets.methods import Pruning
from evo_subnets.models import build
from evo_subnets.pruning import Pruned
from evo_subnets.runs.report import table
from evo_subnets.schedules import Constant
from evo_subnets.streams import derive_seed
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune


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
    """Add the outcome to benchmarks/results/training.md."""


def main(args: Args) -> None:
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    count = 128 * args.steps
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = Images(pixels, labels, Augmentation((0.5,) * 3, (0.25,) * 3))
    task = Task(images)
    tuning = Tuning(1, Constant(0.001), "adam")
    drawn = torch.Generator().manual_seed(derive_seed(0, "images"))
    ready = list(batches(images, 128, generator=drawn))
    rows = []
    for name in args.models:
        module = build(name, seed=0)
        check(module, ready, task=task, tuning=tuning)
        pruning = Pruning("random")
        masks = pruning.masks(module, pruning.subnetworks(1, 0)[0])
        plain, ours, pruned = (copy.deepcopy(module) for _ in range(3))
        binding = Pruned(pruned, masks)
        seconds = alternate(
            {
                "bare": partial(bare, plain, ready, tuning),
                "tune": partial(tune, ours, task, tuning=tuning),
                "tune, pruned": partial(tune, pruned, task, tuning=tuning, binding=binding),
            },
            args.rounds,
        )
        for side, times in seconds.items():
            step = spread([1e3 * second / args.steps for second in times], 1)
            rows.append([f"{name}, {side}", step, spread(ratios(times, seconds["bare"]), 3)])
    text = (
        f"{args.steps} steps of 128 pictures, {args.threads} threads, {args.rounds} alternations, "
        "Adam.\n\n" + table(["loop", "ms a step", "times bare"], rows)
    )
    publish(__file__, text, args.save)


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
    *,
    task: Task,
    tuning: Tuning,
) -> None:
    """Both sides come to the same losses; this also warms them up."""
    plain, ours, means = copy.deepcopy(module), copy.deepcopy(module), []
    losses = bare(plain, ready, tuning)
    tune(ours, task, tuning=tuning, on_epoch=lambda epoch, mean: means.append(mean))
    assert abs(losses.mean().item() / means[0] - 1) < 1e-3, (losses.mean(), means)


if __name__ == "__main__":
    main(tyro.cli(Args))
