"""Children without half of their neurons: compacted against dense with zeros.

    python benchmarks/compaction.py

The dense side is the child as training leaves it, its pruned neurons' weights zero; the other side
is what `compacted` makes of it. The script first checks that both give the same outputs.
"""

import copy
from dataclasses import dataclass

import torch
import tyro

from benchmarks.timing import alternate, publish, ratios, spread
from evo_subnets.engines import keep_freed_memory
from evo_subnets.methods import Pruning
from evo_subnets.metrics import count_parameters
from evo_subnets.models import build
from evo_subnets.pruning import Pruned
from evo_subnets.runs.report import table
from evo_subnets.structure.compaction import compacted


@dataclass(frozen=True)
class Args:
    """Times compacted children against dense ones."""

    models: tuple[str, ...] = ("lenet-l", "mlp-1024-1024", "vgg-11", "resnet-20")
    """Architectures, for 3x32x32 pictures."""
    sparsity: float = 0.5
    """Fraction of the neurons that is removed."""
    batch: int = 64
    """Pictures in a call."""
    rounds: int = 9
    """Alternations; medians and extremes are reported."""
    threads: int = 2
    """torch's threads."""
    save: bool = False
    """Add the outcome to benchmarks/results/compaction.md."""


def main(args: Args) -> None:
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    rows = [row for model in args.models for row in compared(model, args)]
    headings = ["child, pictures", "side", "parameters", "ms a call", "times as fast as dense"]
    text = (
        f"{100 * args.sparsity:g} % of the neurons removed, {args.threads} threads, {args.rounds} "
        f"alternations.\n\n{table(headings, rows)}"
    )
    publish(__file__, text, args.save)


@torch.no_grad()
def compared(model: str, args: Args) -> list[list[str]]:
    pruning = Pruning("random", args.sparsity, "neurons")
    dense = copy.deepcopy(build(model, seed=0)).eval()
    Pruned(dense, pruning.masks(dense, pruning.subnetworks(1, seed=0)[0]))
    small = compacted(dense)
    inputs = torch.randn(args.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(inputs), dense(inputs), rtol=1e-5, atol=1e-5)
    calls = {"dense, zeros": dense, "compacted": small}
    times = alternate(
        {side: lambda child=child: [child(inputs) for _ in range(3)]  # type: ignore[misc]
         for side, child in calls.items()},
        args.rounds,
    )  # fmt: skip
    return [
        [f"{model}, {args.batch}", side, f"{count_parameters(calls[side]):,}",
         spread([1e3 * second / 3 for second in seconds]),
         spread(ratios(times["dense, zeros"], seconds))]
        for side, seconds in times.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args))
