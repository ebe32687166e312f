"""VGG networks with batch norm for small images (Simonyan and Zisserman 2015)."""

from torch import Tensor, nn

from evo_subnets.models.resnet import he_normal

CONVOLUTIONS = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
"""3x3 convolutions before each pooling, by depth: A, B, D and E of table 1."""
WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """(batch, channels, height, width) images to (batch, classes) logits.

    The paper's 3x3 convolutions with ReLU and its five 2x2 max poolings, and two changes for
    32x32 images: batch norm behind each convolution (whose bias it replaces), and instead of three
    linear layers of 4096, 4096 and `classes`, which are for images of 224 pixels, one of 512 to
    `classes`. 32x32 pixels become one; poolings keep an odd edge's last pixels, so that 28x28 do
    too, and a mean is taken over those that larger images leave. Initialised by `he_normal`: the
    paper copied the layers of shallower networks, which batch norm makes unnecessary. A ValueError
    where depth is not 11, 13, 16 or 19.
    """

    def __init__(self, depth: int, classes: int = 10, *, channels: int = 3) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"VGG's depth must be one of {list(CONVOLUTIONS)}, got {depth}")
        self.features = nn.Sequential()
        for convolutions, width in zip(CONVOLUTIONS[depth], WIDTHS, strict=True):
            for _ in range(convolutions):
                self.features.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
                self.features.append(nn.BatchNorm2d(width))
                self.features.append(nn.ReLU())
                channels = width
            self.features.append(nn.MaxPool2d(2, ceil_mode=True))
        self.output = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.features(images).mean(dim=(2, 3)))
        return logits
