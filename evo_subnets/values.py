"""Outputs that are real values, or the parameters of a distribution; kinds of output in files."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.distributions as td
import torch.nn.functional as F
from torch import Tensor

from evo_subnets.answers import (
    Read,
    aligned,
    by_member,
    check_alike,
    check_numbers,
    mean_of,
    tensor_in,
    weighted,
)
from evo_subnets.outputs import Binary, Classes, Combine, Outputs


@dataclass(frozen=True)
class Values:
    """Real values. Divergence is the squared difference, averaged over all values (Whitaker 2023,
    eq. 4.4, which sums over a sample's), in the outputs' unit squared. Members give their mean,
    `Ensemble.spread` their standard deviation as well. Loss is the mean squared error, metric its
    negative."""

    read: Read = tensor_in
    """What finds the tensor in what the network returns."""

    combines: ClassVar[tuple[Combine, ...]] = ("mean",)

    def divergence(self, parent: Tensor, child: Tensor) -> float:
        check_alike(parent, child)
        check_numbers(parent, self)
        return mean_of((parent.double() - child.double()).square())

    def combined(self, members: Tensor, weights: Tensor, *, combine: Combine) -> Tensor:
        check_numbers(members[0], self)
        return weighted(members, by_member(weights, members))

    def spread(self, members: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.combined(members, weights, combine="mean")
        return mean, weighted((members - mean).square(), by_member(weights, members)).sqrt()

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        aligned(targets, outputs.shape)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        return F.mse_loss(outputs.to(dtype), aligned(targets, outputs.shape).to(dtype))

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        difference = outputs.double() - aligned(targets, outputs.shape).double()
        return -difference.square().mean().item()


@dataclass(frozen=True)
class Distribution:
    """Parameters of a distribution. Divergence is torch's `kl_divergence` of what `make` makes,
    loss the negative log-likelihood, metric the log-likelihood, each a mean.

    Members give the mean of their mixture, which is no parameter: an ensemble's log-likelihood is
    that of `mixture`, and its spread the mixture's standard deviation.
    """

    make: Callable[[Tensor], td.Distribution]
    """A batch's outputs to a distribution: `lambda out: Normal(out[:, 0], out[:, 1].exp())`."""
    read: Read = tensor_in
    """What finds the tensor in what the network returns."""

    combines: ClassVar[tuple[Combine, ...]] = ("mean",)

    def divergence(self, parent: Tensor, child: Tensor) -> float:
        check_alike(parent, child)
        check_numbers(parent, self)
        if parent.isnan().any() or child.isnan().any():
            return math.nan
        one, other = self.made(parent.double()), self.made(child.double())
        try:
            return mean_of(td.kl_divergence(one, other))
        except NotImplementedError:
            raise ValueError(
                f"torch has no KL divergence of a {type(one).__name__}: make another distribution, "
                "or take outputs=Values() for a trust region"
            ) from None

    def combined(self, members: Tensor, weights: Tensor, *, combine: Combine) -> Tensor:
        return self.mixture(members, weights).mean

    def spread(self, members: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        found = self.mixture(members, weights)
        return found.mean, found.variance.sqrt()

    def check_targets(self, outputs: Tensor, targets: Tensor) -> None:
        made = self.made(outputs)
        wanted = aligned(targets, made.batch_shape + made.event_shape)
        support: Any = made.support
        if support is not None and not bool(support.check(wanted).all()):
            raise ValueError(f"targets are outside of what a {type(made).__name__} can give")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        made = self.made(outputs.to(torch.promote_types(outputs.dtype, torch.float32)))
        return -made.log_prob(aligned(targets, made.batch_shape + made.event_shape)).mean()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        if outputs.isnan().any():
            return math.nan
        return -self.loss(outputs, targets).item()

    def made(self, outputs: Tensor) -> td.Distribution:
        """What `make` makes; a ValueError where that is no distribution of numbers."""
        check_numbers(outputs, self)
        found: Any = self.make(outputs)
        if not isinstance(found, td.Distribution):
            raise ValueError(
                f"make must give a torch.distributions.Distribution, got a {type(found).__name__}"
            )
        if isinstance(found, td.Categorical):
            raise ValueError("a Categorical's outputs are logits: take outputs=Classes()")
        return found

    def mixture(self, members: Tensor, weights: Tensor) -> "Mixture":
        """The members' distributions with their weights."""
        pairs = zip(members, weights.tolist(), strict=True)
        kept = [(self.made(member), weight) for member, weight in pairs if weight]
        return Mixture(tuple(made for made, _ in kept), tuple(weight for _, weight in kept))


@dataclass(frozen=True)
class Mixture:
    """Distributions of the same samples, each with its weight: the outputs of an ensemble."""

    parts: tuple[td.Distribution, ...]
    weights: tuple[float, ...]

    @property
    def mean(self) -> Tensor:
        """(samples, ...)."""
        return self._sum([_number(part, "mean") for part in self.parts])

    @property
    def variance(self) -> Tensor:
        """(samples, ...): the members' own, and that of their means."""
        means = [_number(part, "mean") for part in self.parts]
        own = [_number(part, "variance") for part in self.parts]
        mean = self._sum(means)
        apart = [(each - mean).square() for each in means]
        return self._sum([a + b for a, b in zip(own, apart, strict=True)])

    def log_prob(self, targets: Tensor) -> Tensor:
        """(samples, ...) log-likelihoods."""
        logs = [
            part.log_prob(aligned(targets, part.batch_shape + part.event_shape)) + math.log(weight)
            for part, weight in zip(self.parts, self.weights, strict=True)
        ]
        return torch.stack(logs).logsumexp(dim=0)

    def sample(self) -> Tensor:
        """(samples, ...) draws from torch's global generator."""
        draws = torch.stack([part.sample() for part in self.parts])
        rows = torch.arange(draws.shape[1], device=draws.device)
        weights = torch.tensor(self.weights, device=draws.device)
        return draws[torch.multinomial(weights, len(rows), replacement=True), rows]

    def _sum(self, each: list[Tensor]) -> Tensor:
        pairs = zip(each, self.weights, strict=True)
        return torch.stack([tensor * weight for tensor, weight in pairs]).sum(dim=0)


def _number(part: td.Distribution, name: str) -> Tensor:
    try:
        found: Tensor = getattr(part, name)
    except NotImplementedError:
        raise ValueError(f"torch knows no {name} of a {type(part).__name__}") from None
    return found


KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Classes, Binary, Values)}
"""Those that a file can name; functions are given again."""


