"""Snow, fog and spatter of Hendrycks and Dietterich 2019, on many images at once.

Arguments and results are as in noise_and_blur.py; all sizes are in pixels, of 32x32 images.
"""

import numpy as np
from numpy.typing import NDArray

from evo_subnets.data.noise_and_blur import (
    Generators,
    Images,
    drawn,
    gaussian_filter,
    grey_levels,
    motion_blur,
    ndimage,
    zoom_matrix,
)

Levels = NDArray[np.int64]

_LUMA = np.array([0.299, 0.587, 0.114])
_WATER = np.array([175, 238, 238]) / 255  # pale turquoise
_MUD = np.array([63, 42, 20]) / 255


def snow(
    images: Images,
    generators: Generators,
    *,
    mean: float,
    scale: float,
    zoom: float,
    threshold: float,
    radius: int,
    sigma: float,
    kept: float,
) -> Images:
    """Whitened images under flakes that fall in a random direction (and, fainter, back up).

    Flakes are normal noise (`mean`, `scale`) enlarged `zoom` times, zero below `threshold`, blurred
    by `motion_blur`, which stands in for ImageMagick; added once as they are, once turned by half.
    `kept` is the weight of the image against its whitened self. A grey image is its own luminance.
    """
    side = images.shape[2]
    matrix = zoom_matrix(side, zoom)
    layer = drawn(generators, lambda generator: generator.normal(mean, scale, (side, side)))
    layer = matrix @ layer @ matrix.T
    layer[layer < threshold] = 0
    layer = grey_levels(layer)[:, None] / 255.0
    layer = motion_blur(layer, generators, radius=radius, sigma=sigma, angles=(-135, -45))
    white = np.maximum(images, _luminance(images) * 1.5 + 0.5)
    return kept * images + (1 - kept) * white + layer + layer[:, :, ::-1, ::-1]


def fog(images: Images, generators: Generators, *, strength: float, decay: float) -> Images:
    """Images under `strength` times a plasma fractal, rescaled to their own brightest value."""
    side = images.shape[2]
    mapped = 1 << (side - 1).bit_length()
    noise = drawn(generators, lambda generator: generator.uniform(-1, 1, mapped**2 - 1))
    brightest: Images = images.max(axis=(1, 2, 3), keepdims=True)
    haze = plasma(noise, mapped, decay=decay)[:, None, :side, :side]
    return (images + strength * haze) * brightest / (brightest + strength)


def plasma(noise: Images, side: int, *, decay: float) -> Images:
    """(n, side, side) heights in 0..1 that wrap around, by the diamond-square algorithm.

    `side` is a power of two and `noise` (n, side**2 - 1) uniform in -1..1. Each round halves the
    grid: new heights are the mean of four neighbours plus noise, 10,000 high in the first round
    and `decay` squared times lower in each next one.
    """
    heights = np.zeros((len(noise), side, side))
    used, step, reach = 0, side, 100.0**2

    def between(neighbours: Images) -> Images:
        nonlocal used
        count = neighbours[0].size
        bumps = noise[:, used : used + count].reshape(neighbours.shape)
        used += count
        return neighbours / 4 + reach * bumps

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=1)
        middles = between(pairs + np.roll(pairs, -1, axis=2))
        heights[:, half::step, half::step] = middles
        across = corners + np.roll(corners, -1, axis=2)
        heights[:, ::step, half::step] = between(across + middles + np.roll(middles, 1, axis=1))
        down = corners + np.roll(corners, -1, axis=1)
        heights[:, half::step, ::step] = between(down + middles + np.roll(middles, 1, axis=2))
        step, reach = half, reach / decay**2
    heights -= heights.min(axis=(1, 2), keepdims=True)
    highest: Images = heights.max(axis=(1, 2), keepdims=True)
    return heights / highest


def spatter(
    images: Images,
    generators: Generators,
    *,
    mean: float,
    scale: float,
    sigma: float,
    threshold: float,
    last: float,
    mud: bool,
) -> Images:
    """Images with drops of water or with mud, where smoothed normal noise passes `threshold`.

    Mud covers what it is on, with edges smoothed by `last` pixels. Water adds up to `last` of its
    colour, shaded by the distance from the drops' edges; the original finds these with OpenCV, and
    the same steps are done here in numpy, which may differ in single pixels of the shading. Drops
    without any shade, as in small images, add nothing (the original divides by zero). On grey
    images the colour is its luminance.
    """
    shape = images.shape[2:]
    layer = drawn(generators, lambda generator: generator.normal(mean, scale, shape))
    layer = gaussian_filter(layer, sigma)
    layer[layer < threshold] = 0
    colour = (_MUD if mud else _WATER)[:, None, None]
    if images.shape[1] == 1:
        colour = _luminance(colour[None])[0]
    if mud:
        solid = gaussian_filter((layer > threshold).astype(np.float64), last)[:, None]
        cover: Images = np.where(solid < 0.8, 0.0, solid)
        muddy: Images = images * (1 - cover) + colour * cover
        return muddy
    drops = grey_levels(layer).astype(np.int64)
    shade = (drops * _relief(edges(drops, 50, high=150)))[:, None]
    highest = np.maximum(shade.max(axis=(1, 2, 3), keepdims=True), 1)
    wet: Images = images + last * shade / highest * colour
    return wet


