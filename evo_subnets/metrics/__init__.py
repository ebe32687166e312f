"""What an ensemble is worth: its predictions, its members' diversity, its cost.

Predictions come as log-probabilities: `member_logits.log_softmax(dim=-1)` of one cached (members,
samples, classes) tensor, or an Ensemble's output. On corrupted data the same functions apply.
Predicted real values have their own (`value_report`).
"""

from evo_subnets.metrics.cost import (
    count_parameters,
    ensemble_parameters,
    inference_flops,
    multiply_adds,
    relative_budget,
    training_flops,
)
from evo_subnets.metrics.diversity import (
    disagreement,
    mean_pairwise,
    oracle_accuracy,
    output_correlation,
    pairwise_kl,
)
from evo_subnets.metrics.predictive import (
    Scores,
    accuracy,
    calibration_error,
    difference_interval,
    negative_log_likelihood,
    scores,
)
from evo_subnets.metrics.report import COLUMNS, CORRUPTED, SCORES, Column, Report, report
from evo_subnets.metrics.robustness import corrupted_scores, count_corrupted_sets
from evo_subnets.metrics.values import (
    ValueReport,
    judge_values,
    spread_against_error,
    unexplained,
    value_report,
)

__all__ = [
    "COLUMNS",
    "CORRUPTED",
    "SCORES",
    "Column",
    "Report",
    "Scores",
    "ValueReport",
    "accuracy",
    "calibration_error",
    "corrupted_scores",
    "count_corrupted_sets",
    "count_parameters",
    "difference_interval",
    "disagreement",
    "ensemble_parameters",
    "inference_flops",
    "judge_values",
    "mean_pairwise",
    "multiply_adds",
    "negative_log_likelihood",
    "oracle_accuracy",
    "output_correlation",
    "pairwise_kl",
    "relative_budget",
    "report",
    "scores",
    "spread_against_error",
    "training_flops",
    "unexplained",
    "value_report",
]
