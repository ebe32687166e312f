"""Residual networks for small images (He et al. 2016, "Deep Residual Learning")."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), both convolutions 3x3 (figure 2).

    With a stride the image shrinks by it. Where shapes change the shortcut is a 1x1 convolution
    (option B of section 3.3), or without `projection` every stride-th pixel and channels of zeros
    (option A).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, projection: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.projection: nn.Sequential | None = None
        if projection and (stride > 1 or inputs != outputs):
            self.projection = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def shortcut(self, x: Tensor) -> Tensor:
        """x in the shape of the block's output."""
        if self.projection is not None:
            projected: Tensor = self.projection(x)
            return projected
        new_channels = self.second.out_channels - x.shape[1]
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, new_channels))

    def forward(self, x: Tensor) -> Tensor:
        change = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(self.shortcut(x) + change)


class ResNet(nn.Module):
    """(batch, channels, height, width) images to (batch, classes) logits.

    A 3x3 convolution without pooling, then stages of `blocks[i]` blocks with `widths[i]` channels,
    each stage after the first at half the height and width before, then the mean over pixels and a
    linear layer. Any image size. Initialised by `he_normal`.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        projection: bool,
        classes: int = 10,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.Sequential()
        inputs = widths[0]
        for stage, (depth, width) in enumerate(zip(blocks, widths, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                self.stages.append(BasicBlock(inputs, width, stride=stride, projection=projection))
                inputs = width
        self.output = nn.Linear(inputs, classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(F.relu(self.stem_norm(self.stem(images))))
        logits: Tensor = self.output(x.mean(dim=(2, 3)))
        return logits


def resnet_18(classes: int = 10, channels: int = 3) -> ResNet:
    """ResNet-18 with a stem for small images: 11.17 million parameters.

    Blocks as in table 1 and projections where shapes change; the 7x7 convolution with stride 2 and
    the pooling after it, which are for images of 224 pixels, are one 3x3 convolution.
    """
    return ResNet(
        (2, 2, 2, 2), (64, 128, 256, 512), projection=True, classes=classes, channels=channels
    )


def cifar_resnet(depth: int, classes: int = 10, *, channels: int = 3) -> ResNet:
    """The ResNet of depth 6n + 2 for CIFAR (section 4.2), with shortcuts without parameters.

    Depths 20, 32, 44, 56 and 110 have 0.27, 0.46, 0.66, 0.85 and 1.7 million parameters (table 6).
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(
            f"the depth of a ResNet for CIFAR is 6n + 2, as 20, 32, 44, 56 or 110, got {depth}"
        )
    return ResNet(
        ((depth - 2) // 6,) * 3, (16, 32, 64), projection=False, classes=classes, channels=channels
    )


def he_normal(module: nn.Module) -> None:
    """Initialises a network of convolutions with ReLU (He et al. 2015, "Delving Deep", eq. 14).

    Convolutions are normal with variance 2 / (kernel pixels x output channels), which keeps the
    scale of gradients. Biases of all layers start at 0; weights of linear layers as PyTorch's do,
    scales and shifts of batch norms at 1 and 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
