"""Densely connected networks for small images (Huang et al. 2017)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evo_subnets.models.resnet import he_normal


class DenseLayer(nn.Module):
    """x with `growth` new channels behind its own: conv(relu(norm(x))), 3x3 (section 3).

    With `bottleneck` a norm, ReLU and 1x1 convolution to 4 `growth` channels come before.
    """

    def __init__(self, inputs: int, growth: int, *, bottleneck: bool) -> None:
        super().__init__()
        self.bottleneck: nn.Sequential | None = None
        if bottleneck:
            self.bottleneck = norm_relu_convolution(inputs, 4 * growth, kernel=1)
            inputs = 4 * growth
        self.convolution = norm_relu_convolution(inputs, growth, kernel=3)

    def forward(self, x: Tensor) -> Tensor:
        narrow = x if self.bottleneck is None else self.bottleneck(x)
        return torch.cat([x, self.convolution(narrow)], dim=1)


def norm_relu_convolution(inputs: int, outputs: int, *, kernel: int) -> nn.Sequential:
    """The paper's composite function: the image keeps its size."""
    return nn.Sequential(
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
    )


class DenseNet(nn.Module):
    """(batch, channels, height, width) images to (batch, classes) logits.

    A 3x3 convolution without pooling, then blocks of `layers[i]` dense layers. Between blocks a 1x1
    convolution to `compression` times the channels and 2x2 average pooling; behind the last norm,
    ReLU, the mean over pixels and a linear layer. The stem has 2 `growth` channels with
    `bottleneck`, else 16 (section 3, "Implementation Details"). Initialised by `he_normal`. Images
    must have at least `smallest` pixels in height and width, a power of 2.
    """

    def __init__(
        self,
        layers: Sequence[int],
        growth: int,
        *,
        bottleneck: bool,
        compression: float,
        classes: int = 10,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if growth < 1 or not 0 < compression <= 1:
            raise ValueError(
                "a DenseNet needs growth >= 1 and compression in (0, 1], got "
                f"growth={growth}, compression={compression}"
            )
        width = 2 * growth if bottleneck else 16
        self.smallest = 2 ** (len(layers) - 1)
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential()
        for block, depth in enumerate(layers):
            if block > 0:
                kept = int(compression * width)
                self.blocks.append(norm_relu_convolution(width, kept, kernel=1))
                self.blocks.append(nn.AvgPool2d(2))
                width = kept
            for _ in range(depth):
                self.blocks.append(DenseLayer(width, growth, bottleneck=bottleneck))
                width += growth
        self.norm = nn.BatchNorm2d(width)
        self.output = nn.Linear(width, classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(images))))
        logits: Tensor = self.output(x.mean(dim=(2, 3)))
        return logits


def densenet_121(classes: int = 10, channels: int = 3) -> DenseNet:
    """DenseNet-121 (table 1) with a stem for small images: 6.96 million parameters.

    Growth 32, bottleneck, compression 0.5. The 7x7 convolution with stride 2 and the pooling after
    it, which are for images of 224 pixels, are one 3x3 convolution.
    """
    return DenseNet(
        (6, 12, 24, 16), 32, bottleneck=True, compression=0.5, classes=classes, channels=channels
    )


def cifar_densenet(
    depth: int,
    growth: int = 12,
    *,
    bottleneck: bool = False,
    compression: float = 1.0,
    classes: int = 10,
    channels: int = 3,
) -> DenseNet:
    """The DenseNet of three blocks for CIFAR, by default the basic one (section 4, table 2).

    Growth 12 and depths 40 and 100 have 1.0 and 7.0 million parameters. DenseNet-BC is
    `bottleneck` with `compression` 0.5: 0.8 million at depth 100 and growth 12. A ValueError where
    depth is not 3n + 4, or with `bottleneck` 6n + 4.
    """
    convolutions = 6 if bottleneck else 3  # of one dense layer in each block
    if depth < convolutions + 4 or depth % convolutions != 4 % convolutions:
        raise ValueError(
            f"the depth of a DenseNet for CIFAR is {convolutions}n + 4 with bottleneck={bottleneck}"
            f", as 40 or 100, got {depth}"
        )
    layers = ((depth - 4) // convolutions,) * 3
    return DenseNet(
        layers,
        growth,
        bottleneck=bottleneck,
        compression=compression,
        classes=classes,
        channels=channels,
    )
