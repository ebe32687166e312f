"""Models on the same test images: a row of numbers each, and how they differ."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from torch import Tensor, nn

from evo_subnets.data import Images
from evo_subnets.ensemble import Ensemble
from evo_subnets.metrics.predictive import Score, difference_interval
from evo_subnets.metrics.report import COLUMNS, CORRUPTED, SCORES, report
from evo_subnets.metrics.robustness import corrupted_scores
from evo_subnets.outputs import Classes
from evo_subnets.prediction import predict, predict_members
from evo_subnets.runs.report import table
from evo_subnets.streams import in_double
from evo_subnets.trust_region import divergence

FEWEST = 100
"""Test images from which on a difference says anything."""


@dataclass
class Contest:
    """Models that are judged on the same images.

    unit_epochs: of the one dense network that training is measured in.
    """

    images: Images
    unit_epochs: float
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By name: see `COLUMNS`."""
    answers: dict[str, Tensor] = field(default_factory=dict)
    """By name: (samples, classes) log-probabilities."""

    def judge(
        self,
        name: str,
        ensemble: Ensemble,
        *,
        epochs: float,
        dense_epochs: float,
        inference: float,
        parameters: int,
        size: int | None = None,
    ) -> None:
        """Adds a row: of the ensemble, or of its first `size` members.

        epochs: passes over the training data; dense_epochs: training operations, in epochs of one
        dense network; inference: operations of a prediction, in those of one dense network.
        """
        if not isinstance(ensemble.outputs, Classes):
            raise ValueError(
                "a contest compares classifiers, got an ensemble of outputs="
                f"{type(ensemble.outputs).__name__}"
            )
        logits = predict_members(ensemble, self.images)[:size]
        members = list(ensemble.members)[: len(logits)]
        whole = Ensemble(members, combine=ensemble.combine, outputs=ensemble.outputs)
        self.answers[name] = whole.combined(logits)
        scores = report(logits, self.answers[name], labels=self.images.labels)
        self.rows[name] = {
            **asdict(scores),
            "epochs": epochs,
            "training": dense_epochs / self.unit_epochs,
            "inference": inference,
            "parameters": parameters,
        }

    def differences(self, against: str) -> dict[str, dict[str, list[float]]]:
        """Every other row minus that one, with paired 95 % bootstrap bounds over images."""
        own, labels = self.answers[against], self.images.labels
        return {
            name: {
                score: list(difference_interval(own, answer, labels=labels, score=score))
                for score in get_args(Score)
            }
            for name, answer in self.answers.items()
            if name != against
        }


def corrupted(
    ensemble: Ensemble,
    images: Images,
    *,
    source: str,
    seed: int,
    on_set: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Further numbers of a row: the means of the scores over corrupted images."""

    def answers(some: Images) -> Tensor:
        return ensemble.combined(predict_members(ensemble, some))

    found = corrupted_scores(answers, images, source=source, seed=seed, on_set=on_set)
    return {f"corrupted_{key}": value for key, value in asdict(found).items()}


def further(
    ensemble: Ensemble, images: Images, *, parent: nn.Module | None
) -> dict[str, float | None]:
    """Further numbers of a row: the vote's accuracy, and how far the members are from a parent
    (Whitaker 2023, figure 4.3)."""
    logits = predict_members(ensemble, images)
    members = list(ensemble.members)
    votes = Ensemble(members, combine="vote", outputs=ensemble.outputs).combined(logits)
    right = float(in_double(votes.argmax(1) == images.labels).mean())
    if parent is None:
        return {"vote_accuracy": right, "divergence": None}
    own = predict(parent, images)
    apart = statistics.fmean(divergence(own, child) for child in logits)
    return {"vote_accuracy": right, "divergence": apart}


def contest_text(results: Mapping[str, Any]) -> str:
    """The table of results.json's `test`, and how the rows differ from `against`."""
    rows = results["test"]
    columns = [*COLUMNS, *(c for c in CORRUPTED if any(c.key in row for row in rows.values()))]
    cells = [[name, *(column.cell(row) for column in columns)] for name, row in rows.items()]
    parts = [
        table(["model", *(column.heading for column in columns)], cells),
        f"training: 1.00x is one dense network trained for {results['unit_epochs']:g} epochs; "
        "inference: 1.00x is one dense network asked once",
    ]
    if results["test_images"] < FEWEST:
        parts.append(
            f"{results['test_images']} test images are too few to tell models apart: take {FEWEST}"
        )
        return "\n\n".join(parts)
    lines = [
        [name, *(_interval(column.scale, column.digits, found[column.key]) for column in SCORES)]
        for name, found in results["differences"].items()
    ]
    parts += [
        f"Against the {results['against']}, paired over {results['test_images']} test images, with "
        "95 % intervals:",
        table(["model", "accuracy, points", "NLL", "ECE, points"], lines),
    ]
    return "\n\n".join(parts)


def _interval(scale: float, digits: int, found: list[float]) -> str:
    texts = ["" if value is None else f"{scale * value:+.{digits}f}" for value in found]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"
