"""Agents in zip files: of which algorithm they are, and what lies beside them."""

import json
import zipfile

import numpy as np
import pytest
from any_environment import AGENTS, LINE, SMALL, made, several, shown
from gymnasium.spaces import Discrete
from small_agents import unseeded

from evo_subnets.files import StorageError
from evo_subnets.rl import Actor, EnsemblePolicy
from evo_subnets.rl.zips import algorithm_of, read_agent, statistics_beside

from stable_baselines3 import PPO  # isort: skip
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize  # isort: skip

FEW = {
    "normal": "PPO", "yes and no": "A2C", "squashed normal": "SAC", "values": "TD3",
    "values, DDPG": "TD3", "values of actions": "DQN", "parts": "PPO",
}  # fmt: skip


@pytest.mark.parametrize("name", FEW)
def test_a_zip_gives_the_agent_that_it_is_of(name, tmp_path):
    agent = AGENTS[name]()
    agent.save(tmp_path / "agent.zip")
    assert algorithm_of(tmp_path / "agent.zip") == FEW[name]
    seen = shown(agent.observation_space)
    found = EnsemblePolicy(Actor.from_zip(tmp_path / "agent.zip")).predict(seen, deterministic=True)
    expected = agent.predict(seen, deterministic=True)[0]
    assert np.allclose(found[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["MaskablePPO", "RecurrentPPO", "TQC", "TRPO", "QRDQN"])
def test_zips_of_sb3_contrib_too(name, tmp_path):
    kind = getattr(pytest.importorskip("sb3_contrib"), name)
    policy = "MlpLstmPolicy" if name == "RecurrentPPO" else "MlpPolicy"
    space = {} if name == "TQC" else {"action_space": Discrete(3)}
    sizes = {"n_steps": 8, "batch_size": 8} if name[-3:] in ("PPO", "RPO") else {"buffer_size": 9}
    sizes = {"n_steps": 8, "batch_size": 8} if name == "TRPO" else sizes
    agent = unseeded(lambda: kind(policy, several(**space), policy_kwargs=dict(SMALL), **sizes))
    agent.save(tmp_path / "agent.zip")
    assert algorithm_of(tmp_path / "agent.zip") == name
    assert type(read_agent(tmp_path / "agent.zip")) is kind


def test_files_that_are_no_agents_are_refused_in_a_sentence(tmp_path):
    made(PPO).save(tmp_path / "agent.zip")
    whole = (tmp_path / "agent.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.zip").write_text("hello")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr(
            "data", json.dumps({"policy_class": {"__module__": "mine"}, "clip_range": 1})
        )
    for name, message in (
        ("half", "not a zip of stable-baselines3"),
        ("text", "not a zip of stable-baselines3"),
        ("missing", "there is no such file"),
        ("other", r"does not say of which algorithm it is \(its policy is of mine\)"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            Actor.from_zip(tmp_path / f"{name}.zip")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="there is no algorithm Nope in stable-baselines3"):
        read_agent(tmp_path / "agent.zip", algorithm="Nope")
    with pytest.raises(StorageError, match="no agent of stable-baselines3's SAC can be read"):
        read_agent(tmp_path / "agent.zip", algorithm="SAC")


@pytest.fixture
def normalized(tmp_path):
    env = VecNormalize(several())
    env.obs_rms.update(np.random.default_rng(0).normal(3, 2, (50, 4)))
    agent = made(PPO, env=env)
    agent.save(tmp_path / "Arm-v1.zip")
    return agent, env, tmp_path


@pytest.mark.parametrize(
    "place", ["vecnormalize.pkl", "vec_normalize.pkl", "Arm-v1/vecnormalize.pkl"]
)
def test_statistics_beside_a_zip_are_taken(normalized, place):
    agent, env, folder = normalized
    (folder / place).parent.mkdir(exist_ok=True)
    env.save(folder / place)
    policy = EnsemblePolicy(Actor.from_zip(folder / "Arm-v1.zip"))
    raw = shown(LINE) * 5
    expected = agent.predict(env.normalize_obs(raw), deterministic=True)[0]
    assert np.allclose(policy.predict(raw, deterministic=True)[0], expected, atol=1e-5)
    (folder / "best_model.zip").write_bytes((folder / "Arm-v1.zip").read_bytes())
    assert Actor.from_zip(folder / "best_model.zip").normalization
    assert not Actor.from_zip(folder / "best_model.zip", normalization=False).normalization


def test_statistics_of_a_checkpoint_are_those_of_its_step(normalized):
    _, env, folder = normalized
    for step in (100, 200):
        env.save(folder / f"rl_model_vecnormalize_{step}_steps.pkl")
    found = statistics_beside(folder / "rl_model_200_steps.zip")
    assert found.name == "rl_model_vecnormalize_200_steps.pkl"
    assert statistics_beside(folder / "Arm-v1.zip") is None
    for name in ("a", "b"):
        (folder / name).mkdir()
        env.save(folder / name / "vecnormalize.pkl")
    with pytest.raises(ValueError, match=r"which statistics are its own, .*a/vecn.*b/vecn"):
        statistics_beside(folder / "Arm-v1.zip")


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("!!python/object/apply:collections.OrderedDict\n- - - normalize\n    - true\n", True),
        ("normalize: true\n", True),
        ("- - - normalize\n    - '{''norm_obs'': True, ''norm_reward'': False}'\n", True),
        ("- - - normalize\n    - '{''norm_obs'': False, ''norm_reward'': True}'\n", False),
        ("- - - normalize\n    - false\n", False),
        ("- - - normalize_advantage\n    - true\n", False),
        ("- - - n_envs\n    - 8\n", False),
    ],
)
def test_statistics_that_rl_zoos_options_speak_of_and_that_are_missing(normalized, text, refused):
    _, _, folder = normalized
    (folder / "Arm-v1").mkdir()
    (folder / "Arm-v1" / "config.yml").write_text(text)
    if refused:
        with pytest.raises(ValueError, match="the statistics of its VecNormalize are missing: put"):
            Actor.from_zip(folder / "Arm-v1.zip")
    else:
        Actor.from_zip(folder / "Arm-v1.zip")
    Actor.from_zip(folder / "Arm-v1.zip", normalization=False)


def test_a_zip_does_not_say_how_many_frames_were_stacked(tmp_path):
    made(PPO, env=VecFrameStack(several(), 2)).save(tmp_path / "agent.zip")
    assert Actor.from_zip(tmp_path / "agent.zip").frame_stack == 1
    assert Actor.from_zip(tmp_path / "agent.zip", frame_stack=2).frame_stack == 2
