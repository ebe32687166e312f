"""Several methods over seeds: means and standard errors as text, as CSV and as a picture."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evo_subnets import files
from evo_subnets.metrics.report import COLUMNS, CORRUPTED, Column
from evo_subnets.runs.report import table

Line = dict[str, Any]
"""Of one method and seed, or their summary: `label`, `x`, and the numbers of the columns."""
FURTHER = (
    Column("vote, %", "vote_accuracy", 100),
    Column("KL from parent", "divergence", digits=4),
)
"""That some tables have."""


def summary(
    results: Sequence[Line], published: Mapping[tuple[str, float | None], str]
) -> list[Line]:
    """One line a method and point: means and standard errors over the seeds, n of them."""
    groups: dict[tuple[str, float | None], list[Line]] = {}
    for row in results:
        groups.setdefault((row["label"], row["x"]), []).append(row)
    lines = []
    for (label, x), rows in groups.items():
        line: Line = {"label": label, "x": x, "n": len(rows)}
        line["published"] = published.get((label, x), "")
        for key, value in rows[0].items():
            if key in ("x", "seed", "label") or not isinstance(value, float | int | None):
                continue
            values = [float("nan") if row[key] is None else float(row[key]) for row in rows]
            line[key] = statistics.fmean(values)
            if len(values) > 1:
                # numpy's, for statistics.stdev fails where one network has no disagreement, NaN
                line[f"{key}_error"] = float(np.std(values, ddof=1)) / len(values) ** 0.5
        lines.append(line)
    return lines


def table_text(lines: Sequence[Line], *, caption: str, x_label: str = "") -> str:
    """The caption and the table; only columns that some line has."""
    known = [*COLUMNS, *FURTHER, *CORRUPTED]
    columns = [column for column in known if any(column.cell(line) for line in lines)]
    costs = {column.key for column in COLUMNS[-4:]}
    headings = ["method", *([x_label] if x_label else []), *(c.heading for c in columns)]
    cells = []
    for line in lines:
        plain = {
            key: value for key, value in line.items() if key.removesuffix("_error") not in costs
        }
        numbers = [
            c.cell({**line, f"{c.key}_error": None} if c.key in costs else plain) for c in columns
        ]
        x = [f"{line['x']:g}"] if x_label else []
        cells.append([line["label"], *x, *numbers, str(line["n"]), line["published"]])
    return f"{caption}\n\n{table([*headings, 'n', 'printed'], cells)}"


def lines_csv(results: Sequence[Line]) -> str:
    """Every line of every seed."""
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, list(dict.fromkeys(key for row in results for key in row)))
    writer.writeheader()
    writer.writerows(results)
    return sheet.getvalue()


def draw(lines: Sequence[Line], path: Path, *, title: str, x_label: str = "") -> None:
    """A curve a method, or a bar where there is no axis to draw along."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for label in dict.fromkeys(line["label"] for line in lines):
        mine = [line for line in lines if line["label"] == label]
        values = [100 * line["accuracy"] for line in mine]
        errors = [100 * line.get("accuracy_error", 0.0) for line in mine]
        if x_label:
            axes.errorbar([line["x"] for line in mine], values, errors, marker="o", label=label)
        else:
            axes.barh(label, values, xerr=errors, color="tab:blue")
    if x_label:
        axes.set(xlabel=x_label, ylabel="test accuracy, %")
        axes.legend(fontsize="small")
    else:
        low = min(100 * line["accuracy"] for line in lines)
        axes.set(xlabel="test accuracy, %", xlim=(max(0.0, low - 5), None))
        axes.invert_yaxis()
    axes.set_title(title, fontsize="medium")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    files.write_atomically(path, data.getvalue())
