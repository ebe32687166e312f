"""Data sets that torchvision downloads."""

import importlib
import secrets
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn.functional import pad

from evo_subnets.data.augmentation import Images
from evo_subnets.data.splits import Whole

TORCHVISION = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
}
"""Data sets that torchvision downloads, and its names of them."""
DIGITS = ("mnist", "svhn", "digits")
"""Never flipped: a mirrored digit is another symbol, or none."""


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


def downloaded(name: str, root: Path) -> Whole:
    """The data set in `root`, which gets it where it is not there."""
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
            f"{name}: the files in {folder} are damaged or incomplete ({one_line(error)}): "
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
            f"{name}: the download into {folder.parent} failed ({one_line(error)}): check the "
            f"network and the folder and try again, or copy torchvision's files of it to {folder}"
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


def one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
