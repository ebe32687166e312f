"""Counter-based random draws: the same on every device, in every process and for any chunking.

A draw is a function of (seed, parameter name, element, stream) and of nothing else: Philox 4x32-10
(Salmon et al. 2011) with the seed as its key and (block, stream, name's hash) as its counter. This
file defines the bits with plain torch operations, on any device; `engines/` gives the same bits,
faster.

Elements are numbered in the parameter's memory order (row-major). Tiles of 64 elements take 16
blocks of four words: element 16 w + j of a tile is word w of its block j.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

UNIFORM: Final = 0
"""The stream of u, which decides what is in a subnetwork."""
NORMAL: Final = 1
"""The stream of the noise."""

LANES: Final = 16
TILE: Final = 4 * LANES
"""Draws begin at multiples of this many elements."""
LEVELS: Final = 2**24
"""u is a multiple of 1 / LEVELS, which float32 holds exactly."""

CPU_CHUNK, CHUNK = 2**16, 2**22
"""See `chunk_size`: what fits a CPU's cache, and what keeps other devices busy."""

WITHOUT_DOUBLE: Final = ("mps",)
"""Types of devices that have no float64."""

_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Interval:
    """low <= u < high, in whole numbers of 1 / LEVELS; with low > high it wraps around 1."""

    low: int
    width: int

    @classmethod
    def of(cls, low: float, high: float) -> "Interval":
        """The interval of two real bounds in [0, 1]."""
        first, last = math.ceil(low * LEVELS), math.ceil(high * LEVELS)
        return cls(first, last - first if low <= high else last - first + LEVELS)

    def contains(self, levels: Tensor) -> Tensor:
        """BoolTensor: which of `uniform_levels` lie in the interval."""
        return ((levels - self.low) & (LEVELS - 1)) < self.width


def training_stream(step: int) -> int:
    """The stream of training step `step` (0, 1, ...), for masks drawn anew at every step."""
    if not 0 <= step < 2**32 - 2:
        raise ValueError(f"a training step must be in 0..2**32 - 3, got {step}")
    return step + 2


def check_seed(seed: int, *, bits: int = 63) -> int:
    """The seed as an int, also of numpy's integers; a ValueError where it does not fit the bits."""
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool | np.timedelta64)
    if not whole or not 0 <= seed < 2**bits:
        raise ValueError(f"a seed must be an int in 0..2**{bits} - 1, got {seed!r}")
    return int(seed)


