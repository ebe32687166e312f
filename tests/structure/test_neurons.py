"""Neurons that can be taken out: found through sums, silenced, and the network is smaller."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import PLAIN, built, noise, pictures
from networks import small_classifier as network
from torch import nn

from evo_subnets.metrics import count_parameters
from evo_subnets.models import build
from evo_subnets.pruning import Pruned
from evo_subnets.schedules import OneCycle
from evo_subnets.structure.channels import ZERO, Channels
from evo_subnets.structure.compaction import compact, compacted
from evo_subnets.structure.neurons import find_neurons, kept_neurons, neuron_masks, neuron_norms
from evo_subnets.structure.wiring import follow_channels
from evo_subnets.subnetworks import Subnetwork, parameters
from evo_subnets.task import Task
from evo_subnets.tuning import Tuning, tune


def silenced(module, seed=2):
    """The neurons of a module, those kept, and the module with the others silent."""
    neurons = find_neurons(module)
    kept = kept_neurons(neurons, Subnetwork(seed, 0.0, 0.5))
    Pruned(module, neuron_masks(neurons, kept, params=parameters(module)))
    return neurons, kept


COMPACTED = ["lenet-s", "mlp-32-16", "vgg-11", "resnet-20", "resnet-18", "wrn-10-1", "densenet-40"]


@pytest.mark.parametrize("name", COMPACTED)
def test_compacted_children_have_the_same_outputs_and_a_quarter_of_the_weights(name):
    module = build(name, seed=0)
    inputs = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module.train()
    module(inputs)  # running statistics that are not 0 and 1
    neurons, kept = silenced(module)
    small = compact(module, neurons, kept=kept)
    assert count_parameters(small) < (0.5 if name.startswith("mlp") else 0.3) * count_parameters(
        module
    )
    for mode in (False, True):
        torch.testing.assert_close(
            small.train(mode)(inputs), module.train(mode)(inputs), atol=1e-5, rtol=1e-5
        )


class Drawn(nn.Module):
    """A network whose steps take any two earlier values and add, join or pad them."""

    def __init__(self, steps):
        super().__init__()
        widths = [3]
        self.steps, self.layers = [], nn.ModuleList()
        for operation, first, second, size in steps:
            first, second = first % len(widths), second % len(widths)
            width = widths[first]
            if operation in ("add", "pad") and first == second:
                operation = "relu"
            if operation == "add" and widths[second] != width:
                operation = "pad"
            layer = len(self.layers)
            if operation == "convolution":
                self.layers.append(nn.Conv2d(width, size, 3, padding=1))
                width = size
            elif operation == "norm":
                self.layers.append(nn.BatchNorm2d(width))
            elif operation == "depthwise":
                self.layers.append(nn.Conv2d(width, width, 3, padding=1, groups=width))
            elif operation == "pad":  # the narrower one is added to the wider one
                first, second = sorted((first, second), key=widths.__getitem__)
                width = widths[second]
            elif operation == "cat":
                width += widths[second]
            self.steps.append((operation, first, second, layer))
            widths.append(width)
        self.output = nn.Linear(4 * widths[-1], 2)

    def forward(self, x):
        values = [x]
        for operation, first, second, layer in self.steps:
            one, other = values[first], values[second]
            if operation in ("convolution", "norm", "depthwise"):
                value = self.layers[layer](one)
            elif operation == "add":
                value = one + other
            elif operation == "cat":
                value = torch.cat([one, other], dim=1)
            elif operation == "pad":
                value = F.pad(one, (0, 0, 0, 0, 0, other.shape[1] - one.shape[1])) + other
            else:
                value = F.relu(one)
            values.append(value)
        return self.output(F.adaptive_avg_pool2d(values[-1][:, :, ::2], 2).flatten(1))


KINDS = ["convolution", "convolution", "norm", "depthwise", "add", "cat", "pad", "relu"]
STEPS = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9), st.integers(2, 5)),
    min_size=3, max_size=10,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(STEPS, st.integers(0, 1000))
def test_networks_of_any_wiring_lose_neurons_and_keep_their_outputs(steps, seed):
    module = built(lambda: Drawn([("convolution", 0, 0, 4), *steps])).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():  # shifts and biases that are not zero
        parameter.data = torch.randn(parameter.shape, generator=generator)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    inputs = torch.randn(2, 3, 6, 6, generator=generator)
    try:
        neurons, kept = silenced(module, seed)
        expected = module(inputs)
        small = compact(module, neurons, kept=kept)
    except ValueError as error:  # everything is added to the input
        if "no layer's neurons" in str(error):
            return
        raise
    removed = sum(int((~some).sum()) for some in kept.values())
    assert (count_parameters(small) < count_parameters(module)) == (removed > 0)
    scale = float(expected.detach().abs().max()) + 1
    torch.testing.assert_close(small(inputs) / scale, expected / scale, atol=1e-5, rtol=0)


def test_outputs_that_are_summed_are_one_neuron():
    neurons = find_neurons(build("resnet-20", seed=0))
    inner = {f"stages.{i}.first": 16 * 2 ** (i // 3) for i in range(9)}
    sums = {"stem": 16, "stages.3.second": 16, "stages.6.second": 32}
    assert neurons.counts == inner | sums, "a stage's new channels come with its first block"
    everywhere = neurons.outputs["stem"].tolist()
    for stage in range(9):
        assert neurons.outputs[f"stages.{stage}.second"].tolist()[:16] == everywhere
        assert neurons.outputs[f"stages.{stage}.second_norm"].tolist()[:16] == everywhere
    assert neurons.inputs["output"].tolist()[:16] == everywhere


def test_channels_are_the_same_through_others():
    channels = Channels()
    (a, b), (c, d) = channels.new(2), channels.new(2)
    channels.join([a, b], [d, d])
    assert channels.find(a) == channels.find(b) == channels.find(d)
    assert channels.find(c) == c
    assert channels.join([c, ZERO, ZERO], [ZERO, b, ZERO]) == (c, a, ZERO)


class Doubled(nn.Module):
    """Two outputs of `wide` are added to one of `narrow`: all three are one neuron."""

    def __init__(self, first):
        super().__init__()
        self.first = first
        self.narrow, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
        self.output = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        if self.first == "wide":
            wide, narrow = self.wide(x), self.narrow(x)
        else:
            narrow, wide = self.narrow(x), self.wide(x)
        return self.output(wide + torch.cat([narrow, narrow], dim=1))


@pytest.mark.parametrize("first", ["narrow", "wide"])
def test_outputs_of_one_layer_can_be_one_neuron(first):
    module = built(lambda: Doubled(first))
    neurons = find_neurons(module)
    assert neurons.counts == {first: 4}
    assert neurons.outputs["wide"].tolist() == neurons.outputs["narrow"].tolist() * 2
    inputs = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    neurons, kept = silenced(module)
    small = compact(module, neurons, kept=kept)
    torch.testing.assert_close(small(inputs), module(inputs), atol=1e-6, rtol=0)
    assert count_parameters(small) < count_parameters(module)


def test_a_neurons_norm_is_of_all_weights_that_write_it():
    module = build("resnet-20", seed=0)
    norms = neuron_norms(find_neurons(module), parameters(module))
    writers = [module.stem, *(block.second for block in module.stages)]
    for channel in (0, 15):
        weights = torch.cat([layer.weight[channel].flatten() for layer in writers])
        assert norms["stem"][channel].item() == pytest.approx(weights.square().mean().sqrt().item())
    first = module.stages[0].first.weight
    torch.testing.assert_close(norms["stages.0.first"], first.flatten(1).square().mean(1).sqrt())


def test_neurons_stay_silent_through_tuning():
    module = network()
    neurons = find_neurons(module)
    assert list(neurons.counts) == ["0", "6"]
    kept = kept_neurons(neurons, Subnetwork(3, 0.0, 0.5))
    tune(
        module, Task(pictures()), tuning=Tuning(2, OneCycle(), batch_size=16),
        binding=Pruned(module, neuron_masks(neurons, kept, params=parameters(module))),
    )  # fmt: skip
    small = compact(module, neurons, kept=kept)
    inputs = PLAIN.normalize(pictures(8).pixels)
    torch.testing.assert_close(small(inputs), module(inputs), atol=1e-5, rtol=1e-5)
    assert small[6].in_features == 16 * int(kept["0"].sum())
    assert count_parameters(compacted(module)) == count_parameters(small)


class Steps(nn.Module):
    """Three layers of four neurons, of which only the first one's are in question."""

    def __init__(self, between, **layers):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
        self.between = between
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.last(self.between(self, self.first(x)))


