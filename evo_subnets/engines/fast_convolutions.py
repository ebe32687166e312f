"""Convolutions by `winograd.convolve` where it is faster, whoever calls `torch.conv2d`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evo_subnets.engines.winograd import (
    KERNELS,
    LANES,
    Convolution,
    convolve,
    library,
    output_size,
    tiles,
)

FEWEST_PAIRS, FEWEST_TILES = 1024, 100
"""Channels in times channels out, and tiles in all pictures: below, torch's own way is faster."""


class FastConvolutions(TorchFunctionMode):
    """Within it, those of this thread's convolutions that `fits` approves of take this way."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d:
            found = _convolution(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """torch.conv2d's result, None where this is not its way."""
    plain = all(each in (1, (1, 1), [1, 1]) for each in (stride, dilation)) and groups == 1
    borders = (padding, padding) if isinstance(padding, int) else tuple(padding)
    if not plain or len(borders) != 2 or borders[0] != borders[1]:
        return None
    if not _ordinary(input, weight, bias) or not fits(input, weight, borders[0]):
        return None
    if torch.is_grad_enabled():
        with_gradients: Callable[..., Tensor] = Convolution.apply
        return with_gradients(input, weight, bias, borders[0])
    return convolve(input, weight, bias, borders[0])


def fits(pictures: Tensor, weight: Tensor, padding: int) -> bool:
    """Whether `convolve` has the kernel, and is faster (`benchmarks/winograd.py`)."""
    outputs, inputs, height, width = weight.shape
    return (
        height == width
        and height in KERNELS
        and 0 <= padding < height
        and inputs % LANES == outputs % LANES == 0
        and inputs * outputs >= FEWEST_PAIRS
        and min(output_size(pictures, height, padding)) > 0
        and len(pictures) * math.prod(tiles(pictures, height, padding)) >= FEWEST_TILES
        and library() is not None
    )


def _ordinary(pictures: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are float32 tensors in the CPU's memory that belong together, and no more."""
    given = [pictures, weight] if bias is None else [pictures, weight, bias]
    return (
        not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
        and all(type(each) in (Tensor, nn.Parameter) for each in given)
        and all(each.device.type == "cpu" and each.dtype == torch.float32 for each in given)
        and pictures.ndim == weight.ndim == 4
        and pictures.shape[1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and pictures.is_contiguous(memory_format=torch.channels_last)
    )
