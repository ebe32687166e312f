"""Kinds of outputs that are decisions of an agent: several choices, continuous actions, values of
actions. Numbered actions are `outputs.Classes`, actions without chance `outputs.Values`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from evo_subnets.outputs import CLASSES, VALUES, Combine, read

Read = Callable[[Any], Tensor]
EDGE = 1 - 1e-6
"""Squashed values are brought within before they are stretched: one is infinitely far away."""


@dataclass(frozen=True)
class Categoricals:
    """Logits of several independent choices, (batch, sum(sizes)): those of the first choice, then
    those of the second. A yes or no is a choice of two.

    The combined outputs are log-probabilities of each choice. Members' mixture is no product of
    choices: these are its marginals.
    """

    sizes: tuple[int, ...]
    read: Read = read
    ways: ClassVar[tuple[Combine, ...]] = ("mean", "vote", "logits")

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"choices are of at least one each, got sizes={self.sizes}")

    def tensor(self, found: Any) -> Tensor:
        """(batch, sum(sizes)) logits."""
        return _shaped(self.read(found), (sum(self.sizes),), "logits of its choices")

    def divergence(self, parent: Tensor, child: Tensor) -> Tensor:
        """KL(parent || child) in nats: the sum over the choices, for they are independent."""
        pairs = zip(self.split(parent), self.split(child), strict=True)
        return torch.stack([CLASSES.divergence(*pair) for pair in pairs]).sum(dim=0)

    def combined(self, members: Tensor, weights: Tensor, *, how: Combine) -> Tensor:
        """What `Classes` gives, of each choice."""
        return torch.cat(
            [CLASSES.combined(part, weights, how=how) for part in self.split(members)], dim=-1
        )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats, summed over the choices of a (batch, choices) label each."""
        labels = self._labels(targets)
        each = [CLASSES.loss(*pair) for pair in zip(self.split(outputs), labels, strict=True)]
        return torch.stack(each).sum()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """The fraction of choices whose most likely option is the target; NaN is none."""
        labels = self._labels(targets)
        each = [CLASSES.metric(*pair) for pair in zip(self.split(outputs), labels, strict=True)]
        return math.fsum(each) / len(each)

    def split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """The logits of each choice."""
        return tuple(torch.split(outputs, list(self.sizes), dim=-1))

    def _labels(self, targets: Tensor) -> tuple[Tensor, ...]:
        if targets.ndim != 2 or targets.shape[1] != len(self.sizes):
            raise ValueError(
                f"targets of {len(self.sizes)} choices are (batch, {len(self.sizes)}) labels, got "
                f"{tuple(targets.shape)}"
            )
        return targets.unbind(dim=1)


@dataclass(frozen=True)
class Gaussian:
    """(batch, 2, values): means, and logarithms of standard deviations, of independent normal
    values; with `squashed` their hyperbolic tangents are meant, in (-1, 1) (Haarnoja et al. 2018).

    The combined outputs are (batch, values): the mean of what the members do without chance. The
    squashed are averaged after squashing, so that a member far in saturation counts as one.
    """

    squashed: bool = False
    read: Read = read
    ways: ClassVar[tuple[Combine, ...]] = ("mean",)

    def tensor(self, found: Any) -> Tensor:
        """(batch, 2, values) means and logarithms of standard deviations."""
        return _shaped(self.read(found), (2, None), "means and logarithms of standard deviations")

    def divergence(self, parent: Tensor, child: Tensor) -> Tensor:
        """KL(parent || child) in nats, summed over the values.

        Of the squashed too: squashing is a bijection, which no divergence sees.
        """
        (mean, scale), (other, wider) = parent.unbind(dim=1), child.unbind(dim=1)
        change = 2 * (scale - wider)
        apart = ((mean - other) * (-wider).exp()).square()
        return ((change.expm1() - change + apart) / 2).sum(dim=1)

    def combined(self, members: Tensor, weights: Tensor, *, how: Combine) -> Tensor:
        """(batch, values): the weighted mean of the members' `middle`."""
        return VALUES.combined(self.middle(members), weights, how="mean")

    def middle(self, outputs: Tensor) -> Tensor:
        """(..., values): what is done without chance: the means, squashed."""
        means = outputs.select(-2, 0)
        return means.tanh() if self.squashed else means

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean negative log-likelihood of (batch, values) targets, in nats."""
        return -self._log_likelihood(outputs, targets).mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """The mean log-likelihood, in nats."""
        return self._log_likelihood(outputs, targets).mean().item()

    def mixture_metric(self, members: Tensor, weights: Tensor, *, targets: Tensor) -> float:
        """The mean log-likelihood of the members' mixture, in nats."""
        each = torch.stack([self._log_likelihood(one, targets) for one in members])
        shares = weights.to(each.device, each.dtype)[:, None]
        terms = (each + shares.log()).masked_fill(shares == 0, -torch.inf)
        return terms.logsumexp(dim=0).mean().item()

    def _log_likelihood(self, outputs: Tensor, targets: Tensor) -> Tensor:
        means, scales = outputs.float().unbind(dim=1)
        if targets.shape != means.shape:
            raise ValueError(
                f"targets of normal values are {tuple(means.shape)}, got {tuple(targets.shape)}"
            )
        values, stretch = targets.float(), torch.zeros_like(means)
        if self.squashed:
            values = values.clamp(-EDGE, EDGE)
            stretch = torch.log1p(-values.square())
            values = values.atanh()
        apart = ((values - means) * (-scales).exp()).square()
        each = -apart / 2 - scales - math.log(2 * math.pi) / 2 - stretch
        return each.sum(dim=1)


