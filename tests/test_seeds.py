"""Every public callable with a seed: numpy's integers are seeds, what is none is refused.

The table is complete: a new callable that takes a seed asks for a row here. The simulator's seeds
are in `envs/`.
"""

import importlib
import inspect
import json
import pkgutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from networks import built, mlp, noise, pictures
from small_agents import GAME, TINY, unseeded
from torch import nn

import agents
import evo_subnets
from agents import parents, ppo
from agents.distillation import Lessons, distil
from agents.evaluation import bootstrap_interval
from agents.impala import impala_actor
from agents.play.course import Course
from agents.scores import Played, resampled
from agents.small import train_further, train_small
from envs.games import Levels
from evo_subnets import annealing, evolution, racing, streams, task, tuning
from evo_subnets.data import load
from evo_subnets.data.corruptions import corrupt
from evo_subnets.data.splits import stratified_order
from evo_subnets.ensemble import Ensemble
from evo_subnets.lineage import Lineage, Step
from evo_subnets.methods import distillation
from evo_subnets.methods.apart import apart
from evo_subnets.methods.dst import DST, StaticSparse, first_masks
from evo_subnets.methods.edst import EDST
from evo_subnets.methods.independent import Bagging, Independent
from evo_subnets.methods.pep import PEP
from evo_subnets.methods.result import with_seed
from evo_subnets.methods.soup import Soup
from evo_subnets.methods.sparse import Pruning, Sparse
from evo_subnets.methods.stochastic import Annealing, Stochastic
from evo_subnets.methods.trajectory import SWA, FastGeometric, Snapshot
from evo_subnets.metrics import contest, predictive, robustness
from evo_subnets.models import build
from evo_subnets.mutation import Mutation, quads, singles
from evo_subnets.rewiring import Rewired, Rewiring, random_masks
from evo_subnets.rl import Actor, MeanReturn, episode_returns, mean_return, observations
from evo_subnets.rl.policy import EnsemblePolicy
from evo_subnets.runs import Run
from evo_subnets.search import Search
from evo_subnets.subnetworks import Subnetwork, halves, parameters, parts
from evo_subnets.task import seeded

from stable_baselines3 import A2C  # isort: skip

REFUSED = [1.5, 3.0, -1, True, 2**63, "3", None, np.float64(3), np.int64(-1), np.True_,
           np.timedelta64(3)]  # fmt: skip
WHOLE = [np.int64(3), np.uint8(3), np.uint64(3)]
IMAGES = pictures(20)
SMALL = pictures(4)
MASKS = {"0.weight": torch.ones(8, 5, dtype=torch.bool)}
ONE_EPOCH = tuning.Tuning(1)


def tuned(seed):
    module = mlp()
    tuning.tune(module, batches(), tuning=ONE_EPOCH, seed=seed)
    return module[0].weight


def taught(seed):
    student, teacher = mlp(), Ensemble([mlp(), mlp()])
    distillation.distil(student, batches(), teacher=teacher, tuning=ONE_EPOCH, seed=seed)
    return student[0].weight


def tuned_once(seed):
    module = mlp()
    with tempfile.TemporaryDirectory() as folder:
        tuning.tune_once(
            module, batches(), path=Path(folder) / "parent.safetensors", about={},
            tuning=ONE_EPOCH, seed=seed, run=Run.none(),
        )  # fmt: skip
    return module[0].weight


def batches():
    return task.Task([(noise(6, 5), torch.arange(6) % 3)])


def drawn_once(seed):
    with tuning.own_randomness(seed, torch.device("cpu")):
        return torch.rand(3)


def annealed(seed):
    start = {"0.weight": noise(8, 5).abs()}
    binding = annealing.Annealed(mlp(), MASKS, probabilities=start, epochs=1, seed=seed)
    return binding.generator.get_state()


def bound(seed):
    kind = Annealing(start="random")
    half = Subnetwork(1, 0, 0.5)
    return kind.bind(mlp(), Pruning(), subnetwork=half, seed=seed).generator.get_state()


def rewired(seed):
    bound = Rewired(mlp(), MASKS, rewiring=Rewiring("random"), steps=9, seed=seed)
    some = torch.zeros(8, 5, dtype=torch.bool)
    some[:4] = True
    bound.hold({"0.weight": some}, None)
    bound.rewire(0.5, [noise(8, 5)])
    return bound.masks["0.weight"]


