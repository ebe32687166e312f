"""What a network's outputs mean: how far two are apart, how several become one, what is learned.

A kind of output is given once, as `outputs=`, to a trust region, an `Ensemble` and a `Task`; their
divergence, combination, loss and metric follow it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Combine = Literal["mean", "vote", "logits"]
Read = Callable[[Any], Tensor]
IGNORED = -100
"""The label of positions that are in no class, as of torch's cross entropy."""
USUAL = ("logits", "out", "output", "prediction", "predictions")
"""What the tensor is called that networks return among others."""


class Outputs(Protocol):
    """A kind of output: `Classes`, `Binary`, `Values`, `Distribution`, those of `actions`, or
    one's own."""

    @property
    def ways(self) -> tuple[Combine, ...]:
        """How members can be combined."""

    def tensor(self, found: Any) -> Tensor:
        """(batch, ...): the outputs in what a module returned; a ValueError where they are not of
        this kind."""

    def divergence(self, parent: Tensor, child: Tensor) -> Tensor:
        """(batch,) how far the child's are from the parent's, zero where they are equal."""

    def combined(self, members: Tensor, weights: Tensor, *, how: Combine) -> Tensor:
        """(batch, ...): of (members, batch, ...) outputs and (members,) weights that sum to 1."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What training descends: the mean over a batch."""

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """What selection wants high."""


def check_combine(combine: str, outputs: Outputs) -> None:
    """A ValueError where members of this kind of outputs cannot be combined so."""
    if combine not in get_args(Combine):
        raise ValueError(f"combine must be one of {get_args(Combine)}, got {combine!r}")
    if combine not in outputs.ways:
        raise ValueError(
            f"combine {combine!r} means nothing for {type(outputs).__name__}, whose members "
            f"are combined by {' or '.join(outputs.ways)}"
        )