@dataclass(frozen=True)
class ActionValues:
    """(batch, actions) values of numbered actions (as of DQN), of which a policy takes the
    largest, and any at all in a share `exploration` of its steps; combined, the members' means.

    Their divergence is that of these policies: the share of inputs where the largest value is
    another one's, in units of what that costs in nats. A softmax of values would be a policy that
    nobody plays: it calls values that all change alike the same, and a change of their scale, in
    which no action changes, a large one.
    """

    exploration: float = 0.05
    read: Read = read
    ways: ClassVar[tuple[Combine, ...]] = ("mean", "vote")

    def __post_init__(self) -> None:
        if not 0 < self.exploration < 1:
            raise ValueError(
                f"exploration is between 0 and 1, got {self.exploration}: without any, policies "
                "that differ are infinitely far apart"
            )

    def tensor(self, found: Any) -> Tensor:
        """(batch, actions) values."""
        return _shaped(self.read(found), (None,), "values of actions")

    def divergence(self, parent: Tensor, child: Tensor) -> Tensor:
        """KL(parent || child) of the policies that explore, in nats."""
        other = parent.argmax(dim=1) != child.argmax(dim=1)
        broken = ~(parent.isfinite().all(dim=1) & child.isfinite().all(dim=1))
        rarely = self.exploration / parent.shape[1]
        mostly = 1 - self.exploration + rarely
        cost = (mostly - rarely) * math.log(mostly / rarely)
        return other.to(parent.dtype).mul(cost).masked_fill(broken, torch.nan)

    def combined(self, members: Tensor, weights: Tensor, *, how: Combine) -> Tensor:
        """The mean of the members' values ("mean"), or each action's share of the votes."""
        if how == "vote":
            return CLASSES.combined(members, weights, how="vote").exp()
        return VALUES.combined(members, weights, how="mean")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error."""
        return VALUES.loss(outputs, targets)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """The mean squared error, negative: higher is better."""
        return VALUES.metric(outputs, targets)


@dataclass(frozen=True)
class Deterministic:
    """(batch, values): continuous actions without chance (as of TD3), within -1 and 1.

    Their divergence is that of normal actions around them with a deviation of `noise`, by which
    TD3 smooths what it learns from: so it is in nats, as the other kinds'.
    """

    noise: float = 0.2
    read: Read = read
    ways: ClassVar[tuple[Combine, ...]] = ("mean",)

    def __post_init__(self) -> None:
        if not 0 < self.noise < math.inf:
            raise ValueError(f"noise must be positive, got {self.noise}")

    def tensor(self, found: Any) -> Tensor:
        """(batch, values)."""
        return _shaped(self.read(found), (None,), "continuous actions")

    def divergence(self, parent: Tensor, child: Tensor) -> Tensor:
        """The squared difference, summed, in units of twice the noise's variance."""
        return VALUES.divergence(parent, child) / (2 * self.noise**2)

    def combined(self, members: Tensor, weights: Tensor, *, how: Combine) -> Tensor:
        """The weighted mean."""
        return VALUES.combined(members, weights, how=how)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error."""
        return VALUES.loss(outputs, targets)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """The mean squared error, negative: higher is better."""
        return VALUES.metric(outputs, targets)


def _shaped(outputs: Tensor, shape: tuple[int | None, ...], what: str) -> Tensor:
    """The outputs; a ValueError where a sample's are of another shape (None: any size)."""
    sizes = outputs.shape[1:]
    fits = len(sizes) == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, sizes, strict=True)
    )
    if not fits or not outputs.is_floating_point():
        wanted = ", ".join("n" if size is None else str(size) for size in shape)
        raise ValueError(
            f"expected (batch, {wanted}) {what}, got {tuple(outputs.shape)} of {outputs.dtype}"
        )
    return outputs
