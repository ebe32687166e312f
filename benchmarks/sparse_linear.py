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
from evo_subnets.sparse_linear import SparseLinear
from evo_subnets.streams import normal, uniform
from evo_subnets.tracking import table


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
    x = normal(0, "inputs", batch * inputs).view(batch, inputs)
    assert (sparse(x) - dense(x)).abs().max() < 1e-5, "the outputs differ"
    calls = max(1, round(2e8 / (batch * inputs * outputs)))

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
    layer = torch.nn.utils.skip_init(nn.Linear, inputs, outputs)
    count = inputs * outputs
    weight = normal(0, "weight", count) * (uniform(0, "kept", count) >= sparsity) / inputs**0.5
    layer.weight.data.copy_(weight.view(outputs, inputs))
    layer.bias.data.copy_(normal(0, "bias", outputs))
    return layer


if __name__ == "__main__":
    main(tyro.cli(Args))
