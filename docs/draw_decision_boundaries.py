"""Draws docs/decision_boundaries.png: mutations of different strength and sparsity.

python docs/draw_decision_boundaries.py

Whitaker 2023, figure 4.2: a multilayer perceptron with three hidden layers of 64, trained for 10
epochs on 2,500 points of two interleaved spirals, and `singles` children of it. Above each panel:
the mean accuracy of so many children on 250 points held out, and their mean KL divergence.
"""

import math
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure
from torch import Tensor

from evo_subnets import singles
from evo_subnets.models.mlp import MLP
from evo_subnets.recipes import WorkCopy
from evo_subnets.schedules import Constant
from evo_subnets.task import Task
from evo_subnets.trust_region import divergence, outputs_of
from evo_subnets.tuning import Tuning, tune

SIGMAS = (0.05, 0.1, 0.15, 0.2, 0.25)
SPARSITIES = (0.0, 0.3, 0.6, 0.9)
CHILDREN = 20
POINTS, HELD_OUT, TURNS = 2500, 250, 1.5
EDGE, CELLS = 1.15, 160


def spirals(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 2) points within the unit circle, and the number of the arm that each is on."""
    generator = torch.Generator().manual_seed(seed)
    arm = torch.arange(count) % 2
    along = torch.rand(count, generator=generator).sqrt()
    angle = 2 * math.pi * TURNS * along + math.pi * arm
    points = along[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.02 * torch.randn(count, 2, generator=generator), arm


def main() -> None:
    points, arms = spirals(POINTS + HELD_OUT, seed=0)
    trained, held_out = points[:POINTS], points[POINTS:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parent = MLP(2, (64, 64, 64), classes=2)
    batches = list(zip(trained.split(10), arms[:POINTS].split(10), strict=True))
    tune(parent, Task(batches), tuning=Tuning(10, Constant(0.001), "adam"), seed=0)
    work, before = WorkCopy(parent.eval()), outputs_of(parent, held_out)
    across = torch.linspace(-EDGE, EDGE, CELLS)
    grid = torch.cartesian_prod(across, across)

    figure = Figure(figsize=(10, 10.5), layout="constrained")
    panels = figure.subplots(len(SIGMAS), len(SPARSITIES))
    for row, sigma in enumerate(SIGMAS):
        for column, sparsity in enumerate(SPARSITIES):
            right, apart = [], []
            for mutation in singles(CHILDREN, sigma, density=1 - sparsity, seed=1):
                after = outputs_of(work.child(mutation), held_out)
                right.append((after.argmax(1) == arms[POINTS:]).double().mean().item())
                apart.append(divergence(before, after))
            first = singles(1, sigma, density=1 - sparsity, seed=1)[0]
            shown = outputs_of(work.child(first), grid, batch_size=CELLS**2).softmax(1)[:, 1]
            axes = panels[row][column]
            axes.imshow(
                shown.view(CELLS, CELLS).T, origin="lower", extent=(-EDGE, EDGE, -EDGE, EDGE),
                cmap="RdBu", vmin=-0.5, vmax=1.5,
            )  # fmt: skip
            axes.scatter(*held_out.T, c=arms[POINTS:], s=4, cmap="RdBu", lw=0)
            axes.set_title(f"{100 * fmean(right):.0f} %, KL {fmean(apart):.2f}", fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(f"sigma {sigma:g}")
            if row == len(SIGMAS) - 1:
                axes.set_xlabel(f"sparsity {sparsity:g}")
            print(f"sigma {sigma:g}, sparsity {sparsity:g}: {fmean(right):.3f} {fmean(apart):.3f}")
    own = (before.argmax(1) == arms[POINTS:]).double().mean().item()
    figure.suptitle(f"The parent is right on {100 * own:.0f} %; means of {CHILDREN} children")
    figure.savefig(Path(__file__).parent / "decision_boundaries.png", dpi=80)


if __name__ == "__main__":
    main()
