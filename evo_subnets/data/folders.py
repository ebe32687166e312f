"""Folders of pictures, a folder for each class."""

import hashlib
import os
import stat
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evo_subnets.data.augmentation import Images
from evo_subnets.data.downloads import one_line
from evo_subnets.data.listing import class_files, class_folders, files_beside, warn_of_left_out
from evo_subnets.data.splits import Whole, with_test
from evo_subnets.files import StorageError, load_tensors, save_tensors
from evo_subnets.runs.tracking import bar

CACHE = "decoded pictures"
"""The kind of the files that keep a decoded image folder."""
ORIENTATION = 0x0112
"""The tag of EXIF."""
CHUNK = 64
"""Pictures that a thread decodes at a time: one by one, the queue costs as much as the pictures."""


def image_folder(folder: Path, root: Path, *, size: int | None) -> Whole:
    """The pictures below `folder`, decoded once and kept in `root`."""
    parts = [folder / part for part in ("train", "test")]
    split = [part for part in parts if part.is_dir() and class_folders(part)]
    if len(split) == 1:
        missing = parts[0] if split[0] == parts[1] else parts[1]
        raise ValueError(
            f"{split[0]} has class folders, {missing} has none: fill it, or put the class folders "
            f"into {folder} itself for a random test set"
        )
    read = [class_files(part) for part in split or [folder]]
    listed = [classes for classes, _ in read]
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
    others = [file for _, others in read for file in others]
    warn_of_left_out(others + (files_beside(split, folder) if split else []))
    images = Images(_decoded_once(folder, files, root, size), torch.tensor(labels))
    if not split:
        return Whole(*with_test(images), names[0])
    count = sum(map(len, listed[0].values()))
    return Whole(images[:count], images[count:], names[0])


def _decoded_once(folder: Path, files: Sequence[Path], root: Path, size: int | None) -> Tensor:
    """(files, 3, height, width) uint8, from the cache where it is of these very files."""
    place = hashlib.sha256(os.fsencode(f"{folder.resolve()} {size}")).hexdigest()[:16]
    digest = hashlib.sha256()
    for file in files:
        status = _status(file)
        digest.update(os.fsencode(file.relative_to(folder)))
        digest.update(f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    # one file for each folder, so that a stale one is replaced and does not stay
    cache, found = root / "imagefolder" / f"{place}.safetensors", digest.hexdigest()
    try:
        tensors, description = load_tensors(cache, CACHE)
        if description["files"] == found and "turned" in description:
            _warn_of_turned(description["turned"])
            return tensors["pixels"]
    except StorageError:  # absent or damaged
        pass
    pixels, turned = _decoded(files, size)
    _warn_of_turned(turned)
    try:
        description = {"folder": str(folder.resolve()), "image_size": size, "files": found}
        description["turned"] = turned
        save_tensors(cache, {"pixels": pixels}, kind=CACHE, description=description)
    except OSError as error:
        warnings.warn(
            f"{cache}: the decoded pictures are not kept ({error}): free space, or choose root",
            RuntimeWarning,
            stacklevel=4,
        )
    return pixels


def _status(file: Path) -> os.stat_result:
    try:
        status = file.stat()
    except OSError as error:
        kind = "a link to nothing" if file.is_symlink() else "not a file that can be read"
        raise ValueError(f"{file} is {kind} ({error.strerror}): mend or remove it") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{file} is neither a file nor a folder: remove it")
    return status


def _warn_of_turned(turned: Sequence[Any]) -> None:
    first, count = turned
    if count:
        warnings.warn(
            f"{first} has an EXIF orientation that is not upright, one of {count} such pictures: "
            "they are read as they are stored, as torchvision does; turn them for good "
            "(PIL.ImageOps.exif_transpose) if they should be upright",
            RuntimeWarning,
            stacklevel=5,
        )


def _decoded(files: Sequence[Path], size: int | None) -> tuple[Tensor, list[Any]]:
    """(files, 3, height, width) uint8; the first that is stored turned, and how many are."""
    first, _ = _picture(files[0], size)
    turned = np.zeros(len(files), dtype=bool)
    pixels = np.empty((len(files), 3, *first.shape[:2]), dtype=np.uint8)

    def decode(start: int) -> int:
        part = files[start : start + CHUNK]
        for index, file in enumerate(part, start):
            picture, turned[index] = _picture(file, size)
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
    return torch.from_numpy(pixels), [str(files[int(turned.argmax())]), int(turned.sum())]


def _picture(file: Path, size: int | None) -> tuple[npt.NDArray[np.uint8], bool]:
    """(height, width, 3), the first of a file with several; and whether it is stored turned."""
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
            return np.asarray(image), _is_turned(opened)
    except Exception as error:  # what Pillow raises depends on format and damage
        raise ValueError(
            f"{file} is not a picture that can be read ({one_line(error)}): repair or remove it"
        ) from None


def _is_turned(image: Any) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except Exception:  # damaged EXIF does not spoil the picture
        return False
