"""Noise and blur of Hendrycks and Dietterich 2019, on many images at once.

Images are float64 (n, channels, side, side) in [0, 1], with one generator for each image; results
may leave [0, 1], where `grey_levels` cuts them off.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float64]
Generators = Sequence[np.random.Generator]


def grey_levels(images: Images) -> NDArray[np.uint8]:
    """uint8 levels 0..255, rounded down as the authors' files are.

    A millionth of a level is added before, lest rounding errors take a whole level away.
    """
    levels: NDArray[np.uint8] = np.floor(np.clip(images, 0, 1) * 255 + 1e-6).astype(np.uint8)
    return levels


def drawn(generators: Generators, draw: Callable[[np.random.Generator], Any]) -> Images:
    """What each image's generator draws, stacked: (n, ...)."""
    return np.stack([np.asarray(draw(generator), dtype=np.float64) for generator in generators])


def ndimage() -> Any:
    """scipy.ndimage, imported when first used; it has no types."""
    return importlib.import_module("scipy.ndimage")


def gaussian_filter(
    images: Images, sigma: float, *, mode: str = "nearest", cut: float = 4
) -> Images:
    """The last two axes smoothed; `sigma` in pixels, the kernel ends after `cut` of them."""
    sigmas = (0,) * (images.ndim - 2) + (sigma, sigma)
    result: Images = ndimage().gaussian_filter(images, sigmas, mode=mode, truncate=cut)
    return result


def gaussian_noise(images: Images, generators: Generators, *, scale: float) -> Images:
    """Independent normal noise of standard deviation `scale` on every value."""
    shape = images.shape[1:]
    return images + drawn(generators, lambda generator: generator.normal(0, scale, shape))


def shot_noise(images: Images, generators: Generators, *, photons: float) -> Images:
    """Poisson noise: white is `photons` photons on average."""
    counts: Images = np.stack(
        [
            generator.poisson(image * photons)
            for image, generator in zip(images, generators, strict=True)
        ]
    )
    return counts / photons


def impulse_noise(images: Images, generators: Generators, *, amount: float) -> Images:
    """Salt and pepper: a fraction `amount` of the values, channel by channel, turns 0 or 1."""
    u = drawn(generators, lambda generator: generator.random(images.shape[1:]))
    return np.where(u < amount, np.where(u < amount / 2, 0.0, 1.0), images)


def speckle_noise(images: Images, generators: Generators, *, scale: float) -> Images:
    """Normal noise of standard deviation `scale` times the value itself."""
    return images + images * gaussian_noise(np.zeros_like(images), generators, scale=scale)


def gaussian_blur(images: Images, generators: Generators, *, sigma: float) -> Images:
    """A Gaussian filter of `sigma` pixels that repeats the border."""
    return gaussian_filter(images, sigma)


def defocus_blur(
    images: Images, generators: Generators, *, radius: float, softness: float
) -> Images:
    """Convolution with a disk of `radius` pixels, itself smoothed over 3x3 with sigma `softness`.

    The original's 17x17 kernel is cut to where it is not zero; OpenCV's float32 Fourier transform
    may differ in the last grey level.
    """
    reach = math.floor(radius) + 1
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
    soft = np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / (2 * softness**2))
    kernel = ndimage().convolve(disk / disk.sum(), np.outer(soft, soft) / soft.sum() ** 2)
    result: Images = ndimage().correlate(images, kernel[None, None], mode="mirror")
    return result


def glass_blur(images: Images, generators: Generators, *, sigma: float, iterations: int) -> Images:
    """Pixels moved by up to one to the right and down, between two Gaussian filters of `sigma`.

    The original means to exchange a pixel with a random neighbour above or to the left, or both,
    but exchanges views of one array, so that the pixel takes its neighbour's colour and the
    neighbour keeps it: the published files have that, and so has this. As its loop runs from the
    last pixel to the first, every pixel takes a colour that was not yet changed, and all can be
    moved at once. The first two rows and columns stay.
    """
    side = images.shape[2]
    levels = grey_levels(gaussian_filter(images, sigma))
    which = np.arange(len(images))[:, None, None]
    moved = np.arange(2, side)
    for _ in range(iterations):
        shifts = drawn(generators, lambda g: g.integers(-1, 1, (2, side - 2, side - 2)))
        rows = moved[:, None] + shifts[:, 0].astype(np.intp)
        columns = moved + shifts[:, 1].astype(np.intp)
        taken = levels.transpose(0, 2, 3, 1)[which, rows, columns]
        levels[:, :, 2:, 2:] = taken.transpose(0, 3, 1, 2)
    return gaussian_filter(levels / 255.0, sigma)


def motion_blur(
    images: Images,
    generators: Generators,
    *,
    radius: int,
    sigma: float,
    angles: tuple[float, float] = (-45, 45),
) -> Images:
    """Blur to one side along a random direction; `angles` are the least and greatest in degrees.

    The original calls ImageMagick, whose blur is a mean over the pixel and the 2 `radius` next
    ones along the line, rounded to whole pixels, with the weights of half a Gaussian of `sigma`
    pixels, and repeats the border. Versions of ImageMagick differ in rounding. Results are whole
    grey levels.
    """
    angle = drawn(generators, lambda generator: generator.uniform(*angles))
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    # .5 is rounded down, as ImageMagick does
    right = np.ceil(steps * np.cos(np.radians(angle))[:, None] - 0.5).astype(np.intp)
    down = np.ceil(steps * np.sin(np.radians(angle))[:, None] - 0.5).astype(np.intp)
    side = images.shape[2]
    which, pixel = np.arange(len(images))[:, None, None], np.arange(side)
    last = images.transpose(0, 2, 3, 1)
    result = np.zeros_like(last)
    for step, weight in enumerate(weights):
        rows = np.clip(pixel + down[:, step, None], 0, side - 1)[:, :, None]
        columns = np.clip(pixel + right[:, step, None], 0, side - 1)[:, None, :]
        result += weight * last[which, rows, columns]
    levels: Images = np.rint(result * 255).transpose(0, 3, 1, 2) / 255
    return levels


def zoom_matrix(side: int, factor: float) -> Images:
    """(side, side) Z: Z @ image @ Z.T is the image's middle, enlarged `factor` times."""
    crop = math.ceil(side / factor)
    top = (side - crop) // 2
    enlarge = ndimage().zoom(np.eye(crop), (factor, 1), order=1)
    trim = (len(enlarge) - side) // 2
    matrix = np.zeros((side, side))
    matrix[:, top : top + crop] = enlarge[trim : trim + side]
    return matrix


def zoom_blur(images: Images, generators: Generators, *, stop: float) -> Images:
    """The mean of the image and its enlargements by 1, 1.01, .. up to `stop`.

    The original adds in float32, which may differ in the last grey level. It means to end before
    `stop`, but in floating point numpy's range of some of these numbers ends with it.
    """
    factors = np.arange(1, stop, 0.01)
    total = images.copy()
    for factor in factors:
        matrix = zoom_matrix(images.shape[2], factor)
        total += matrix @ images @ matrix.T
    return total / (len(factors) + 1)