def resampled_scores(seed):
    run = Played("maze", {"parent": np.arange(5.0)})
    return resampled([run], ["parent"], normalized=lambda returns, _: returns, seed=seed)


def raced(seed):
    scores = noise(4, 50, seed=1)
    return racing.run_race(lambda i, samples: scores[i, samples], 4, samples=50, k=1, seed=seed)


def raced_children(seed):
    population = quads(4, 0.1, density=0.5, seed=0)
    scores = noise(4, 50, seed=1)

    def score(model, samples):
        return scores[0, samples] * model[0].weight.sum()

    return racing.race(mlp(), population, score=score, samples=50, k=1, seed=seed)


def selected(seed):
    population = singles(8, 0.1, density=0.5, seed=0)
    return evolution.select([evolution.Child(one, 1.0) for one in population], 3, seed=seed)


def interval(seed):
    a, b = (noise(20, 2, seed=i).log_softmax(1) for i in range(2))
    labels = torch.arange(20) % 2
    return predictive.difference_interval(a, b, labels=labels, resamples=20, seed=seed)


def corrupted_scores(seed):
    return robustness.corrupted_scores(brightness, SMALL, seed=seed)


def corrupted(seed):
    ensemble = Ensemble([Brightness(), Brightness()])
    return contest.corrupted(ensemble, SMALL, source=robustness.GENERATED, seed=seed)


class Brightness(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, ::16]


def brightness(images):
    return Brightness()(images.pixels.float()).log_softmax(1)


def acted(seed):
    policy = EnsemblePolicy(balancing(), gymnasium.spaces.Box(-1, 1, (4,)), seed=seed)
    return [policy.predict(np.zeros((5, 4), np.float32))[0].tolist() for _ in range(3)]


def balancing():
    return built(lambda: nn.Linear(4, 2)).requires_grad_(False)


def training_env(seed):
    env = ppo.make_training_env(GAME, TINY, seed=seed)
    try:
        return env.reset()
    finally:
        env.close()


def agent(seed):
    env = ppo.make_training_env(GAME, TINY)
    try:
        made = unseeded(lambda: ppo.make_ppo(env, TINY, seed=seed, device="cpu"))
        return next(made.policy.parameters()).detach().clone()
    finally:
        env.close()


def trained(seed):
    with tempfile.TemporaryDirectory() as folder:
        made = unseeded(
            lambda: ppo.train(
                GAME, TINY, total_timesteps=1, out=Path(folder), seed=seed, device="cpu"
            )
        )
        return next(made.policy.parameters()).detach().clone()


def distilled(seed):
    teacher, parent = (built(lambda: impala_actor((2, 3, 4), frame_stack=1), i) for i in (1, 2))

    def course(number):
        return Course("coinrun", Levels(0, 1), seed=number, frame_stack=1, num_envs=4)

    lessons = Lessons(rounds=1, observations=4, batch_size=2)
    student = distil(
        teacher, parent, course=course, lessons=lessons, seed=seed, run=Run.none()
    ).head.bias
    return student.tolist()