def edges(levels: Levels, low: int, *, high: int) -> NDArray[np.bool_]:
    """(n, side, side) edge pixels of grey levels, by Canny 1986 as in OpenCV.

    Sobel gradients, |dx| + |dy|, kept where greatest along their direction (to 45 degrees), and
    connected through pixels above `low` to one above `high`.
    """
    padded = np.pad(levels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    dx, dy = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
    size = np.abs(dx) + np.abs(dy)
    around = np.pad(size, ((0, 0), (1, 1), (1, 1)))
    side = levels.shape[2]

    def at(down: int, right: int) -> Levels:
        return around[:, 1 + down : 1 + down + side, 1 + right : 1 + right + side]

    # tan 22.5° and tan 67.5° = 2 + tan 22.5°, in 15 bits
    x, y = np.abs(dx) * 13573, np.abs(dy) << 15
    flat, steep = y < x, y > x + (np.abs(dx) << 16)
    along = (size > at(0, -1)) & (size >= at(0, 1))
    upright = (size > at(-1, 0)) & (size >= at(1, 0))
    falling = (size > at(-1, -1)) & (size > at(1, 1))
    rising = (size > at(-1, 1)) & (size > at(1, -1))
    diagonal = np.where((dx ^ dy) < 0, rising, falling)
    thin = (size > low) & np.where(flat, along, np.where(steep, upright, diagonal))
    joined = np.zeros((3, 3, 3), dtype=bool)
    joined[1] = True  # neighbours within an image
    labels, count = ndimage().label(thin, joined)
    strong = np.zeros(count + 1, dtype=bool)
    strong[labels[thin & (size > high)]] = True
    result: NDArray[np.bool_] = strong[labels]
    return result


def _relief(lines: NDArray[np.bool_]) -> Levels:
    """Distance from the lines, equalised and embossed: levels 0..255."""
    near = np.floor(_box(_distances(lines, 20.0)) + 1e-6).astype(np.int64)
    counts = np.stack([(near == level).sum(axis=(1, 2)) for level in range(21)], axis=1)
    first = (counts > 0).argmax(axis=1)[:, None]
    lowest = np.take_along_axis(counts, first, axis=1)
    others = near[0].size - lowest
    equal = np.rint((counts.cumsum(axis=1) - lowest) * (255 / np.maximum(others, 1)))
    # an image of one level stays as it is
    equal = np.where(others == 0, np.arange(21), equal).astype(np.int64)
    spread = np.take_along_axis(equal, near.reshape(len(near), -1), axis=1).reshape(near.shape)
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    raised = np.clip(ndimage().correlate(spread, emboss[None], mode="mirror"), 0, 255)
    return np.rint(_box(raised.astype(np.float64))).astype(np.int64)


def _distances(lines: NDArray[np.bool_], farthest: float) -> Images:
    """Pixels to the nearest line by steps of 1, 1.4 and, a knight's move, 2.1969.

    Borgefors 1986, with OpenCV's lengths for 5x5 pixels; at most `farthest`.
    """
    side = lines.shape[1]
    result = np.where(lines, 0.0, farthest)
    reach = range(-2, 3)
    moves = [(i, j) for i in reach for j in reach if abs(i) + abs(j) in (1, 2, 3)]
    lengths = {1: 1.0, 2: 1.4, 5: 2.1969}
    steps = [(i, j, lengths[i * i + j * j]) for i, j in moves if i * i + j * j in lengths]
    while True:
        before = np.pad(result, ((0, 0), (2, 2), (2, 2)), constant_values=farthest)
        nearer = result.copy()
        for i, j, length in steps:
            moved = before[:, 2 + i : 2 + i + side, 2 + j : 2 + j + side]
            np.minimum(nearer, moved + length, out=nearer)
        if np.array_equal(nearer, result):
            return result
        result = nearer


def _box(images: Images) -> Images:
    """Means over 3x3 pixels, reflected at the border's pixels."""
    result: Images = ndimage().correlate(images, np.full((1, 3, 3), 1 / 9), mode="mirror")
    return result


def _luminance(images: Images) -> Images:
    """(n, 1, ...) of (n, 3, ...) RGB; grey images are their own."""
    if images.shape[1] == 1:
        return images
    luminance: Images = np.einsum("nchw,c->nhw", images, _LUMA)
    return luminance[:, None]
