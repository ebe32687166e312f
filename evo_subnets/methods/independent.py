"""Networks trained from scratch: what every low-cost ensemble is compared with."""

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from evo_subnets.data import Augmentation, Images
from evo_subnets.ensemble import Ensemble
from evo_subnets.methods.trained import Trained
from evo_subnets.metrics import count_parameters
from evo_subnets.streams import derive_seed
from evo_subnets.tuning import Tuning, tune

Build = Callable[[int], nn.Module]
"""A seed to an untrained network."""
OnEpoch = Callable[[str, int, float], None]
"""Gets the member's name, the epoch, from 1 on, and its mean loss."""


def independent(
    build: Build,
    images: Images,
    augmentation: Augmentation,
    tuning: Tuning,
    members: int = 1,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> Trained:
    """`members` networks, each trained from its own initialisation for `tuning.epochs` epochs.

    One member is the independent model, more are a deep ensemble (Lakshminarayanan et al. 2017).
    """
    if members < 1:
        raise ValueError(f"an ensemble needs at least one member, got members={members}")
    networks = []
    for index in range(members):
        network = build(derive_seed(seed, "network", index)).to(images.pixels.device)
        name = f"network {index + 1} of {members}"
        tune(
            network, images, augmentation, tuning, derive_seed(seed, "tuning", index),
            on_epoch=on_epoch and (lambda epoch, loss, name=name: on_epoch(name, epoch, loss)),
        )  # fmt: skip
        networks.append(network)
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
) -> Trained:
    """Networks that each see a sample of the images (Breiman 1996; Whitaker 2023, table 5.1)."""
    bagged = replace(tuning, bagging=fraction)
    return independent(build, images, augmentation, bagged, members, seed, on_epoch)
