"""All that one cached tensor of predictions says, in one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evo_subnets.metrics.diversity import (
    disagreement,
    mean_pairwise,
    oracle_accuracy,
    output_correlation,
    pairwise_kl,
)
from evo_subnets.metrics.predictive import accuracy, scores


@dataclass(frozen=True)
class Report:
    """An ensemble's predictions and its members' diversity; pairs of one member are NaN."""

    accuracy: float
    nll: float
    ece: float
    member_accuracy: float
    """Mean over the members."""
    disagreement: float
    kl: float
    correlation: float
    oracle: float


@dataclass(frozen=True)
class Column:
    """How a number of a row is printed: one unit for each metric, in every table."""

    heading: str
    key: str
    scale: float = 1.0
    digits: int = 2
    unit: str = ""

    def cell(self, row: Mapping[str, Any]) -> str:
        """The number, with its standard error where there is one; empty where it is missing."""
        value = row.get(self.key)
        if value is None or value != value:
            return ""
        text = f"{self.scale * value:.{self.digits}f}{self.unit}"
        error = row.get(f"{self.key}_error")
        return text if error is None else f"{text} ± {self.scale * error:.{self.digits}f}"


SCORES = (
    Column("accuracy, %", "accuracy", 100),
    Column("NLL", "nll", digits=3),
    Column("ECE, %", "ece", 100),
)
"""Of whatever predicts: the error of calibration is a difference of accuracies, in their unit."""
COLUMNS = (
    *SCORES,
    Column("members, %", "member_accuracy", 100),
    Column("disagreement, %", "disagreement", 100),
    Column("oracle, %", "oracle", 100),
    Column("epochs", "epochs", digits=1),
    Column("training", "training", unit="x"),
    Column("inference", "inference", unit="x"),
    Column("parameters, M", "parameters", 1e-6, 3),
)
"""Of an ensemble. `training` and `inference` are operations in units of one dense network: trained
for the table's budget, and asked once."""
CORRUPTED = tuple(
    Column(f"c{column.heading}", f"corrupted_{column.key}", column.scale, column.digits)
    for column in SCORES
)
"""Of corrupted images."""


def report(member_logits: Tensor, log_probabilities: Tensor, *, labels: Tensor) -> Report:
    """The report of (members, samples, classes) logits and the ensemble's (samples, classes)."""
    members = member_logits.log_softmax(dim=-1)
    whole = scores(log_probabilities, labels)
    return Report(
        whole.accuracy,
        whole.nll,
        whole.ece,
        sum(accuracy(member, labels) for member in members) / len(members),
        mean_pairwise(disagreement(members)),
        mean_pairwise(pairwise_kl(members)),
        mean_pairwise(output_correlation(members)),
        oracle_accuracy(members, labels),
    )