def as_written(outputs: Outputs) -> dict[str, Any] | None:
    """A kind as JSON: its name and its fields that are no functions; None of `Classes()`."""
    if outputs == Classes():
        return None
    given = {
        field.name: getattr(outputs, field.name)
        for field in fields(outputs)  # type: ignore[arg-type]
        if not callable(getattr(outputs, field.name))
    }
    functions = [
        field.name
        for field in fields(outputs)  # type: ignore[arg-type]
        if callable(getattr(outputs, field.name)) and getattr(outputs, field.name) is not tensor_in
    ]
    return {"kind": type(outputs).__name__, "options": given, "functions": functions}


def as_read(written: dict[str, Any] | None, given: Outputs | None) -> Outputs:
    """The kind that a file names, or that is given: a ValueError where a file's functions are not
    given again, or another kind is."""
    if written is None:
        return Classes() if given is None else given
    kind, functions = written["kind"], written["functions"]
    if given is None and not functions and kind in KINDS:
        found: Outputs = KINDS[kind](**written["options"])
        return found
    if given is None or type(given).__name__ != kind:
        raise ValueError(
            f"the file's outputs are {kind}"
            + (f", with a function for {' and '.join(functions)}, as no file keeps" if functions
               else "")
            + f": load it with outputs={kind}(...)"
        )  # fmt: skip
    return given
