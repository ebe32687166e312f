"""Actors: an agent's policy network as a plain module."""

import numpy as np
import torch
from networks import noise
from small_agents import TINY, channels_first, parameters_of, pictures, unseeded

from agents.impala import ImpalaCNN
from evo_subnets import Ensemble, quads
from evo_subnets.rl import Actor, EnsemblePolicy

from stable_baselines3 import A2C, PPO  # isort: skip  # after evo_subnets.rl, which silences gym
from stable_baselines3.common.env_util import make_vec_env  # isort: skip


def distribution_logits(agent, observations):
    """Log-probabilities of the agent's own policy for network inputs."""
    agent.policy.set_training_mode(False)
    with torch.no_grad():
        return agent.policy.get_distribution(observations).distribution.logits


def check_actor_of(agent, observations):
    actor = Actor.from_agent(agent)
    expected = distribution_logits(agent, observations)
    with torch.no_grad():
        logits = actor(observations)
    assert torch.allclose(logits.log_softmax(-1), expected, atol=1e-6)
    return actor


def test_an_actor_of_a_procgen_agent_has_the_agents_logits(lively_agent):
    actor = check_actor_of(lively_agent, channels_first(pictures(5)))
    assert actor.actions == 15
    assert actor.observation_shape == (6, 64, 64)
    assert sum(w.numel() for w in actor.parameters()) == parameters_of(TINY.widths, 6, 15)
    assert not actor.training


def test_an_actor_of_a_cartpole_agent_has_the_agents_logits(cartpole_agent):
    actor = check_actor_of(cartpole_agent, noise(50, 4))
    assert actor.actions == 2
    names = [name for name, _ in actor.named_parameters()]
    assert len(names) == 6, "two hidden layers and a head, without the critic"
    own = dict(cartpole_agent.policy.mlp_extractor.policy_net.named_parameters())
    assert actor.body[0].weight is own["0.weight"]


def test_an_agent_whose_critic_has_its_own_features(procgen_agent):
    options = {
        "features_extractor_class": ImpalaCNN,
        "features_extractor_kwargs": {"widths": (2, 2), "features_dim": 8},
        "share_features_extractor": False,
        "net_arch": {"pi": [6], "vf": [5]},
    }
    env = procgen_agent.get_env()
    agent = unseeded(lambda: A2C("CnnPolicy", env, seed=0, device="cpu", policy_kwargs=options))
    check_actor_of(agent, channels_first(pictures(5)))


def test_an_agent_whose_observations_are_numbers():
    """One-hot inside stable-baselines3, and so inside the actor."""

    def make():
        env = make_vec_env("FrozenLake-v1", 1, seed=0)
        agent = PPO("MlpPolicy", env, n_steps=8, batch_size=8, seed=0, device="cpu")
        env.close()
        return agent

    agent = unseeded(make)
    actor = check_actor_of(agent, torch.arange(16))
    policy = EnsemblePolicy(actor, actor.observation_space)
    expected, _ = agent.predict(np.arange(16), deterministic=True)
    assert policy.predict(np.arange(16), deterministic=True)[0].tolist() == expected.tolist()
    assert policy.predict(np.array(3), deterministic=True)[0] == expected[3]


def test_an_ensemble_of_an_actor_is_a_model_as_any(actor):
    mutations = quads(4, sigma=0.0, density=0.2, seed=0)
    ensemble = Ensemble.from_mutations(actor, mutations)
    observations = channels_first(pictures(3))
    with torch.no_grad():
        assert torch.allclose(ensemble(observations), actor(observations).log_softmax(-1))
