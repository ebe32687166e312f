"""Agents of every kind as parents: they act as they did, and everything follows their outputs."""

import copy

import numpy as np
import pytest
import torch
from any_environment import AGENTS, Anything, made, one, several, shown
from gymnasium.spaces import Box, Discrete
from small_agents import unseeded

from evo_subnets import Ensemble, Moving, Search, evolve, quads, search_trust_region
from evo_subnets.actions import ActionValues, Categoricals, Deterministic, Gaussian
from evo_subnets.kinds import kind_of
from evo_subnets.outputs import Classes
from evo_subnets.rl import Actor, EnsemblePolicy, episode_returns, mean_return, observations

from stable_baselines3 import DQN, PPO, SAC  # isort: skip
from stable_baselines3.common.evaluation import evaluate_policy  # isort: skip

KINDS = {
    "normal": Gaussian(), "squashed normal": Gaussian(squashed=True), "values": Deterministic(0.2),
    "values, DDPG": Deterministic(0.2),
    "values of actions": ActionValues(0.05), "choice": Classes(),
    "choices": Categoricals((3, 2, 4)), "yes and no": Categoricals((2,) * 4),
    "squashed state-dependent noise": Gaussian(squashed=True),
}  # fmt: skip
FEW = ["normal", "squashed normal", "values", "values of actions", "choices", "yes and no",
       "parts"]  # fmt: skip


@pytest.fixture(scope="module")
def agents():
    found = {}

    def get(name):
        if name not in found:
            found[name] = AGENTS[name]()
        return found[name]

    return get


@pytest.mark.parametrize("name", AGENTS)
def test_an_actor_does_what_its_agent_does(agents, name):
    agent = agents(name)
    actor = Actor.from_agent(agent)
    policy = EnsemblePolicy(actor)
    seen = shown(agent.observation_space)
    expected, _ = agent.predict(copy.deepcopy(seen), deterministic=True)
    found, state = policy.predict(copy.deepcopy(seen), deterministic=True)
    assert state is None
    assert found.shape == expected.shape
    assert np.allclose(found, expected, atol=1e-6)
    assert len(np.unique(found, axis=0)) > 1
    single = agent.predict(copy.deepcopy(one(seen, 3)), deterministic=True)[0]
    assert np.allclose(policy.predict(one(seen, 3), deterministic=True)[0], single, atol=1e-6)
    assert policy.predict(one(seen, 3), deterministic=True)[0].shape == single.shape
    space = agent.action_space
    for action in policy.predict(seen)[0]:
        assert space.contains(action.astype(space.dtype))
    assert kind_of(actor) == KINDS.get(name, actor.outputs)


@pytest.mark.parametrize(
    "name", ["normal", "squashed normal", "state-dependent noise", "squashed normal, noisy states",
             "squashed state-dependent noise", "state-dependent noise, few"],
)  # fmt: skip
def test_the_spread_of_an_actor_is_its_agents(agents, name):
    """Of stable-baselines3's own distribution, before squashing."""
    agent = agents(name)
    seen = torch.as_tensor(shown(agent.observation_space))
    with torch.no_grad():
        if isinstance(agent, SAC):
            mean, scale, more = agent.policy.actor.get_action_dist_params(seen)
            noise = agent.policy.actor.action_dist
            expected = noise.proba_distribution(mean, scale, *more.values()).distribution
        else:
            expected = agent.policy.get_distribution(seen).distribution
        means, scales = Actor.from_agent(agent)(seen).unbind(dim=1)
    assert torch.allclose(means, expected.mean, atol=1e-6)
    assert torch.allclose(scales.exp(), expected.stddev, rtol=1e-4)


