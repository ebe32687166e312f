"""Noisy subnetwork ensembles of a classifier (Whitaker 2023, chapter 4, algorithm 1)."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from evo_subnets import engines, metrics
from evo_subnets.data import Augmentation, Images
from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import Child, Evolution, evaluate
from evo_subnets.racing import Rules, race
from evo_subnets.trust_region import TrustRegion, search_trust_region
from evo_subnets.tuning import (
    inputs_for,
    predict,
    predict_inputs,
    reestimate_norms,
)

INPUTS = 1000
"""Validation images that the trust region is measured on, as in section 4.3.3."""
KEPT_BYTES = 2**28
"""Normalised validation images that are kept from child to child, at most."""


@dataclass(frozen=True)
class Accuracy:
    """A fitness: the accuracy of a classifier on validation images.

    `norm_images`: its BatchNorm statistics are re-estimated on them before. Images are normalised
    once for all children, but for so many that they do not fit into `KEPT_BYTES`.
    """

    images: Images
    augmentation: Augmentation
    norm_images: Images | None = None
    side_by_side: bool = False
    """See `tuning.predict`."""

    def __call__(self, model: nn.Module) -> float:
        if self.norm_images is not None:
            reestimate_norms(model, self.norm_images, self.augmentation)
        outputs = predict_inputs(model, self._inputs(model), side_by_side=self.side_by_side)
        return metrics.accuracy(outputs.log_softmax(dim=1), self.images.labels)

    def _inputs(self, model: nn.Module) -> Iterable[Tensor]:
        layout = engines.has_convolutions(model)
        if layout in self._kept:
            return self._kept[layout]
        inputs = inputs_for(model, self.images, self.augmentation)
        if 4 * self.images.pixels.numel() > KEPT_BYTES:
            return inputs
        self._kept[layout] = list(inputs)
        return self._kept[layout]

    @cached_property
    def _kept(self) -> dict[bool, list[Tensor]]:
        return {}

    def __reduce__(self) -> tuple[Any, ...]:  # what is kept does not travel
        return Accuracy, (self.images, self.augmentation, self.norm_images, self.side_by_side)


def halves_by_doubt(parent: nn.Module, images: Images, augmentation: Augmentation) -> Tensor:
    """(images,) 1 for the half of which the parent is surer, else 0: strata of a race.

    Sure is who gives the two likeliest classes far different probabilities; there children seldom
    differ.
    """
    probabilities = predict(parent, images, augmentation).softmax(dim=1)
    first, second = probabilities.topk(2, dim=1).values.unbind(dim=1)
    return ((first - second).argsort(stable=True).argsort() >= len(images) // 2).long().cpu()


@dataclass(frozen=True)
class Noisy:
    """The elites as an ensemble, all children, and how strong their mutations are."""

    ensemble: Ensemble
    children: tuple[Child, ...]
    elites: tuple[Child, ...]
    sigma: float
    region: TrustRegion | None
    """None where sigma was given."""
    seen: tuple[int, ...] | None = None
    """Of a race: the images that each child was judged on."""


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
    racing: Rules | None = None,
) -> Noisy:
    """The best of a population of mutations of `parent`, judged by validation accuracy.

    `sigma=None` takes the sigma whose children diverge from the parent by `target` (see
    `search_trust_region`). `augmentation` normalises; nothing is cropped or flipped here. With
    `norm_images` every child's BatchNorm statistics are re-estimated on them; without, they are
    the parent's, as in the paper. `evaluation` is `evolution.evaluate`, perhaps with more arguments
    (`functools.partial`): actors, or the children of a run that was stopped.

    `racing`: rules by which children that are hardly among the best are dropped before they have
    seen all images (see `racing.race`), in this process and without `evaluation`. The fitness of
    those is an estimate.
    """
    if racing is not None and norm_images is not None:
        raise ValueError(
            "a race judges children in blocks, and would re-estimate their BatchNorm statistics "
            "for every block: leave out racing or norm_images"
        )
    region = None
    if sigma is None:
        inputs = augmentation.normalize(validation.pixels[:INPUTS])
        region = search_trust_region(parent, inputs, target, (density,), seed=seed)
        sigma = region.sigma

    evolution = Evolution(parent, population_size, ensemble_size, sigma, density, seed)
    if racing is not None:
        found = race(
            parent,
            evolution.ask(),
            partial(correct, validation, augmentation),
            len(validation),
            ensemble_size,
            racing,
            halves_by_doubt(parent, validation, augmentation),
            seed,
            on_child=on_child,
        )
        ensemble = Ensemble.from_mutations(parent, [child.mutation for child in found.chosen])
        return Noisy(ensemble, found.children, found.chosen, sigma, region, found.seen)
    fitness = Accuracy(validation, augmentation, norm_images)
    evolution.tell(evaluation(parent, evolution.ask(), fitness, on_child=on_child))
    ensemble = evolution.ensemble
    if norm_images is not None:
        members = [copy.deepcopy(member) for member in ensemble.members]
        for member in members:
            reestimate_norms(member, norm_images, augmentation)
        ensemble = Ensemble(members)  # recipes alone would not bring the statistics back
    return Noisy(ensemble, tuple(evolution.children), tuple(evolution.elites), sigma, region)


def correct(images: Images, augmentation: Augmentation, model: nn.Module, chosen: Tensor) -> Tensor:
    """(chosen,) 1.0 where the model is right on the images of these numbers: what a race scores."""
    some = images[chosen.to(images.pixels.device)]
    outputs = predict(model, some, augmentation)
    return (outputs.argmax(dim=1) == some.labels).float()
