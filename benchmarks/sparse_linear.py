"""Linear layers without their zeros: compressed sparse rows against the dense product.

    python benchmarks/sparse_linear.py

Each side multiplies the same inputs with the same weight, of which a fraction is zero at random.
The script first checks that both give the same outputs.
"""

from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn

from benchmarks.timing import alternate, publish, ratios, spread
from evo_subnets.runs.report import table
from evo_subnets.structure.sparse_linear import SparseLinear


@dataclass(frozen=True)
class Args:
    """Times sparse linear layers against dense ones."""

    shapes: tuple[tuple[int, int], ...] = ((3200, 1024), (1024, 512), (4096, 4096))
    """Inputs and outputs; the first two are LeNet-L's."""
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    """Fractions of zeros."""
    batches: tuple[int, ...] = (1, 64, 1024)
    """Rows in a call."""
    rounds: int = 7
    """Alternations; medians and extremes are reported."""
    threads: int = 2
    """torch's threads."""
    save: bool = False
    """Add the outcome to benchmarks/results/sparse_linear.md."""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    rows = []
    for inputs, outputs in args.shapes:
        for batch in args.batches:
            cells = [compared(inputs, outputs, one, batch, args.rounds) for one in args.sparsities]
            rows.append([f"{inputs} to {outputs}, {batch}", cells[0][0], *(c[1] for c in cells)])
    headings = ["layer, rows", "dense, ms", *(f"at {100 * one:g} %" for one in args.sparsities)]
    text = (
        f"How many times as fast as the dense product, by sparsity; {args.threads} threads, "
        f"{args.rounds} alternations.\n\n{table(headings, rows)}"
    )
    publish(__file__, text, args.save)


@torch.no_grad()
def compared(
    inputs: int, outputs: int, sparsity: float, batch: int, rounds: int
) -> tuple[str, str]:
    """The dense product's milliseconds, and how many times as fast the sparse one is."""
    dense = pruned(inputs, outputs, sparsity)
    sparse = SparseLinear(dense)
    x = torch.randn(batch, inputs, generator=torch.Generator().manual_seed(1))
    assert (sparse(x) - dense(x)).abs().max() < 1e-5, "the outputs differ"
    calls = min(500, max(1, round(2e8 / (batch * inputs * outputs))))

    def repeated(layer: nn.Module) -> Tensor:
        for _ in range(calls):
            y: Tensor = layer(x)
        return y

    times = alternate(
        {"dense": lambda: repeated(dense), "sparse": lambda: repeated(sparse)}, rounds
    )
    milliseconds = [1e3 * second / calls for second in times["dense"]]
    return spread(milliseconds), spread(ratios(times["dense"], times["sparse"]))


def pruned(inputs: int, outputs: int, sparsity: float) -> nn.Linear:
    """A layer with weights of the size that training starts from, a fraction of them zero."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    weight = torch.rand(outputs, inputs, generator=generator).mul_(2).sub_(1).div_(inputs**0.5)
    kept = torch.rand(outputs, inputs, generator=generator) >= sparsity
    layer.weight.copy_(weight * kept)
    layer.bias.copy_(torch.rand(outputs, generator=generator))
    return layer


if __name__ == "__main__":
    main(tyro.cli(Args))
