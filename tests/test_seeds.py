"""Every public callable of the library with a seed: numpy's integers work, what is none is refused.

The table is complete: a new callable that takes a seed asks for a row here.
"""

import importlib
import inspect
import pkgutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import mlp, noise, pictures
from torch import nn

import evo_subnets
from evo_subnets import annealing, racing, streams, tuning
from evo_subnets.data import corrupt, load
from evo_subnets.data.splits import stratified_order
from evo_subnets.methods import Pruning, sparse
from evo_subnets.methods.independent import Bagging, Independent
from evo_subnets.methods.result import with_seed
from evo_subnets.methods.stochastic import Annealing, Stochastic
from evo_subnets.metrics import predictive, robustness
from evo_subnets.models import build
from evo_subnets.mutation import Mutation, quads, singles
from evo_subnets.search import Search
from evo_subnets.subnetworks import Subnetwork, halves, parts
from evo_subnets.task import Task

WRONG = [1.5, 3.0, -1, True, 2**63, 2**64, "3", None, np.float64(3), np.int64(-1), np.True_]
WHOLE = [np.int64(3), np.uint8(3), np.uint64(3), np.int32(3)]

MASKS = {"0.weight": torch.ones(8, 5, dtype=torch.bool)}
IMAGES = pictures(20)


def tuned(seed):
    module = mlp()
    task = Task([(noise(6, 5), torch.arange(6) % 3)])
    tuning.tune(module, task, tuning=tuning.Tuning(epochs=1), seed=seed)
    return module[0].weight


def raced(seed):
    scores = noise(4, 50, seed=1)
    found = racing.run_race(lambda racers, samples: scores[racers][:, samples], 4, samples=50, k=1,
                            seed=seed)  # fmt: skip
    return repr(found)


def annealed(seed):
    kept = annealing.Annealed(mlp(), MASKS, probabilities={"0.weight": noise(8, 5).abs()},
                              epochs=1, seed=seed)  # fmt: skip
    return kept.generator.get_state()


def bound(seed):
    half = Subnetwork(1, 0, 0.5)
    kind = Annealing(start="random")
    return kind.bind(mlp(), Pruning(), subnetwork=half, seed=seed).generator.get_state()


def played(name):
    def call(seed):
        pytest.importorskip("stable_baselines3")
        from evo_subnets.rl import episode_returns, mean_return, observations

        model = SimpleNamespace() if seed in WRONG else small_policy()
        if name == "mean_return":
            return mean_return("CartPole-v1", episodes=2, seed=seed, num_envs=2)(model)
        if name == "episode_returns":
            return episode_returns("CartPole-v1", model, episodes=2, seed=seed, num_envs=2)
        return observations("CartPole-v1", model, count=4, seed=seed, num_envs=2)

    return call


def small_policy():
    return nn.Linear(4, 2).requires_grad_(False)
