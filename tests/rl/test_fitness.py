"""Mean returns: common seeds, a fixed quota, and what is refused."""

import gymnasium
import numpy as np
import pytest
import torch
from networks import built
from torch import nn

from evo_subnets import Ensemble, Run, Search, evaluate, evolve, quads, search_trust_region
from evo_subnets.rl import Actor, EnsemblePolicy, episode_returns, mean_return, observations

from stable_baselines3.common.env_util import make_vec_env  # isort: skip
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize  # isort: skip

LINE = gymnasium.spaces.Box(-1, 1, (2,))


class Lottery(gymnasium.Env):
    """Its seed decides how long an episode is: 1 step or 10; a step gives 1. It shows its seed."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.number = 0 if seed is None else seed
        self.length = 1 if np.random.default_rng(self.number).random() < 0.5 else 10
        self.step_number = 0
        return np.array([self.number, 0.0]), {}

    def step(self, action):
        self.step_number += 1
        done = self.step_number == self.length
        return np.array([self.number, self.step_number]), 1.0, done, False, {}


class Pays(Lottery):
    """Pays for action 1 alone."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(action), *rest


class Leans(nn.Module):
    """Prefers action 1 by `force`, and remembers what it saw."""

    def __init__(self, force=0.0):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, force]))
        self.seen = []

    def forward(self, x):
        self.seen.append(x.clone())
        return self.logits.expand(len(x), -1)


def lotteries(count=3, kind=Lottery):
    return DummyVecEnv([kind] * count)


def first_seeds(model):
    """The seeds of the episodes that a model was shown the beginning of."""
    return [row[0].item() for batch in model.seen for row in batch if row[1] == 0]


