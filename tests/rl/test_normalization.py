"""Statistics of VecNormalize that travel with an agent, and frames that are stacked for it."""

import os
import pickle

import numpy as np
import pytest
import torch
from any_environment import ARM, LINE, PARTS, made, several, shown
from gymnasium.spaces import Box, Dict
from small_agents import unseeded

from evo_subnets import Ensemble, quads
from evo_subnets.files import StorageError
from evo_subnets.rl import Actor, EnsemblePolicy, episode_returns, observations
from evo_subnets.rl.normalization import Normalized, normalization_of, read

from stable_baselines3 import PPO, SAC  # isort: skip
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize  # isort: skip

WIDE = Box(-np.inf, np.inf, (4,), np.float64)


def statistics_in(env, **options):
    """A VecNormalize that has seen observations of other places and scales."""
    found = VecNormalize(env, **options)
    draw = np.random.default_rng(0)
    one = (
        found.obs_rms if isinstance(getattr(found, "obs_rms", None), dict) else {"": found.obs_rms}
    )
    for each in one.values() if found.norm_obs else ():
        each.update(draw.normal(3, 2, (100, *each.mean.shape)))
    return found


def normalized_agent(observation_space=LINE, policy="MlpPolicy", kind=PPO, **options):
    env = statistics_in(several(observation_space=observation_space), **options)
    return made(kind, env=env, policy=policy), env


@pytest.mark.parametrize("space", [LINE, WIDE])
def test_an_actor_normalises_as_its_agents_environment(space):
    agent, env = normalized_agent(space)
    policy = EnsemblePolicy(Actor.from_agent(agent))
    raw = shown(space) * 5
    expected = agent.predict(env.normalize_obs(raw), deterministic=True)[0]
    assert np.allclose(policy.predict(raw, deterministic=True)[0], expected, atol=1e-5)
    assert not np.allclose(agent.predict(raw, deterministic=True)[0], expected, atol=1e-3)


def test_parts_are_normalised_by_name():
    agent, env = normalized_agent(PARTS, "MultiInputPolicy", norm_obs_keys=["where"])
    actor = Actor.from_agent(agent)
    assert list(actor.normalization) == ["where"]
    raw = shown(PARTS)
    expected = agent.predict(env.normalize_obs(raw), deterministic=True)[0]
    found = EnsemblePolicy(actor).predict(raw, deterministic=True)[0]
    assert np.allclose(found, expected, atol=1e-5)


def test_large_means_beside_small_deviations_are_not_lost():
    draw = np.random.default_rng(0)
    raw = 1e7 + draw.normal(0, 1, (50, 3))
    mean, variance = raw.mean(0), raw.var(0)
    part = Normalized(mean, variance, epsilon=1e-8, clip=10)
    expected = np.clip((raw - mean) / np.sqrt(variance + 1e-8), -10, 10)
    assert np.allclose(part(torch.as_tensor(raw)).numpy(), expected, atol=1e-5)
    single = raw.astype(np.float32)
    expected = np.clip((single - mean) / np.sqrt(variance + 1e-8), -10, 10)
    assert np.allclose(part(torch.as_tensor(single)).numpy(), expected, atol=1e-5)


def test_statistics_are_read_from_a_file_as_numbers(tmp_path):
    agent, env = normalized_agent()
    env.save(tmp_path / "vecnormalize.pkl")
    expected = Actor.from_agent(agent).state_dict()
    env.norm_obs = False
    found = Actor.from_agent(agent, normalization=tmp_path / "vecnormalize.pkl").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not Actor.from_agent(agent).normalization, "norm_obs=False leaves observations alone"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_statistics_of_any_protocol_are_read(protocol, tmp_path):
    env = statistics_in(several(observation_space=PARTS), norm_obs_keys=["where"])
    env.observation_space.seed(1)  # its generator is in the file then
    (tmp_path / "some.pkl").write_bytes(pickle.dumps(env, protocol))
    found = normalization_of(tmp_path / "some.pkl")["where"]
    assert np.allclose(found.mean, env.obs_rms["where"].mean)
    assert read(tmp_path / "some.pkl")["clip_obs"] == 10


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_nothing_in_a_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    env = statistics_in(several())
    env.extra = Evil()
    (tmp_path / "some.pkl").write_bytes(pickle.dumps(env))
    assert np.allclose(normalization_of("some.pkl")["observations"].mean, env.obs_rms.mean)
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_what_holds_no_statistics_is_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"not a pickle")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"norm_obs": 1}))
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(several(1).envs[0].observation_space))
    for name in ("a.pkl", "b.pkl", "missing.pkl"):
        with pytest.raises(StorageError, match=rf"{name}: no statistics of a VecNormalize"):
            normalization_of(tmp_path / name)
    with pytest.raises(ValueError, match="holds no statistics of a VecNormalize"):
        normalization_of(tmp_path / "c.pkl")
    agent, _ = normalized_agent()
    other = statistics_in(several(observation_space=Box(-1, 1, (9,))))
    with pytest.raises(ValueError, match=r"of shape \(9,\) are not those of observations .*\(4,\)"):
        Actor.from_agent(agent, normalization=other)


