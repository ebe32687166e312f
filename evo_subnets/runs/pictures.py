"""Pictures for TensorBoard, drawn by matplotlib where it is installed."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
"""Curves differ in dashes as well: colours alone do not tell them apart for everybody."""


Panels = Mapping[str, Mapping[str, Sequence[float]]]
"""By title: the values of each curve, by name, at the steps 0, 1, ..."""


def curves(panels: Panels, *, over: str, band: tuple[str, str] | None = None) -> "Figure | None":
    """Panels side by side over the same steps, which are of an `over`; None without matplotlib.

    `band`: the names of two curves between which the area is filled instead.
    """
    if find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for place, (title, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        if band is not None and set(band) <= set(lines):
            low, high = (lines[name] for name in band)
            label = " to ".join(band)
            axes.fill_between(range(len(low)), low, high, alpha=0.25, label=label)
        shown = [name for name in lines if name not in (band or ())]
        for number, name in enumerate(shown):
            style = STYLES[number % len(STYLES)]
            axes.plot(lines[name], style, marker=".", label=name)
        axes.set(title=title, xlabel=over)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    return figure