def small_parent(seed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "agent.zip"
        train_small("CartPole-v1", steps=1, seed=seed, path=path)
        return [value.tolist() for value in Actor.from_zip(path).parameters()]


def further(seed):
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "before.zip", Path(folder) / "after.zip"
        unseeded(lambda: A2C("MlpPolicy", "CartPole-v1", seed=0, device="cpu")).save(source)
        train_further(source, "CartPole-v1", steps=9, seed=seed, path=path)
        return [value.tolist() for value in Actor.from_zip(path).parameters()]


def wandering(seed):
    mutations = singles(32, 0.1, density=0.5, seed=0)
    return Lineage((Step(tuple(mutations)),)).at_random(seed=seed).steps


def trained_parent(seed):
    with tempfile.TemporaryDirectory() as folder:
        _, about = unseeded(
            lambda: parents.train_parent(
                GAME, TINY, run=Run(Path(folder)), total_timesteps=1, seed=seed
            )
        )
        return json.dumps(about)


TABLE: dict[str, Callable[[Any], Any]] = {
    "evo_subnets.annealing.Annealed": annealed,
    "evo_subnets.annealing.gaussian_probabilities":
        lambda seed: annealing.gaussian_probabilities(MASKS, seed)["0.weight"],
    "evo_subnets.annealing.random_probabilities":
        lambda seed: annealing.random_probabilities(MASKS, seed)["0.weight"],
    "evo_subnets.data.augmentation.Images.bag": lambda seed: IMAGES.bag(0.5, seed).pixels,
    "evo_subnets.data.corruptions.corrupt":
        lambda seed: corrupt(SMALL.pixels, "gaussian_noise", severity=1, seed=seed),
    "evo_subnets.data.datasets.load": lambda seed: load("digits", seed=seed, limit=20).train.pixels,
    "evo_subnets.methods.apart.apart":
        lambda seed: [len(each) for each in apart(pictures(), most=5, seed=seed)],
    "evo_subnets.data.splits.stratified_order":
        lambda seed: stratified_order(torch.arange(20) % 3, seed, purpose="train"),
    "evo_subnets.evolution.select": selected,
    "evo_subnets.lineage.Lineage.at_random": wandering,
    "evo_subnets.methods.distillation.Distillation":
        lambda seed: distillation.Distillation(seed=seed),
    "evo_subnets.methods.distillation.Lessons.bag":
        lambda seed: distillation.Lessons(IMAGES, mlp()).bag(0.5, seed).data.pixels,
    "evo_subnets.methods.distillation.distil": taught,
    "evo_subnets.methods.dst.DST": lambda seed: DST(seed=seed),
    "evo_subnets.methods.dst.StaticSparse": lambda seed: StaticSparse(seed=seed),
    "evo_subnets.methods.dst.first_masks":
        lambda seed: first_masks(mlp(), 0.5, distribution="erk", seed=seed)["0.weight"],
    "evo_subnets.methods.edst.EDST": lambda seed: EDST(seed=seed),
    "evo_subnets.rewiring.Rewired": rewired,
    "evo_subnets.rewiring.random_masks":
        lambda seed: random_masks(parameters(mlp()), {"0.weight": 0.5}, seed=seed)["0.weight"],
    "evo_subnets.methods.independent.Bagging": lambda seed: Bagging(seed=seed),
    "evo_subnets.methods.independent.Independent": lambda seed: Independent(seed=seed),
    "evo_subnets.methods.pep.PEP": lambda seed: PEP(seed=seed),
    "evo_subnets.methods.soup.Soup": lambda seed: Soup(seed=seed),
    "evo_subnets.methods.trajectory.FastGeometric": lambda seed: FastGeometric(seed=seed),
    "evo_subnets.methods.trajectory.SWA": lambda seed: SWA(seed=seed),
    "evo_subnets.methods.trajectory.Snapshot": lambda seed: Snapshot(seed=seed),
    "evo_subnets.methods.result.with_seed": lambda seed: with_seed(Independent(), seed),
    "evo_subnets.methods.sparse.Pruning.subnetworks": lambda seed: Pruning().subnetworks(2, seed),
    "evo_subnets.methods.sparse.Sparse": lambda seed: Sparse(seed=seed),
    "evo_subnets.methods.stochastic.Annealing.bind": bound,
    "evo_subnets.methods.stochastic.Stochastic": lambda seed: Stochastic(seed=seed),
    "evo_subnets.metrics.contest.corrupted": corrupted,
    "evo_subnets.metrics.predictive.difference_interval": interval,
    "evo_subnets.metrics.robustness.corrupted_scores": corrupted_scores,
    "evo_subnets.models.zoo.build":
        lambda seed: next(build("mlp", (1, 2, 2), classes=3, seed=seed).parameters()),
    "evo_subnets.mutation.Mutation": lambda seed: Mutation(seed, 0.1, 0, 0.5),
    "evo_subnets.mutation.quads": lambda seed: quads(4, 0.1, density=0.5, seed=seed),
    "evo_subnets.mutation.singles": lambda seed: singles(4, 0.1, density=0.5, seed=seed),
    "evo_subnets.racing.race": raced_children,
    "evo_subnets.racing.run_race": raced,
    "evo_subnets.rl.fitness.MeanReturn":
        lambda seed: MeanReturn("CartPole-v1", {"episodes": 2}, seed)(balancing()),
    "evo_subnets.rl.fitness.episode_returns":
        lambda seed: episode_returns("CartPole-v1", balancing(), episodes=2, seed=seed),
    "evo_subnets.rl.fitness.mean_return":
        lambda seed: mean_return("CartPole-v1", episodes=2, seed=seed)(balancing()),
    "evo_subnets.rl.fitness.observations":
        lambda seed: observations("CartPole-v1", balancing(), count=4, seed=seed),
    "evo_subnets.rl.policy.EnsemblePolicy": acted,
    "evo_subnets.search.Search": lambda seed: Search(4, 2, sigma=0.1, seed=seed).mutations(),
    "evo_subnets.streams.check_seed": streams.check_seed,
    "evo_subnets.streams.derive_seed": lambda seed: streams.derive_seed(seed, "x", 1),
    "evo_subnets.streams.normal": lambda seed: streams.normal(seed, "x", count=9),
    "evo_subnets.streams.uniform": lambda seed: streams.uniform(seed, "x", count=9),
    "evo_subnets.streams.uniform_levels": lambda seed: streams.uniform_levels(seed, "x", count=9),
    "evo_subnets.streams.words": lambda seed: streams.words(seed, "x", stream=0, count=9),
    "evo_subnets.subnetworks.Subnetwork": lambda seed: Subnetwork(seed, 0, 0.5),
    "evo_subnets.subnetworks.halves": halves,
    "evo_subnets.subnetworks.parts": lambda seed: parts(seed, 3),
    "evo_subnets.inputs.seeded": lambda seed: list(seeded(drawing(), seed)),
    "evo_subnets.tuning.own_randomness": drawn_once,
    "evo_subnets.tuning.tune": tuned,
    "evo_subnets.tuning.tune_once": tuned_once,
    "agents.evaluation.bootstrap_interval":
        lambda seed: bootstrap_interval(np.arange(5.0), seed=seed, resamples=20),
    "agents.parents.train_parent": trained_parent,
    "agents.play.course.Course": lambda seed: Course(GAME, Levels(0, 5), seed=seed),
    "agents.ppo.make_ppo": agent,
    "agents.distillation.distil": distilled,
    "agents.ppo.make_training_env": training_env,
    "agents.ppo.train": trained,
    "agents.scores.resampled": resampled_scores,
    "agents.small.train_further": further,
    "agents.small.train_small": small_parent,
}  # fmt: skip
NONE_OF_ITS_OWN = {
    "evo_subnets.draws.Draw": "holds the seed of a mutation, which has looked at it",
    "evo_subnets.task.Stream.bag": "is refused with any seed",
    "agents.play.course.Group": "holds two numbers that a course has derived",
}
"""Not in the table, and why."""
MAY_BE_NONE = ["evo_subnets.models.zoo.build"]
"""Where no seed means torch's own generator."""


def drawing():
    for _ in range(2):
        yield torch.rand(3)


def public_with_a_seed():
    """The names of all public callables, in classes too, with a parameter of that name."""
    for package in (evo_subnets, agents):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            module = importlib.import_module(found.name)
            for name, one in vars(module).items():
                if name.startswith("_") or getattr(one, "__module__", None) != found.name:
                    continue
                if callable(one) and takes_a_seed(one):
                    yield f"{found.name}.{name}"
                if inspect.isclass(one) and not getattr(one, "_is_protocol", False):
                    for method, function in vars(one).items():
                        function = getattr(function, "__func__", function)
                        public = inspect.isfunction(function) and not method.startswith("_")
                        if public and function.__module__ == found.name and takes_a_seed(function):
                            yield f"{found.name}.{name}.{method}"


def takes_a_seed(one):
    try:
        names = inspect.signature(one).parameters
    except (TypeError, ValueError):
        return False
    return any(name == "seed" or name.endswith("_seed") for name in names)


def plain(found):
    return found.tolist() if isinstance(found, torch.Tensor | np.ndarray) else repr(found)


def test_the_table_is_complete():
    found = set(public_with_a_seed())
    assert found - {*TABLE, *NONE_OF_ITS_OWN} == set(), "these need a row"
    assert {*TABLE, *NONE_OF_ITS_OWN} - found == set(), "these are gone"


@pytest.mark.parametrize("name", TABLE)
def test_what_is_no_seed_is_refused_in_one_sentence(name):
    for seed in REFUSED:
        if seed is None and name in MAY_BE_NONE:
            continue
        with pytest.raises(ValueError, match=r"seed must be an int") as caught:
            TABLE[name](seed)
        assert repr(seed) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TABLE)
def test_numpys_integers_are_seeds(name):
    expected = plain(TABLE[name](3))
    for seed in WHOLE:
        found = plain(TABLE[name](seed))
        assert found == expected
        assert "np." not in str(found)
