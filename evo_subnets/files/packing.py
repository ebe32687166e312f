"""Sparse tensors as a bit for each element and the values that are not zero."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
"""Integers of the same width: a negative zero is a value, and NaN keeps its bits."""
WORTH = 256
"""Bytes that must be saved: a second tensor in a file has a name and a place to be written too."""


def pack(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """(bits, values), or None where that is hardly smaller or the dtype is none of `INTEGERS`.

    bits: (elements / 8,) uint8, rounded up, the first element in the highest bit; values: those
    elements whose bits are not all zero, row-major. At a sparsity s a float32 tensor takes
    1 / 32 + 1 - s of its size.
    """
    if tensor.dtype not in INTEGERS or not tensor.numel():
        return None
    flat = tensor.detach().cpu().contiguous().view(-1)
    integers = flat.view(INTEGERS[tensor.dtype])  # taking bfloat16 elements may change a NaN's bits
    kept = integers != 0
    values = integers[kept].view(tensor.dtype)
    bits = torch.from_numpy(np.packbits(kept.numpy()))
    saved = (flat.numel() - values.numel()) * flat.element_size() - bits.numel()
    return (bits, values) if saved >= WORTH else None


def unpack(bits: Tensor, values: Tensor, *, shape: Sequence[int]) -> Tensor:
    """The tensor of this shape that was packed; a ValueError where the three do not fit."""
    count = math.prod(shape)
    if min(shape, default=0) < 0 or bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),):
        raise ValueError(f"{tuple(bits.shape)} {bits.dtype} are no bits for the shape {shape}")
    kept = torch.from_numpy(np.unpackbits(bits.numpy(), count=count)).bool()
    if values.dtype not in INTEGERS or values.shape != (int(kept.sum()),):
        raise ValueError(
            f"expected {int(kept.sum())} values, got {tuple(values.shape)} {values.dtype}"
        )
    integers = torch.zeros(count, dtype=INTEGERS[values.dtype])
    integers[kept] = values.view(integers.dtype)
    return integers.view(values.dtype).view(tuple(shape))
