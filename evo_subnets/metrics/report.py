"""All that one cached tensor of predictions says, in one place."""

from dataclasses import dataclass

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


def report(member_logits: Tensor, log_probabilities: Tensor, labels: Tensor) -> Report:
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
