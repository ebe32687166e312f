"""A picture moved by a pixel, as a control: what averaging costs and gains without any child."""

from typing import Any

import torch
from torch import Tensor, nn

from evo_subnets.ensemble import Ensemble
from evo_subnets.outputs import Outputs

WAYS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


class View(nn.Module):
    """(batch, channels, height, width) pictures, moved so many pixels down and to the right, to
    what the module says of them; the border's pixels fill what is left free."""

    def __init__(self, module: nn.Module, *, down: int, right: int) -> None:
        super().__init__()
        self.module, self.down, self.right = module, down, right
        for name in ("outputs", "observation_space", "action_space"):
            if hasattr(module, name):
                setattr(self, name, getattr(module, name))

    def forward(self, pictures: Tensor) -> Any:
        if pictures.ndim != 4:
            raise ValueError(
                "views are of pictures: expected (batch, channels, height, width), got shape "
                f"{tuple(pictures.shape)}"
            )
        height, width = pictures.shape[2:]
        rows = (torch.arange(height, device=pictures.device) - self.down).clamp(0, height - 1)
        columns = (torch.arange(width, device=pictures.device) - self.right).clamp(0, width - 1)
        return self.module(pictures[:, :, rows][:, :, :, columns])


def shifted_views(
    module: nn.Module, *, pixels: int = 1, outputs: Outputs | None = None
) -> Ensemble:
    """The module alone, asked of pictures as they are and moved in four directions by so many
    pixels: test-time augmentation, combined as an `Ensemble` combines its members, at five times
    the cost of an answer."""
    if pixels < 1:
        raise ValueError(f"pixels must be at least 1, got {pixels}")
    views = [View(module, down=pixels * down, right=pixels * right) for down, right in WAYS]
    return Ensemble(views, outputs=outputs)
