"""How good predictions are: accuracy, negative log-likelihood and calibration."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo_subnets.streams import check_seed, in_double

Score = Literal["accuracy", "nll", "ece"]

BINS = 15
CHUNK = 2**21
"""Draws of the bootstrap that are in memory at a time: three arrays of 16 MB."""
TOLERANCE = 0.05
"""How far log-probabilities of a sample may be from exp-summing to one: half precision's error."""


@dataclass(frozen=True)
class Scores:
    """Accuracy (higher is better), negative log-likelihood in nats, calibration error (lower)."""

    accuracy: float
    nll: float
    ece: float


def scores(log_probabilities: Tensor, labels: Tensor) -> Scores:
    """The three scores of (samples, classes) log-probabilities and (samples,) labels."""
    return Scores(
        accuracy(log_probabilities, labels),
        negative_log_likelihood(log_probabilities, labels),
        calibration_error(log_probabilities, labels),
    )


def accuracy(log_probabilities: Tensor, labels: Tensor) -> float:
    """The fraction of samples whose most likely class (the first, of equals) is the label."""
    check_predictions(log_probabilities, labels)
    return _correct(log_probabilities, labels).mean().item()


def negative_log_likelihood(log_probabilities: Tensor, labels: Tensor) -> float:
    """The mean of -log p(label), in nats; infinite where a label was given probability zero."""
    check_predictions(log_probabilities, labels)
    return _surprise(log_probabilities, labels).mean().item()


def calibration_error(log_probabilities: Tensor, labels: Tensor, *, bins: int = BINS) -> float:
    """How far confidence is from accuracy, in [0, 1]: the expected calibration error.

    Samples are binned by the probability p of their most likely class, bin i being
    i / bins < p <= (i + 1) / bins: a confidence of 1 is in the last bin. The error is the mean
    over samples of their bin's |accuracy - mean confidence| (Naeini et al. 2015, Guo et al. 2017).
    """
    check_predictions(log_probabilities, labels)
    gap, index = _gaps(log_probabilities, labels, bins)
    sums = gap.new_zeros(bins).index_add_(0, index, gap)
    return sums.abs().sum().item() / len(labels)


def difference_interval(
    log_probabilities_a: Tensor,
    log_probabilities_b: Tensor,
    *,
    labels: Tensor,
    score: Score = "accuracy",
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """(difference, low, high): b's score minus a's on the same samples, and its interval.

    A paired percentile bootstrap over samples (Efron and Tibshirani 1993): each resample draws as
    many samples with replacement, the same for a and b. It speaks of the chance of the test
    samples, not of that of training. A resample's calibration error is biased upwards, the
    difference less so. The bounds are NaN where a negative log-likelihood is infinite.
    """
    if score not in get_args(Score):
        raise ValueError(f"score must be one of {get_args(Score)}, got {score!r}")
    if resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"expected resamples >= 1 and 0 < level < 1, got resamples={resamples}, level={level}"
        )
    seed = check_seed(seed)
    pair = (log_probabilities_a, log_probabilities_b)
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            "a and b must be log-probabilities of the same samples and classes, got shapes "
            f"{tuple(pair[0].shape)} and {tuple(pair[1].shape)}"
        )
    functions = {
        "accuracy": accuracy,
        "nll": negative_log_likelihood,
        "ece": calibration_error,
    }
    before, after = (functions[score](one, labels) for one in pair)
    if math.isinf(before) or math.isinf(after):
        return after - before, math.nan, math.nan
    # a score is a function of sums over samples: resampling is a product with the draws' counts
    columns = [_columns(one, labels, score) for one in pair]
    samples = len(labels)
    generator = np.random.default_rng(seed)
    differences = np.empty(resamples)
    step = max(1, CHUNK // samples)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        draws = generator.integers(samples, size=(rows, samples))
        draws += samples * np.arange(rows)[:, None]
        counts = np.bincount(draws.ravel(), minlength=rows * samples).reshape(rows, samples)
        del draws
        weights = counts.astype(np.float64)
        # one product each: in a common one equal columns of a and b may be summed differently
        sums = np.stack([weights @ values for values in columns])
        of_a, of_b = (np.abs(sums) if score == "ece" else sums).sum(axis=2) / samples
        differences[start : start + rows] = of_b - of_a
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    return after - before, float(low), float(high)


def check_log_probabilities(log_probabilities: Tensor, dimensions: int) -> None:
    """A ValueError unless these are (members,) samples, classes of log-probabilities."""
    shape, names = log_probabilities.shape, ("members", "samples", "classes")[-dimensions:]
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(
            f"expected ({', '.join(names)}) log-probabilities, at least one of each, got a tensor "
            f"of shape {tuple(shape)}: another axis of classes comes last, and real values have "
            "value_report"
        )
    sums = log_probabilities.logsumexp(dim=-1)
    if not bool((sums.abs() <= TOLERANCE).all()):  # NaN is not either
        raise ValueError(
            "expected log-probabilities, whose exp sums to 1 over the classes, got logarithms of "
            f"the sums from {sums.min().item():.4g} to {sums.max().item():.4g}; of logits take "
            "log_softmax(dim=-1), of real values value_report, and where it is NaN look at "
            "the model"
        )


def check_labels(labels: Tensor, samples: int, *, classes: int) -> None:
    """A ValueError unless these are a class for each sample."""
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape != (samples,):
        raise ValueError(
            f"expected ({samples},) whole-numbered labels, one for each sample, got "
            f"{tuple(labels.shape)} of {labels.dtype}"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels of {classes} classes must be in 0..{classes - 1}, got {low}..{high}"
        )


def check_predictions(log_probabilities: Tensor, labels: Tensor) -> None:
    """A ValueError unless these are (samples, classes) log-probabilities and their labels."""
    check_log_probabilities(log_probabilities, 2)
    samples, classes = log_probabilities.shape
    check_labels(labels, samples, classes=classes)


def _correct(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    return in_double(log_probabilities.argmax(dim=1) == labels)


def _surprise(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    return -in_double(log_probabilities.gather(1, labels.long()[:, None])[:, 0])


def _gaps(log_probabilities: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """(samples,) of correct minus confidence, and the bin of each."""
    if bins < 1:
        raise ValueError(f"confidences need at least one bin, got bins={bins}")
    confidence = in_double(log_probabilities.amax(dim=1)).exp()
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    return _correct(log_probabilities, labels) - confidence, torch.bucketize(confidence, edges)


def _columns(log_probabilities: Tensor, labels: Tensor, score: Score) -> NDArray[np.float64]:
    """(samples, k): what `score` is made of, after a sum over samples."""
    if score == "ece":
        gap, index = _gaps(log_probabilities, labels, BINS)
        columns = torch.nn.functional.one_hot(index, BINS) * gap[:, None]
    else:
        values = _correct if score == "accuracy" else _surprise
        columns = values(log_probabilities, labels)[:, None]
    result: NDArray[np.float64] = columns.detach().cpu().numpy()
    return result
