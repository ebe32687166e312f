"""A draw as `philox.c` and `philox.cu` take it."""

import ctypes

from evo_subnets.draws import Change, Draw
from evo_subnets.streams import LEVELS, name_hash


class Key(ctypes.Structure):
    """What a draw depends on, besides the element and the stream."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("name", ctypes.c_uint64),
    )

    @classmethod
    def of(cls, draw: Draw) -> "Key":
        return cls(draw.seed, name_hash(draw.name))


class Recipe(ctypes.Structure):
    """An interval of u in units of 2**-24, and the factor of the noise."""

    _fields_ = (
        ("low", ctypes.c_uint32),
        ("width", ctypes.c_uint32),
        ("sigma", ctypes.c_float),
        ("unused", ctypes.c_uint32),
    )

    @classmethod
    def of(cls, change: Change) -> "Recipe":
        return cls(change.interval.low % LEVELS, change.interval.width, change.sigma)
