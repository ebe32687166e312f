"""Data sets for classification: downloaded, shipped with scikit-learn, or a folder of pictures.

`load` decodes a data set once and splits it. Where pictures come from is below it: torchvision's
downloads, scikit-learn's digits, image folders.
"""

import hashlib
import importlib
import os
import secrets
import shutil
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from evo_subnets.data.augmentation import Augmentation, Images
from evo_subnets.storage import StorageError, load_tensors, save_tensors
from evo_subnets.streams import check_seed, uniform_levels
from evo_subnets.tracking import bar

TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
}
"""Data sets that torchvision downloads, and its names of them."""
FOLDER = "imagefolder:"
NAMES = (*TORCHVISION, "digits", f"{FOLDER}PATH")
"""What `load` takes; PATH stands for a folder of class folders."""
DIGITS = ("mnist", "svhn", "digits")
"""Never flipped: a mirrored digit is another symbol, or none."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
CACHE = "decoded pictures"
"""The kind of the files that keep a decoded image folder."""
CHUNK = 64
"""Pictures that a thread decodes at a time: one by one, the queue costs as much as the pictures."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures to train on, to select on and to report on; no picture is in two of them."""

    name: str
    train: Images
    validation: Images
    test: Images
    classes: tuple[str, ...]
    augmentation: Augmentation

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
        if len(self.augmentation.mean) != shape[0]:
            raise ValueError(
                f"{self.name}: the augmentation is for {len(self.augmentation.mean)} channels, "
                f"the pictures have {shape[0]}"
            )

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data set with all its pictures on a device."""
        parts = {part: getattr(self, part).to(device) for part in ("train", "validation", "test")}
        return replace(self, **parts)


class Whole(NamedTuple):
    """A data set as published: not yet split."""

    train: Images
    test: Images
    classes: tuple[str, ...]


def load(
    name: str,
    root: Path | None = None,
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

    `augmentation` has the mean and standard deviation of the whole training set, whatever the split
    and the limit, so that a trained parent meets the same inputs under all of them. Pictures of
    digits (mnist, svhn, digits) are never flipped; MNIST and Fashion-MNIST are padded with zeros
    and digits enlarged, to 32x32.

    `imagefolder:PATH` is PATH/train/CLASS/*.png and PATH/test/CLASS/*.png (or jpg, jpeg, bmp,
    webp), or PATH/CLASS/*.png, of which a fifth is the test set, the same for every seed. Pictures
    become RGB. `image_size` resizes their shorter side and crops the centre; without it all must
    have one size. Raises ValueError for wrong arguments and damaged files, OSError for a failed
    download.
    """
    check_seed(seed)
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
        whole = _torchvision(name, root)
    elif name == "digits":
        whole = _digits()
    elif name.startswith(FOLDER) and name != FOLDER:
        whole = _image_folder(Path(name.removeprefix(FOLDER)).expanduser(), root, image_size)
    else:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(NAMES)}")

    train = _stratified_order(whole.train.labels, seed, "train")
    test = _stratified_order(whole.test.labels, seed, "test")
    if validation == "train":
        source = whole.train
        held_out, train = _cut(train, round(validation_fraction * len(train)))
    else:
        source = whole.test
        held_out, test = _cut(test, len(test) // 2)
    few = None if limit is None else max(limit // 5, 1)
    mean, std = _statistics(whole.train.pixels)
    return Dataset(
        name=name,
        train=whole.train[train[:limit].sort().values],
        validation=source[held_out[:few].sort().values],
        test=whole.test[test[:few].sort().values],
        classes=whole.classes,
        augmentation=Augmentation(mean, std, flip=name not in DIGITS),
    )


def _cut(order: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return order[:count], order[count:]


def _stratified_order(labels: Tensor, seed: int, purpose: str) -> Tensor:
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
    return Whole(*_with_test(images), tuple("0123456789"))


def _with_test(images: Images) -> tuple[Images, Images]:
    """A training set and a test set, of a fifth; no seed trains on another seed's test set."""
    order = _stratified_order(images.labels, 0, "all")
    test, train = _cut(order, round(len(images) / 5))
    return images[train.sort().values], images[test.sort().values]


_operators: list[Any] = []  # they are unregistered when nothing holds them


def import_torchvision() -> ModuleType:
    """torchvision, also where it was built for another torch and so lacks two of its operators."""
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this needs torchvision ({error}): pip install torchvision"
        ) from None
    except RuntimeError as error:
        if _operators or "torchvision::nms" not in str(error):
            raise
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.append(library)
    return importlib.import_module("torchvision")


def _torchvision(name: str, root: Path) -> Whole:
    source = getattr(import_torchvision().datasets, TORCHVISION[name])
    folder = root / name
    if not folder.is_dir():
        _download(name, source, folder)
    try:
        train, test = (_opened(name, source, folder, part) for part in ("train", "test"))
        return Whole(_images(name, train), _images(name, test), _classes(name, train))
    except ImportError:
        raise
    except Exception as error:  # torchvision has no exception of its own for damaged files
        raise ValueError(
            f"{name}: the files in {folder} are damaged or incomplete ({_line(error)}): "
            "remove that folder, and they are downloaded again"
        ) from error


def _download(name: str, source: Any, folder: Path) -> None:
    """Downloads into a temporary folder, which gets its name when it is whole."""
    temporary = folder.parent / f".{name}.{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        for part in ("train", "test"):
            _opened(name, source, temporary, part, download=True)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    except ImportError:
        raise
    except Exception as error:  # torchvision's RuntimeError, urllib's, tarfile's, ...
        raise OSError(
            f"{name}: the download into {folder.parent} failed ({_line(error)}): check the network "
            f"and the folder and try again, or copy torchvision's files of it to {folder}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _opened(name: str, source: Any, folder: Path, part: str, download: bool = False) -> Any:
    chosen = {"split": part} if name == "svhn" else {"train": part == "train"}
    return source(str(folder), **chosen, download=download)


def _images(name: str, part: Any) -> Images:
    pixels = torch.as_tensor(part.data)
    if name.endswith("mnist"):  # (n, 28, 28)
        pixels = pad(pixels[:, None], (2, 2, 2, 2))
    elif name.startswith("cifar"):  # (n, 32, 32, 3)
        pixels = pixels.permute(0, 3, 1, 2)
    labels = torch.as_tensor(part.labels if name == "svhn" else part.targets)
    return Images(pixels.contiguous(), labels.long())


def _classes(name: str, train: Any) -> tuple[str, ...]:
    return tuple("0123456789") if name in DIGITS else tuple(train.classes)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _image_folder(folder: Path, root: Path, size: int | None) -> Whole:
    parts = [folder / part for part in ("train", "test")]
    split = [part for part in parts if part.is_dir() and _folders(part)]
    if len(split) == 1:
        missing = parts[0] if split[0] == parts[1] else parts[1]
        raise ValueError(
            f"{split[0]} has class folders, {missing} has none: fill it, or put the class folders "
            f"into {folder} itself for a random test set"
        )
    listed = [_files(part) for part in split or [folder]]
    names = [tuple(classes) for classes in listed]
    if names[0] != names[-1]:
        raise ValueError(
            f"{folder}: train and test must have the same classes; "
            f"{sorted(set(names[0]) ^ set(names[-1]))} are in one alone"
        )
    files = [file for classes in listed for files in classes.values() for file in files]
    labels = [
        label for classes in listed for label, files in enumerate(classes.values()) for _ in files
    ]
    images = Images(_decoded_once(folder, files, root, size), torch.tensor(labels))
    if not split:
        return Whole(*_with_test(images), names[0])
    count = sum(map(len, listed[0].values()))
    return Whole(images[:count], images[count:], names[0])


def _folders(folder: Path) -> list[Path]:
    inside = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted((path for path in inside if path.is_dir()), key=lambda path: path.name)


def _files(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class, both in the order of their names."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder: expected one with class folders")
    classes = {}
    for path in _folders(folder):
        inside = (file for file in path.iterdir() if not file.name.startswith("."))
        pictures = (file for file in inside if file.suffix.lower() in SUFFIXES)
        classes[path.name] = sorted(pictures, key=lambda file: file.name)
        if not classes[path.name]:
            raise ValueError(
                f"{path}: a class folder without pictures: expected {', '.join(SUFFIXES)}; "
                "fill it or remove it"
            )
    if len(classes) < 2:
        raise ValueError(
            f"{folder}: classification needs at least two class folders, got {list(classes)}"
        )
    return classes


def _decoded_once(folder: Path, files: Sequence[Path], root: Path, size: int | None) -> Tensor:
    """(files, 3, height, width) uint8, from the cache where it is of these very files."""
    place = hashlib.sha256(f"{folder.resolve()} {size}".encode()).hexdigest()[:16]
    digest = hashlib.sha256()
    for file in files:
        name, status = "/".join(file.parts[-3:]), file.stat()  # part, class, file
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    # one file for each folder, so that a stale one is replaced and does not stay
    cache, found = root / "imagefolder" / f"{place}.safetensors", digest.hexdigest()
    try:
        tensors, description = load_tensors(cache, CACHE)
        if description["files"] == found:
            return tensors["pixels"]
    except StorageError:  # absent or damaged
        pass
    pixels = _decoded(files, size)
    try:
        description = {"folder": str(folder.resolve()), "image_size": size, "files": found}
        save_tensors(cache, {"pixels": pixels}, CACHE, description)
    except OSError as error:
        warnings.warn(
            f"{cache}: the decoded pictures are not kept ({error}): free space, or choose root",
            RuntimeWarning,
            stacklevel=4,
        )
    return pixels


def _decoded(files: Sequence[Path], size: int | None) -> Tensor:
    first = _picture(files[0], size)
    pixels = np.empty((len(files), 3, *first.shape[:2]), dtype=np.uint8)

    def decode(start: int) -> int:
        part = files[start : start + CHUNK]
        for index, file in enumerate(part, start):
            picture = _picture(file, size)
            if picture.shape != first.shape:
                raise ValueError(
                    f"{file} has {picture.shape[1]}x{picture.shape[0]} pixels, {files[0]} has "
                    f"{first.shape[1]}x{first.shape[0]}: give image_size to resize them all"
                )
            pixels[index] = picture.transpose(2, 0, 1)
        return len(part)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        done: Iterable[int] = pool.map(decode, range(0, len(files), CHUNK))
        with bar("decoding", len(files)) as advance:
            for count in done:  # in order, so the first wrong file is the one that is named
                advance(count, "")
    return torch.from_numpy(pixels)


def _picture(file: Path, size: int | None) -> npt.NDArray[np.uint8]:
    """(height, width, 3)"""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as opened:
            image: Image.Image = opened
            if image.mode.startswith(("I", "F")):
                raise ValueError("more than 8 bits a channel, which would be cut off")
            if image.mode == "P":
                image = image.convert("RGBA")  # a palette may hold transparent colours
            image = image.convert("RGB")
            if size is not None:
                image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
            return np.asarray(image)
    except Exception as error:  # what Pillow raises depends on format and damage
        raise ValueError(
            f"{file} is not a picture that can be read ({_line(error)}): repair or remove it"
        ) from None