@pytest.mark.parametrize("name", FEW)
def test_everything_follows_an_agents_outputs(agents, name, tmp_path):
    """Trust region, generations, ensemble, policy, files; and another search finds the same."""
    agent = agents(name)
    actor = Actor.from_agent(agent)
    spaces = {"observation_space": agent.observation_space, "action_space": agent.action_space}
    seen = observations(lambda: several(**spaces), actor, count=200)
    region = search_trust_region(actor, seen, search=Search(4, 2), target=0.3)
    assert 0.27 <= region.divergence <= 0.33
    fitness = mean_return(lambda: several(**spaces), episodes=4)
    result = evolve(
        actor, fitness, search=region.search, generations=2, inputs=seen, moving=Moving(noise=None)
    )
    assert all(len(child.cases) == 4 for child in result.children)
    assert result.history[0].fitness != result.history[1].fitness
    ensemble = result.ensemble
    assert ensemble.outputs == actor.outputs
    ensemble.save(tmp_path / "ensemble.safetensors")
    again = Ensemble.load(tmp_path / "ensemble.safetensors", result.evolved, restore=True)
    assert again.outputs == actor.outputs
    batch = shown(agent.observation_space)
    policies = [EnsemblePolicy(each, seed=3) for each in (ensemble, again)]
    for deterministic in (True, False):
        found = [policy.predict(batch, deterministic=deterministic)[0] for policy in policies]
        assert np.array_equal(*found)
    assert np.isfinite(episode_returns(lambda: several(**spaces), ensemble, episodes=3)).all()
    lazy = Ensemble.from_mutations(actor, quads(4, 0.1, density=0.5, seed=0), resident=False)
    policy = EnsemblePolicy(lazy)
    assert policy.action_space == agent.action_space
    assert policy.predict(batch)[0].shape == found[0].shape


@pytest.mark.parametrize("name", ["normal", "values", "choices", "parts"])
def test_policies_play_in_evaluate_policy_as_the_agent_does(agents, name):
    agent = agents(name)
    options = {"observation_space": agent.observation_space, "action_space": agent.action_space}
    rewards = []
    for each in (agent, EnsemblePolicy(Actor.from_agent(agent))):
        envs = several(**options)
        envs.seed(0)
        found = evaluate_policy(each, envs, 4, return_episode_rewards=True, warn=False)
        rewards.append(found[0])
    assert np.allclose(rewards[0], rewards[1], atol=1e-5)


def test_a_script_of_rl_zoo_plays(agents):
    """As its `enjoy` and `record_video` ask: a state that is None, and beginnings of episodes."""
    agent = agents("parts")
    envs = several(observation_space=agent.observation_space)
    policy = EnsemblePolicy(Actor.from_agent(agent))
    seen, state, starts = envs.reset(), None, np.ones(2, dtype=bool)
    for _ in range(7):
        actions, state = policy.predict(
            seen, state=state, episode_start=starts, deterministic=False
        )
        seen, _, starts, _ = envs.step(actions)


def test_play_is_recorded_as_an_agents(agents, tmp_path):
    pytest.importorskip("moviepy")
    from stable_baselines3.common.vec_env import VecVideoRecorder

    policy = EnsemblePolicy(Actor.from_agent(agents("normal")))
    envs = VecVideoRecorder(
        several(1), str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=6
    )
    seen = envs.reset()
    for _ in range(7):
        seen, *_ = envs.step(policy.predict(seen, deterministic=False)[0])
    envs.close()
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_values_explore_as_rarely_as_their_agent(agents):
    policy = EnsemblePolicy(Actor.from_agent(agents("values of actions")), seed=1)
    seen = np.repeat(shown(policy.observation_space, 1), 20_000, axis=0)
    greedy = policy.predict(seen[0], deterministic=True)[0]
    shares = np.bincount(policy.predict(seen)[0], minlength=5) / len(seen)
    expected = np.full(5, 0.01) + 0.95 * (np.arange(5) == greedy)
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.96 * 0.04 / len(seen))


def test_the_exploration_of_an_agent_is_its_last(agents):
    def rate(value):
        agent = made(DQN, action_space=Discrete(3), exploration_final_eps=value)
        return Actor.from_agent(agent).outputs.exploration

    assert [rate(0.2), rate(0.0), rate(1.0)] == [0.2, 0.05, 0.05]


