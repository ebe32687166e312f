"""Data sets for classification, decoded once and split: what `load` gives."""

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from evo_subnets.data.augmentation import Augmentation, Images
from evo_subnets.data.downloads import DIGITS, TORCHVISION, downloaded
from evo_subnets.data.folders import image_folder
from evo_subnets.data.splits import Whole, cut, stratified_order, with_test
from evo_subnets.streams import check_seed

FOLDER = "imagefolder:"
NAMES = (*TORCHVISION, "digits", f"{FOLDER}PATH")
"""What `load` takes; PATH stands for a folder of class folders."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures to train on, to select on and to report on; no picture is in two of them."""

    name: str
    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = self.train.pixels.shape[1:]
        for part in ("train", "validation", "test"):
            images: Images = getattr(self, part)
            if not len(images):
                raise ValueError(f"{self.name}: there are no {part} pictures: use more pictures")
            if images.pixels.shape[1:] != shape:
                raise ValueError(
                    f"{self.name}: pictures must have one shape, got {tuple(shape)} in train and "
                    f"{tuple(images.pixels.shape[1:])} in {part}"
                )
            if images.labels.max() >= len(self.classes):
                raise ValueError(
                    f"{self.name}: labels must be below the number of classes, "
                    f"{len(self.classes)}, got {int(images.labels.max())} in {part}"
                )

    @property
    def augmentation(self) -> Augmentation:
        """Of the training pictures."""
        assert self.train.augmentation is not None
        return self.train.augmentation

    def augmented(self, augmentation: Augmentation) -> "Dataset":
        """The same pictures with another augmentation."""
        return self._each(lambda images: replace(images, augmentation=augmentation))

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data set with all its pictures on a device."""
        return self._each(lambda images: images.to(device))

    def _each(self, change: Callable[[Images], Images]) -> "Dataset":
        train, validation, test = map(change, (self.train, self.validation, self.test))
        return replace(self, train=train, validation=validation, test=test)


def load(
    name: str,
    root: Path | None = None,
    *,
    validation: Literal["train", "test"] = "train",
    validation_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    """The data set of this name (see NAMES), decoded, split, on the CPU.

    `validation` says where the validation pictures come from: "train" holds out a fraction of the
    training set, "test" takes half of the test set (Whitaker 2023, chapter 4) and leaves the other
    half for reports. Every split is stratified, and the same for the same `seed` on any machine.
    With `limit` there are at most so many training pictures, and a fifth of that for validation and
    for test. `root` keeps downloads and decoded folders: $EVO_SUBNETS_DATA, or
    ~/.cache/evo_subnets/data.

    Their augmentation has the mean and standard deviation of the whole training set, whatever the
    split and the limit, so that a trained parent meets the same inputs under all of them. Pictures
    of digits (mnist, svhn, digits) are never flipped; MNIST and Fashion-MNIST are padded with zeros
    and digits enlarged, to 32x32.

    `imagefolder:PATH` is PATH/train/CLASS and PATH/test/CLASS, or PATH/CLASS alone, of which a
    fifth is the test set, the same for every seed. Pictures lie in a class's folder and below it,
    and are read as torchvision's `ImageFolder` does: in its order, as RGB without transparency, the
    first of a file with several, as they are stored where EXIF says that they are turned, with a
    warning. A picture that is left out is named in a warning too, except in hidden folders.
    `image_size` resizes their shorter side and crops the centre; without it all must have one size.
    Raises ValueError for wrong arguments, damaged files, broken links and pictures of more than 8
    bits, OSError for a failed download.
    """
    seed = check_seed(seed)
    if validation not in ("train", "test"):
        raise ValueError(f"validation must come from 'train' or 'test', got {validation!r}")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction must be in (0, 1), got {validation_fraction}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 picture, got {limit}")
    if image_size is not None and (image_size < 1 or not name.startswith(FOLDER)):
        raise ValueError(
            f"image_size is for {FOLDER}PATH and at least 1 pixel, got {image_size} for {name}"
        )
    root = Path(root or os.environ.get("EVO_SUBNETS_DATA") or "~/.cache/evo_subnets/data")
    root = root.expanduser()
    if name in TORCHVISION:
        whole = downloaded(name, root)
    elif name == "digits":
        whole = _digits()
    elif name.startswith(FOLDER) and name != FOLDER:
        whole = image_folder(Path(name.removeprefix(FOLDER)).expanduser(), root, size=image_size)
    else:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(NAMES)}")

    train = stratified_order(whole.train.labels, seed, purpose="train")
    test = stratified_order(whole.test.labels, seed, purpose="test")
    if validation == "train":
        source = whole.train
        held_out, train = cut(train, round(validation_fraction * len(train)))
    else:
        source = whole.test
        held_out, test = cut(test, len(test) // 2)
    few = None if limit is None else max(limit // 5, 1)
    mean, std = _statistics(whole.train.pixels)
    found = Dataset(
        name=name,
        train=whole.train[train[:limit].sort().values],
        validation=source[held_out[:few].sort().values],
        test=whole.test[test[:few].sort().values],
        classes=whole.classes,
    )
    return found.augmented(Augmentation(mean, std, flip=name not in DIGITS))


def _statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels in [0, 1]; exact, from histograms."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in pixels.unbind(1):
        counts = torch.zeros(256, dtype=torch.int64)
        for chunk in torch.split(channel, 4096):
            counts += torch.bincount(chunk.reshape(-1), minlength=256)
        mean = (counts * levels).sum() / counts.sum()
        variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
        means.append(mean.item())
        stds.append(variance.sqrt().item() or 1.0)  # a channel of one value has nothing to scale
    return tuple(means), tuple(stds)


def _digits() -> Whole:
    """scikit-learn's 1,797 digits of 8x8 pixels, each pixel repeated to 32x32, a fifth for test."""
    digits: Any = importlib.import_module("sklearn.datasets").load_digits()
    grey = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))
    pixels = grey[:, None].repeat_interleave(4, 2).repeat_interleave(4, 3)
    images = Images(pixels, torch.from_numpy(digits.target.astype(np.int64)))
    return Whole(*with_test(images), tuple("0123456789"))
