"""Rollouts whose pictures stay as bytes on the device that trains on them."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor


class DeviceRolloutBuffer(RolloutBuffer):
    """A RolloutBuffer for pictures (channels, height, width), with the same minibatches.

    Pictures are kept on the training device, in the order that convolutions like (channels last),
    and never reordered. An epoch needs one transfer, its permutation. The other columns are numpy
    arrays as in stable-baselines3 while a rollout lasts.
    """

    _pictures: Tensor | None = None

    def reset(self) -> None:
        """Makes room for a new rollout; pictures are overwritten in place."""
        shape, self.obs_shape = self.obs_shape, (0,)  # no second array for the observations
        super().reset()
        self.obs_shape = shape
        channels, height, width = shape
        size = (self.buffer_size, self.n_envs, height, width, channels)
        if self._pictures is None or self._pictures.shape != size:
            dtype = torch.from_numpy(np.zeros(0, self.observation_space.dtype)).dtype
            self._pictures = torch.empty(size, dtype=dtype, device=self.device)

    def add(self, obs: Any, *rest: Any) -> None:
        """As in stable-baselines3."""
        assert self._pictures is not None
        pictures = torch.as_tensor(obs).permute(0, 2, 3, 1)
        self._pictures[self.pos].copy_(pictures)  # waits: the simulator reuses the frames' memory
        super().add(np.empty((self.n_envs, 0)), *rest)

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """One epoch's minibatches: those that stable-baselines3 draws from the same generator."""
        assert self.full, "the rollout is not complete"
        assert self._pictures is not None
        count = self.buffer_size * self.n_envs
        order = torch.from_numpy(np.random.permutation(count)).to(self.device)
        names = ("actions", "values", "log_probs", "advantages", "returns")
        if not self.generator_ready:
            for name in names:
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self._columns = [self._column(getattr(self, name)) for name in names]
            self.generator_ready = True
        pictures = self._pictures.flatten(0, 1)
        for chosen in torch.split(order, batch_size or count):
            environment, step = chosen // self.buffer_size, chosen % self.buffer_size
            seen = pictures[step * self.n_envs + environment].permute(0, 3, 1, 2)
            yield RolloutBufferSamples(seen, *(column[chosen] for column in self._columns))

    def _column(self, array: Any) -> Tensor:
        column = torch.as_tensor(array.astype(np.float32), device=self.device)
        return column if array is self.actions else column.flatten()
