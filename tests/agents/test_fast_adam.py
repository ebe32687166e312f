"""TensorFlow's Adam against its formula."""

import pytest
import torch
from torch import nn

from agents.fast.adam import TensorFlowAdam

RATE, EPSILON, BETAS = 5e-4, 1e-5, (0.9, 0.999)


def gradients(steps):
    """Large and tiny ones: with these epsilon is nothing, and nearly everything."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 1e-3, 1e-5, 1e-7, 0.0])
    return [torch.randn(5, generator=generator) * scale for _ in range(steps)]


def by_the_formula(weight, grads):
    """theta -= rate sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)."""
    first, second = BETAS
    weight, mean, square = weight.double(), torch.zeros(5).double(), torch.zeros(5).double()
    for step, gradient in enumerate(grads, 1):
        mean = first * mean + (1 - first) * gradient.double()
        square = second * square + (1 - second) * gradient.double() ** 2
        rate = RATE * (1 - second**step) ** 0.5 / (1 - first**step)
        weight = weight - rate * mean / (square.sqrt() + EPSILON)
    return weight


def descend(optimizer, weight, grads):
    for gradient in grads:
        weight.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_the_steps_are_tensorflows(steps):
    weight = nn.Parameter(torch.zeros(5))
    descend(TensorFlowAdam([weight], lr=RATE, eps=EPSILON), weight, gradients(steps))
    expected = by_the_formula(torch.zeros(5), gradients(steps))
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-12)


def test_torchs_own_are_others():
    weight = nn.Parameter(torch.zeros(5))
    descend(torch.optim.Adam([weight], lr=RATE, eps=EPSILON), weight, gradients(2))
    expected = by_the_formula(torch.zeros(5), gradients(2))
    assert (weight.detach()[2] / expected[2]).abs() > 5


def test_a_restored_optimizer_goes_on_with_the_same_bits():
    whole, parts = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))
    grads = gradients(20)
    descend(TensorFlowAdam([whole], lr=RATE, eps=EPSILON), whole, grads)
    first = TensorFlowAdam([parts], lr=RATE, eps=EPSILON)
    descend(first, parts, grads[:7])
    second = TensorFlowAdam([parts], lr=RATE, eps=EPSILON)
    second.load_state_dict(first.state_dict())
    descend(second, parts, grads[7:])
    assert torch.equal(whole, parts)
