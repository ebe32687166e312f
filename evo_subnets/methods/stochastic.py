"""Stochastic subnetwork ensembles: pruning annealed (Whitaker 2023, chapter 6)."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from evo_subnets.annealing import (
    Annealed,
    Decay,
    gaussian_probabilities,
    random_probabilities,
    temperature_probabilities,
)
from evo_subnets.data import Augmentation, Images
from evo_subnets.evolution import Mapper
from evo_subnets.methods.sparse import Pruning, finished
from evo_subnets.methods.trained import (
    OnEpoch,
    Trained,
    checkpoint_of,
    epochs_of,
    trained_members,
)
from evo_subnets.pruning import IterativelyPruned, Masks, Pruned
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import Params, Subnetwork
from evo_subnets.tuning import Binding, Tuning, reestimate_norms, tune
from evo_subnets.workers import Here


@dataclass(frozen=True)
class Annealing:
    """How the weights outside a subnetwork go. The defaults are Whitaker 2023, section 6.3.2."""

    start: Literal["temperature", "random", "gaussian", "iterative", "one-shot"] = "temperature"
    """Probabilities to begin with (see `annealing`); or the comparisons: 'iterative' removes an
    equal share of the weights at the beginning of each epoch, 'one-shot' all at once."""
    epochs: float = 3
    """Tuning epochs until only the subnetwork is left; whole ones for 'iterative'."""
    decay: Decay = "cosine"
    """How the probabilities move."""
    temperature: float = 0.5
    """Chance that a weight outside the subnetwork begins with."""
    both: bool = False
    """Whether weights inside begin with a chance of 1 - temperature, instead of 1."""

    def __post_init__(self) -> None:
        if self.epochs <= 0:
            raise ValueError(f"annealing takes more than 0 epochs, got {self.epochs}")
        if self.start == "iterative" and self.epochs != int(self.epochs):
            raise ValueError(f"iterative pruning takes whole epochs, got {self.epochs}")

    def bind(
        self, child: nn.Module, pruning: Pruning, subnetwork: Subnetwork, seed: int = 0
    ) -> Binding:
        """What binds a child while it is tuned."""
        masks = pruning.masks(child, subnetwork)
        if self.start == "one-shot":
            return Pruned(child, masks)
        if self.start == "iterative":
            return self._iterative(child, pruning, subnetwork)
        probabilities = self._probabilities(masks, pruning, subnetwork)
        return Annealed(child, masks, probabilities, self.epochs, self.decay, seed)

    def _probabilities(self, masks: Masks, pruning: Pruning, subnetwork: Subnetwork) -> Params:
        if self.start == "temperature":
            return temperature_probabilities(masks, self.temperature, self.both)
        if self.start == "gaussian":
            return gaussian_probabilities(masks, subnetwork.seed)
        if pruning.parts > 2:
            raise ValueError("a random start goes with random subnetworks and halves, not parts")
        # The subnetwork is u < density, or for the other half u >= 1/2: P and 1 - P (eq. 6.1)
        return random_probabilities(masks, subnetwork.seed, opposed=subnetwork.low == 0)

    def _iterative(
        self, child: nn.Module, pruning: Pruning, subnetwork: Subnetwork
    ) -> IterativelyPruned:
        low = subnetwork.low

        def masks_at(density: float) -> Masks:
            high = subnetwork.high if density == subnetwork.density else low + density
            wider = Subnetwork(subnetwork.seed, low, high if high <= 1 else high - 1)
            return pruning.masks(child, wider)

        return IterativelyPruned(child, masks_at, subnetwork.density, int(self.epochs))


def stochastic(
    parent: nn.Module,
    images: Images,
    augmentation: Augmentation,
    tuning: Tuning,
    annealing: Annealing = Annealing(),
    pruning: Pruning = Pruning(),
    members: int = 6,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    folder: Path | None = None,
    mapper: Mapper = Here().map,
) -> Trained:
    """Children whose subnetworks are revealed while they are tuned (algorithm 3).

    Costs are those of the final subnetwork, as the paper counts them (table 6.2). `folder`,
    `mapper`: see `independent`.
    """
    if annealing.epochs > tuning.epochs and annealing.start != "one-shot":
        raise ValueError(
            f"annealing must end with tuning: {annealing.epochs} epochs of annealing, "
            f"{tuning.epochs} of tuning"
        )
    subnetworks = pruning.subnetworks(members, seed)

    def train(index: int) -> nn.Module:
        child = copy.deepcopy(parent)
        binding = annealing.bind(
            child, pruning, subnetworks[index], derive_seed(seed, "annealing", index)
        )
        tune(
            child, images, augmentation, tuning, derive_seed(seed, "tuning", index), binding,
            epochs_of(on_epoch, f"child {index + 1} of {members}"), checkpoint_of(folder, index),
        )  # fmt: skip
        if annealing.start != "one-shot" and annealing.epochs == tuning.epochs:
            reestimate_norms(child, images, augmentation)  # they saw only the stochastic network
        return child

    children = trained_members(train, members, mapper)
    masks = (pruning.masks(parent, subnetwork) for subnetwork in subnetworks)
    return finished(children, masks, parent, augmentation.normalize(images.pixels[:1]), tuning)
