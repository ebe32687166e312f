"""The Impala network."""

import gymnasium
import numpy as np
import pytest
import torch
from networks import built, noise
from small_agents import channels_first, parameters_of, pictures
from torch import nn

from agents.impala import COBBE_WIDTHS, PAPER_WIDTHS, ImpalaCNN, impala_actor


@pytest.mark.parametrize("stack", [1, 2, 4])
@pytest.mark.parametrize("widths", [COBBE_WIDTHS, (8, 16), (2, 2, 2)])
def test_the_number_of_parameters(widths, stack):
    space = gymnasium.spaces.Box(0, 255, (3 * stack, 64, 64), np.uint8)
    network = built(lambda: ImpalaCNN(space, widths=widths))
    pooled = 64 // 2 ** len(widths)
    expected = parameters_of(widths, 3 * stack) + widths[-1] * (pooled**2 - 8**2) * 256
    assert sum(weight.numel() for weight in network.parameters()) == expected
    assert network(torch.zeros(5, 3 * stack, 64, 64)).shape == (5, 256)


@pytest.mark.parametrize(
    ("widths", "stack", "parameters", "millions"),
    [(COBBE_WIDTHS, 1, 625_999, 30.6), (COBBE_WIDTHS, 2, 626_431, 32.4),
     (PAPER_WIDTHS, 2, 2_970_415, 160.2)],
)  # fmt: skip
def test_the_published_sizes(widths, stack, parameters, millions):
    """Parameters, and multiply-adds for one observation."""
    network = built(lambda: impala_actor(widths, stack))
    assert parameters_of(widths, 3 * stack, 15) == parameters
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    products = []

    def count(layer, _, output):
        products.append(output.numel() * layer.weight[0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3 * stack, 64, 64, dtype=torch.uint8))
    assert round(sum(products) / 1e6, 1) == millions


def test_the_network_does_what_its_figure_says():
    """Against plain functional calls, on a network with its blocks taken apart."""
    network = built(lambda: impala_actor((2, 3), frame_stack=1, actions=4, features_dim=8))
    state = dict(network.state_dict())
    picture = channels_first(pictures(2, 3))
    conv, relu = nn.functional.conv2d, torch.relu

    def convolution(x, name):
        return conv(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    x = picture / 255
    for block in (0, 1):
        start = f"features.blocks.{block}"
        x = nn.functional.max_pool2d(convolution(x, f"{start}.0"), 3, stride=2, padding=1)
        for residual in (2, 3):
            change = convolution(relu(x), f"{start}.{residual}.first")
            x = x + convolution(relu(change), f"{start}.{residual}.second")
    x = relu(x).flatten(1) @ state["features.hidden.weight"].T + state["features.hidden.bias"]
    logits = relu(x) @ state["head.weight"].T + state["head.bias"]
    assert torch.allclose(network(picture), logits, atol=1e-5)


def test_the_network_leaves_its_input_alone(actor):
    features = noise(2, 6, 64, 64)
    inner = noise(2, 2, 8, 8)
    before = features.clone(), inner.clone()
    with torch.no_grad():
        actor.features(features)
        actor.features.blocks[0][2](inner)
    assert torch.equal(features, before[0])
    assert torch.equal(inner, before[1])
