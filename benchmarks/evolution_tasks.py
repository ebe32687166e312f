"""What `benchmarks/evolution.py` evolves: a policy of Pendulum, and a LeNet-S on digits."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from evo_subnets import Classes, Values
from evo_subnets import Task as Learning
from evo_subnets.data import load
from evo_subnets.data.augmentation import Images
from evo_subnets.evolution import Fitness
from evo_subnets.models import build
from evo_subnets.outputs import Outputs
from evo_subnets.schedules import Constant
from evo_subnets.tuning import Tuning, tune

EPISODES, HELD_OUT, STEPS = 4, 64, 200
PICTURES, INPUTS = 256, 256
"""Pictures of a generation; inputs on which divergences are measured."""


@dataclass(frozen=True)
class Task:
    """A network and what its children are judged by."""

    name: str
    title: str
    measure: str
    """What `judged` gives."""
    network: Callable[[int], nn.Module]
    """The first weights of a seed."""
    fitness: Callable[[int], Fitness]
    """With fresh cases in every generation."""
    inputs: Callable[[int], Tensor]
    """On which our divergences are measured."""
    judged: Callable[[nn.Module, int], float]
    """On cases that no child sees."""
    outputs: Outputs


@dataclass(frozen=True)
class Returns:
    """The returns of common episodes of Pendulum-v1 under a network's mean action."""

    seed: int
    episodes: int = EPISODES

    def in_generation(self, number: int) -> "Returns":
        return Returns(self.seed + 1000 * (number + 1), self.episodes)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> list[float]:
        envs = _environments(self.episodes)
        observations, _ = envs.reset(seed=self.seed)
        returns = np.zeros(self.episodes)
        for _ in range(STEPS):  # none ends earlier
            torques = 2 * torch.tanh(model(torch.from_numpy(observations).float()))
            observations, rewards, *_ = envs.step(torques.numpy())
            returns += rewards
        found: list[float] = returns.tolist()
        return found


@cache
def _environments(count: int) -> Any:
    return gymnasium.make_vec("Pendulum-v1", num_envs=count, vectorization_mode="sync")


def policy(seed: int) -> nn.Module:
    """An MLP of 3-32-32-1 as torch initialises it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
        )


def states(seed: int) -> Tensor:
    """Observations of Pendulum, evenly over its angles and speeds."""
    draw = np.random.default_rng(seed)
    angle, speed = draw.uniform(-np.pi, np.pi, INPUTS), draw.uniform(-8, 8, INPUTS)
    return torch.from_numpy(np.stack([np.cos(angle), np.sin(angle), speed], 1)).float()


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of training pictures' labels, of a batch of its own in each generation."""

    seed: int

    def in_generation(self, number: int) -> "Likelihood":
        return Likelihood(self.seed + 1000 * (number + 1))

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> list[float]:
        inputs, targets = _digits()[0]
        chosen = np.random.default_rng(self.seed).choice(len(targets), PICTURES, replace=False)
        found = model(inputs[chosen]).log_softmax(-1)[range(PICTURES), targets[chosen]]
        values: list[float] = found.tolist()
        return values


@cache
def _digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test pictures with their labels."""
    data = load("digits")
    return _pictures(data.train), _pictures(data.test)


def _pictures(images: Images) -> tuple[Tensor, Tensor]:
    return torch.cat([inputs for inputs, _ in images.in_order(256)]), images.labels


@cache
def _trained(seed: int) -> nn.Module:
    data = load("digits")
    module = build("lenet-s", (1, 32, 32), classes=10, seed=seed)
    tune(module, Learning(data.train), tuning=Tuning(1, Constant(0.001), "adam"), seed=seed)
    return module.eval()


def classifier(seed: int) -> nn.Module:
    """A LeNet-S that one epoch of Adam has trained."""
    return copy.deepcopy(_trained(seed))


@torch.no_grad()
def likelihood_of_test(model: nn.Module, seed: int) -> float:
    """Minus the NLL of the test pictures."""
    inputs, targets = _digits()[1]
    return float(model(inputs).log_softmax(-1)[range(len(targets)), targets].mean())


def wide_mlp(width: int, depth: int = 2) -> tuple[nn.Module, Tensor]:
    """An MLP with `depth` square layers, and inputs; two of width 1,400 are 4.0 M weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(64, width), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Linear(width, width), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, 10)).eval(), torch.randn(64, 64)


TASKS = {
    task.name: task
    for task in (
        Task(
            "pendulum", "Pendulum-v1, an MLP of 3-32-32-1", f"mean return of {HELD_OUT} episodes",
            policy, Returns, states,
            lambda model, seed: float(np.mean(Returns(10**6 + seed, HELD_OUT)(model))), Values(),
        ),
        Task(
            "digits", "Digits, a LeNet-S after an epoch of Adam", "minus NLL of the test pictures",
            classifier, Likelihood, lambda seed: _digits()[0][0][:INPUTS], likelihood_of_test,
            Classes(),
        ),
    )
}  # fmt: skip
