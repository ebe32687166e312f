"""Wide residual networks (Zagoruyko and Komodakis 2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

from evo_subnets.models.resnet import he_normal


class WideBlock(nn.Module):
    """shortcut + conv(dropout(relu(norm(conv(relu(norm(x))))))), both 3x3 (figure 1d).

    The shortcut is x, or where shapes change a 1x1 convolution of relu(norm(x)).
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.projection: nn.Conv2d | None = None
        if stride > 1 or inputs != outputs:
            self.projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.first_norm(x))
        shortcut: Tensor = x if self.projection is None else self.projection(active)
        change: Tensor = self.second(self.dropout(F.relu(self.second_norm(self.first(active)))))
        return shortcut + change


class WideResNet(nn.Module):
    """(batch, channels, height, width) images to (batch, classes) logits: WRN-depth-width.

    A 3x3 convolution of 16 channels, three stages of (depth - 4) / 6 blocks with 16, 32 and 64
    times `width` channels, the second and third each at half the height and width before, then
    norm, ReLU, the mean over pixels and a linear layer (table 1). Any image size. WRN-28-10 has
    36,479,194 parameters on three channels and 10 classes. `dropout` is between the two
    convolutions of a block (section 2.4; 0.3 in the paper for CIFAR). Initialised by `he_normal`. A
    ValueError where depth is not 6n + 4.
    """

    def __init__(
        self, depth: int, width: int, *, classes: int = 10, channels: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4 or width < 1:
            raise ValueError(
                "a wide ResNet has a depth of 6n + 4, as 10, 16, 22, 28 or 40, and a width of at "
                f"least 1, got depth={depth}, width={width}"
            )
        self.stem = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        inputs = 16
        for stage, outputs in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range((depth - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                self.stages.append(WideBlock(inputs, outputs, stride=stride, dropout=dropout))
                inputs = outputs
        self.norm = nn.BatchNorm2d(inputs)
        self.output = nn.Linear(inputs, classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stages(self.stem(images))))
        logits: Tensor = self.output(x.mean(dim=(2, 3)))
        return logits
