"""Trust regions of torchvision's architectures with random weights: each lands, or says why not.

    nice python benchmarks/architectures.py

Nothing is timed. A search that ends off its target without a word would be a silent miss. Of deep
networks of random weights hardly anything of the input is left in the output: their divergence is
flat for a long way, and then steep.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro
from torch import nn

from benchmarks.timing import publish
from evo_subnets import Search, search_trust_region, singles
from evo_subnets.data.downloads import import_torchvision
from evo_subnets.runs.report import table
from evo_subnets.trust_region import Trial

NAMES = (
    "alexnet", "convnext_tiny", "convnext_small", "densenet121", "densenet169", "densenet201",
    "densenet161", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3",
    "efficientnet_b4", "efficientnet_v2_s", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5",
    "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "mobilenet_v2", "mobilenet_v3_large",
    "mobilenet_v3_small", "regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_y_400mf",
    "regnet_y_800mf", "regnet_y_1_6gf", "resnet18", "resnet34", "resnet50", "resnet101",
    "resnext50_32x4d", "wide_resnet50_2", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5", "shufflenet_v2_x2_0", "squeezenet1_0", "squeezenet1_1", "swin_t",
    "swin_v2_t", "vgg11", "vgg11_bn", "vgg16", "vgg19_bn", "vit_b_16",
)  # fmt: skip


@dataclass(frozen=True)
class Args:
    """Searches the trust region of many architectures."""

    names: tuple[str, ...] = NAMES
    """Of torchvision's models."""
    target: float = 0.02
    """KL divergence, in nats."""
    classes: int = 10
    """Outputs."""
    pixels: int = 96
    """Height and width of the inputs."""
    inputs: int = 4
    """Of normal noise."""
    children: int = 2
    """That a divergence is the mean of."""
    tiny: bool = False
    """One small architecture."""
    save: bool = False
    """Add the outcome to benchmarks/results/architectures.md."""


def build(name: str, *, pixels: int, classes: int) -> nn.Module:
    """A network of random weights, for inputs of that size; the global generator is put back."""
    models = import_torchvision().models
    more: dict[str, object] = {"num_classes": classes}
    make: Callable[..., nn.Module] = getattr(models, name)
    if name.startswith("vit"):
        more["image_size"] = pixels
    if name in ("googlenet", "inception_v3"):
        more |= {"init_weights": False, "aux_logits": False}
    if name == "maxvit_t":  # its windows must share out every stage, of a 32nd at last
        make = models.MaxVit
        more |= {
            "input_size": (pixels, pixels), "stem_channels": 64, "partition_size": pixels // 32,
            "block_channels": [64, 128, 256, 512], "block_layers": [2, 2, 5, 2], "head_dim": 32,
            "stochastic_depth_prob": 0.2,
        }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(**more).eval()


def main(args: Args) -> None:
    names, pixels = (("squeezenet1_1",), 32) if args.tiny else (args.names, args.pixels)
    rows: list[list[str]] = []
    reasons: list[str] = []
    for name in names:
        row = searched(name, args, pixels=pixels, reasons=reasons)
        print("  ".join(row), flush=True)
        rows.append(row)
    counts = {
        what: sum(row[1] == what for row in rows) for what in ("landed", "raised", "silent miss")
    }
    text = (
        f"{len(rows)} architectures, {pixels} pixels, {args.inputs} inputs, {args.children} "
        f"children, target {args.target:g}: "
        + ", ".join(f"{count} {what}" for what, count in counts.items())
        + f".\n\n{table(['architecture', 'search', 'divergence', 'sigma', 'trials', 's'], rows)}"
    )
    publish(__file__, "\n".join([text, *reasons]), args.save)
    if counts["silent miss"]:
        raise SystemExit(1)


def searched(name: str, args: Args, *, pixels: int, reasons: list[str]) -> list[str]:
    """A row of the table; why a search raised is added to the reasons."""
    module = build(name, pixels=pixels, classes=args.classes)
    inputs = torch.randn(args.inputs, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    search = Search(args.children, 1, sampler=singles)
    began = time.monotonic()
    trials: list[Trial] = []
    try:
        found = search_trust_region(
            module, inputs, search=search, target=args.target, on_trial=trials.append
        )
    except ValueError as error:
        reasons.append(f"{name}: {error}")
        return [name, "raised", "", "", f"{len(trials)}", f"{time.monotonic() - began:.1f}"]
    landed = abs(math.log(found.divergence / args.target)) <= math.log(1.2)
    return [
        name, "landed" if landed else "silent miss", f"{found.divergence:.4g}",
        f"{found.sigma:.4g}", f"{len(trials)}", f"{time.monotonic() - began:.1f}",
    ]  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args))