def read(found: Any) -> Tensor:
    """The tensor of outputs in what a module returned.

    A tensor itself; the entry or attribute `logits` (as in `transformers`, and in torchvision's
    training outputs, whose auxiliary ones are left aside), `out`, or the only tensor of a mapping;
    the first of a tuple. A ValueError names what came instead.
    """
    if isinstance(found, Tensor):
        return found
    for name in USUAL:
        value = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(found, Mapping):
        tensors = [value for value in found.values() if isinstance(value, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
        what = f"a mapping of {', '.join(map(str, found)) or 'nothing'}"
    elif isinstance(found, tuple | list) and found and isinstance(found[0], Tensor):
        first: Tensor = found[0]
        return first
    else:
        what = f"a {type(found).__name__}"
    raise ValueError(
        f"the network returned {what}: say which tensor is meant, for example "
        "outputs=Classes(read=lambda found: found['scores'])"
    )


@dataclass(frozen=True)
class Classes:
    """Logits of classes that exclude each other; the combined outputs are log-probabilities.

    `axis`: of the classes; None: outputs are (batch, classes). Name it where there are more
    dimensions: 1 for segmentation (batch, classes, height, width), -1 for (batch, time, classes).
    """

    axis: int | None = None
    read: Read = read
    ways: ClassVar[tuple[Combine, ...]] = ("mean", "vote", "logits")

    def tensor(self, found: Any) -> Tensor:
        """The logits; a ValueError where there is one class, or the axis is not known."""
        logits = _floating(self.read(found))
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return logits  # a tracer's shapes are no numbers
        if self.axis is None and logits.ndim != 2:
            raise ValueError(
                f"expected (batch, classes) outputs, got {tuple(logits.shape)}: name the classes' "
                "axis, outputs=Classes(axis=1) for segmentation or axis=-1 for sequences, or use "
                "Binary() for one logit a sample, Values() for real values"
            )
        axis = 1 if self.axis is None else self.axis
        if not (0 < axis < logits.ndim or -logits.ndim < axis < 0):
            raise ValueError(
                f"outputs of shape {tuple(logits.shape)} have no classes on axis {axis}"
            )
        if logits.shape[axis] == 1:
            raise ValueError(
                "one output cannot be classes, which exclude each other: use outputs=Binary() for "
                "a logit, or Values() for a real value"
            )
        return logits

    def divergence(self, parent: Tensor, child: Tensor) -> Tensor:
        """KL(parent || child) of their softmax in nats (Whitaker 2023, eq. 4.5), the mean over
        positions. A class of probability zero in the parent counts for nothing."""
        axis = self._axis
        log_p, log_q = parent.log_softmax(dim=axis), child.log_softmax(dim=axis)
        impossible = log_p == -torch.inf
        terms = torch.where(impossible, 0.0, log_p.exp() * (log_p - log_q))
        return _mean_of_positions(terms.sum(dim=axis))

    def combined(self, members: Tensor, weights: Tensor, *, how: Combine) -> Tensor:
        """Log-probabilities. "mean" averages softmax probabilities, "logits" the logits, "vote"
        counts most likely classes, and gives NaN where a member's outputs are NaN."""
        axis = self._axis + (self._axis >= 0)
        shares = _shaped(weights, members)
        if how == "logits":
            weighted = torch.where(shares == 0, 0.0, members * shares)  # zero times -inf
            return weighted.sum(dim=0).log_softmax(dim=self._axis)
        if how == "vote":
            likely = members.argmax(dim=axis, keepdim=True)
            votes = torch.zeros_like(members).scatter_(axis, likely, 1.0)
            votes = votes.masked_fill(members.isnan().any(dim=axis, keepdim=True), torch.nan)
            return torch.where(shares == 0, 0.0, votes * shares).sum(dim=0).log()
        return _log_shares(members.log_softmax(dim=axis), shares).logsumexp(dim=0)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats, of labels or of probabilities of the outputs' shape."""
        logits = outputs.float().movedim(self._axis, 1)
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise ValueError(
                    f"targets of classes are whole-numbered labels, or probabilities of shape "
                    f"{tuple(outputs.shape)}, got {tuple(targets.shape)} of {targets.dtype}"
                )
            if not bool(((targets.float().sum(dim=self._axis) - 1).abs() < 1e-2).all()):
                raise ValueError(
                    "targets of classes that are probabilities sum to 1 for each sample; several "
                    "labels a sample are outputs=Binary()"
                )
            return F.cross_entropy(logits, targets.float().movedim(self._axis, 1))
        self._check(outputs, targets)
        try:
            return F.cross_entropy(logits, targets.long())
        except IndexError:
            raise ValueError(
                f"labels of {logits.shape[1]} classes must be in 0..{logits.shape[1] - 1}, got "
                f"{int(targets.min())}..{int(targets.max())}"
            ) from None

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """The fraction of positions whose most likely class is the target; NaN is no class.
        Positions of label -100 are left out, as the loss does."""
        self._check(outputs, targets)
        right = outputs.argmax(dim=self._axis) == targets
        right &= ~outputs.isnan().any(dim=self._axis)
        return right[targets != IGNORED].cpu().double().mean().item()

    @property
    def _axis(self) -> int:
        return 1 if self.axis is None else self.axis

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        positions = outputs.movedim(self._axis, 1)[:, 0].shape
        if targets.shape != positions or targets.is_floating_point():
            raise ValueError(
                f"outputs {tuple(outputs.shape)} go with whole-numbered labels of shape "
                f"{tuple(positions)}, got {tuple(targets.shape)} of {targets.dtype}"
            )


@dataclass(frozen=True)
class Binary:
    """Logits of yes or no, each of its own; so are the combined outputs."""

    read: Read = read
    ways: ClassVar[tuple[Combine, ...]] = ("mean", "vote", "logits")

    def tensor(self, found: Any) -> Tensor:
        """(batch, ...) logits."""
        return _batched(self.read(found))

    def divergence(self, parent: Tensor, child: Tensor) -> Tensor:
        """KL(parent || child) of Bernoulli's in nats, the mean over a sample's logits."""
        terms = torch.zeros_like(parent)
        for sign in (1.0, -1.0):
            log_p, log_q = F.logsigmoid(sign * parent), F.logsigmoid(sign * child)
            impossible = log_p == -torch.inf
            terms = terms + torch.where(impossible, 0.0, log_p.exp() * (log_p - log_q))
        return _mean_of_positions(terms)

    def combined(self, members: Tensor, weights: Tensor, *, how: Combine) -> Tensor:
        """The logit of the mean probability ("mean"), of the share of votes, or the mean logit."""
        shares = _shaped(weights, members)
        if how == "logits":
            return torch.where(shares == 0, 0.0, members * shares).sum(dim=0)
        if how == "vote":
            votes = (members > 0).to(members.dtype).masked_fill(members.isnan(), torch.nan)
            return torch.where(shares == 0, 0.0, votes * shares).sum(dim=0).logit()
        yes, no = (
            _log_shares(F.logsigmoid(sign * members), shares).logsumexp(dim=0)
            for sign in (1.0, -1.0)
        )
        return yes - no

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy in nats."""
        wanted = _alike(outputs, targets, "zeros and ones")
        if not bool(((wanted >= 0) & (wanted <= 1)).all()):
            raise ValueError(
                "targets of yes or no are 0 and 1, or probabilities between, got "
                f"{wanted.min().item():g} to {wanted.max().item():g}"
            )
        return F.binary_cross_entropy_with_logits(outputs.float(), wanted)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """The fraction of logits on the right side of zero; NaN is on neither."""
        right = (outputs > 0) == (_alike(outputs, targets, "zeros and ones") > 0.5)
        return (right & ~outputs.isnan()).cpu().double().mean().item()


@dataclass(frozen=True)
class Values:
    """Real values; combined they are the members' mean."""

    read: Read = read
    ways: ClassVar[tuple[Combine, ...]] = ("mean",)

    def tensor(self, found: Any) -> Tensor:
        """(batch, ...) values."""
        return _batched(self.read(found))

    def divergence(self, parent: Tensor, child: Tensor) -> Tensor:
        """The squared difference, summed over a sample's values (Whitaker 2023, eq. 4.4)."""
        return (parent - child).square().flatten(1).sum(dim=1) if parent.ndim > 1 else (
            (parent - child).square()
        )  # fmt: skip

    def combined(self, members: Tensor, weights: Tensor, *, how: Combine) -> Tensor:
        """The weighted mean."""
        shares = _shaped(weights, members)
        return torch.where(shares == 0, 0.0, members * shares).sum(dim=0)

    def spread(self, members: Tensor, weights: Tensor) -> Tensor:
        """(batch, ...): the members' weighted standard deviation around their mean."""
        mean = self.combined(members, weights, how="mean")
        return self.combined((members - mean).square(), weights, how="mean").sqrt()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean squared error."""
        return F.mse_loss(outputs.float(), _alike(outputs, targets, "values"))

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """The mean squared error, negative: higher is better."""
        error = outputs.float() - _alike(outputs, targets, "values")
        return -error.cpu().double().square().mean().item()


@dataclass(frozen=True)
class Distribution:
    """Parameters of a distribution, which `make` makes of a (batch, ...) tensor of them, for
    example `lambda x: Normal(x[:, 0], x[:, 1].exp())`; combined they are the mixture's mean."""

    make: Callable[[Tensor], torch.distributions.Distribution]
    read: Read = read
    ways: ClassVar[tuple[Combine, ...]] = ("mean",)

    def tensor(self, found: Any) -> Tensor:
        """(batch, ...) parameters."""
        return _batched(self.read(found))

    def divergence(self, parent: Tensor, child: Tensor) -> Tensor:
        """KL(parent || child) in nats, summed over a sample's distributions."""
        before, after = self._made(parent), self._made(child)
        try:
            found = torch.distributions.kl_divergence(before, after)
        except NotImplementedError:
            raise ValueError(f"torch knows no KL divergence of a {type(before).__name__}") from None
        return found.flatten(1).sum(dim=1) if found.ndim > 1 else found

    def combined(self, members: Tensor, weights: Tensor, *, how: Combine) -> Tensor:
        """The mean of the members' means, which is the mixture's."""
        return VALUES.combined(self._all(members, "mean"), weights, how="mean")

    def spread(self, members: Tensor, weights: Tensor) -> Tensor:
        """(batch, ...): the mixture's standard deviation."""
        means, variances = self._all(members, "mean"), self._all(members, "variance")
        within = VALUES.combined(variances, weights, how="mean")
        return (within + VALUES.spread(means, weights).square()).sqrt()

    def mixture_metric(self, members: Tensor, weights: Tensor, *, targets: Tensor) -> float:
        """The mean log-likelihood of the members' mixture, in nats."""
        each = torch.stack([self._log_likelihood(one, targets) for one in members])
        shares = _shaped(weights, each)
        return _log_shares(each, shares).logsumexp(dim=0).mean().item()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean negative log-likelihood, in nats."""
        return -self._log_likelihood(outputs, targets).mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """The mean log-likelihood, in nats."""
        return self._log_likelihood(outputs, targets).mean().item()

    def _all(self, members: Tensor, what: Literal["mean", "variance"]) -> Tensor:
        return torch.stack([getattr(self._made(each), what) for each in members])

    def _log_likelihood(self, outputs: Tensor, targets: Tensor) -> Tensor:
        made = self._made(outputs.float())
        one = torch.empty(made.batch_shape + made.event_shape, device="meta")
        found: Tensor = made.log_prob(_alike(one, targets, "values"))
        return found

    def _made(self, outputs: Tensor) -> torch.distributions.Distribution:
        found = self.make(outputs)
        if not isinstance(found, torch.distributions.Distribution):
            raise ValueError(
                "the function of Distribution(make) must give a torch.distributions.Distribution, "
                f"got a {type(found).__name__}"
            )
        if isinstance(found, torch.distributions.Categorical):
            raise ValueError("numbered classes have no mean: take outputs=Classes()")
        return found


CLASSES, VALUES = Classes(), Values()


def already_read(kind: Outputs) -> Outputs:
    """The kind, of tensors that its own `read` has found in what a module returned."""
    if is_dataclass(kind) and any(option.name == "read" for option in fields(kind)):
        return replace(kind, read=read)
    return kind


def _batched(outputs: Tensor) -> Tensor:
    if not outputs.ndim:
        raise ValueError("expected outputs for each sample of a batch, got a single number")
    return _floating(outputs)


def _floating(outputs: Tensor) -> Tensor:
    if not outputs.is_floating_point():
        raise ValueError(f"outputs are floating-point numbers, got {outputs.dtype}")
    return outputs


def _mean_of_positions(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1) if values.ndim > 1 else values


def _log_shares(logarithms: Tensor, shares: Tensor) -> Tensor:
    """Of members' probabilities times their shares; a share of zero is none, also of NaN."""
    return (logarithms + shares.log()).masked_fill(shares == 0, -torch.inf)


def _shaped(weights: Tensor, members: Tensor) -> Tensor:
    return weights.to(members.device, members.dtype).view(-1, *[1] * (members.ndim - 1))


def _alike(outputs: Tensor, targets: Tensor, what: str) -> Tensor:
    """Targets in float32 and of the outputs' shape; (batch,) ones fit (batch, 1) outputs."""
    as_many = targets.ndim and targets.numel() == outputs.numel() and len(targets) == len(outputs)
    if as_many:
        targets = targets.reshape(outputs.shape)
    if targets.shape != outputs.shape:
        raise ValueError(
            f"outputs {tuple(outputs.shape)} go with {what} of the same shape, got "
            f"{tuple(targets.shape)}"
        )
    return targets.float()
