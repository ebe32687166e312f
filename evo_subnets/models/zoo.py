"""Image classifiers by name: (batch, channels, height, width) floats to (batch, classes) logits."""

import re

import torch
from torch import nn

from evo_subnets.models.densenet import cifar_densenet, densenet_121
from evo_subnets.models.lenet import LeNet
from evo_subnets.models.mlp import MLP
from evo_subnets.models.resnet import cifar_resnet, resnet_18
from evo_subnets.models.vgg import VGG
from evo_subnets.models.wide_resnet import WideResNet
from evo_subnets.streams import check_seed

NAMES = (
    *("lenet-s", "lenet-m", "lenet-l"),
    *("resnet-18", "resnet-20", "resnet-32", "resnet-44", "resnet-56", "resnet-110"),
    "wrn-28-10",
    *("densenet-121", "densenet-40", "densenet-100"),
    *("vgg-11", "vgg-13", "vgg-16", "vgg-19"),
    "mlp",
)
"""What `build` knows, besides every wrn-DEPTH-WIDTH and mlp-WIDTH-WIDTH-..."""

WIDE_RESNET = re.compile(r"wrn-([1-9]\d*)-([1-9]\d*)")
PERCEPTRON = re.compile(r"mlp((?:-[1-9]\d*)*)")
LENET_WIDTHS = {"lenet-s": 1, "lenet-m": 2, "lenet-l": 4}
WITH_DROPOUT = ("lenet", "wrn")


def build(
    name: str,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    *,
    classes: int = 10,
    dropout: float = 0.0,
    seed: int | None = None,
) -> nn.Module:
    """The network of that name for images of (channels, height, width), in training mode.

    Names are those of NAMES, any "wrn-28-10" (depth 6n + 4, width) and any "mlp-64-64" (the widths
    of hidden layers; "mlp" has 256 and 128). `dropout` is for LeNets and wide ResNets. With a seed
    the initial weights depend on it alone: they are drawn on the CPU whatever the default device,
    and no global generator moves. Without, they come from torch's global generator. A ValueError
    for an unknown name, images too small for the network, and dropout where there is none.
    """
    if len(image_shape) != 3 or min(image_shape) < 1 or classes < 1:
        raise ValueError(
            "expected image_shape=(channels, height, width) and classes, all at least 1, got "
            f"image_shape={tuple(image_shape)}, classes={classes}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    if seed is None:
        return _build(name, image_shape, classes, dropout)
    seed = check_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the GPUs' too
        module = _build(name, image_shape, classes, dropout)
    return module.to(torch.get_default_device())


def check_name(name: str, *, dropout: float = 0.0) -> str:
    """The name itself; a ValueError where there is no such model, or none with dropout."""
    with torch.device("meta"):  # no memory, nothing drawn
        _build(name, (3, 64, 64), 10, dropout)
    return name


def _build(name: str, image_shape: tuple[int, int, int], classes: int, dropout: float) -> nn.Module:
    channels, height, width = image_shape
    wide, perceptron = WIDE_RESNET.fullmatch(name), PERCEPTRON.fullmatch(name)
    if name not in NAMES and not wide and not perceptron:
        raise ValueError(
            f"there is no model {name!r}; there are {', '.join(NAMES)}, any wrn-DEPTH-WIDTH with "
            "a depth of 6n + 4, and any mlp-WIDTH-WIDTH-..., as mlp-64-64"
        )
    family = name.split("-")[0]
    if dropout > 0 and family not in WITH_DROPOUT:
        raise ValueError(
            f"{name} has no dropout, only {' and '.join(WITH_DROPOUT)} have: leave it at 0, "
            f"got {dropout}"
        )
    if wide:
        return WideResNet(
            int(wide[1]), int(wide[2]), classes=classes, channels=channels, dropout=dropout
        )
    if perceptron:
        hidden = [int(number) for number in perceptron[1].split("-")[1:]] or [256, 128]
        return MLP(channels * height * width, hidden, classes=classes)
    if family == "lenet":
        return LeNet(
            LENET_WIDTHS[name],
            classes,
            channels=channels,
            image_size=(height, width),
            dropout=dropout,
        )
    depth = int(name.split("-")[1])
    if family == "vgg":
        return VGG(depth, classes, channels=channels)
    if family == "resnet":
        return (
            resnet_18(classes, channels)
            if depth == 18
            else cifar_resnet(depth, classes, channels=channels)
        )
    if depth == 121:
        densenet = densenet_121(classes, channels)
    else:
        densenet = cifar_densenet(depth, classes=classes, channels=channels)
    if min(height, width) < densenet.smallest:
        raise ValueError(
            f"{name} needs images of at least {densenet.smallest}x{densenet.smallest} pixels, "
            f"got {height}x{width}: enlarge the images"
        )
    return densenet