@pytest.mark.parametrize("kind", [PPO, SAC])
@pytest.mark.parametrize(
    "space", [WIDE, Box(-1, 1, (4,), np.float32), Dict({"a": Box(0, 1, (3,), np.float32)})]
)
def test_an_agent_whose_statistics_are_missing_is_refused_where_it_shows(kind, space, tmp_path):
    policy = "MultiInputPolicy" if isinstance(space, Dict) else "MlpPolicy"
    agent, _ = normalized_agent(space, policy, kind)
    unseeded(lambda: agent.learn(8))
    agent.save(tmp_path / "agent.zip")
    alone = unseeded(lambda: kind.load(tmp_path / "agent.zip", device="cpu"))
    with pytest.raises(ValueError, match="was trained on normalised observations: give the"):
        Actor.from_agent(alone)
    assert not Actor.from_agent(alone, normalization=False).normalization


@pytest.mark.parametrize("kind", [PPO, SAC])
def test_an_agent_that_saw_its_environment_is_not(kind, tmp_path):
    agent = made(kind, observation_space=Box(-1, 1, (4,), np.float32))
    unseeded(lambda: agent.learn(8))
    agent.save(tmp_path / "agent.zip")
    Actor.from_agent(unseeded(lambda: kind.load(tmp_path / "agent.zip", device="cpu")))


def test_fitness_and_ensembles_see_raw_environments(tmp_path):
    agent, env = normalized_agent()
    actor = Actor.from_agent(agent)
    raw = episode_returns(several(), actor, episodes=4, deterministic=True)
    plain = Actor.from_agent(agent, normalization=False)
    env.training = env.norm_reward = False
    env.seed(0)
    assert np.allclose(raw, episode_returns(env, plain, episodes=4, deterministic=True), atol=1e-4)
    with pytest.raises(ValueError, match="would both normalise observations"):
        episode_returns(env, actor, episodes=1)
    ensemble = Ensemble.from_mutations(actor, quads(4, 0.01, density=0.5, seed=0))
    assert torch.equal(ensemble.members[2].normalization["observations"].mean,
                       actor.normalization["observations"].mean)  # fmt: skip
    ensemble.save(tmp_path / "e.safetensors")
    with pytest.raises(StorageError, match="normalization"):
        Ensemble.load(tmp_path / "e.safetensors", plain, restore=True)
    assert (observations(several(), actor, count=50).abs() < 50).all()


def test_frames_are_stacked_for_an_agent_that_was_trained_so():
    env = VecFrameStack(several(), 3)
    agent = made(PPO, env=env)
    actor = Actor.from_agent(agent)
    assert actor.frame_stack == 3
    returns = [episode_returns(each, actor, episodes=4) for each in (several(), env)]
    assert np.array_equal(*returns)
    assert observations(several(), actor, count=9).shape == (9, 12)
    assert Actor.from_agent(agent, frame_stack=1).frame_stack == 1
    with pytest.raises(ValueError, match=r"\(4,\).*, the agent's .*\(12,\).*frame_stack"):
        episode_returns(several(), Actor.from_agent(agent, frame_stack=1), episodes=1)


def test_frames_of_a_normalised_stack_are_stacked_first():
    agent = made(PPO, env=statistics_in(VecFrameStack(several(), 3)))
    actor = Actor.from_agent(agent)
    assert np.isfinite(episode_returns(several(), actor, episodes=2)).all()
    other = made(PPO, env=VecFrameStack(statistics_in(several()), 3))
    with pytest.raises(ValueError, match="stacked after they were normalised need environments"):
        Actor.from_agent(other)
    assert ARM.shape == (3,)
