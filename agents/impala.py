"""The Impala residual network (Espeholt et al. 2018, figure 3, without the LSTM)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from agents.fast import impala_blocks
from envs.procgen import ACTIONS
from evo_subnets.rl import Actor

PAPER_WIDTHS = (32, 64, 128)
"""Whitaker 2023, table 4.2."""
COBBE_WIDTHS = (16, 32, 32)
"""Cobbe et al. 2020: a fifth of the arithmetic."""


class Convolution(nn.Conv2d):
    """3x3, with a border of one. A kind of its own: `impala_blocks` has these, no other engine."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), shapes kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = Convolution(channels, channels)
        self.second = Convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.second(F.relu_(self.first(F.relu(x))))
        return x + change


class ImpalaBlock(nn.Sequential):
    """A convolution, a pooling that halves height and width, and two residual blocks."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            Convolution(in_channels, out_channels),
            nn.MaxPool2d(3, stride=2, padding=1),
            ResidualBlock(out_channels),
            ResidualBlock(out_channels),
        )


class ImpalaCNN(BaseFeaturesExtractor):
    """(batch, channels, height, width) observations in [0, 1] to (batch, features_dim) features.

    A features extractor for stable-baselines3's `CnnPolicy`. `widths` are the channels of the
    blocks. Convolutions run in the channels-last layout, which on a CPU takes half the time; the
    weights' own layout makes no difference to it.

    Where `compiled` is set, as FastPPO and `agents.play` do, `impala_blocks` computes the blocks on
    a CPU if it can: the same features to float rounding, with gradients all on the calling thread.
    Hooks of the blocks are not called then, and modes and transforms of torch see nothing of them.
    """

    compiled = False

    def __init__(
        self,
        observation_space: gymnasium.spaces.Box,
        features_dim: int = 256,
        *,
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
        if self.compiled and self._as_built() and impala_blocks.fits(self, observations):
            return impala_blocks.features(self, observations)
        x = self.blocks(observations.contiguous(memory_format=torch.channels_last))
        return F.relu(self.hidden(F.relu(x).flatten(1)))

    def _as_built(self) -> bool:
        """Whether no layer of the blocks was replaced."""
        for block in self.blocks.children():
            layers = list(block.children())
            if [type(layer) for layer in layers] != LAYERS:
                return False
            pairs = [layer for residual in layers[2:] for layer in residual.children()]
            if [type(layer) for layer in pairs] != [Convolution] * 4:
                return False
        return True


def impala_actor(
    widths: tuple[int, ...], frame_stack: int, *, actions: int = ACTIONS, features_dim: int = 256
) -> Actor:
    """An untrained Procgen actor."""
    space = gymnasium.spaces.Box(0, 255, (3 * frame_stack, 64, 64), np.uint8)
    features = ImpalaCNN(space, features_dim, widths=widths)
    head = nn.Linear(features_dim, actions)
    return Actor(features, body=nn.Identity(), head=head, observation_space=space)


LAYERS = [Convolution, nn.MaxPool2d, ResidualBlock, ResidualBlock]
"""Of an `ImpalaBlock`."""


def use_compiled_blocks(model: nn.Module) -> None:
    """Lets the model's Impala networks use their compiled blocks from now on."""
    for network in _networks(model):
        network.compiled = True


@contextmanager
def compiled_blocks(model: nn.Module) -> Iterator[None]:
    """Lets the model's Impala networks use their compiled blocks meanwhile."""
    before = [(network, network.compiled) for network in _networks(model)]
    try:
        use_compiled_blocks(model)
        yield
    finally:
        for network, value in before:
            network.compiled = value


def _networks(model: nn.Module) -> list[ImpalaCNN]:
    return [module for module in model.modules() if isinstance(module, ImpalaCNN)]
