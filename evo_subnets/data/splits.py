"""Data sets as published, and how they are split."""

from typing import NamedTuple

import torch
from torch import Tensor

from evo_subnets.data.augmentation import Images
from evo_subnets.streams import uniform_levels


class Whole(NamedTuple):
    """A data set as published: not yet split."""

    train: Images
    test: Images
    classes: tuple[str, ...]


def stratified_order(labels: Tensor, seed: int, *, purpose: str) -> Tensor:
    """(n,) a random order in which every stretch has the classes in proportion.

    So every split and every limit is a slice of one order. The i-th of a class's m pictures stands
    at (i + 1/2) / m of the way, which is apportionment by Webster's method.
    """
    count = len(labels)
    # our own draws: a split that changed with torch's release would mix what it kept apart
    shuffled = uniform_levels(seed, f"order of {purpose}", count).argsort(stable=True)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = torch.bincount(labels)
    firsts = (sizes.cumsum(0) - sizes)[labels[by_class]]
    place = torch.empty(count, dtype=torch.float64)
    place[by_class] = (torch.arange(count) - firsts + 0.5).double() / sizes[labels[by_class]]
    return shuffled[place[shuffled].argsort(stable=True)]


def cut(order: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` of an order, and the others."""
    return order[:count], order[count:]


def with_test(images: Images) -> tuple[Images, Images]:
    """A training set and a test set, of a fifth; no seed trains on another seed's test set."""
    order = stratified_order(images.labels, 0, purpose="all")
    test, train = cut(order, round(len(images) / 5))
    return images[train.sort().values], images[test.sort().values]
