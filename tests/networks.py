"""Small networks and data, made without touching the global random generators."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from evo_subnets.data import Augmentation, Images

PLAIN = Augmentation((0.5,), (0.25,), padding=0, flip=False)
"""Of `pictures`: normalised, else as they are."""


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """What `make` returns, initialised from `seed`; the global generator is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mlp(seed: int = 0) -> nn.Module:
    """(batch, 5) to (batch, 3)."""
    return built(lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), seed)


def lenet(seed: int = 0) -> nn.Module:
    """(batch, 1, 28, 28) to (batch, 10)."""
    return built(
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        ),
        seed,
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x.relu()).relu())


def impala(seed: int = 0) -> nn.Module:
    """(batch, 3, 16, 16) to (batch, 15): the Impala network, narrow."""
    return built(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            Residual(8),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            Residual(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
            nn.Linear(32, 15),
        ),
        seed,
    )


def normalised(seed: int = 0) -> nn.Module:
    """(batch, 5) to (batch, 3), with BatchNorm and Dropout, whose buffers are not the defaults."""
    module = built(
        lambda: nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
        ),
        seed,
    )
    module[1].running_mean.copy_(noise(8, seed=seed + 1))
    module[1].running_var.copy_(noise(8, seed=seed + 2).square() + 0.5)
    module[1].num_batches_tracked.fill_(7)
    return module


class Tied(nn.Module):
    """(batch, 5) to (batch, 5), whose two layers share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def tied(seed: int = 0) -> nn.Module:
    return built(Tied, seed)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and every bit, so that NaN equals NaN and -0 is not 0."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    a, b = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


def all_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(same_bits(a[name], b[name]) for name in a)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def pictures(count: int = 96, seed: int = 0) -> Images:
    """(count, 1, 8, 8) pictures of four classes: one quarter is brighter, and says which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    pixels = torch.randint(0, 100, (count, 1, 8, 8), generator=generator)
    for index, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        pixels[index, 0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 120
    return Images(pixels.to(torch.uint8), labels, PLAIN)


def small_classifier(seed: int = 0, norm: bool = True, dropout: float = 0.0) -> nn.Module:
    """(batch, 1, 8, 8) to (batch, 4), with a batch norm."""
    return built(
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(96, 12),
            nn.ReLU(),
            nn.Linear(12, 4),
        ),
        seed,
    )
