"""Draws docs/subnetworks.svg: φ and ξ on a small weight matrix, from the library's own draws.

python docs/draw_subnetworks.py
"""

from pathlib import Path

import torch
from torch import Tensor

from evo_subnets import materialize, quads
from evo_subnets.files import write_atomically

ROWS, COLUMNS, CELL, GAP = 10, 14, 13, 46
WIDTH = COLUMNS * CELL
INK, PAPER, FADED = "#22252a", "#ffffff", "#e9ebee"


def colour(value: float) -> str:
    """Blue for positive, red for negative, the paler the smaller."""
    strength = min(abs(value) / 2.2, 1.0)
    full = (33, 102, 172) if value > 0 else (178, 24, 43)
    return "#" + "".join(f"{round(255 + (channel - 255) * strength):02x}" for channel in full)


def panel(x: int, y: int, title: str, note: str, cells: list[list[str]]) -> list[str]:
    """A titled grid of coloured cells."""
    shapes = [
        f'<text x="{x}" y="{y - 24}" class="title">{title}</text>',
        f'<text x="{x}" y="{y - 8}" class="note">{note}</text>',
    ]
    shapes += [
        f'<rect x="{x + column * CELL}" y="{y + row * CELL}" width="{CELL - 1}" '
        f'height="{CELL - 1}" rx="2" fill="{cells[row][column]}"/>'
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]
    return shapes


def main() -> None:
    generator = torch.Generator().manual_seed(3)
    parent = {"weight": torch.randn(ROWS, COLUMNS, generator=generator)}
    mutations = quads(4, sigma=1.0, density=0.3, seed=1)
    mask = mutations[0].subnetwork.mask(parent)["weight"]

    def values(matrix: Tensor) -> list[list[str]]:
        return [[colour(value) for value in row] for row in matrix.tolist()]

    def changes(index: int) -> list[list[str]]:
        change = materialize(parent, mutations[index])["weight"] - parent["weight"]
        return [[colour(value) if value else FADED for value in row] for row in change.tolist()]

    phi = [[INK if inside else FADED for inside in row] for row in mask.tolist()]
    top, bottom = 56, 56 + ROWS * CELL + 74
    x = [20 + column * (WIDTH + GAP) for column in range(4)]
    child = materialize(parent, mutations[0])["weight"]
    shapes = [
        *panel(x[0], top, "θ, the parent", "one layer's weights", values(parent["weight"])),
        *panel(x[1], top, "φ, a subnetwork", "low ≤ u &lt; high, one u a weight", phi),
        *panel(x[2], top, "ξ, noise on it", "σ · N(seed) inside φ", changes(0)),
        *panel(x[3], top, "a child", "θ + ξ: four numbers", values(child)),
        *panel(x[0], bottom, "the four siblings", "+N on φ", changes(0)),
        *panel(x[1], bottom, "partner", "+N on the other weights", changes(1)),
        *panel(x[2], bottom, "mirror", "−N on φ", changes(2)),
        *panel(x[3], bottom, "mirrored partner", "−N on the other weights", changes(3)),
    ]
    width, height = x[3] + WIDTH + 20, bottom + ROWS * CELL + 20
    style = (
        "text{font-family:Helvetica,Arial,sans-serif;fill:#22252a}"
        ".title{font-size:16px;font-weight:bold}.note{font-size:12px;fill:#5c636e}"
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>{"".join(shapes)}</svg>\n'
    )
    write_atomically(Path(__file__).with_name("subnetworks.svg"), svg.encode())


if __name__ == "__main__":
    main()