def derive_seed(seed: int, *path: int | str) -> int:
    """An independent seed below 2**53 for each path, which JSON and float64 hold exactly."""
    text = "/".join(str(part) for part in (check_seed(seed), *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 11


def double_device(device: torch.device | str) -> torch.device:
    """The device itself; the CPU in place of one without float64, as Apple's are."""
    device = torch.device(device)
    return torch.device("cpu") if device.type in WITHOUT_DOUBLE else device


def in_double(tensor: Tensor) -> Tensor:
    """A tensor in float64, on the CPU where its own device has none."""
    return tensor.to(double_device(tensor.device)).double()


def chunk_size(device: torch.device) -> int:
    """Elements that plain torch draws at a time: what it needs besides stays small."""
    return CPU_CHUNK if device.type == "cpu" else CHUNK


def name_hash(name: str) -> int:
    """64 bits that stand for a parameter's name in the counter."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def philox(
    counter: tuple[Tensor, int, int, int], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10 of 32-bit words held in int64: four words for each first counter word."""
    c0 = counter[0]
    c1, c2, c3 = (torch.full_like(c0, word) for word in counter[1:])
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap around, but their bits are those of the unsigned product
        low, high = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0 = ((high >> 32) & _MASK) ^ c1 ^ k0
        c1 = high & _MASK
        c2 = ((low >> 32) & _MASK) ^ c3 ^ k1
        c3 = low & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return c0, c1, c2, c3


def words(
    seed: int,
    name: str,
    *,
    stream: int,
    count: int,
    start: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """(tiles, 4, 16) int64: the words of the tiles that hold elements start .. start + count."""
    if start % TILE:
        raise ValueError(f"draws start at a multiple of {TILE} elements, got {start}")
    tiles = -(-count // TILE)
    first = start // 4
    blocks = torch.arange(first, first + tiles * LANES, dtype=torch.int64, device=device) & _MASK
    seed, hashed = check_seed(seed), name_hash(name)
    counter = (blocks, stream, hashed & _MASK, hashed >> 32)
    drawn = philox(counter, (seed & _MASK, seed >> 32))
    return torch.stack(drawn).view(4, tiles, LANES).transpose(0, 1)


def uniform_levels(
    seed: int,
    name: str,
    *,
    count: int,
    start: int = 0,
    device: torch.device | str = "cpu",
    stream: int = UNIFORM,
) -> Tensor:
    """(count,) int64 in 0 .. 2**24 - 1: `uniform` times 2**24."""
    place = double_device(device)  # with `normal`, or the same bits would not be certain
    drawn = words(seed, name, stream=stream, count=count, start=start, device=place)
    return (drawn >> 8).reshape(-1)[:count].to(device)


def uniform(
    seed: int,
    name: str,
    *,
    count: int,
    start: int = 0,
    device: torch.device | str = "cpu",
    stream: int = UNIFORM,
) -> Tensor:
    """(count,) float32 in [0, 1), for elements `start` .. `start + count - 1` of a parameter."""
    levels = uniform_levels(seed, name, count=count, start=start, device=device, stream=stream)
    return levels.float() * (1 / LEVELS)


def normal(
    seed: int,
    name: str,
    *,
    count: int,
    start: int = 0,
    device: torch.device | str = "cpu",
    stream: int = NORMAL,
) -> Tensor:
    """(count,) float32 standard normal numbers, for elements `start` .. of a parameter."""
    place = double_device(device)
    drawn = words(seed, name, stream=stream, count=count, start=start, device=place)
    first, second = box_muller(drawn[:, 0::2], drawn[:, 1::2])
    return torch.stack((first, second), dim=2).reshape(-1)[:count].to(device)


def box_muller(w0: Tensor, w1: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normal numbers of two 32-bit words (Box and Muller 1958).

    sqrt(-2 ln u) cos(2 pi v) and its sine, by series in float32 additions, multiplications,
    divisions and square roots alone: every IEEE machine rounds these alike, while the logarithms
    and cosines of mathematical libraries differ. The error is below 1e-6 for a given u and v.
    """
    u = (w0 >> 1).float() * 2.0**-31 + 2.0**-32
    # torch's float32 square root is not always the nearest float; float64's, rounded once, is
    radius = (_logarithm(u) * -2.0).double().sqrt().float()
    turn = (w1 + 0x20000000) & _MASK  # the two highest bits are the quadrant
    quadrant = turn >> 30
    rest = (turn & 0x3FFFFFFF) - 0x20000000
    sine, cosine = _sine_cosine(rest.float() * 1.4629180792671596e-9)  # pi / 2 / 2**30
    odd = (quadrant & 1) == 1
    c, d = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    c = torch.where((quadrant == 1) | (quadrant == 2), -c, c)
    d = torch.where(quadrant >= 2, -d, d)
    return radius * c, radius * d


def _logarithm(u: Tensor) -> Tensor:
    bits = u.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23  # 0x3F3504F3 is the square root of one half
    m = (bits - (exponent << 23)).view(torch.float32)
    s = (m - 1.0) / (m + 1.0)  # ln m = 2 atanh s, to 1e-7 of it
    z = s * s
    series = z * (1 / 7) + (1 / 5)
    series = series * z + (1 / 3)
    series = series * z
    s2 = s + s
    return exponent.float() * 0.6931471805599453 + (s2 * series + s2)


def _sine_cosine(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * x  # |x| <= pi / 4
    # least-squares coefficients at Chebyshev nodes: within 5e-9 and 4e-10
    sine = y * -0.00019493497 + 0.008331958
    sine = sine * y + -0.16666651
    sine = (sine * y) * x + x
    cosine = y * 2.4435853e-05 + -0.0013887342
    cosine = cosine * y + 0.041666646
    cosine = cosine * y + (-1 / 2)
    cosine = cosine * y + 1.0
    return sine, cosine