def padded(x, norm):
    return F.pad(x, (0, 0, 0, 0, 0, norm.num_features - x.shape[1]))


STAYING = {
    "zero does not stay zero": lambda net, x: torch.sigmoid(x),
    "a number is added": lambda net, x: x + 1,
    "pixels become channels": lambda net, x: x.transpose(1, 2),
    "channels are cut": lambda net, x: F.pad(x[:, :2], (0, 0, 0, 0, 0, 2)),
    "padding of a written number": lambda net, x: net.narrow(F.pad(x, (0, 0, 0, 0, 0, 4))),
    "zeros that a norm shifts": lambda net, x: net.narrow(net.wide(padded(x, net.wide))),
    "a layer that is asked by keyword": lambda net, x: net.twice(input=x),
    "parts put together again": lambda net, x: torch.cat(x.split(2, 1), 1),
    "examples that are padded": lambda net, x: F.pad(x, (0, 0, 0, 0, 0, x.shape[1] - 4, 0, 1)),
    "a size that depends on the input": lambda net, x: x[:, :, x.shape[x.ndim - 1] :],
    "a weight of two layers": lambda net, x: net.tied(x),
    "a mean over channels": lambda net, x: x + x.mean(1),
    "a grouped layer": lambda net, x: net.grouped(x),
    "a layer that is called twice": lambda net, x: net.twice(net.twice(x)),
    "a weight in somebody else's hands": lambda net, x: F.conv2d(x, net.last.weight[:, :, :1, :1]),
    "a norm without scale": lambda net, x: net.norm(x),
    "a linear layer along a line of pixels": lambda net, x: net.linear(x),
}  # fmt: skip


