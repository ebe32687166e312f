"""Parameter ensembling by perturbation (Mehrtash et al. 2020): dense noise, unselected."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn

from evo_subnets.ensemble import Ensemble
from evo_subnets.methods.result import HERE, NOTHING_KEPT, Result, begin, untrained
from evo_subnets.mutation import singles
from evo_subnets.prediction import Validation
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.streams import check_seed
from evo_subnets.subnetworks import parameters
from evo_subnets.task import Task
from evo_subnets.workers import Workers

GRID = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Strengths to begin with, in units of the weights' root mean square."""
SECTIONS = 8
"""Evaluations of the golden section between the best of the grid and its neighbours."""
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class PEP:
    """Children with dense noise, none selected, so strong that the likelihood of their ensemble on
    validation data is the highest: the closest published relative of noisy children, and so their
    first control. No training."""

    starts_from: ClassVar[Literal["parent", "builder"]] = "parent"
    selects: ClassVar[bool] = True

    ensemble_size: int = 8
    """Children."""
    sigma: float | None = None
    """Standard deviation of the noise, in the weights' unit; None: by the likelihood."""
    seed: int = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.ensemble_size < 1:
            raise ValueError(f"ensemble_size must be at least 1, got {self.ensemble_size}")
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be positive and finite, got {self.sigma}")

    def __call__(
        self, parent: nn.Module, task: Task, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The ensemble around `parent`."""
        begin(run, self, start=parent)
        sigma = self.sigma
        if sigma is None:
            sigma = run.once("sigma", partial(self._search, parent, task, run))
        ensemble = self._around(parent, task, sigma)
        return untrained(parent, ensemble, search=self._noise(sigma))

    def _noise(self, sigma: float) -> Search:
        size = self.ensemble_size
        return Search(size, size, sigma, 1.0, self.seed, singles)

    def _around(self, parent: nn.Module, task: Task, sigma: float) -> Ensemble:
        mutations = self._noise(sigma).mutations()
        return Ensemble.from_mutations(parent, mutations, outputs=task.outputs)

    def _search(self, parent: nn.Module, task: Task, run: Run) -> float:
        def log_likelihood(outputs: Tensor, targets: Tensor) -> float:
            return -float(task.outputs.loss(outputs, targets))

        fitness = Validation(task.selection, log_likelihood, None, task.outputs)
        params = parameters(parent)
        weights = [params[name].detach().float() for name in params.weights]
        square = sum(float(weight.square().sum()) for weight in weights)
        scale = math.sqrt(square / sum(weight.numel() for weight in weights))
        with run.bar("sigma", len(GRID) + SECTIONS + 1) as advance:

            def likelihood(sigma: float) -> float:
                found = fitness(self._around(parent, task, sigma))
                advance(1, f"{sigma:.4g}: log-likelihood {found:.4g}")
                return found

            return golden_section(likelihood, [scale * strength for strength in GRID])


def golden_section(value: Callable[[float], float], grid: list[float]) -> float:
    """Where a function is highest: of a rising grid, then between the best one's neighbours by
    golden sections of their logarithms (Kiefer 1953). NaN counts as lowest."""
    known: dict[float, float] = {}

    def at(x: float) -> float:
        if x not in known:
            found = value(x)
            known[x] = -math.inf if math.isnan(found) else found
        return known[x]

    best = max(range(len(grid)), key=lambda index: at(grid[index]))
    low = math.log(grid[max(best - 1, 0)])
    high = math.log(grid[min(best + 1, len(grid) - 1)])
    for _ in range(SECTIONS):
        inner = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        left, right = (at(math.exp(x)) for x in inner)
        low, high = (low, inner[1]) if left >= right else (inner[0], high)
    return max(known, key=lambda x: known[x])
