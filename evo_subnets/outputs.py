"""What a network's outputs mean: classes, or yes and no; for numbers see `values`.

Divergence, ensemble, loss and metric all follow the kind, which is the argument `outputs=`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_subnets.answers import (
    Read,
    aligned,
    by_member,
    check_alike,
    check_numbers,
    cross_terms,
    log_mean,
    mean_of,
    tensor_in,
    weighted,
    without_ones,
)

Combine = Literal["mean", "vote", "logits"]
IGNORED = -100
"""A label that torch's cross entropy leaves out, and accuracy with it."""
SUM_TOLERANCE = 1e-3
"""How far the probabilities of a soft label may be from summing to one."""


class Outputs(Protocol):
    """A kind of output. Tensors of outputs are (samples, ...), those of members (members, samples,
    ...), weights (members,) that sum to one; a member of weight zero counts for nothing."""

    combines: ClassVar[tuple[Combine, ...]]
    """The ways to combine members that mean something."""

    @property
    def read(self) -> Read:
        """What finds the tensor in what a module returned (see `answers.tensor_in`)."""

    def divergence(self, parent: Tensor, child: Tensor) -> float:
        """How far the child's outputs are from the parent's, averaged; NaN where they are NaN."""

    def combined(self, members: Tensor, weights: Tensor, *, combine: Combine) -> Tensor:
        """The ensemble's outputs, of this kind where a tensor can be."""

    def spread(self, members: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the ensemble; a ValueError of kinds without numbers."""

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        """A ValueError where outputs of this kind cannot be compared with these targets."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Of a batch, to be descended: the mean."""

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Of all samples; higher is better."""


@dataclass(frozen=True)
class Classes:
    """Logits, or log-probabilities, of classes on one axis; the default.

    Divergence is KL(parent || child) of the softmax in nats (Whitaker 2023, eq. 4.5), averaged over
    samples and positions; a class that both rule out (a logit of -inf) adds nothing. Members give
    log-probabilities of their mean probability ("mean"), of their mean logits ("logits"), or of
    their votes, where a member that gives NaN, or rules everything out, makes the sample NaN. Loss
    is the cross entropy of labels or of (samples, classes) probabilities, metric the accuracy; a
    label of -100 is left out.
    """

    axis: int | None = None
    """Where the classes are, in (samples, ...): 1 in (batch, classes, height, width), -1 in (batch,
    time, classes). None is for (batch, classes), and refuses others."""
    read: Read = tensor_in
    """What finds the tensor in what the network returns."""

    combines: ClassVar[tuple[Combine, ...]] = ("mean", "vote", "logits")

    def divergence(self, parent: Tensor, child: Tensor) -> float:
        check_alike(parent, child)
        axis = self.axis_of(parent)
        log_p, log_q = (each.double().log_softmax(dim=axis) for each in (parent, child))
        return mean_of(cross_terms(log_p, log_q).sum(dim=axis))

    def combined(self, members: Tensor, weights: Tensor, *, combine: Combine) -> Tensor:
        axis = self.axis_of(members[0]) + 1
        shares = by_member(weights, members)
        if combine == "logits":
            return weighted(members, shares).log_softmax(dim=axis - 1)
        if combine == "mean":
            return log_mean(members.log_softmax(dim=axis), shares)
        votes = torch.zeros_like(members).scatter_(axis, members.argmax(axis, keepdim=True), 1)
        voted = members.amax(dim=axis, keepdim=True) > -math.inf  # NaN is not
        return weighted(votes.masked_fill(~voted, math.nan), shares).log()

    def spread(self, members: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        raise no_spread(self)

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        axis = self.axis_of(outputs)
        classes = outputs.shape[axis]
        if _soft(outputs, targets):
            sums = targets.detach().sum(dim=axis)
            if not bool(((sums - 1).abs() <= SUM_TOLERANCE).all()) or bool((targets < 0).any()):
                raise ValueError(
                    "targets of the outputs' shape are probabilities that sum to 1 over the "
                    f"classes, got sums from {sums.min():.4g} to {sums.max():.4g}: of several "
                    "labels a sample take outputs=Binary()"
                )
            return
        if targets.is_floating_point() or targets.is_complex():
            raise ValueError(
                f"labels of classes are whole numbers, got {tuple(targets.shape)} {targets.dtype}: "
                "make them targets.long(), or take outputs=Values() for real values"
            )
        labels = self._labels(outputs, targets)
        known = labels[labels != IGNORED]
        if len(known) and not 0 <= int(known.min()) <= int(known.max()) < classes:
            raise ValueError(
                f"labels of {classes} classes are in 0..{classes - 1}, got {int(known.min())}.."
                f"{int(known.max())}"
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logits = outputs.float().movedim(self.axis_of(outputs), 1)
        if _soft(outputs, targets):
            return F.cross_entropy(logits, targets.movedim(self.axis_of(outputs), 1))
        return F.cross_entropy(logits, self._labels(outputs, targets))

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        self.check_targets(outputs, targets)
        axis = self.axis_of(outputs)
        labels = targets.argmax(axis) if _soft(outputs, targets) else self._labels(outputs, targets)
        right = (outputs.argmax(axis) == labels) & ~outputs.isnan().any(axis)
        return right[labels != IGNORED].double().mean().item()

    def axis_of(self, outputs: Tensor) -> int:
        """The axis counted from the first; a ValueError where these are no outputs of classes."""
        check_numbers(outputs, self)
        shape = tuple(outputs.shape)
        if self.axis is None and len(shape) > 2:
            raise ValueError(
                f"outputs of shape {shape} have several axes: say on which the classes are, as "
                "outputs=Classes(axis=1) of (batch, classes, height, width), or "
                "outputs=Classes(axis=-1) of (batch, time, classes)"
            )
        axis = 1 if self.axis is None else self.axis
        axis += len(shape) if axis < 0 else 0
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # sizes are tensors
            return axis
        if not 0 < axis < len(shape) or not shape[axis]:
            raise ValueError(
                f"outputs of shape {shape} have no classes on axis "
                f"{1 if self.axis is None else self.axis} behind that of the samples: one logit a "
                "sample is outputs=Binary(), a real value outputs=Values()"
            )
        if shape[axis] == 1:
            raise ValueError(
                f"outputs of shape {shape} have one class, whose probability is always 1: take "
                "outputs=Binary() for one logit of yes or no, outputs=Values() for a real value"
            )
        return axis

    def _labels(self, outputs: Tensor, targets: Tensor) -> Tensor:
        axis = self.axis_of(outputs)
        expected = outputs.shape[:axis] + outputs.shape[axis + 1 :]
        if targets.shape == expected:
            return targets.long()
        if without_ones(targets.shape) != without_ones(expected):
            several = " (several labels a sample are outputs=Binary())"
            raise ValueError(
                f"outputs of shape {tuple(outputs.shape)} go with labels of shape "
                f"{tuple(expected)}, got {tuple(targets.shape)}"
                + (several if targets.shape == outputs.shape else "")
            )
        return targets.reshape(expected).long()


@dataclass(frozen=True)
class Binary:
    """Logits of yes or no, each by itself: one a sample, or one for each label or pixel.

    Divergence is KL(parent || child) of two Bernoullis in nats, averaged over all logits. Members
    give the logit of their mean probability ("mean"), their mean logit ("logits"), or the logit of
    the fraction that says yes, which is infinite where they agree ("vote"; NaN where a member is
    NaN). Loss is the binary cross entropy, metric the accuracy; targets are 0 and 1, or between.
    """

    read: Read = tensor_in
    """What finds the tensor in what the network returns."""

    combines: ClassVar[tuple[Combine, ...]] = ("mean", "vote", "logits")

    def divergence(self, parent: Tensor, child: Tensor) -> float:
        check_alike(parent, child)
        check_numbers(parent, self)
        a, b = parent.double(), child.double()
        terms = torch.zeros_like(a)
        for sign in (1, -1):
            log_p, log_q = F.logsigmoid(sign * a), F.logsigmoid(sign * b)
            terms += cross_terms(log_p, log_q)
        return mean_of(terms)

    def combined(self, members: Tensor, weights: Tensor, *, combine: Combine) -> Tensor:
        check_numbers(members[0], self)
        shares = by_member(weights, members)
        if combine == "logits":
            return weighted(members, shares)
        if combine == "vote":
            votes = (members > 0).to(members.dtype).masked_fill(members.isnan(), math.nan)
            return weighted(votes, shares).logit()
        yes, no = (log_mean(F.logsigmoid(sign * members), shares) for sign in (1, -1))
        return yes - no

    def spread(self, members: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        raise no_spread(self)

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        wanted = aligned(targets, outputs.shape)
        if wanted.numel() and not bool(((wanted >= 0) & (wanted <= 1)).all()):
            raise ValueError(
                "targets of yes or no are 0 and 1, or probabilities between, got "
                f"{wanted.min():g} to {wanted.max():g}"
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = aligned(targets, outputs.shape).float()
        return F.binary_cross_entropy_with_logits(outputs.float(), wanted)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        self.check_targets(outputs, targets)
        right = ((outputs > 0) == (aligned(targets, outputs.shape) > 0.5)) & ~outputs.isnan()
        return right.double().mean().item()


def _soft(outputs: Tensor, targets: Tensor) -> bool:
    """Whether targets are probabilities of the classes, and not labels."""
    return targets.is_floating_point() and targets.shape == outputs.shape


def no_spread(kind: Outputs) -> ValueError:
    return ValueError(
        f"a spread is of real values, outputs=Values() or Distribution, not {type(kind).__name__}"
    )
