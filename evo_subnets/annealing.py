"""Stochastic masks that cool to a subnetwork (Whitaker 2023, section 6.2)."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from evo_subnets import files
from evo_subnets.bindings import Binding, State
from evo_subnets.pruning import Masks, Pruned
from evo_subnets.streams import derive_seed, normal, uniform
from evo_subnets.subnetworks import Params

Decay = Literal["linear", "cosine", "exponential"]
EXPONENT = 5.0
"""k of eq. 6.4; what is left after the last annealing epoch, e^-k, is cut off."""


def decayed(decay: Decay, fraction: float) -> float:
    """From 1 at fraction 0 to 0 at fraction 1 (eq. 6.2, 6.3 and 6.4 with τ between 0 and 1).

    Equation 6.3 is printed without the π that makes a cosine arrive at its minimum.
    """
    if fraction >= 1:
        return 0.0
    if decay == "linear":
        return 1 - fraction
    if decay == "cosine":
        return (1 + math.cos(math.pi * fraction)) / 2
    if decay == "exponential":
        return math.exp(-EXPONENT * fraction)
    raise ValueError(f"decay must be 'linear', 'cosine' or 'exponential', got {decay!r}")


def random_probabilities(
    masks: Mapping[str, Tensor], seed: int, *, opposed: bool = False
) -> Params:
    """A uniform start (section 6.2.1): every weight is active with a probability u of its own.

    u is the draw of `Subnetwork(seed, ...)`; a weight anneals to 1 where `masks` is True. `opposed`
    gives 1 - u, the start of the other child of a pair (eq. 6.1).
    """
    start = {}
    for name, mask in masks.items():
        u = uniform(seed, name, count=mask.numel(), device=mask.device).view(mask.shape)
        start[name] = 1 - u if opposed else u
    return start


def temperature_probabilities(
    masks: Mapping[str, Tensor], temperature: float, *, both: bool = False
) -> Params:
    """`temperature` for the weights outside the masks, 1 inside (section 6.2.2, eq. 6.6).

    With `both` the weights inside give as much as those outside get: 1 - temperature.
    """
    if not 0 <= temperature <= 1:
        raise ValueError(f"a temperature is a probability in [0, 1], got {temperature}")
    inside = 1 - temperature if both else 1.0
    return {
        name: torch.where(mask, torch.tensor(inside), torch.tensor(temperature))
        for name, mask in masks.items()
    }


def gaussian_probabilities(
    masks: Mapping[str, Tensor],
    seed: int,
    *,
    outside: tuple[float, float] = (0.25, 0.1),
    inside: tuple[float, float] = (0.75, 0.1),
) -> Params:
    """Probabilities from two Gaussians, chosen by the mask, clipped to [0, 1] (eq. 6.5).

    `outside` and `inside` are mean and standard deviation of the weights where the mask is False
    and True.
    """
    start = {}
    for name, mask in masks.items():
        noise = normal(seed, name, count=mask.numel(), device=mask.device).view(mask.shape)
        drawn_inside, drawn_outside = (mean + sd * noise for mean, sd in (inside, outside))
        start[name] = torch.where(mask, drawn_inside, drawn_outside).clamp(0, 1)
    return start


class Annealed(Binding):
    """Puts weights on probation, until only the subnetwork is left: a `tuning.Binding`.

    Before every forward pass each weight is kept with a probability of its own, a Bernoulli draw.
    The probability moves from its start to the mask's 0 or 1: P = X + (P_0 - X) y, where y decays
    over `epochs` epochs. Weights that are out of a pass keep their values for later ones, and get
    no gradient. When the epochs are over, the weights outside are gone for good (see `Pruned`).
    """

    def __init__(
        self,
        module: nn.Module,
        masks: Masks,
        *,
        probabilities: Params,
        epochs: float,
        decay: Decay = "cosine",
        seed: int = 0,
    ) -> None:
        if epochs <= 0:
            raise ValueError(f"annealing takes more than 0 epochs, got {epochs}")
        decayed(decay, 0.0)  # refuses an unknown one
        self.module, self.masks, self.epochs, self.decay = module, masks, epochs, decay
        named = files.parameters_of(module)
        self.weights = [named[name] for name in masks]
        self.targets = [mask.float() for mask in masks.values()]
        self.distances = [
            probabilities[name] - target for name, target in zip(masks, self.targets, strict=True)
        ]
        device = self.weights[0].device
        self.generator = torch.Generator(device)
        self.generator.manual_seed(derive_seed(seed, "masks"))
        self.kept: list[Tensor] = []
        self.drawn: list[Tensor] = []
        self.pruned: Pruned | None = None

    @torch.no_grad()
    def before_pass(self, epoch: float, optimizer: torch.optim.Optimizer) -> None:
        """Draws the masks of this pass."""
        if self.pruned is not None:
            return
        remaining = decayed(self.decay, epoch / self.epochs)
        if remaining == 0:
            self.pruned = Pruned(self.module, self.masks)
            self.pruned.hold(self.masks, optimizer)
            return
        chances = torch._foreach_mul(self.distances, remaining)
        torch._foreach_add_(chances, self.targets)
        self.drawn = [
            torch.empty_like(chance).uniform_(generator=self.generator).lt(chance).to(weight.dtype)
            for chance, weight in zip(chances, self.weights, strict=True)
        ]
        self.kept = [weight.detach().clone() for weight in self.weights]
        torch._foreach_mul_([weight.data for weight in self.weights], self.drawn)

    def state_dict(self) -> State:
        """Where its draws are."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse."""
        self.generator.set_state(state["generator"])

    @torch.no_grad()
    def before_step(self) -> None:
        """Brings back the weights that were out; the gradient of those is zero."""
        if self.pruned is not None:
            self.pruned.before_step()
            return
        for weight, kept, drawn in zip(self.weights, self.kept, self.drawn, strict=True):
            weight.data.copy_(kept)
            if weight.grad is not None:
                weight.grad.mul_(drawn)
