"""Folders of pictures, a folder for each class."""

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evo_subnets.data.augmentation import Images
from evo_subnets.data.downloads import one_line
from evo_subnets.data.splits import Whole, with_test
from evo_subnets.files import StorageError, load_tensors, save_tensors
from evo_subnets.runs.tracking import bar

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
CACHE = "decoded pictures"
"""The kind of the files that keep a decoded image folder."""
CHUNK = 64
"""Pictures that a thread decodes at a time: one by one, the queue costs as much as the pictures."""


def image_folder(folder: Path, root: Path, *, size: int | None) -> Whole:
    """The pictures below `folder`, decoded once and kept in `root`."""
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
        return Whole(*with_test(images), names[0])
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
        save_tensors(cache, {"pixels": pixels}, kind=CACHE, description=description)
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
            f"{file} is not a picture that can be read ({one_line(error)}): repair or remove it"
        ) from None
