"""Policies: modules that act like an agent."""

import gymnasium
import numpy as np
import pytest
import torch
from networks import noise
from small_agents import pictures
from torch import nn

from evo_subnets import Ensemble, quads
from evo_subnets.rl import Actor, EnsemblePolicy

from stable_baselines3.common.env_util import make_vec_env  # isort: skip
from stable_baselines3.common.evaluation import evaluate_policy  # isort: skip


def policy_of(agent, **options):
    actor = Actor.from_agent(agent)
    return EnsemblePolicy(actor, actor.observation_space, **options)


class Fixed(nn.Module):
    """The same logits for every observation."""

    def __init__(self, logits):
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


LINE = gymnasium.spaces.Box(-1, 1, (4,))


def test_predict_is_the_agents_greedy_predict_on_cartpole(cartpole_agent):
    policy = policy_of(cartpole_agent)
    observations = noise(200, 4).numpy()
    expected, _ = cartpole_agent.predict(observations, deterministic=True)
    actions, state = policy.predict(observations, deterministic=True)
    assert state is None
    assert actions.tolist() == expected.tolist()
    assert set(actions.tolist()) == {0, 1}
    for row in range(5):
        action, _ = policy.predict(observations[row], deterministic=True)
        assert np.shape(action) == ()
        assert action == expected[row]


def test_predict_is_the_agents_greedy_predict_on_pictures(lively_agent):
    policy = policy_of(lively_agent)
    last = pictures(70)  # more than one forward pass takes
    first = last.transpose(0, 3, 1, 2)
    expected, _ = lively_agent.predict(first, deterministic=True)
    assert len(set(expected.tolist())) > 5
    for observations in (last, first):
        assert policy.predict(observations, deterministic=True)[0].tolist() == expected.tolist()
        for row in (0, 1):
            action, _ = policy.predict(observations[row], deterministic=True)
            assert action == expected[row]


@pytest.mark.parametrize(
    "shape",
    [
        (2, 64, 64, 3),
        (2, 3, 64, 64),
        (2, 32, 32, 6),
        (64, 64),
        (64, 64, 3),
        (5,),
        (1, 2, 6, 64, 64),
    ],
)
def test_pictures_of_another_shape_are_refused(procgen_agent, shape):
    policy = policy_of(procgen_agent)
    with pytest.raises(ValueError, match=r"expected observations of shape \(batch, .*6.* got"):
        policy.predict(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(2, 5), (3,), (2, 2, 4)])
def test_vectors_of_another_shape_are_refused(cartpole_agent, shape):
    with pytest.raises(ValueError, match=r"expected observations of shape \(batch, "):
        policy_of(cartpole_agent).predict(np.zeros(shape, np.float32))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_actions_are_as_frequent_as_they_are_probable(temperature):
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    model = Fixed(np.log(probabilities) + 3)
    count = 40_000
    policy = EnsemblePolicy(model, LINE, temperature=temperature, seed=1)
    actions, _ = policy.predict(np.zeros((count, 4), np.float32))
    expected = probabilities ** (1 / temperature)
    expected /= expected.sum()
    frequencies = np.bincount(actions, minlength=4) / count
    spread = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(frequencies - expected) < 4 * spread).all()


def test_actions_are_those_of_the_uniform_numbers():
    """Against the inverse of the distribution function, at its steps and beside them."""
    policy = EnsemblePolicy(Fixed(np.log([0.25, 0.0625, 0.6875]).astype(np.float32)), LINE)
    uniforms = np.array([0, 0.2499, 0.2501, 0.3124, 0.3126, 0.9, 1 - 2**-53])
    actions = policy.act(np.zeros((7, 4), np.float32), uniforms)
    assert actions.tolist() == [0, 0, 1, 1, 2, 2, 2]
    impossible = EnsemblePolicy(Fixed([-np.inf, 0.0, -np.inf]), LINE)
    assert set(impossible.act(np.zeros((7, 4), np.float32), uniforms).tolist()) == {1}


def test_common_uniforms_give_equal_actions_to_equal_policies(lively_agent):
    one, two = (policy_of(lively_agent, seed=seed) for seed in (0, 1))
    observations = pictures(40)
    uniforms = np.random.default_rng(0).random(40)
    assert np.array_equal(one.act(observations, uniforms), two.act(observations, uniforms))
    assert np.array_equal(one.act(observations, None), two.act(observations, None))


def test_a_policy_samples_from_its_own_generator():
    zeros = np.zeros((50, 4), np.float32)
    one, same, other = (EnsemblePolicy(Fixed([0.0] * 4), LINE, seed=s) for s in (1, 1, 2))
    first = one.predict(zeros)[0]
    assert np.array_equal(first, same.predict(zeros)[0])
    assert not np.array_equal(first, other.predict(zeros)[0])
    assert not np.array_equal(first, one.predict(zeros)[0])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_impossible_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive"):
        EnsemblePolicy(Fixed([0.0]), LINE, temperature=temperature)


def test_the_temperature_of_an_ensemble_sharpens_its_mean():
    members = [Fixed(np.log([0.9, 0.1])), Fixed(np.log([0.5, 0.5]))]
    policy = EnsemblePolicy(Ensemble(members), LINE, temperature=0.5)
    expected = np.array([0.7, 0.3]) ** 2
    found = policy.log_probabilities(np.zeros((1, 4), np.float32)).exp()[0]
    assert np.allclose(found, expected / expected.sum())


def test_it_plays_in_evaluate_policy_as_the_agent_does(cartpole_agent):
    def returns(policy):
        env = make_vec_env("CartPole-v1", 2, seed=4)
        result = evaluate_policy(policy, env, 6, return_episode_rewards=True, deterministic=True)
        env.close()
        return result

    assert returns(policy_of(cartpole_agent)) == returns(cartpole_agent)
    actor = Actor.from_agent(cartpole_agent)
    ensemble = Ensemble.from_mutations(actor, quads(4, sigma=0.01, density=0.2, seed=0))
    rewards, lengths = returns(EnsemblePolicy(ensemble, actor.observation_space))
    assert len(rewards) == 6
    assert rewards == lengths
