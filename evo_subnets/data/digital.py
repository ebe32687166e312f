"""Brightness, contrast, saturation, distortion and compression, on many images at once.

Of Hendrycks and Dietterich 2019. Arguments and results are as in noise_and_blur.py.
"""

from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from evo_subnets.data.noise_and_blur import (
    Generators,
    Images,
    drawn,
    gaussian_filter,
    grey_levels,
    ndimage,
)

if TYPE_CHECKING:
    from PIL.Image import Image


def brightness(images: Images, generators: Generators, *, added: float) -> Images:
    """`added` to V of HSV, the greatest of the channels; hue and saturation stay."""
    value: Images = images.max(axis=1, keepdims=True)
    brighter: Images = np.clip(value + added, 0, 1)
    ratio = np.divide(images, value, out=np.ones_like(images), where=value > 0)
    return ratio * brighter


def contrast(images: Images, generators: Generators, *, factor: float) -> Images:
    """Each channel's distance from its mean over the image, times `factor`."""
    means: Images = images.mean(axis=(2, 3), keepdims=True)
    return (images - means) * factor + means


def saturate(images: Images, generators: Generators, *, factor: float, added: float) -> Images:
    """S of HSV times `factor` plus `added`, at most 1; hue and V stay.

    Grey pixels of colour images have hue 0, so that `added` turns them red, as in the original.
    Grey images have no saturation and stay as they are.
    """
    if images.shape[1] == 1:
        return images
    value: Images = images.max(axis=1, keepdims=True)
    spread = value - images.min(axis=1, keepdims=True)
    saturation = np.divide(spread, value, out=np.zeros_like(spread), where=value > 0)
    below = np.ones_like(images)  # how far below V a channel is, as a fraction of the spread
    below[:, 0] = 0
    np.divide(value - images, spread, out=below, where=spread > 0)
    saturated: Images = np.clip(saturation * factor + added, 0, 1)
    return value * (1 - saturated * below)


def elastic_transform(
    images: Images, generators: Generators, *, amplitude: float, sigma: float, corner: float
) -> Images:
    """A random affine map and then a smooth random displacement, both with linear interpolation.

    All three numbers are fractions of the image's side: three points are moved by up to `corner`,
    and displacements are uniform noise smoothed by `sigma` and multiplied by `amplitude`. OpenCV
    rounds the affine map's coordinates to 1/32 of a pixel, this does not.
    """
    side = images.shape[2]
    middle, half = side // 2, side // 3
    high, low = middle + half, middle - half
    points = np.array([[high, high], [high, low], [low, low]], dtype=np.float64)  # x, y
    reach = corner * side
    moved = points + drawn(generators, lambda generator: generator.uniform(-reach, reach, (3, 2)))
    ones = np.ones((len(images), 3, 1))
    affine = np.linalg.solve(
        np.concatenate((moved, ones), axis=2), np.broadcast_to(points, moved.shape)
    )
    y, x = np.mgrid[:side, :side].astype(np.float64)
    source = np.stack((x, y, np.ones_like(x)), axis=2).reshape(-1, 3) @ affine
    source = source.reshape(-1, side, side, 2)
    images = _sampled(images, source[..., 1], source[..., 0], "mirror")
    shifts = drawn(generators, lambda generator: generator.uniform(-1, 1, (2, side, side)))
    shifts = gaussian_filter(shifts, sigma * side, mode="reflect", cut=3) * (amplitude * side)
    return _sampled(images, y + shifts[:, 1], x + shifts[:, 0], "reflect")


def _sampled(images: Images, rows: Images, columns: Images, mode: str) -> Images:
    """Values at fractional rows and columns, (n, side, side) each, by linear interpolation."""
    result = np.empty_like(images)
    for image, places, target in zip(images, np.stack((rows, columns), 1), result, strict=True):
        for channel, out in zip(image, target, strict=True):
            ndimage().map_coordinates(channel, places, output=out, order=1, mode=mode)
    return result


def pixelate(images: Images, generators: Generators, *, factor: float) -> Images:
    """Images shrunk to `factor` of their side and back, each pixel a mean over a box."""
    from PIL.Image import Resampling

    side = images.shape[2]
    small = int(side * factor)

    def resized(picture: "Image") -> "Image":
        return picture.resize((small, small), Resampling.BOX).resize((side, side), Resampling.BOX)

    return _pictured(images, resized)


def jpeg_compression(images: Images, generators: Generators, *, quality: int) -> Images:
    """Images written as JPEG of `quality` and read again, by Pillow."""
    from PIL import Image as files

    def compressed(picture: "Image") -> "Image":
        stream = BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        return files.open(stream)

    return _pictured(images, compressed)


def _pictured(images: Images, change: "Callable[[Image], Image]") -> Images:
    """Images through a change of Pillow's."""
    from PIL import Image as files

    result = np.empty_like(images)
    for levels, out in zip(grey_levels(images), result, strict=True):
        plain = levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)
        changed = np.asarray(change(files.fromarray(np.ascontiguousarray(plain))))
        out[:] = np.atleast_3d(changed).transpose(2, 0, 1) / 255
    return result
