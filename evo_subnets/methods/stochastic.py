"""Stochastic subnetwork ensembles: pruning annealed (Whitaker 2023, chapter 6)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from evo_subnets.annealing import (
    Annealed,
    Decay,
    gaussian_probabilities,
    random_probabilities,
    temperature_probabilities,
)
from evo_subnets.bindings import Binding
from evo_subnets.copies import copied
from evo_subnets.inputs import Inputs
from evo_subnets.methods.result import HERE, NOTHING_KEPT, Result, begin, train_members
from evo_subnets.methods.sparse import Pruning, finished
from evo_subnets.options import refuse_idle
from evo_subnets.prediction import reestimate_norms
from evo_subnets.pruning import IterativelyPruned, Masks, Pruned
from evo_subnets.runs import Run
from evo_subnets.schedules import Constant
from evo_subnets.streams import check_seed, derive_seed
from evo_subnets.subnetworks import Params, Subnetwork
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune
from evo_subnets.workers import Workers


@dataclass(frozen=True)
class Annealing:
    """How the weights outside a subnetwork go. The defaults are Whitaker 2023, section 6.3.2."""

    start: Literal["temperature", "random", "gaussian", "iterative", "one-shot"] = "temperature"
    """Probabilities to begin with (see `annealing`); or the comparisons: 'iterative' removes an
    equal share of the weights at the beginning of each epoch, 'one-shot' all at once."""
    annealing_epochs: float = 3
    """Tuning epochs until only the subnetwork is left; whole ones for 'iterative'."""
    decay: Decay = "cosine"
    """How the probabilities move."""
    temperature: float = 0.5
    """Chance that a weight outside the subnetwork begins with."""
    both: bool = False
    """Whether weights inside begin with a chance of 1 - temperature, instead of 1."""

    def __post_init__(self) -> None:
        if self.annealing_epochs <= 0:
            raise ValueError(f"annealing takes more than 0 epochs, got {self.annealing_epochs}")
        if self.start == "iterative" and self.annealing_epochs != int(self.annealing_epochs):
            raise ValueError(f"iterative pruning takes whole epochs, got {self.annealing_epochs}")
        if self.start != "temperature":
            refuse_idle(self, ("temperature", "both"), because=f"start {self.start!r}")
        if self.start in ("iterative", "one-shot"):
            refuse_idle(self, ("decay",), because=f"start {self.start!r}")
        if self.start == "one-shot":
            refuse_idle(self, ("annealing_epochs",), because=f"start {self.start!r}")

    def bind(
        self,
        child: nn.Module,
        pruning: Pruning,
        *,
        subnetwork: Subnetwork,
        seed: int = 0,
        inputs: Inputs | None = None,
    ) -> Binding:
        """What binds a child while it is tuned. `inputs`: see `Pruning.masks`."""
        masks = pruning.masks(child, subnetwork, inputs=inputs)
        if self.start == "one-shot":
            return Pruned(child, masks)
        if self.start == "iterative":
            return self._iterative(child, pruning, subnetwork, inputs)
        probabilities = self._probabilities(masks, pruning, subnetwork)
        return Annealed(
            child, masks, probabilities=probabilities, epochs=self.annealing_epochs,
            decay=self.decay, seed=seed,
        )  # fmt: skip

    def _probabilities(self, masks: Masks, pruning: Pruning, subnetwork: Subnetwork) -> Params:
        if self.start == "temperature":
            return temperature_probabilities(masks, self.temperature, both=self.both)
        if self.start == "gaussian":
            return gaussian_probabilities(masks, subnetwork.seed)
        # The subnetwork is u < density, or for the other half u >= 1/2: P and 1 - P (eq. 6.1)
        return random_probabilities(masks, subnetwork.seed, opposed=subnetwork.low == 0)

    def _iterative(
        self, child: nn.Module, pruning: Pruning, subnetwork: Subnetwork, inputs: Inputs | None
    ) -> IterativelyPruned:
        low = subnetwork.low

        def masks_at(density: float) -> Masks:
            high = subnetwork.high if density == subnetwork.density else low + density
            wider = Subnetwork(subnetwork.seed, low, high if high <= 1 else high - 1)
            return pruning.masks(child, wider, inputs=inputs)

        epochs = int(self.annealing_epochs)
        return IterativelyPruned(child, masks_at, density=subnetwork.density, epochs=epochs)


@dataclass(frozen=True)
class Stochastic:
    """Children whose subnetworks are revealed while they are tuned (algorithm 3).

    Costs are those of the final subnetwork, as the paper counts them (table 6.2).
    """

    starts_from: ClassVar[Literal["parent", "builder"]] = "parent"
    selects: ClassVar[bool] = False

    ensemble_size: int = 6
    """Children."""
    annealing: Annealing = Annealing()  # frozen
    """How the weights outside of the subnetworks go."""
    pruning: Pruning = Pruning()
    """Which weights the children keep in the end."""
    tuning: Tuning = Tuning(5, Constant(0.001), "adam")
    """Of each child."""
    seed: int = 0
    """Of subnetworks, probation, the order of the samples, dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        self.pruning.check_size(self.ensemble_size)
        start, epochs = self.annealing.start, self.annealing.annealing_epochs
        if epochs > self.tuning.epochs and start != "one-shot":
            raise ValueError(
                f"annealing must end with tuning: annealing_epochs {epochs:g} exceeds epochs "
                f"{self.tuning.epochs}"
            )
        if start == "random" and self.pruning.parts > 2:
            raise ValueError("a random start goes with random subnetworks and halves, not parts")

    def __call__(
        self, parent: nn.Module, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The children of `parent`."""
        begin(run, self, start=parent)
        annealing, tuning = self.annealing, self.tuning
        subnetworks = self.pruning.subnetworks(self.ensemble_size, self.seed)
        inputs = task.example()

        def train(
            index: int, checkpoint: Path | None, on_epoch: Callable[[int, float], None]
        ) -> nn.Module:
            child = copied(parent)
            binding = annealing.bind(
                child, self.pruning, subnetwork=subnetworks[index],
                seed=derive_seed(self.seed, "annealing", index), inputs=inputs,
            )  # fmt: skip
            tune(
                child, task, tuning=tuning, seed=derive_seed(self.seed, "tuning", index),
                binding=binding, on_epoch=on_epoch, checkpoint=checkpoint,
            )  # fmt: skip
            if annealing.start != "one-shot" and annealing.annealing_epochs == tuning.epochs:
                reestimate_norms(child, task.train)  # they saw only the stochastic network
            return child

        tunings = [tuning] * self.ensemble_size
        children = train_members(train, tunings, what="stochastic", run=run, workers=workers)
        masks = (self.pruning.masks(parent, each, inputs=inputs) for each in subnetworks)
        return finished(children, masks, parent=parent, task=task, tuning=tuning)
