"""PPO's settings, and what they become."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from small_agents import GAME, unseeded
from torch import nn

from agents.fast.adam import TensorFlowAdam
from agents.impala import ImpalaCNN
from agents.ppo import PPOSettings, make_ppo, make_training_env
from configs.ppo import REFERENCE
from envs import TRAIN_LEVELS

from stable_baselines3.common.buffers import RolloutBuffer  # isort: skip


def test_the_defaults_are_table_4_2():
    settings = PPOSettings()
    assert (settings.num_envs, settings.rollout_steps, settings.minibatches) == (64, 256, 8)
    assert (settings.epochs, settings.learning_rate, settings.target_kl) == (3, 5e-4, 0.01)
    assert (settings.gamma, settings.gae_lambda, settings.clip_range) == (0.999, 0.95, 0.2)
    assert (settings.entropy_coefficient, settings.frame_stack) == (0.01, 2)
    assert settings.widths == (32, 64, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"epochs": -1}, "epochs must be at least 1, got -1"),
        ({"adam": "tf"}, "adam must be one of torch, tensorflow, got 'tf'"),
        ({"num_envs": 5, "rollout_steps": 5}, "5 x 5 steps cannot be cut into 8 equal"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PPOSettings(**options)


def test_the_settings_reach_stable_baselines3():
    settings = PPOSettings(
        num_envs=2, rollout_steps=6, minibatches=3, epochs=5, learning_rate=3e-4, gamma=0.9,
        gae_lambda=0.8, clip_range=0.3, entropy_coefficient=0.02, max_gradient_norm=0.4,
        target_kl=0.07, widths=(2, 3), frame_stack=3, normalizer_gamma=0.8,
    )  # fmt: skip
    env = make_training_env(GAME, settings, mode="hard", seed=7)
    agent = unseeded(lambda: make_ppo(env, settings, seed=1, device="cpu"))
    simulator = env.get_attr("game") + env.get_attr("mode") + env.get_attr("levels")
    env.close()
    assert simulator == [GAME] * 2 + ["hard"] * 2 + [TRAIN_LEVELS] * 2
    assert (agent.n_envs, agent.n_steps, agent.batch_size, agent.n_epochs) == (2, 6, 4, 5)
    assert (agent.gamma, agent.gae_lambda, agent.target_kl) == (0.9, 0.8, 0.07)
    assert (agent.rollout_buffer.gamma, agent.rollout_buffer.gae_lambda) == (0.9, 0.8)
    assert agent.clip_range(1.0) == agent.clip_range(0.1) == 0.3
    assert agent.clip_range_vf(1.0) == 0.3, "the reference clips the value's change as well"
    assert agent.vf_coef == 0.25, "the reference's 0.5 times its factor of one half"
    assert (agent.ent_coef, agent.max_grad_norm, agent.seed) == (0.02, 0.4, 1)
    assert agent.lr_schedule(1.0) == agent.lr_schedule(0.1) == 3e-4
    assert agent.policy.optimizer.defaults["eps"] == 1e-5
    assert agent.normalize_advantage
    assert agent.observation_space.shape == (9, 64, 64)
    assert agent.policy.features_extractor.widths == (2, 3)
    normalizer = agent.get_vec_normalize_env()
    assert (normalizer.gamma, normalizer.norm_obs, normalizer.norm_reward) == (0.8, False, True)


def test_the_normaliser_has_the_papers_discount(procgen_agent):
    assert procgen_agent.get_vec_normalize_env().gamma == 0.999
    assert procgen_agent.gamma == 0.999
    assert procgen_agent.rollout_buffer.gamma == 0.999


def test_only_the_heads_are_orthogonal(procgen_agent):
    policy = procgen_agent.policy
    action, value = policy.action_net, policy.value_net
    assert torch.allclose(
        action.weight @ action.weight.T, 1e-4 * torch.eye(15), atol=1e-9, rtol=1e-4
    )
    assert torch.allclose(value.weight.norm(), torch.tensor(1.0))
    assert not action.bias.any()
    assert not value.bias.any()


def test_impala_starts_as_the_references_framework_has_it():
    """Glorot 2010, eq. 16: uniform within sqrt(6 / (inputs + outputs)); biases zero."""
    space = gymnasium.spaces.Box(0, 255, (3, 64, 64), np.uint8)
    network = unseeded(lambda: ImpalaCNN(space, widths=(16, 32, 32)))
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) == 3 * 5 + 1
    for layer in layers:
        outputs, inputs = layer.weight.shape[:2]
        field = layer.weight[0, 0].numel()
        bound = (6 / (field * (inputs + outputs))) ** 0.5
        assert 0.97 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not layer.bias.any()


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_advantages_against_a_slow_reference(gae_lambda):
    """Schulman 2016, eq. 16: sums of discounted errors, cut where episodes start."""
    gamma, steps, envs = 0.999, 12, 3
    draw = np.random.default_rng(1)
    buffer = RolloutBuffer(
        steps,
        gymnasium.spaces.Box(-1, 1, (1,)),
        gymnasium.spaces.Discrete(2),
        "cpu",
        gae_lambda,
        gamma,
        envs,
    )
    rewards, values = draw.normal(size=(2, steps, envs)).astype(np.float32)
    starts = draw.random((steps + 1, envs)) < 0.3
    assert 0 < starts[1:].sum() < starts[1:].size
    last = draw.normal(size=envs).astype(np.float32)
    for step in range(steps):
        zeros = np.zeros((envs, 1), np.float32)
        buffer.add(
            zeros, zeros, rewards[step], starts[step], torch.tensor(values[step]), torch.zeros(envs)
        )
    buffer.compute_returns_and_advantage(torch.tensor(last), starts[-1])
    following = np.concatenate([values[1:], last[None]])
    for env in range(envs):
        for step in range(steps):
            advantage, factor = 0.0, 1.0
            for later in range(step, steps):
                ends = starts[later + 1, env]
                target = rewards[later, env] + (0.0 if ends else gamma * following[later, env])
                advantage += factor * (target - values[later, env])
                factor *= gamma * gae_lambda
                if ends:
                    break
            assert buffer.advantages[step, env] == pytest.approx(advantage, abs=1e-5)
    assert np.allclose(buffer.returns, buffer.advantages + values)


def test_the_reference_has_tensorflows_adam():
    settings = replace(REFERENCE, num_envs=2, rollout_steps=8, widths=(2, 3))
    env = make_training_env(GAME, settings)
    agent = unseeded(lambda: make_ppo(env, settings, seed=1, device="cpu"))
    env.close()
    assert type(agent.policy.optimizer) is TensorFlowAdam
    assert agent.policy.optimizer.epsilons == [1e-5]