@pytest.mark.parametrize("reason", STAYING)
def test_neurons_that_somebody_cannot_do_without_stay(reason):
    module = built(
        lambda: Steps(
            STAYING[reason],
            grouped=nn.Conv2d(4, 4, 1, groups=2), twice=nn.Conv2d(4, 4, 1),
            norm=nn.BatchNorm2d(4, affine=False), linear=nn.Linear(8, 8),
            narrow=nn.Conv2d(8, 4, 1), wide=nn.BatchNorm2d(8), tied=nn.Conv2d(4, 4, 1),
        )
    )  # fmt: skip
    module.other = built(lambda: nn.Conv2d(4, 4, 1))
    module.other.weight = module.tied.weight
    channels = follow_channels(module)
    assert set(channels.outputs["first"]) <= channels.fixed


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_networks_without_neurons_to_remove_are_refused():
    with pytest.raises(ValueError, match="cannot trace"):
        find_neurons(built(lambda: nn.Sequential(nn.Linear(2, 2), Branching())))
    with pytest.raises(ValueError, match="no layer's neurons"):
        find_neurons(built(lambda: nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2))))


def test_a_layer_of_which_no_neuron_is_kept_has_a_silent_one_left():
    module, inputs = network().eval(), noise(3, 1, 8, 8)
    neurons = find_neurons(module)
    none = {layer: torch.zeros(count, dtype=torch.bool) for layer, count in neurons.counts.items()}
    Pruned(module, neuron_masks(neurons, none, params=parameters(module)))
    small = compact(module, neurons, kept=none)
    torch.testing.assert_close(small(inputs), module(inputs))
    torch.testing.assert_close(compacted(module)(inputs), module(inputs))
    assert count_parameters(small) < 0.05 * count_parameters(module)
