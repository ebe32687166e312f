"""Image classifiers: the counts that the papers print, the blocks' formulas, names and seeds."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from networks import all_same_bits, built, noise
from torch import nn

from evo_subnets.models import (
    MLP,
    NAMES,
    VGG,
    DenseNet,
    LeNet,
    WideResNet,
    build,
    cifar_densenet,
    cifar_resnet,
    densenet_121,
    resnet_18,
    zoo,
)
from evo_subnets.models.densenet import DenseLayer
from evo_subnets.models.resnet import BasicBlock
from evo_subnets.models.wide_resnet import WideBlock


@functools.cache
def named(name):
    """A network to look at, not to change."""
    return build(name, seed=0).eval()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def layers(module, kind):
    return [layer for layer in module.modules() if isinstance(layer, kind)]


EXACT = {
    "lenet-s": 253_290,
    "lenet-m": 1_007_306,
    "lenet-l": 4_017_546,
    "wrn-28-10": 36_479_194,
    "mlp": 3072 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10,
    "mlp-64-32-16": 3072 * 64 + 64 + 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10,
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_parameter_counts(name):
    assert count(named(name)) == EXACT[name]


# millions, as printed: to the last digit
MILLIONS = {
    "resnet-18": (resnet_18, "11.17"),
    # He et al. 2016, table 6
    "resnet-20": (lambda: cifar_resnet(20), "0.27"),
    "resnet-32": (lambda: cifar_resnet(32), "0.46"),
    "resnet-44": (lambda: cifar_resnet(44), "0.66"),
    "resnet-56": (lambda: cifar_resnet(56), "0.85"),
    "resnet-110": (lambda: cifar_resnet(110), "1.7"),
    # Zagoruyko and Komodakis 2016, table 4
    "wrn-40-1": (lambda: WideResNet(40, 1), "0.6"),
    "wrn-40-2": (lambda: WideResNet(40, 2), "2.2"),
    "wrn-40-4": (lambda: WideResNet(40, 4), "8.9"),
    "wrn-16-8": (lambda: WideResNet(16, 8), "11.0"),
    # Huang et al. 2017, table 2
    "densenet-40": (lambda: cifar_densenet(40), "1.0"),
    "densenet-100": (lambda: cifar_densenet(100), "7.0"),
    "densenet-100, k=24": (lambda: cifar_densenet(100, 24), "27.2"),
    "densenet-bc-100": (lambda: cifar_densenet(100, 12, bottleneck=True, compression=0.5), "0.8"),
    "densenet-bc-250": (lambda: cifar_densenet(250, 24, bottleneck=True, compression=0.5), "15.3"),
    "densenet-bc-190": (lambda: cifar_densenet(190, 40, bottleneck=True, compression=0.5), "25.6"),
    "densenet-121": (densenet_121, "6.96"),
}


@pytest.mark.parametrize("network", MILLIONS)
def test_parameter_counts_of_the_papers(network):
    make, printed = MILLIONS[network]
    digits = len(printed.split(".")[1])
    assert f"{count(built(make)) / 1e6:.{digits}f}" == printed


@pytest.mark.parametrize(("depth", "millions"), [(11, 133), (13, 133), (16, 138), (19, 144)])
def test_vgg_with_the_papers_linear_layers_has_its_parameters(depth, millions):
    """Simonyan and Zisserman 2015, table 2: 224x224 images, 1000 classes, biases and no norms."""
    convolutions = layers(named(f"vgg-{depth}"), nn.Conv2d)
    parameters = sum(layer.weight.numel() + layer.out_channels for layer in convolutions)
    for inputs, outputs in [(512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)]:
        parameters += inputs * outputs + outputs
    assert round(parameters / 1e6) == millions


@pytest.mark.parametrize("name", [name for name in NAMES if name[-1].isdigit()])
def test_the_number_in_a_name_is_the_number_of_its_layers(name):
    module = named(name)
    family, depth = name.split("-")[:2]
    convolutions = layers(module, nn.Conv2d)
    number = len(convolutions) + len(layers(module, nn.Linear))
    if family == "resnet":  # projections are not counted
        number -= sum(layer.kernel_size == (1, 1) for layer in convolutions)
    if family == "wrn":  # here they are, and the linear layer is not
        number -= 1
    if family == "vgg":  # two linear layers fewer than in the paper
        number += 2
    assert number == int(depth)


LAST_FEATURES = {
    "resnet-18": ("stages", (512, 4, 4)),
    "resnet-20": ("stages", (64, 8, 8)),
    "wrn-16-4": ("stages", (256, 8, 8)),
    "densenet-121": ("blocks", (1024, 4, 4)),
    "densenet-40": ("blocks", (16 + 36 * 12, 8, 8)),
    "vgg-16": ("features", (512, 1, 1)),
}


@pytest.mark.parametrize("name", LAST_FEATURES)
def test_images_shrink_as_in_the_paper(name):
    part, shape = LAST_FEATURES[name]
    shapes = []
    hook = getattr(named(name), part).register_forward_hook(
        lambda *call: shapes.append(call[2].shape)
    )
    with torch.no_grad(), hook:
        named(name)(noise(1, 3, 32, 32))
    assert shapes == [(1, *shape)]


@pytest.mark.parametrize("name", [*NAMES, "wrn-10-1", "mlp-64-64"])
def test_every_name_learns_from_a_small_batch(name):
    module = build(name, (1, 28, 28), classes=7, seed=1)
    assert module.training
    logits = module(noise(2, 1, 28, 28))
    assert logits.shape == (2, 7)
    F.cross_entropy(logits, torch.tensor([3, 6])).backward()
    for parameter_name, parameter in module.named_parameters():
        assert torch.isfinite(parameter.grad).all(), parameter_name
        if parameter.ndim > 1:
            assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize(
    "name", ["lenet-s", "resnet-18", "resnet-20", "wrn-10-1", "densenet-40", "vgg-11", "mlp"]
)
def test_images_need_be_neither_even_nor_square(name):
    module = build(name, (4, 33, 65), seed=0)
    with torch.no_grad():
        assert module(noise(2, 4, 33, 65)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "smallest"), [("lenet-s", 16), ("densenet-40", 4), ("densenet-121", 8)]
)
def test_images_that_are_too_small_are_refused(name, smallest):
    shape = (3, smallest, smallest)
    module = build(name, shape, seed=0)
    assert module(noise(2, *shape)).shape == (2, 10)
    with pytest.raises(ValueError, match=f"at least {smallest}x{smallest} .*{smallest - 1}x40"):
        build(name, (3, smallest - 1, 40), seed=0)


def randomised(module):
    """With other norms than 1 and 0, so that a norm in the wrong place shows."""
    for index, norm in enumerate(layers(module, nn.BatchNorm2d)):
        for offset, tensor in enumerate((norm.weight, norm.bias, norm.running_mean)):
            tensor.data.copy_(noise(len(tensor), seed=10 * index + offset))
    return module.eval()


def normed(norm, x):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def conv(weight, x, stride=1):
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize(("outputs", "stride"), [(4, 1), (8, 2)])
def test_a_residual_block_is_figure_2(outputs, stride, projection):
    block = randomised(built(lambda: BasicBlock(4, outputs, stride=stride, projection=projection)))
    x = noise(2, 4, 7, 6)
    if outputs == 4:
        shortcut = x
    elif projection:
        shortcut = normed(block.projection[1], conv(block.projection[0].weight, x, stride))
    else:
        shortcut = torch.zeros(2, 8, 4, 3)
        shortcut[:, :4] = x[:, :, ::2, ::2]
    hidden = normed(block.first_norm, conv(block.first.weight, x, stride)).relu()
    expected = (shortcut + normed(block.second_norm, conv(block.second.weight, hidden))).relu()
    assert torch.allclose(block(x), expected, atol=1e-5)
    assert len(layers(block, nn.Conv2d)) == (3 if projection and outputs == 8 else 2)


@pytest.mark.parametrize(("outputs", "stride"), [(4, 1), (8, 1), (8, 2)])
def test_a_wide_block_is_figure_1d(outputs, stride):
    block = randomised(built(lambda: WideBlock(4, outputs, stride=stride, dropout=0.3)))
    x = noise(2, 4, 7, 6)
    active = normed(block.first_norm, x).relu()
    shortcut = x if outputs == 4 else conv(block.projection.weight, active, stride)
    hidden = normed(block.second_norm, conv(block.first.weight, active, stride)).relu()
    expected = shortcut + conv(block.second.weight, hidden)
    assert torch.allclose(block(x), expected, atol=1e-5)


@pytest.mark.parametrize("bottleneck", [True, False])
def test_a_dense_layer_keeps_its_input_and_adds_to_it(bottleneck):
    layer = randomised(built(lambda: DenseLayer(5, 3, bottleneck=bottleneck)))
    x = noise(2, 5, 7, 6)
    narrow = x
    for norm, _, convolution in [layer.bottleneck, layer.convolution][not bottleneck :]:
        narrow = conv(convolution.weight, normed(norm, narrow).relu())
    out = layer(x)
    assert torch.equal(out[:, :5], x)
    assert torch.allclose(out[:, 5:], narrow, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet-18", "resnet-56", "wrn-16-4", "densenet-121", "vgg-16"])
def test_convolutions_start_as_he_normal(name):
    module = build(name, seed=0)
    for layer in layers(module, nn.Conv2d):
        expected = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels))
        error = 5 / math.sqrt(2 * layer.weight.numel())  # five standard errors
        assert layer.weight.std().item() == pytest.approx(expected, rel=error)
        assert layer.bias is None
    assert not module.output.bias.any()
    assert module.output.weight.any()


def dropped(name, calls, probability=0.5):
    """The fractions of nonzero values that every dropout of a network lets through."""
    module = build(name, dropout=probability, seed=0)
    for layer in layers(module, nn.Dropout):
        layer.register_forward_hook(
            lambda _, args, out: calls.append(out.count_nonzero() / args[0].count_nonzero())
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return module, module(noise(16, 3, 32, 32))


@pytest.mark.parametrize(("name", "times"), [("lenet-s", 4), ("wrn-10-1", 3), ("wrn-16-1", 6)])
def test_dropout_is_applied_in_training_alone(name, times):
    kept = []
    module, logits = dropped(name, kept, probability=0.3)
    assert len(kept) == times
    assert all(0.6 < fraction < 0.8 for fraction in kept)
    module.eval()
    assert torch.equal(module(noise(2, 3, 32, 32)), module(noise(2, 3, 32, 32)))
    plain = build(name, seed=0)
    assert all_same_bits(dict(plain.named_parameters()), dict(module.named_parameters()))
    assert not torch.allclose(logits, plain(noise(16, 3, 32, 32)))


def test_wide_resnets_drop_between_the_convolutions_of_a_block():
    block = built(lambda: WideBlock(4, 8, stride=2, dropout=0.5))
    seen = []
    block.dropout.register_forward_hook(lambda _, args, out: seen.extend((args[0], out)))
    block.second.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.random.fork_rng(devices=[]):
        block(noise(2, 4, 8, 8))
    before, after, second = seen
    assert before.min() == 0  # behind ReLU
    assert after is second


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("lenet", "wrn"))])
def test_dropout_where_there_is_none_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} has no dropout, only lenet and wrn have"):
        build(name, dropout=0.1)


@pytest.mark.parametrize(
    "name", ["lenet-s", "resnet-20", "wrn-10-1", "densenet-40", "vgg-11", "mlp-8"]
)
def test_weights_depend_on_the_seed_alone(name):
    first = build(name, seed=3).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        again = build(name, seed=3).state_dict()
    assert all_same_bits(first, again)
    other = build(name, seed=4)
    weights = [key for key, parameter in other.named_parameters() if parameter.ndim > 1]
    assert not any(torch.equal(first[key], other.state_dict()[key]) for key in weights)


def test_without_a_seed_weights_come_from_the_global_generator():
    modules = [built(lambda: build("lenet-s"), seed=seed) for seed in (0, 0, 1)]
    first, again, other = (module.state_dict() for module in modules)
    assert all_same_bits(first, again)
    assert not all_same_bits(first, other)


def test_a_seeded_network_is_drawn_on_the_cpu_and_put_on_the_default_device(monkeypatch):
    drawn_on = []

    def draw(*sizes, classes):
        drawn_on.append(torch.get_default_device().type)
        return MLP(*sizes, classes=classes)

    monkeypatch.setattr(zoo, "MLP", draw)
    before = torch.get_rng_state()
    with torch.device("meta"):
        module = build("mlp-8", seed=0)
    assert drawn_on == ["cpu"]
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    assert torch.equal(before, torch.get_rng_state())


def test_a_refused_name_leaves_the_generator_alone():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="there is no model"):
        build("lenet", seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "name",
    [
        *("", "lenet", "LeNet-S", "resnet-19", "wrn-28", "wrn-28-10-1", "wrn-28-0", "vgg-12"),
        *("densenet-41", "mlp-", "mlp-0", "mlp-64-", "mlp64", "resnet-20\n"),
    ],
)
def test_unknown_names_are_refused_with_all_known_ones(name):
    with pytest.raises(ValueError, match="there is no model") as error:
        build(name)
    assert all(known in str(error.value) for known in [*NAMES, "wrn-DEPTH-WIDTH", "mlp-64-64"])


REFUSED = {
    "depth=27, width=10": lambda: build("wrn-27-10"),
    "depth=4, width=10": lambda: WideResNet(4, 10),
    "depth=28, width=0": lambda: WideResNet(28, 0),
    "6n . 2, .* got 21": lambda: cifar_resnet(21),
    "6n . 2, .* got 2": lambda: cifar_resnet(2),
    "3n . 4 with bottleneck=False, .* got 41": lambda: cifar_densenet(41),
    "6n . 4 with bottleneck=True, .* got 43": lambda: cifar_densenet(43, bottleneck=True),
    "growth >= 1 .* compression=1.5": lambda: DenseNet(
        (2, 2), 4, bottleneck=False, compression=1.5
    ),
    r"one of \[11, 13, 16, 19\], got 12": lambda: VGG(12),
    "k must be at least 1, got 0": lambda: LeNet(0),
    "leave nothing of 32x15": lambda: LeNet(1, image_size=(32, 15)),
    r"hidden=\(64, 0\)": lambda: MLP(10, (64, 0), classes=3),
    r"dropout must be in \[0, 1\), got 1.0": lambda: build("lenet-s", dropout=1.0),
    r"dropout must be in \[0, 1\), got nan": lambda: build("lenet-s", dropout=math.nan),
    "classes=0": lambda: build("lenet-s", classes=0),
    r"image_shape=\(32, 32\)": lambda: build("lenet-s", (32, 32)),
    r"image_shape=\(0, 32, 32\)": lambda: build("lenet-s", (0, 32, 32)),
    "a seed must be an int": lambda: build("lenet-s", seed=-1),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_a_perceptron_flattens_its_input():
    module = built(lambda: MLP(12, (5,), classes=3))
    x = noise(4, 3, 2, 2)
    first, output = layers(module, nn.Linear)
    assert torch.allclose(module(x), output(first(x.reshape(4, 12)).relu()))
    assert built(lambda: MLP(12, (), classes=3))(x).shape == (4, 3)