@pytest.mark.parametrize("episodes", [1, 3, 7])
def test_every_model_plays_the_same_seeds(episodes):
    """Whatever it does there, and in whatever state another has left the environments."""
    envs = lotteries()
    models = Leans(-9.0), Leans(9.0)
    returns = [episode_returns(envs, model, episodes=episodes, seed=4) for model in models]
    assert np.array_equal(*returns)
    assert returns[0].shape == (episodes,)
    rounds = -(-episodes // 3)
    seeds = [first_seeds(model) for model in models]
    kept = [value for value in dict.fromkeys(seeds[0]) if value]  # an ended slot plays on from 0
    assert len(kept) == 3 * rounds, "seeds of their own"
    assert kept == [value for value in dict.fromkeys(seeds[1]) if value]
    other = Leans()
    episode_returns(envs, other, episodes=episodes, seed=5)
    assert not set(kept) & (set(first_seeds(other)) - {0.0}), "another seed is another course"


def test_the_quota_is_that_of_every_environment():
    """Against the seeds that were shown: long episodes count as often as they come."""
    model = Leans()
    returns = episode_returns(lotteries(4), model, episodes=10)
    shown = [value for value in dict.fromkeys(first_seeds(model)) if value]
    lengths = [1 if np.random.default_rng(int(s)).random() < 0.5 else 10 for s in shown]
    rounds = np.array(lengths).reshape(3, 4)
    assert returns.tolist() == [*rounds[:, 0], *rounds[:, 1], *rounds[:2, 2], *rounds[:2, 3]]


def test_models_choose_by_the_same_uniform_numbers():
    envs = lotteries(3, Pays)
    one, two, leaning = (
        episode_returns(envs, model, episodes=30) for model in (Leans(), Leans(), Leans(2.0))
    )
    assert np.array_equal(one, two)
    assert (leaning >= one).all()
    assert leaning.mean() > one.mean() > 0
    greedy = episode_returns(envs, Leans(0.1), episodes=30, deterministic=True)
    assert np.array_equal(greedy, episode_returns(envs, Leans(9.0), episodes=30))
    cold = episode_returns(envs, Leans(0.1), episodes=30, temperature=1e-3)
    assert np.array_equal(greedy, cold)


@pytest.fixture
def actor(cartpole_agent):
    return Actor.from_agent(cartpole_agent)


def test_a_gymnasium_id_a_function_and_an_environment_say_the_same(actor):
    envs = make_vec_env("CartPole-v1", 8, seed=3)
    found = [
        episode_returns(env, actor, episodes=9)
        for env in ("CartPole-v1", lambda: make_vec_env("CartPole-v1", 8, seed=3), envs)
    ]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert len(set(found[0])) > 3
    assert mean_return("CartPole-v1", episodes=9)(actor) == found[0].mean()
    assert not np.array_equal(found[0], episode_returns("CartPole-v1", actor, episodes=9, seed=1))
    envs.close()


def test_a_fitness_judges_children_and_ensembles(actor):
    fitness = mean_return("CartPole-v1", episodes=4, num_envs=2)
    mutations = quads(4, sigma=0.05, density=0.5, seed=0)
    children = evaluate(actor, mutations, fitness=fitness)
    assert [child.failed for child in children] == [False] * 4
    ensemble = Ensemble.from_mutations(actor, mutations)
    assert fitness(ensemble.members[2]) == children[2].fitness
    assert fitness(ensemble) > 8
    assert EnsemblePolicy(ensemble).observation_space == actor.observation_space


def test_each_generation_has_seeds_of_its_own_which_its_children_share():
    envs = lotteries()
    fitness = mean_return(envs, episodes=6, seed=4)
    shown = []
    for judged in (fitness, fitness.in_generation(0), *map(fitness.in_generation, (1, 2, 1))):
        models = Leans(-9.0), Leans(9.0)
        assert judged.cases(models[0]) == judged.cases(models[1])
        assert judged(models[0]) == np.mean(judged.cases(models[0]))
        shown.append(frozenset(first_seeds(models[1])) - {0.0})
    assert shown[0] == shown[1]
    assert shown[2] == shown[4]
    for one, other in ((0, 2), (0, 3), (2, 3)):
        assert not shown[one] & shown[other]


def test_a_search_around_an_agent_goes_on_where_it_was_stopped(actor, tmp_path):
    seen = observations("CartPole-v1", actor, count=64)
    start = Search(population_size=4, ensemble_size=2)
    region = search_trust_region(actor, seen, search=start, target=0.2)
    asked = []

    def evolved(folder):
        fitness = mean_return("CartPole-v1", episodes=4, num_envs=2)
        with Run(folder) as run:
            return evolve(
                actor, lambda model: asked.append(1) or fitness(model), search=region.search,
                run=run,
            )  # fmt: skip

    whole, again = evolved(tmp_path / "run"), evolved(tmp_path / "run")
    assert again.children == whole.children
    assert len(asked) == 4
    policy = EnsemblePolicy(whole.ensemble)
    assert policy.predict(np.zeros((3, 4), np.float32), deterministic=True)[0].shape == (3,)


def test_a_fitness_travels_to_other_processes(actor):
    cloudpickle = pytest.importorskip("ray.cloudpickle")
    fitness = mean_return("CartPole-v1", episodes=2, num_envs=2)
    there = cloudpickle.loads(cloudpickle.dumps(fitness))
    assert there(actor) == fitness(actor)


def test_observations_are_what_a_model_sees(actor):
    seen = observations("CartPole-v1", actor, count=30)
    assert (seen.shape, seen.dtype) == ((30, 4), torch.float32)
    assert torch.equal(seen, observations("CartPole-v1", actor, count=30))
    assert not torch.equal(seen, observations("CartPole-v1", actor, count=30, seed=1))
    assert len({row.numpy().tobytes() for row in seen}) == 30
    assert observations("CartPole-v1", actor, count=3).shape == (3, 4)


def test_rewards_are_those_of_the_monitor():
    """Not those that a wrapper normalises; wrappers that stack frames are reset with the rest."""
    envs = VecNormalize(make_vec_env(Lottery, 2, seed=3), training=False, norm_obs=False)
    assert set(episode_returns(envs, Leans(), episodes=8).tolist()) <= {1.0, 10.0}

    class Sees(Leans):
        def forward(self, x):
            assert x.shape[1:] == (6,)
            return super().forward(x)

    stacked = VecFrameStack(make_vec_env(Lottery, 2, seed=3), 3)
    assert np.array_equal(
        episode_returns(stacked, Sees(), episodes=5),
        episode_returns(lotteries(2), Leans(), episodes=5),
    )


class Spoken(Lottery):
    action_space = gymnasium.spaces.Text(3)


class Continuous(Lottery):
    action_space = gymnasium.spaces.Box(-1, 1, (2,))


class FromOne(Lottery):
    action_space = gymnasium.spaces.Discrete(2, start=1)


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        ("CartPole-v1", {"episodes": 0}, "episodes must be at least 1, got 0"),
        ("Nope-v1", {}, "gymnasium has no environment 'Nope-v1'"),
        ("CartPole-v1", {"num_envs": 0}, "num_envs must be at least 1, got 0"),
        (lotteries, {"num_envs": 2}, "num_envs is for a gymnasium id; .* got 2"),
        (
            "CartPole-v1",
            {"deterministic": True, "temperature": 0.5},
            "temperature 0.5 changes nothing where deterministic=True",
        ),
    ],
)
def test_options_that_would_change_nothing_are_refused_before_any_play(env, options, message):
    options = {"episodes": 4} | options
    with pytest.raises(ValueError, match=message):
        mean_return(env, **options)
    with pytest.raises(ValueError, match=message):
        episode_returns(env, Leans(), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lotteries(1, Spoken), r"Discrete or .* this environment has Text"),
        (lambda: lotteries(1, FromOne), r"numbered from zero.* this environment has Discrete"),
        (lambda: VecNormalize(lotteries()), "VecNormalize must not learn from evaluation"),
    ],
)
def test_environments_that_cannot_be_played_in_are_refused(make, message):
    model = Leans()
    with pytest.raises(ValueError, match=message):
        mean_return(make, episodes=2)(model)
    with pytest.raises(ValueError, match=message):
        observations(make(), model, count=2)
    assert not model.seen


def test_a_model_that_does_not_say_what_it_observes_is_refused():
    with pytest.raises(ValueError, match="Leans does not say what it observes: give observation_"):
        EnsemblePolicy(Leans())


def test_environments_that_are_made_for_a_fitness_are_closed():
    made = []

    def make():
        envs = lotteries()
        close = envs.close
        envs.close = lambda: (made.append("closed"), close())
        return envs

    with pytest.raises(ValueError, match="count must be at least 1"):
        observations(make, Leans(), count=0)
    mean_return(make, episodes=2)(Leans())
    assert made == ["closed"]
    own = make()
    mean_return(own, episodes=2)(Leans())
    assert made == ["closed"], "the caller's own stays open"


def test_play_leaves_the_global_generators_alone(actor):
    """The fixture of conftest.py fails this test if it does not."""
    episode_returns("CartPole-v1", actor, episodes=2)


def test_steps_are_those_of_the_episodes():
    """CartPole pays one for every step."""
    judged = mean_return("CartPole-v1", episodes=5, seed=3, num_envs=2)
    model = built(lambda: nn.Linear(4, 2))
    assert judged.steps(model) == sum(judged.cases(model)) > 5
