"""Layers whose convolutions go by `winograd.convolve` where that is faster than torch's."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from evo_subnets.engines import watched
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


class FastConv2d(nn.Conv2d):
    """A layer that shares all that it has with the one that it was made from: see `fast`."""

    def forward(self, input: Tensor) -> Tensor:
        assert isinstance(self.padding[0], int)
        if not fits(input, self.weight, self.bias, self.padding[0]):
            return super().forward(input)
        if torch.is_grad_enabled():
            with_gradients: Callable[..., Tensor] = Convolution.apply
            return with_gradients(input, self.weight, self.bias, self.padding[0])
        return convolve(input, self.weight, self.bias, self.padding[0])


def fast(layer: nn.Conv2d) -> FastConv2d:
    """A layer with the same parameters and settings, in the same dictionaries."""
    made = copy.copy(layer)
    made.__class__ = FastConv2d
    assert isinstance(made, FastConv2d)
    return made


def may_pay(layer: nn.Module) -> bool:
    """Whether it is torch's own layer, with a kernel that `convolve` has and enough channels."""
    return (
        type(layer) is nn.Conv2d
        and layer.kernel_size in [(r, r) for r in KERNELS]
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.padding in [(padding, padding) for padding in range(layer.kernel_size[0])]
        and layer.in_channels % LANES == layer.out_channels % LANES == 0
        and layer.in_channels * layer.out_channels >= FEWEST_PAIRS
    )


def fits(pictures: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> bool:
    """Whether these are float32 tensors in the CPU's memory that belong together, with as many
    tiles as `convolve` needs to be faster (`benchmarks/winograd.py`)."""
    given = [pictures, weight] if bias is None else [pictures, weight, bias]
    return (
        not watched()
        and all(type(each) in (Tensor, nn.Parameter) for each in given)
        and all(each.device.type == "cpu" and each.dtype == torch.float32 for each in given)
        and pictures.ndim == 4
        and pictures.shape[1] == weight.shape[1]
        and pictures.is_contiguous(memory_format=torch.channels_last)
        and min(output_size(pictures, weight.shape[-1], padding)) > 0
        and len(pictures) * math.prod(tiles(pictures, weight.shape[-1], padding)) >= FEWEST_TILES
        and library() is not None
    )
