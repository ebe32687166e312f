"""Dynamic sparse training: connections that are dropped and grown while a network is trained.

SET (Mocanu et al. 2018) grows at random, RigL (Evci et al. 2020) where the gradient is largest. How
many connections each layer has never changes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from evo_subnets.bindings import State
from evo_subnets.pruning import Masks, Pruned
from evo_subnets.streams import check_seed, derive_seed, uniform

Distribution = Literal["uniform", "er", "erk"]
Growth = Literal["gradient", "random"]
Decay = Literal["constant", "cosine"]


def layer_densities(
    shapes: Mapping[str, Sequence[int]], sparsity: float, *, distribution: Distribution = "erk"
) -> dict[str, float]:
    """Densities by name that leave 1 - `sparsity` of all weights together.

    shapes: (outputs, inputs, ...) of each weight. "uniform": the same everywhere. "er" (Mocanu et
    al. 2018): proportional to (inputs + outputs) / (inputs * outputs), of convolutions as well;
    "erk" (Evci et al. 2020) counts a kernel's height and width in the sum and in the product. A
    layer that would be more than dense is dense, and the others are solved for anew.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    if distribution == "uniform":
        return dict.fromkeys(shapes, 1 - sparsity)
    if distribution not in ("er", "erk"):
        raise ValueError(f"distribution must be 'uniform', 'er' or 'erk', got {distribution!r}")
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    counted = {
        name: tuple(shape) if distribution == "erk" else tuple(shape[:2])
        for name, shape in shapes.items()
    }
    raw = {name: sum(shape) / math.prod(shape) for name, shape in counted.items()}
    wanted, dense = (1 - sparsity) * sum(sizes.values()), set[str]()
    while True:
        sparse = [name for name in shapes if name not in dense]
        left = wanted - sum(sizes[name] for name in dense)
        scale = left / sum(raw[name] * sizes[name] for name in sparse) if sparse else 0.0
        full = {name for name in sparse if scale * raw[name] >= 1}
        if not full:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense |= full


def random_masks(
    params: Mapping[str, Tensor], densities: Mapping[str, float], *, seed: int
) -> Masks:
    """Masks drawn at random, of exact counts; a ValueError where a layer would be empty."""
    found = {}
    for name, density in densities.items():
        weight = params[name]
        count = round(density * weight.numel())
        if count < 1:
            raise ValueError(
                f"{name} has {weight.numel()} weights, of which a density of {density:.3g} leaves "
                "none: take a lower sparsity"
            )
        draw = uniform(seed, name, count=weight.numel(), device=weight.device)
        mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[draw.topk(count, sorted=False).indices] = True
        found[name] = mask.view(weight.shape)
    return found


