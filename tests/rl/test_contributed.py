"""Agents of sb3-contrib, where it is installed."""

import copy
import math

import numpy as np
import pytest
import torch
from any_environment import PARTS, SMALL, lively, made, several, shown
from gymnasium.spaces import Discrete, MultiBinary, MultiDiscrete
from small_agents import unseeded

from evo_subnets import Search, evolve, search_trust_region
from evo_subnets.actions import Gaussian
from evo_subnets.rl import Actor, EnsemblePolicy, episode_returns, mean_return, observations

contrib = pytest.importorskip("sb3_contrib")


def masked_agent(actions, policy="MlpPolicy", **options):
    env = several(action_space=actions, **options)
    return lively(unseeded(lambda: contrib.MaskablePPO(
        policy, env, n_steps=8, batch_size=8, device="cpu", policy_kwargs=dict(SMALL)
    )))  # fmt: skip


def masks_for(space, count):
    sizes = [space.n] if isinstance(space, Discrete) else getattr(space, "nvec", None)
    sizes = [2] * space.n if sizes is None else sizes
    draw = np.random.default_rng(0)
    found = [draw.random((count, size)) < 0.6 for size in sizes]
    for part in found:
        part[np.arange(count), draw.integers(0, part.shape[1], count)] = True
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("space", [Discrete(6), MultiDiscrete([3, 2, 4]), MultiBinary(4)])
def test_a_masked_agent_does_what_it_did(space):
    agent = masked_agent(space)
    policy = EnsemblePolicy(Actor.from_agent(agent))
    seen, masks = shown(agent.observation_space, 60), masks_for(space, 60)
    expected, _ = agent.predict(seen, deterministic=True, action_masks=masks)
    found, _ = policy.predict(seen, deterministic=True, action_masks=masks)
    assert np.array_equal(found, expected)
    free, _ = agent.predict(seen, deterministic=True)
    assert not np.array_equal(free, expected)
    assert np.array_equal(policy.predict(seen, deterministic=True)[0], free)
    alone = policy.predict(seen[0], deterministic=True, action_masks=masks[0])[0]
    assert np.array_equal(alone, expected[0])


def test_what_is_forbidden_is_never_done():
    """In the environment's own play, whose masks everybody sees: the search too."""
    for space, policy, shows in (
        (Discrete(6), "MlpPolicy", {}),
        (MultiDiscrete([3, 4]), "MultiInputPolicy", {"observation_space": PARTS}),
    ):
        agent = masked_agent(space, policy, **shows)
        actor = Actor.from_agent(agent)
        envs = several(action_space=space, **shows)
        seen = observations(envs, actor, count=60)
        assert "action_masks" in seen
        region = search_trust_region(actor, seen, search=Search(4, 2), target=0.2)
        fitness = mean_return(envs, episodes=4)
        result = evolve(actor, fitness, search=region.search)
        episode_returns(envs, result.ensemble, episodes=6)
        done = np.concatenate([np.ravel(env.unwrapped.actions) for env in envs.envs])
        assert done.min() == 1
        assert done.max() > 1


def test_the_divergence_of_a_masked_agent_is_of_what_it_may_do():
    agent = masked_agent(Discrete(3))
    actor = Actor.from_agent(agent)
    seen = torch.as_tensor(shown(agent.observation_space, 30))
    only = torch.tensor([False, True, False]).expand(30, -1)
    search = Search(4, 2, 0.3)
    masked = {"observations": seen, "action_masks": only}
    found = search_trust_region(actor, masked, search=search, sigmas=[0.3], target=math.inf)
    assert found.divergence == 0
    free = search_trust_region(actor, seen, search=search, sigmas=[0.3], target=math.inf)
    assert free.divergence > 0


def test_environments_and_agents_without_masks_are_refused():
    actor = Actor.from_agent(masked_agent(Discrete(2)))
    with pytest.raises(ValueError, match="has no method action_masks"):
        episode_returns("CartPole-v1", actor, episodes=1)
    plain = Actor.from_agent(made(contrib.TRPO, action_space=Discrete(6), n_steps=8, batch_size=8))
    policy = EnsemblePolicy(plain)
    with pytest.raises(ValueError, match="this policy masks no actions"):
        policy.predict(np.zeros(4, np.float32), action_masks=np.ones(6, bool))
    agent = masked_agent(Discrete(2))
    agent.policy.action_dist.apply_masking = lambda masks: None
    with pytest.raises(ValueError, match="would leave out apply_masking"):
        Actor.from_agent(agent)


def test_masked_evaluation_plays_a_policy():
    from sb3_contrib.common.maskable.evaluation import evaluate_policy

    agent = masked_agent(Discrete(6))
    found = []
    for each in (agent, EnsemblePolicy(Actor.from_agent(agent))):
        envs = several(action_space=Discrete(6))
        envs.seed(0)
        found.append(evaluate_policy(each, envs, 4, return_episode_rewards=True, warn=False)[0])
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["TQC", "TRPO"])
def test_other_agents_of_sb3_contrib_do_what_they_did(kind):
    options = {"n_steps": 8, "batch_size": 8} if kind == "TRPO" else {}
    agent = made(getattr(contrib, kind), **options)
    actor = Actor.from_agent(agent)
    assert actor.outputs == Gaussian(squashed=kind == "TQC")
    seen = shown(agent.observation_space)
    expected, _ = agent.predict(copy.deepcopy(seen), deterministic=True)
    found, _ = EnsemblePolicy(actor).predict(seen, deterministic=True)
    assert np.allclose(found, expected, atol=1e-6)


def test_agents_with_a_memory_and_others_are_refused():
    def recurrent():
        return contrib.RecurrentPPO("MlpLstmPolicy", several(), n_steps=8, device="cpu")

    with pytest.raises(ValueError, match=r"must have no memory, .* is recurrent"):
        Actor.from_agent(unseeded(recurrent))
    with pytest.raises(ValueError, match=r"a parent is an agent of PPO, .* this one is a QRDQN"):
        Actor.from_agent(made(contrib.QRDQN, action_space=Discrete(3)))
