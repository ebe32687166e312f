"""Image classifiers by name: (batch, channels, height, width) floats to (batch, classes) logits."""

from evo_subnets.models.densenet import DenseNet, cifar_densenet, densenet_121
from evo_subnets.models.lenet import LeNet
from evo_subnets.models.mlp import MLP
from evo_subnets.models.resnet import ResNet, cifar_resnet, resnet_18
from evo_subnets.models.vgg import VGG
from evo_subnets.models.wide_resnet import WideResNet
from evo_subnets.models.zoo import NAMES, build, check_name

__all__ = [
    "MLP",
    "NAMES",
    "VGG",
    "DenseNet",
    "LeNet",
    "ResNet",
    "WideResNet",
    "build",
    "check_name",
    "cifar_densenet",
    "cifar_resnet",
    "densenet_121",
    "resnet_18",
]