@dataclass(frozen=True)
class Rewiring:
    """When and how connections are dropped and grown."""

    growth: Growth = "gradient"
    """Where: of the weights that are out, those of the largest gradients (RigL), or any (SET)."""
    fraction: float = 0.5
    """p: of a layer's connections, those of the smallest magnitudes, that are dropped each time."""
    decay: Decay = "constant"
    """Whether that fraction stays, or falls to 0 by a half cosine until the last update."""
    interval: int | None = None
    """ΔT: training steps between two updates. None: a hundredth of the training (Liu et al. 2022
    have 1,000 of 97,750), or 100 where that is more, for what was grown must have time to grow; but
    a quarter of a training shorter than that."""
    until: float = 1.0
    """T_end: no updates after this fraction of the training (RigL has 0.75)."""

    def __post_init__(self) -> None:
        for name, known in (("growth", ("gradient", "random")), ("decay", ("constant", "cosine"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for name in ("fraction", "until"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.interval is not None and self.interval < 1:
            raise ValueError(f"interval must be at least 1 step, got {self.interval}")

    def every(self, steps: int) -> int:
        """The interval, of a training of so many steps; a ValueError where it is longer."""
        interval = self.interval or max(1, round(steps / 100), min(100, steps // 4))
        if interval > steps:
            raise ValueError(
                f"an interval of {interval} steps is longer than the training, {steps} steps: "
                "nothing would be rewired"
            )
        return interval

    def dropped(self, step: int, steps: int) -> float:
        """The fraction that is dropped after a step, numbered from 1; 0 where nothing is."""
        last = self.until * steps
        if step % self.every(steps) or step > last or step == steps:
            return 0.0
        if self.decay == "constant":
            return self.fraction
        return self.fraction / 2 * (1 + math.cos(math.pi * step / last))


class Rewired(Pruned):
    """A network whose connections move while it is tuned: a `tuning.Binding`.

    After every interval the connections of the smallest magnitudes are dropped (eq. 1 of Liu et al.
    2022), and as many grown (eq. 2), at zero, which may be some of those just dropped. What is out
    is zero, and so is what the optimizer remembers of it and of what was just grown.

    steps: of the whole training. `restarts`: epochs at whose beginning a larger fraction of the
    connections, `escape`, is rewired before the step (algorithm 1, line 20).
    """

    def __init__(
        self,
        module: nn.Module,
        masks: Masks,
        *,
        rewiring: Rewiring,
        steps: int,
        restarts: Sequence[float] = (),
        escape: float = 0.8,
        seed: int = 0,
    ) -> None:
        super().__init__(module, masks)
        rewiring.every(steps)  # refuses an interval that is too long
        self.rewiring, self.steps, self.escape = rewiring, steps, escape
        self.restarts = tuple(restarts)
        self.step, self.restarted, self.seed = 0, 0, check_seed(seed)
        self._optimizer: torch.optim.Optimizer | None = None
        self._gradients: list[Tensor] = []
        self._restart = False

    @property
    def masks(self) -> Masks:
        """As they are now."""
        return {name: factor.bool() for name, factor in zip(self.names, self.factors, strict=True)}

    def before_pass(self, epoch: float, optimizer: torch.optim.Optimizer) -> None:
        """Notes where a restart is due; the gradients that it needs come with the pass."""
        self._optimizer = optimizer
        due = sum(epoch >= at for at in self.restarts)
        if due > self.restarted:
            self.restarted, self._restart = due, True

    def before_step(self) -> None:
        """Restarts, keeps the gradients that growing needs, and zeroes those outside."""
        if self._restart:
            self._restart = False
            self.rewire(self.escape, self._dense_gradients())
        if self.rewiring.dropped(self.step + 1, self.steps):
            self._gradients = [gradient.clone() for gradient in self._dense_gradients()]
        super().before_step()

    def after_step(self) -> None:
        """Drops and grows, where an interval is over."""
        self.step += 1
        fraction = self.rewiring.dropped(self.step, self.steps)
        if fraction:
            self.rewire(fraction, self._gradients)
            self._gradients = []

    @torch.no_grad()
    def rewire(self, fraction: float, gradients: Sequence[Tensor]) -> None:
        """Drops the fraction of each layer's connections and grows as many.

        gradients: of each weight, also of those that are out.
        """
        masks, kept = {}, {}
        for name, weight, factor, gradient in zip(
            self.names, self.weights, self.factors, gradients, strict=True
        ):
            there = factor.bool().flatten()
            count = round(fraction * int(there.sum()))
            size = weight.detach().abs().flatten().masked_fill(~there, math.inf)
            stays = there.clone()
            stays[size.topk(count, largest=False, sorted=False).indices] = False
            if self.rewiring.growth == "gradient":
                score = gradient.abs().flatten()
            else:
                seed = derive_seed(self.seed, "growth", self.step, self.restarted)
                score = uniform(seed, name, count=weight.numel(), device=weight.device)
            score = score.masked_fill(stays, -math.inf)
            now = stays.clone()
            now[score.topk(count, sorted=False).indices] = True
            masks[name], kept[name] = now.view(weight.shape), stays.view(weight.shape)
        self.hold(kept, self._optimizer)  # what is grown begins at zero, and is not remembered
        self.hold(masks, None)

    def _dense_gradients(self) -> list[Tensor]:
        return [
            torch.zeros_like(weight) if weight.grad is None else weight.grad
            for weight in self.weights
        ]

    def state_dict(self) -> State:
        """Masks and counts."""
        counts = torch.tensor([self.step, self.restarted])
        return {"counts": counts, **{f"mask.{name}": mask for name, mask in self.masks.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse."""
        self.step, self.restarted = state["counts"].tolist()
        masks = {name: state[f"mask.{name}"] for name in self.names}
        self.hold(masks, None)
