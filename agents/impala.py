"""The Impala residual network (Espeholt et al. 2018, figure 3, without the LSTM)."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import torch
import torch.nn.functional as F
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.fast import impala_blocks as impala_kernel

PAPER_WIDTHS = (32, 64, 128)
"""Whitaker 2023, table 4.2."""
COBBE_WIDTHS = (16, 32, 32)
"""Cobbe et al. 2020: a fifth of the arithmetic."""


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), shapes kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(F.relu_(self.first(F.relu(x))))
        return x + change


class ImpalaBlock(nn.Sequential):
    """A convolution, a pooling that halves height and width, and two residual blocks."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            ResidualBlock(out_channels),
            ResidualBlock(out_channels),
        )


class ImpalaCNN(BaseFeaturesExtractor):
    """(batch, channels, height, width) observations in [0, 1] to (batch, features_dim) features.

    A features extractor for stable-baselines3's `CnnPolicy`. `widths` are the channels of the
    blocks. Convolutions run in the channels-last layout, which on a CPU takes half the time; the
    weights' own layout makes no difference to it.

    On a CPU `impala_kernel` computes the blocks where it can: the same features to float rounding.
    With gradients it does so only where `compiled` is set, as FastPPO does while it trains: all is
    on the calling thread then.
    """

    compiled = False

    def __init__(
        self,
        observation_space: gymnasium.spaces.Box,
        features_dim: int = 256,
        widths: Sequence[int] = PAPER_WIDTHS,
    ) -> None:
        super().__init__(observation_space, features_dim)
        channels, height, width = observation_space.shape
        self.widths = tuple(widths)
        inputs = [channels, *widths[:-1]]
        self.blocks = nn.Sequential(*map(ImpalaBlock, inputs, widths))
        with torch.no_grad():
            flat = self.blocks(torch.zeros(1, channels, height, width)).numel()
        self.hidden = nn.Linear(flat, features_dim)
        self._initialise()

    def _initialise(self) -> None:
        """Glorot's uniform weights and biases of zero, which is TensorFlow's default and so the
        reference's. torch's own leave features six times smaller, and PPO hardly moves.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, observations: Tensor) -> Tensor:
        if self.compiled or not torch.is_grad_enabled():
            with torch._C.DisableTorchFunction():  # modes ask Python at every step
                if self._as_built() and impala_kernel.fits(self, observations):
                    return impala_kernel.features(self, observations)
        x = self.blocks(observations.contiguous(memory_format=torch.channels_last))
        return F.relu(self.hidden(F.relu(x).flatten(1)))

    def _as_built(self) -> bool:
        """Whether no layer was replaced and none has hooks: compiled blocks would call neither."""
        left: list[Any] = [self.blocks]
        while left:  # a fifth of the time of Module.modules()
            module = left.pop()
            if type(module) not in LAYERS:
                return False
            if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
                return False
            left.extend(module._modules.values())
        return True


LAYERS = {nn.Sequential, ImpalaBlock, ResidualBlock, nn.Conv2d, nn.MaxPool2d}
