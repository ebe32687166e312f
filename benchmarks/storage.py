"""Files of sparse children: packed, against dense safetensors files.

    python benchmarks/storage.py

A file of one sparse child of LeNet-L as `Ensemble.save` writes it, and the same weights as
`safetensors.torch.save_file` does. Ours is also hashed, forced to disk before it takes its name,
and checked when it is loaded. The script first checks that every bit comes back.
"""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.timing import alternate, publish, ratios, spread
from evo_subnets import Ensemble
from evo_subnets.methods import Pruning
from evo_subnets.models import build
from evo_subnets.pruning import Pruned
from evo_subnets.runs.report import table


@dataclass(frozen=True)
class Args:
    """Measures packed files against dense ones."""

    model: str = "lenet-l"
    """Architecture, for 3x32x32 pictures."""
    sparsities: tuple[float, ...] = (0.5, 0.8, 0.9)
    """Fractions of weights that are pruned."""
    rounds: int = 7
    """Alternations; medians and extremes are reported."""
    threads: int = 2
    """torch's threads."""
    save: bool = False
    """Add the outcome to benchmarks/results/storage.md."""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(args, sparsity, Path(folder)) for sparsity in args.sparsities]
    headings = ["sparsity", "dense, bytes", "packed, bytes", "times smaller", "save, ms",
                "dense save, ms", "load, ms", "dense load, ms", "load, times as fast"]  # fmt: skip
    text = (
        f"One child of {args.model}, {args.threads} threads, {args.rounds} alternations.\n\n"
        f"{table(headings, rows)}"
    )
    publish(__file__, text, args.save)


def row(args: Args, sparsity: float, folder: Path) -> list[str]:
    child = build(args.model, seed=0)
    pruning = Pruning("random", sparsity, classifier=True)
    Pruned(child, pruning.masks(child, pruning.subnetworks(1, seed=0)[0]))
    state = child.state_dict()
    ensemble, network = Ensemble([child]), copy.deepcopy(child)
    packed, dense = folder / "packed", folder / "dense"
    ensemble.save(packed)
    save_file(state, dense)
    check(child, Ensemble.load(packed, network).members[0])
    times = alternate(
        {
            "save": lambda: ensemble.save(packed),
            "dense save": lambda: save_file(state, dense),
            "load": lambda: Ensemble.load(packed, network),
            "dense load": lambda: copy.deepcopy(network).load_state_dict(load_file(dense)),
        },
        args.rounds,
    )
    sizes = [path.stat().st_size for path in (dense, packed)]
    return [
        f"{100 * sparsity:g} %", *(f"{size:,}" for size in sizes), f"{sizes[0] / sizes[1]:.2f}",
        *(spread([1e3 * second for second in seconds], 1) for seconds in times.values()),
        spread(ratios(times["dense load"], times["load"])),
    ]  # fmt: skip


def check(child: nn.Module, loaded: nn.Module) -> None:
    again = loaded.state_dict()
    for name, tensor in child.state_dict().items():
        same = torch.equal(tensor.view(torch.int32), again[name].view(torch.int32))
        assert same, f"{name} came back with other bits"


if __name__ == "__main__":
    main(tyro.cli(Args))
