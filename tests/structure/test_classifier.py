"""The layer that makes the output, found by tracing and by asking."""

import pytest
import torch
import torch.nn.functional as F
from networks import built, mlp, noise
from torch import nn

from evo_subnets.models import build
from evo_subnets.structure.classifier import classifier


def untraceable(kind):
    """The same network, which torch.fx cannot trace."""

    class Branching(kind):
        def forward(self, x):
            return super().forward(x if x.sum() > -1e9 else -x)

    return Branching


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(noise(3, 8))
        self.body = nn.Linear(5, 8)

    def forward(self, x):
        return self.body(x).relu() @ self.weight.t()


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.body = nn.Linear(5, 8)

    def forward(self, x):
        return F.linear(self.body(x).relu_(), self.last.weight, self.last.bias)


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Linear(8, 3), nn.Linear(5, 3)
        self.body = nn.Linear(5, 8)

    def forward(self, x):
        return (self.first(x) + self.second(F.relu(self.body(x), inplace=True))).log_softmax(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.body = nn.LSTM(5, 4, batch_first=True)

    def forward(self, x):
        return (self.head(self.body(x[:, None])[0][:, -1]), None)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.MultiheadAttention(4, 2, batch_first=True)
        self.body = nn.Linear(5, 4)

    def forward(self, x):
        x = self.body(x)[:, None]
        return self.last(x, x, x, need_weights=False)[0]


EXPECTED = {
    Bare: {"weight"},
    Functional: {"last.weight"},
    Summed: {"first.weight", "second.weight"},
    Recurrent: {"head.weight"},
    Attending: {"last.in_proj_weight", "last.out_proj.weight"},
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_traced_and_asked_agree(kind):
    for made in (kind, untraceable(kind)):
        module = built(made).train()
        assert set(classifier(module, noise(1, 5))) == EXPECTED[kind]
        assert module.training
        assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("name", ["lenet-s", "mlp-32-16", "vgg-11", "resnet-20", "densenet-40"])
def test_of_the_models_it_is_the_last_layer(name):
    module = build(name, seed=0)
    last = [key for key, layer in module.named_modules() if isinstance(layer, nn.Linear)][-1]
    assert classifier(module) == [f"{last}.weight"]


def test_frozen_networks_and_inference_are_no_hindrance():
    module = built(untraceable(Summed)).requires_grad_(False)
    with torch.no_grad():
        assert len(classifier(module, noise(1, 5))) == 2
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert classifier(mlp().requires_grad_(False)) == ["2.weight"]
