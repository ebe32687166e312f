"""Weights that are gone: masks of exact counts, and what holds a child to its mask."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from evo_subnets import files
from evo_subnets.bindings import Binding
from evo_subnets.streams import in_double
from evo_subnets.subnetworks import Include, Params, included

Masks = dict[str, Tensor]
"""BoolTensors by parameter name, True where a weight is in the subnetwork."""
Scope = Literal["layer", "global"]


def magnitudes(params: Mapping[str, Tensor], include: Include = None) -> Params:
    """|θ| of the included parameters."""
    return {name: params[name].detach().abs() for name in included(params, include)}


def keep_highest(scores: Mapping[str, Tensor], density: float, *, scope: Scope = "layer") -> Masks:
    """Masks that keep the fraction `density` with the highest scores, rounded to whole weights.

    scope: "layer" keeps that fraction of every tensor, "global" of all together.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], got {density}")
    if scope == "layer":
        return {name: _highest(score, density).view(score.shape) for name, score in scores.items()}
    if scope != "global":
        raise ValueError(f"scope must be 'layer' or 'global', got {scope!r}")
    kept = _highest(torch.cat([score.reshape(-1) for score in scores.values()]), density)
    pieces = torch.split(kept, [score.numel() for score in scores.values()])
    return {
        name: piece.view(score.shape)
        for (name, score), piece in zip(scores.items(), pieces, strict=True)
    }


def _highest(scores: Tensor, density: float) -> Tensor:
    flat = scores.reshape(-1)
    kept = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    kept[flat.topk(round(density * flat.numel()), sorted=False).indices] = True
    return kept


def density_of(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Of each mask, the fraction that is in."""
    return {name: in_double(mask).mean().item() for name, mask in masks.items()}


class Pruned(Binding):
    """Holds weights outside the masks at exactly zero: a `tuning.Binding`.

    Their gradients are zeroed before the optimizer sees them, so that its state stays zero too.
    Weight decay does not move a zero.
    """

    def __init__(self, module: nn.Module, masks: Mapping[str, Tensor]) -> None:
        named = files.parameters_of(module)
        self.weights = [named[name] for name in masks]
        self.names = list(masks)
        self.hold(masks, None)

    def before_step(self) -> None:
        """Zeroes the gradients outside."""
        pairs = zip(self.weights, self.factors, strict=True)
        held = [(weight.grad, factor) for weight, factor in pairs if weight.grad is not None]
        if held:
            torch._foreach_mul_([grad for grad, _ in held], [factor for _, factor in held])

    @torch.no_grad()
    def hold(self, masks: Mapping[str, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        """From now on these masks: zeroes the weights outside, and what an optimizer remembers."""
        self.factors = [
            masks[name].to(weight.device, weight.dtype)
            for name, weight in zip(self.names, self.weights, strict=True)
        ]
        weights = [weight.data for weight in self.weights]
        torch._foreach_mul_(weights, self.factors)
        torch._foreach_add_(weights, 0.0)  # -0.0 becomes 0.0, whose bits are all zero as well
        if optimizer is None:
            return
        for weight, factor in zip(self.weights, self.factors, strict=True):
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(factor)


class IterativelyPruned(Pruned):
    """Removes equal shares at the beginning of each of `epochs` epochs: a `tuning.Binding`.

    `masks_at(density)` gives masks that are nested: those of a lower density lie inside those of a
    higher one (Whitaker 2023, section 6.3.1, iterative pruning).
    """

    def __init__(
        self,
        module: nn.Module,
        masks_at: Callable[[float], Masks],
        *,
        density: float,
        epochs: int,
    ) -> None:
        self.masks_at, self.density, self.epochs, self.done = masks_at, density, epochs, 0
        super().__init__(module, self._masks(1))

    def _masks(self, share: int) -> Masks:
        if share == self.epochs:
            return self.masks_at(self.density)
        return self.masks_at(1 - (1 - self.density) * share / self.epochs)

    def before_pass(self, epoch: float, optimizer: torch.optim.Optimizer) -> None:
        """Prunes where an epoch begins."""
        begun = min(int(epoch), self.epochs - 1)
        if begun > self.done:
            self.done = begun
            self.hold(self._masks(begun + 1), optimizer)
