"""Convolutions without gradients: `winograd.convolve` against torch's own, layer by layer.

    python benchmarks/winograd.py

As in `side_by_side.ask_batches`, every thread has a batch of its own and one torch thread. The
script first checks the outputs. Its table is where `fast_convolutions.FEWEST_PAIRS` comes from.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from benchmarks.timing import alternate, publish, ratios, spread
from evo_subnets.engines import keep_freed_memory
from evo_subnets.engines.threads import share_out
from evo_subnets.engines.winograd import convolve
from evo_subnets.runs.report import table

LAYERS = {
    "LeNet-S, second": (16, 32, 14, 5, 0),
    "LeNet-M, second": (32, 64, 14, 5, 0),
    "LeNet-L, second": (64, 128, 14, 5, 0),
    "ResNet-20, 1st stage": (16, 16, 32, 3, 1),
    "ResNet-20, 2nd stage": (32, 32, 16, 3, 1),
    "ResNet-20, 3rd stage": (64, 64, 8, 3, 1),
    "ResNet-18, 1st stage": (64, 64, 32, 3, 1),
    "ResNet-18, 2nd stage": (128, 128, 16, 3, 1),
    "ResNet-18, 3rd stage": (256, 256, 8, 3, 1),
    "ResNet-18, 4th stage": (512, 512, 4, 3, 1),
    "WRN-28-10, 1st stage": (160, 160, 32, 3, 1),
}
"""Channels in and out, height and width of the input, kernel, padding."""


@dataclass(frozen=True)
class Args:
    """Times convolutions against torch's."""

    batch: int = 100
    """Pictures in a batch."""
    batches: int = 4
    """Batches that the threads share in each timing, a multiple of the threads."""
    layers: tuple[str, ...] = tuple(LAYERS)
    """Which."""
    rounds: int = 7
    """Alternations; medians and extremes are reported."""
    threads: int = 2
    """Threads, with one torch thread each."""
    save: bool = False
    """Add the outcome to benchmarks/results/winograd.md."""


def main(args: Args) -> None:
    keep_freed_memory()
    lines = [line(name, args) for name in args.layers]
    headings = ["layer", "shape", "torch, ms", "winograd, ms", "times as fast", "difference"]
    head = (
        f"Batches of {args.batch} pictures, {args.batches} shared by {args.threads} threads, "
        f"{args.rounds} alternations; the largest difference in standard deviations of the output."
    )
    publish(__file__, f"{head}\n\n{table(headings, lines)}", args.save)


def line(name: str, args: Args) -> list[str]:
    channels, outputs, size, kernel, padding = LAYERS[name]
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(args.batch, channels, size, size, generator=generator)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, kernel, kernel, generator=generator)
    weight, bias = weight / (channels * kernel**2) ** 0.5, torch.zeros(outputs)

    def direct() -> Tensor:
        return F.conv2d(pictures, weight, bias, padding=padding)

    def winograd() -> Tensor:
        return convolve(pictures, weight, bias, padding)

    def shared(layer: Callable[[], Tensor]) -> Callable[[], None]:
        def job(_: int) -> None:
            layer()

        return lambda: share_out(job, range(args.batches), args.threads)

    expected = direct()
    difference = ((winograd() - expected).abs().max() / expected.std()).item()
    assert difference < 1e-4, f"{name} differs by {difference}"
    seconds = alternate({"torch": shared(direct), "winograd": shared(winograd)}, args.rounds)
    each = {side: [1e3 * time / args.batches for time in times] for side, times in seconds.items()}
    return [
        name,
        f"{channels} to {outputs}, {size}x{size}, {kernel}x{kernel}",
        spread(each["torch"], 2),
        spread(each["winograd"], 2),
        spread(ratios(seconds["torch"], seconds["winograd"])),
        f"{difference:.1e}",
    ]


if __name__ == "__main__":
    main(tyro.cli(Args))
