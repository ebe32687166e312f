"""Noisy subnetwork ensembles of a classifier (Whitaker 2023, chapter 4, algorithm 1)."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from evo_subnets import metrics
from evo_subnets.data import Augmentation, Images
from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import Child, Evolution, evaluate
from evo_subnets.trust_region import TrustRegion, search_trust_region
from evo_subnets.tuning import predict, reestimate_norms

INPUTS = 1000
"""Validation images that the trust region is measured on, as in section 4.3.3."""


@dataclass(frozen=True)
class Noisy:
    """The elites as an ensemble, all children, and how strong their mutations are."""

    ensemble: Ensemble
    children: tuple[Child, ...]
    elites: tuple[Child, ...]
    sigma: float
    region: TrustRegion | None
    """None where sigma was given."""


def noisy(
    parent: nn.Module,
    validation: Images,
    augmentation: Augmentation,
    population_size: int = 16,
    ensemble_size: int = 8,
    density: float = 0.5,
    sigma: float | None = None,
    target: float = 0.02,
    seed: int = 0,
    norm_images: Images | None = None,
    on_child: Callable[[Child], None] | None = None,
    evaluation: Callable[..., list[Child]] = evaluate,
) -> Noisy:
    """The best of a population of mutations of `parent`, judged by validation accuracy.

    `sigma=None` takes the sigma whose children diverge from the parent by `target` (see
    `search_trust_region`). `augmentation` normalises; nothing is cropped or flipped here. With
    `norm_images` every child's BatchNorm statistics are re-estimated on them; without, they are
    the parent's, as in the paper. `evaluation` is `evolution.evaluate`, perhaps with more arguments
    (`functools.partial`): actors, or the children of a run that was stopped.
    """
    region = None
    if sigma is None:
        inputs = augmentation.normalize(validation.pixels[:INPUTS])
        region = search_trust_region(parent, inputs, target, (density,), seed=seed)
        sigma = region.sigma

    def accuracy(model: nn.Module) -> float:
        if norm_images is not None:
            reestimate_norms(model, norm_images, augmentation)
        outputs = predict(model, validation, augmentation)
        return metrics.accuracy(outputs.log_softmax(dim=1), validation.labels)

    evolution = Evolution(parent, population_size, ensemble_size, sigma, density, seed)
    evolution.tell(evaluation(parent, evolution.ask(), accuracy, on_child=on_child))
    ensemble = evolution.ensemble
    if norm_images is not None:
        members = [copy.deepcopy(member) for member in ensemble.members]
        for member in members:
            reestimate_norms(member, norm_images, augmentation)
        ensemble = Ensemble(members)  # recipes alone would not bring the statistics back
    return Noisy(ensemble, tuple(evolution.children), tuple(evolution.elites), sigma, region)