def test_an_agent_of_another_space_is_refused_by_name(agents):
    agent = agents("choice")
    other = copy.copy(agent)
    other.action_space = Discrete(5, start=1)
    with pytest.raises(ValueError, match=r"Discrete or MultiDiscrete .* this agent has Discrete"):
        Actor.from_agent(other)


def test_an_environment_of_another_space_is_refused(agents):
    actor = Actor.from_agent(agents("normal"))
    wider = Box(-9, 9, (3,), np.float32)
    with pytest.raises(ValueError, match=r"this agent acts in Box.*, the environment takes Box"):
        episode_returns(several(action_space=wider), actor, episodes=1)
    with pytest.raises(ValueError, match=r"observations are .*\(7,\).*, the agent's .*\(4,\)"):
        episode_returns(several(observation_space=Box(-1, 1, (7,))), actor, episodes=1)


def test_agents_of_other_kinds_are_refused_with_what_there_is(agents):
    agent = copy.copy(agents("choice"))
    agent.policy = object()
    with pytest.raises(ValueError, match=r"a parent is an agent of PPO, A2C, .* a PPO with"):
        Actor.from_agent(agent)


@pytest.mark.parametrize("name", ["squashed normal", "values", "values of actions", "normal"])
def test_agents_that_act_by_methods_of_their_own_are_refused(agents, name):
    agent = AGENTS[name]()
    part = getattr(agent.policy, "actor", None) or getattr(agent.policy, "q_net", agent.policy)
    part._predict = lambda observation, deterministic=False: 1 / 0
    with pytest.raises(ValueError, match="would leave out _predict of this agent's"):
        Actor.from_agent(agent)
    agent = AGENTS[name]()
    agent.predict = agent.predict
    with pytest.raises(ValueError, match="would leave out predict of this agent's"):
        Actor.from_agent(agent)


def test_actions_are_clipped_as_the_agents(agents):
    """Sampled ones reach the bounds, and the environment accepts them all."""
    policy = EnsemblePolicy(Actor.from_agent(agents("normal")))
    found, space = policy.predict(shown(policy.observation_space, 300))[0], policy.action_space
    assert (found == space.low).any()
    assert (found == space.high).any()
    assert found.dtype == np.float32


def test_a_network_of_ones_own_acts_by_values_where_actions_are_real(agents):
    model = unseeded(lambda: torch.nn.Linear(4, 3))
    returns = episode_returns(several(), model, episodes=3)
    assert np.array_equal(returns, episode_returns(several(), model, episodes=3))
    assert not hasattr(model, "outputs")
    with pytest.raises(ValueError, match="give observation_space"):
        EnsemblePolicy(model)


@pytest.mark.parametrize("name", ["normal", "choices"])
def test_two_agents_alike_choose_alike_by_the_same_numbers(agents, name):
    actor = Actor.from_agent(agents(name))
    mutations = quads(4, 1e-6, density=0.5, seed=0)
    policies = [EnsemblePolicy(each) for each in (actor, Ensemble.from_mutations(actor, mutations))]
    seen = shown(actor.observation_space, 50)
    numbers = policies[0].draw(np.random.default_rng(0), 50)
    found = [policy.act(seen, numbers) for policy in policies]
    assert np.allclose(*found, atol=1e-4)


def test_a_ppo_of_pendulum_plays_there():
    from stable_baselines3.common.env_util import make_vec_env

    agent = unseeded(
        lambda: PPO("MlpPolicy", make_vec_env("Pendulum-v1", 1, seed=0), n_steps=8, batch_size=8,
                    device="cpu")
    )  # fmt: skip
    actor = Actor.from_agent(agent)
    returns = episode_returns("Pendulum-v1", actor, episodes=4, num_envs=2)
    assert np.array_equal(returns, episode_returns("Pendulum-v1", actor, episodes=4, num_envs=2))
    assert (returns < 0).all()
    assert isinstance(Anything().reset(seed=0), tuple)
