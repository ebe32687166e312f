"""Scores on corrupted pictures (Hendrycks and Dietterich 2019)."""

import statistics
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from evo_subnets.data import Images
from evo_subnets.data.corruptions import CORRUPTIONS, SEVERITIES, cifar_c, cifar_c_names, corrupt
from evo_subnets.metrics.predictive import Scores, scores
from evo_subnets.streams import check_seed

GENERATED = "generated"


def corrupted_scores(
    log_probabilities: Callable[[Images], Tensor],
    clean: Images,
    *,
    source: str = GENERATED,
    seed: int = 0,
    on_set: Callable[[str], None] | None = None,
) -> Scores:
    """Means of accuracy, NLL and ECE over all corruptions and severities.

    `log_probabilities` gives (samples, classes) of pictures on the device of `clean`. `source` is
    "generated", for corruptions made from `clean`, or a folder with the files of CIFAR-10-C or
    CIFAR-100-C, which have their own labels. `on_set` gets the name of each finished set.
    """
    seed = check_seed(seed)
    generated = source == GENERATED
    device, pictures = clean.pixels.device, clean.to("cpu")
    found = []
    for name in CORRUPTIONS if generated else cifar_c_names(Path(source)):
        for severity in SEVERITIES:
            if generated:
                pixels, labels = (
                    corrupt(pictures.pixels, name, severity=severity, seed=seed),
                    pictures.labels,
                )
            else:
                pixels, labels = cifar_c(Path(source), name, severity=severity)
            images = Images(pixels, labels).to(device)
            found.append(scores(log_probabilities(images), images.labels))
            if on_set is not None:
                on_set(f"{name} {severity}")
    return Scores(*(statistics.fmean(column) for column in zip(*map(_numbers, found), strict=True)))


def count_corrupted_sets(source: str = GENERATED) -> int:
    """How many sets `corrupted_scores` goes through."""
    names = CORRUPTIONS if source == GENERATED else cifar_c_names(Path(source))
    return len(names) * len(SEVERITIES)


def _numbers(found: Scores) -> tuple[float, float, float]:
    return found.accuracy, found.nll, found.ece
