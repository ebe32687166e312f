"""Committed tables: their costs follow from their epochs, and their text says what the CSV says."""

import csv
from collections import defaultdict
from statistics import fmean

import pytest

from docs.imports import ROOT

RESULTS = ROOT / "benchmarks/results"
BUDGETS = {"small-budget-lenet-l": (16, 8, 1), "small-budget-lenet-s": (16, 8, 1),
           "annealing-lenet-m": (15, 10, 5)}  # fmt: skip
"""A table to the epochs of its budget, of its parents, and of each child."""


def rows_of(name):
    return list(csv.DictReader((RESULTS / f"{name}.csv").read_text().splitlines()))


@pytest.mark.parametrize("name", BUDGETS)
def test_costs_are_in_units_of_one_dense_network_of_the_tables_budget(name):
    budget, parent, child = BUDGETS[name]
    for row in rows_of(name):
        training, inference = float(row["training"]), float(row["inference"])
        if row["label"] in ("independent", "dropout", "bagging"):
            assert training == pytest.approx(float(row["epochs"]) / budget)
            assert inference == (8 if row["label"] == "bagging" else 1)
        else:
            assert training == pytest.approx((parent + child * inference) / budget)


@pytest.mark.parametrize("name", BUDGETS)
def test_the_text_has_the_means_of_the_csv(name):
    groups = defaultdict(list)
    for row in rows_of(name):
        groups[row["label"], row["x"]].append(row)
    text = (RESULTS / f"{name}.md").read_text()
    for (label, x), rows in groups.items():
        lines = [line for line in text.split("\n") if line.startswith(f"{label}  ")]
        (line,) = [line for line in lines if not x or f" {x} " in line]
        for key, scale, digits, unit in (
            ("accuracy", 100, 2, ""), ("nll", 1, 3, ""), ("ece", 100, 2, ""),
            ("epochs", 1, 1, ""), ("training", 1, 2, "x"), ("inference", 1, 2, "x"),
        ):  # fmt: skip
            mean = scale * fmean(float(row[key]) for row in rows)
            assert f" {mean:.{digits}f}{unit}" in line, (label, key)
