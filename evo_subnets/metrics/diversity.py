"""How much members differ in what they predict (Whitaker 2023, section 7.2).

All functions take one (members, samples, classes) tensor of log-probabilities, and compare every
pair in one go. Sums are in double precision, on the CPU where a device has none.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from evo_subnets.metrics.predictive import check_labels, check_log_probabilities
from evo_subnets.streams import in_double

CHUNK = 2**20
"""Probabilities that are in double precision at a time."""


def disagreement(log_probabilities: Tensor) -> Tensor:
    """(members, members): the fraction of samples whose most likely classes differ (eq. 7.3)."""
    check_log_probabilities(log_probabilities, 3)
    predictions = log_probabilities.argmax(dim=-1)
    return torch.stack([in_double(predictions != row).mean(dim=1) for row in predictions])


def pairwise_kl(log_probabilities: Tensor) -> Tensor:
    """(members, members): the mean over samples of KL(row || column), in nats (eq. 7.2).

    Infinite where the column's member rules a class out that the row's does not.
    """
    check_log_probabilities(log_probabilities, 3)
    samples = log_probabilities.shape[1]
    cross = _zeros(log_probabilities)
    ruled_out = torch.zeros_like(cross)
    for chunk in _chunks(log_probabilities):
        impossible = (chunk == -math.inf).flatten(1)
        logarithms = chunk.flatten(1).masked_fill(impossible, 0.0)
        cross += chunk.exp().flatten(1) @ logarithms.T
        if impossible.any():
            ruled_out += (~impossible).double() @ impossible.double().T
    divergence = ((cross.diagonal()[:, None] - cross) / samples).clamp(min=0.0)
    return divergence.masked_fill(ruled_out > 0, math.inf)


def output_correlation(log_probabilities: Tensor) -> Tensor:
    """(members, members): the correlation of the members' output vectors, in [-1, 1] (eq. 7.1).

    Pearson's, of two vectors of class probabilities of one sample, averaged over samples. So the
    text below the equation has it ("the standard deviation of the output vector"), where as
    printed the covariance would be one of single numbers; and so members correlate to 1 with
    themselves, as in figure 7.1. A sample that a member finds all classes equally likely in has
    no correlation and is left out of that member's pairs; NaN where none is left. With two classes
    it is 1 or -1 in every sample.
    """
    check_log_probabilities(log_probabilities, 3)
    sums = _zeros(log_probabilities)
    counts = torch.zeros_like(sums)
    for chunk in _chunks(log_probabilities):
        varied = chunk.amax(dim=-1) != chunk.amin(dim=-1)
        probabilities = chunk.exp()
        centred = probabilities - probabilities.mean(dim=-1, keepdim=True)
        units = centred / centred.norm(dim=-1, keepdim=True)
        units = units.masked_fill(~varied[..., None], 0.0).flatten(1)
        sums += units @ units.T
        counts += varied.double() @ varied.double().T
    return (sums / counts).clamp(-1.0, 1.0)


def oracle_accuracy(log_probabilities: Tensor, labels: Tensor) -> float:
    """The fraction of samples that at least one member gets right."""
    check_log_probabilities(log_probabilities, 3)
    _, samples, classes = log_probabilities.shape
    check_labels(labels, samples, classes=classes)
    return in_double((log_probabilities.argmax(dim=-1) == labels).any(dim=0)).mean().item()


def mean_pairwise(matrix: Tensor) -> float:
    """The mean over pairs of different members; NaN for one member.

    Both orders of a pair count, which matters for the divergence alone. Members paired with
    themselves do not, other than in figure 7.1: the means below it, 0.893, 0.884 and 0.868, are
    near those of its whole matrices as printed (0.898, 0.885, 0.869), where those of different
    members are 0.881, 0.866 and 0.847.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"expected a (members, members) matrix, got shape {tuple(matrix.shape)}")
    pairs = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return in_double(matrix[pairs]).mean().item()


def _zeros(log_probabilities: Tensor) -> Tensor:
    members = len(log_probabilities)
    return in_double(log_probabilities.new_zeros(members, members))


def _chunks(log_probabilities: Tensor) -> Iterator[Tensor]:
    members, _, classes = log_probabilities.shape
    step = max(1, CHUNK // (members * classes))
    for chunk in torch.split(log_probabilities.detach(), step, dim=1):
        yield in_double(chunk)
