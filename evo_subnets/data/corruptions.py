"""Common image corruptions, and the published files made with them.

Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", with the constants of the authors' CIFAR-10-C generator. Of its nineteen corruptions
frost is missing: it needs the authors' photographs of frost. Scores that are to be compared with
published ones should come from the published files (`cifar_c`): the authors' generator left its
random draws unseeded, so nobody can make the same images again.
"""

import hashlib
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from evo_subnets.data.digital import (
    brightness,
    contrast,
    elastic_transform,
    jpeg_compression,
    pixelate,
    saturate,
)
from evo_subnets.data.noise_and_blur import (
    Images,
    defocus_blur,
    gaussian_blur,
    gaussian_noise,
    glass_blur,
    grey_levels,
    impulse_noise,
    motion_blur,
    shot_noise,
    speckle_noise,
    zoom_blur,
)
from evo_subnets.data.weather import fog, snow, spatter
from evo_subnets.files import StorageError
from evo_subnets.streams import check_seed, derive_seed

# each with its arguments at severities 1 to 5
_TABLE: Final[dict[str, tuple[Callable[..., Images], tuple[tuple[Any, ...], ...]]]] = {
    "gaussian_noise": (gaussian_noise, ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,))),
    "shot_noise": (shot_noise, ((500,), (250,), (100,), (75,), (50,))),
    "impulse_noise": (impulse_noise, ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,))),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (zoom_blur, ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))),
    "snow": (
        snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (brightness, ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,))),
    "contrast": (contrast, ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,))),
    "elastic_transform": (
        elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (pixelate, ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,))),
    "jpeg_compression": (jpeg_compression, ((80,), (65,), (58,), (50,), (40,))),
    "speckle_noise": (speckle_noise, ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,))),
    "gaussian_blur": (gaussian_blur, ((0.4,), (0.6,), (0.7,), (0.8,), (1,))),
    "spatter": (
        spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
    ),
    "saturate": (saturate, ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
}

CORRUPTIONS: Final = tuple(_TABLE)
"""Names: noise, blur, weather, digital, and the paper's extra four (its validation set)."""
SEVERITIES: Final = (1, 2, 3, 4, 5)

_CHUNK = 256  # images at a time: what is needed besides stays below 100 MB at 32x32


def corrupt(images: Tensor, name: str, *, severity: int, seed: int = 0) -> Tensor:
    """Corrupted copies: uint8 (n, channels, height, width) on the CPU, of the images' shape.

    Images are uint8, with 1 or 3 channels (grey, RGB), square, 8 pixels or more a side; the
    constants are those for 32 pixels. Draws depend on the seed, the name, the severity and the
    image's own content alone: an image's result is the same in any batch and at any place in it,
    and two copies of an image are corrupted alike. Each function's docstring says in what it may
    differ from the original.
    """
    _check(name, severity, CORRUPTIONS)
    if (
        images.ndim != 4
        or images.dtype != torch.uint8
        or images.device.type != "cpu"
        or images.shape[1] not in (1, 3)
        or images.shape[2] != images.shape[3]
        or images.shape[2] < 8
    ):
        raise ValueError(
            "images to corrupt must be uint8 (n, 1 or 3, side, side) on the CPU, side >= 8, got "
            f"{images.dtype} {tuple(images.shape)} on {images.device}"
        )
    seed = check_seed(seed)
    level = SEVERITIES.index(severity)
    function, constants = _TABLE[name]
    result = torch.empty(images.shape, dtype=torch.uint8)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].numpy()
        generators = []
        for image in chunk:
            content = hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()
            key = derive_seed(seed, name, SEVERITIES[level], content)
            generators.append(np.random.Generator(np.random.PCG64(key)))
        named = dict(zip(list(signature(function).parameters)[2:], constants[level], strict=False))
        corrupted = function(chunk / 255.0, generators, **named)
        result[start : start + _CHUNK] = torch.from_numpy(grey_levels(corrupted))
    return result


def cifar_c(folder: Path, name: str, *, severity: int) -> tuple[Tensor, Tensor]:
    """Images, uint8 (n / 5, 3, 32, 32), and labels, int64 (n / 5,), of one corruption and severity.

    `folder` is CIFAR-10-C or CIFAR-100-C as published: `name`.npy is uint8 (n, 32, 32, 3) in five
    blocks of rising severity, n = 50,000, and labels.npy is (n,). Files are memory-mapped, so only
    the block asked for is read, and never unpickled. A `StorageError` (a ValueError) says which
    file is missing or is not what it should be.
    """
    _check(name, severity, (*CORRUPTIONS, "frost"))
    images = _mapped(Path(folder) / f"{name}.npy")
    labels = _mapped(Path(folder) / "labels.npy")
    n = len(images) if images.ndim else 0
    if images.dtype != np.uint8 or images.shape != (n, 32, 32, 3) or n == 0 or n % 5:
        raise StorageError(
            f"{Path(folder) / f'{name}.npy'}: expected uint8 (n, 32, 32, 3) in five equal blocks, "
            f"got {images.dtype} {images.shape}"
        )
    if labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise StorageError(
            f"{Path(folder) / 'labels.npy'}: expected {n} integers, one for each image of "
            f"{name}.npy, got {labels.dtype} {labels.shape}"
        )
    block = slice((severity - 1) * (n // 5), severity * (n // 5))
    pixels = np.array(images[block].transpose(0, 3, 1, 2), order="C")
    return torch.from_numpy(pixels), torch.from_numpy(labels[block].astype(np.int64))


def cifar_c_names(folder: Path) -> tuple[str, ...]:
    """The corruptions that a folder of CIFAR-10-C or CIFAR-100-C has files of."""
    names = (*CORRUPTIONS, "frost")
    found = tuple(name for name in names if (Path(folder) / f"{name}.npy").is_file())
    if not found:
        raise StorageError(f"{folder}: expected the .npy files of CIFAR-10-C or CIFAR-100-C")
    return found


def _check(name: str, severity: int, names: tuple[str, ...]) -> None:
    if name not in names:
        why = " (frost needs photographs: read the published files)" if name == "frost" else ""
        raise ValueError(f"there is no corruption {name!r}{why}; there are {', '.join(names)}")
    if severity not in SEVERITIES:
        raise ValueError(f"a severity is one of 1, 2, 3, 4, 5, got {severity!r}")


def _mapped(path: Path) -> "np.ndarray[Any, Any]":
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise StorageError(
            f"{path}: there is no such file; a folder of CIFAR-10-C or CIFAR-100-C holds one .npy "
            "file for each corruption and labels.npy"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise StorageError(f"{path}: not an array in numpy's format ({error})") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise StorageError(f"{path}: expected one array, got an archive of several")
    return array
