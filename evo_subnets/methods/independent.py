"""Networks trained from scratch: what every low-cost ensemble is compared with."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from evo_subnets.data import Augmentation, Images
from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import Mapper
from evo_subnets.methods.trained import (
    OnEpoch,
    Trained,
    checkpoint_of,
    epochs_of,
    trained_members,
)
from evo_subnets.metrics import count_parameters
from evo_subnets.streams import derive_seed
from evo_subnets.tuning import Tuning, tune
from evo_subnets.workers import Here

Build = Callable[[int], nn.Module]
"""A seed to an untrained network."""


def independent(
    build: Build,
    images: Images,
    augmentation: Augmentation,
    tuning: Tuning,
    members: int = 1,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    folder: Path | None = None,
    mapper: Mapper = Here().map,
) -> Trained:
    """`members` networks, each trained from its own initialisation for `tuning.epochs` epochs.

    One member is the independent model, more are a deep ensemble (Lakshminarayanan et al. 2017).

    As in all methods that train: `folder` keeps the training of every member, so that the same
    call goes on where an earlier one was stopped; `mapper` is where members are trained, here one
    after the other, or `Ray(4).map` (then `on_epoch` must be able to travel).
    """
    if members < 1:
        raise ValueError(f"an ensemble needs at least one member, got members={members}")

    def train(index: int) -> nn.Module:
        network = build(derive_seed(seed, "network", index)).to(images.pixels.device)
        tune(
            network, images, augmentation, tuning, derive_seed(seed, "tuning", index),
            on_epoch=epochs_of(on_epoch, f"network {index + 1} of {members}"),
            checkpoint=checkpoint_of(folder, index),
        )  # fmt: skip
        return network

    networks = trained_members(train, members, mapper)
    epochs = members * tuning.epochs * tuning.bagging
    kept = sum(map(count_parameters, networks))
    return Trained(Ensemble(networks), epochs, epochs, kept)


def bagging(
    build: Build,
    images: Images,
    augmentation: Augmentation,
    tuning: Tuning,
    members: int = 8,
    fraction: float = 0.9,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
    folder: Path | None = None,
    mapper: Mapper = Here().map,
) -> Trained:
    """Networks that each see a sample of the images (Breiman 1996; Whitaker 2023, table 5.1)."""
    bagged = replace(tuning, bagging=fraction)
    common = (images, augmentation, bagged, members, seed)
    return independent(build, *common, on_epoch, folder, mapper)
