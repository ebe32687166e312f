"""LeNet-5 with ReLU and max pooling, at three widths (LeCun et al. 1998, section II)."""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """(batch, channels, height, width) images to (batch, classes) logits.

    Two 5x5 convolutions without padding, of 16k and 32k channels, each with ReLU and 2x2 max
    pooling; then linear layers of 256k, 128k and `classes`. k = 1, 2 and 4 have as many parameters
    as LeNet-S, M and L (Whitaker and Whitley 2022, "Hyperparameter Ablations"): 253,290, 1,007,306
    and 4,017,546 on 3x32x32 images with 10 classes. `dropout` follows every hidden layer, after its
    pooling: at 0.5 it is that paper's Dropout baseline. Weights start as PyTorch's layers do.

    `image_size` is the images' height and width, or both where they differ; a ValueError where
    less than a pixel would be left of them.
    """

    def __init__(
        self,
        k: int,
        classes: int = 10,
        *,
        channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"LeNet's width k must be at least 1, got {k}")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if min(height, width) < SMALLEST:
            raise ValueError(
                f"LeNet needs images of at least {SMALLEST}x{SMALLEST} pixels: its convolutions "
                f"and poolings leave nothing of {height}x{width}; enlarge the images"
            )
        pixels = _pixels_left(height) * _pixels_left(width)
        self.first_convolution = nn.Conv2d(channels, 16 * k, 5)
        self.second_convolution = nn.Conv2d(16 * k, 32 * k, 5)
        self.first_linear = nn.Linear(32 * k * pixels, 256 * k)
        self.second_linear = nn.Linear(256 * k, 128 * k)
        self.output = nn.Linear(128 * k, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        x = self.dropout(F.max_pool2d(F.relu(self.first_convolution(images)), 2))
        x = self.dropout(F.max_pool2d(F.relu(self.second_convolution(x)), 2))
        x = self.dropout(F.relu(self.first_linear(x.flatten(1))))
        x = self.dropout(F.relu(self.second_linear(x)))
        logits: Tensor = self.output(x)
        return logits


SMALLEST = 16
"""Pixels of an edge of which one is left after both convolutions and poolings."""


def _pixels_left(edge: int) -> int:
    return ((edge - 4) // 2 - 4) // 2
