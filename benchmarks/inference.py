"""Eight members as one model: `Ensemble` against a plain loop over the modules.

    python benchmarks/inference.py

The other side is what people write: `torch.stack([member(x) for member in members])` without
gradients. Both get the inputs as users have them: normalised pictures in the usual layout for
LeNet-L, uint8 observations for the Impala actor, whose blocks are compiled on both sides. The
script first checks that both give the same logits. `Ensemble`'s first call is timed by itself.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn

from agents.impala import COBBE_WIDTHS, impala_actor, use_compiled_blocks
from benchmarks.timing import Device, alternate, publish, ratios, spread, wait_for_gpu
from evo_subnets import Ensemble
from evo_subnets.models import build
from evo_subnets.runs.report import table


@dataclass(frozen=True)
class Args:
    """Times an ensemble's forward pass against a loop over its members."""

    models: tuple[str, ...] = ("impala", "lenet-l")
    """'impala' (widths 16, 32, 32; two frames) or classifiers for 3x32x32 pictures."""
    batches: tuple[int, ...] = (1, 64, 1024)
    """Pictures in a call."""
    members: int = 8
    """Children of one parent."""
    rounds: int = 7
    """Alternations; medians and extremes are reported."""
    seconds: float = 2.0
    """Calls of a round are repeated until the loop takes about this long in all its rounds."""
    threads: int = 2
    """torch's threads."""
    device: Device = "cpu"
    """Where networks and pictures lie."""
    save: bool = False
    """Add the outcome to benchmarks/results/inference.md."""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # sides must agree to float32's rounding
    rows = [
        row
        for model in args.models
        for batch in args.batches
        for row in compared(model, batch, args)
    ]
    headings = ["model, pictures", "side", "ms a call", "pictures/s", "times as fast as the loop"]
    text = (
        f"{args.members} members, {args.device}, {args.threads} threads, {args.rounds} "
        f"alternations, bandwidth {bandwidth(args.device):.0f} GB/s.\n\n{table(headings, rows)}"
    )
    publish(__file__, text, args.save)


@torch.no_grad()
def compared(model: str, batch: int, args: Args) -> list[list[str]]:
    members = [member(model, seed).to(args.device) for seed in range(args.members)]
    inputs = pictures(model, batch).to(args.device)
    ensemble = Ensemble(members, side_by_side=True)

    def loop() -> Tensor:
        return torch.stack([member(inputs) for member in members])

    seconds, expected = timed(loop)
    once, first = timed(lambda: ensemble.member_outputs(inputs))
    found = ensemble.member_outputs(inputs)
    if args.device == "cpu":
        assert torch.equal(found, first), "the trial's logits are others than those of later calls"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    calls = max(1, round(args.seconds / args.rounds / seconds))

    def repeated(side: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: [side() for _ in range(calls)]

    times = alternate(
        {
            "loop": repeated(loop),
            "Ensemble": repeated(lambda: ensemble.member_outputs(inputs)),
        },
        args.rounds,
        warm=False,
    )
    rows = []
    for side, taken in times.items():
        a_call = [second / calls for second in taken]
        rows.append(
            [f"{model}, {batch}", side, spread([1e3 * second for second in a_call]),
             spread([batch / second for second in a_call], 0),
             spread(ratios(times["loop"], taken))]
        )  # fmt: skip
    rows.append([f"{model}, {batch}", "Ensemble, first call", f"{1e3 * once:.2f}", "", ""])
    return rows


def member(model: str, seed: int) -> nn.Module:
    if model != "impala":
        return build(model, seed=seed).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        actor = impala_actor(COBBE_WIDTHS, 2)
    use_compiled_blocks(actor)
    return actor


def pictures(model: str, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if model == "impala":
        return torch.randint(0, 256, (batch, 6, 64, 64), generator=generator, dtype=torch.uint8)
    return torch.randn(batch, 3, 32, 32, generator=generator)


def timed(job: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = job()
    wait_for_gpu()
    return time.perf_counter() - start, result


def bandwidth(device: Device, megabytes: int = 256) -> float:
    """GB/s at which memory is read by a sum over tensors far larger than the caches."""
    tensor = torch.ones(megabytes * 2**18, device=device)
    seconds = min(timed(tensor.sum)[0] for _ in range(5))
    return tensor.nbytes / seconds / 1e9


if __name__ == "__main__":
    main(tyro.cli(Args))
