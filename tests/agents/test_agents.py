"""The Impala network, PPO's settings, actors, policies, and where parents come from."""

import copy
import json
import random
import shutil

import gymnasium
import numpy as np
import pytest
import torch
from networks import all_same_bits, built, noise
from torch import nn

from agents import parents
from agents.impala import COBBE_WIDTHS, PAPER_WIDTHS, ImpalaCNN
from agents.parents import find_parent
from agents.policies import Actor, EnsemblePolicy, impala_actor, load_actor, save_actor
from agents.ppo import PPOSettings, make_ppo, make_training_env
from envs import TRAIN_LEVELS
from evo_subnets import Ensemble, files, materialize, quads
from evo_subnets.files import StorageError

from stable_baselines3 import A2C, DQN, PPO  # isort: skip  # after agents, which silences gym
from stable_baselines3.common.buffers import RolloutBuffer  # isort: skip
from stable_baselines3.common.env_util import make_vec_env  # isort: skip
from stable_baselines3.common.evaluation import evaluate_policy  # isort: skip
from stable_baselines3.common.logger import Logger  # isort: skip

TINY = PPOSettings(num_envs=4, rollout_steps=16, minibatches=2, epochs=2, widths=(2, 2, 2))
GAME = "bossfight"
"""Its episodes are the shortest."""


def unseeded(make):
    """What `make` returns; the global generators that stable-baselines3 seeds are put back."""
    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            return make()
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


@pytest.fixture(scope="module")
def procgen_agent():
    """An untrained PPO agent on Procgen, and its environment."""
    env = make_training_env(GAME, TINY, TRAIN_LEVELS, "easy", seed=0)
    yield unseeded(lambda: make_ppo(env, TINY, seed=0, device="cpu"))
    env.close()


@pytest.fixture(scope="module")
def lively_agent(procgen_agent):
    """An agent on Procgen with strong weights, whose actions differ between pictures."""
    env = procgen_agent.get_env()
    agent = unseeded(lambda: make_ppo(env, TINY, seed=0, device="cpu"))
    with torch.no_grad():
        for number, weight in enumerate(agent.policy.parameters()):
            weight += 0.12 * noise(*weight.shape, seed=number)
    return agent


@pytest.fixture(scope="module")
def cartpole_agent():
    """A PPO agent on CartPole after one update: its critic and its actor differ."""

    def make():
        env = make_vec_env("CartPole-v1", 2, seed=0)
        agent = PPO("MlpPolicy", env, n_steps=32, batch_size=32, seed=0, device="cpu")
        agent.set_logger(Logger(None, []))  # else it makes a folder in /tmp
        return agent.learn(64)

    agent = unseeded(make)
    yield agent
    agent.env.close()


@pytest.fixture
def actor():
    return built(lambda: impala_actor((2, 3, 4), frame_stack=2))


def channels_first(observations):
    return torch.as_tensor(observations.transpose(0, 3, 1, 2).copy())


def pictures(count, channels=6, seed=0):
    """(count, 64, 64, channels), as the environments show them: coarse patterns."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (count, 4, 4, channels)) * draw.random((count, 1, 1, channels))
    return coarse.astype(np.uint8).repeat(16, axis=1).repeat(16, axis=2)


# --- the network


def parameters_of(widths, channels, actions=None, features=256):
    """Weights and biases, by arithmetic; 3x3 convolutions, five to a block."""
    total = 0
    for width in widths:
        total += 9 * channels * width + width + 4 * (9 * width * width + width)
        channels = width
    total += channels * 8 * 8 * features + features
    return total if actions is None else total + features * actions + actions


@pytest.mark.parametrize("stack", [1, 2, 4])
@pytest.mark.parametrize("widths", [COBBE_WIDTHS, (8, 16), (2, 2, 2)])
def test_the_number_of_parameters(widths, stack):
    space = gymnasium.spaces.Box(0, 255, (3 * stack, 64, 64), np.uint8)
    network = built(lambda: ImpalaCNN(space, widths=widths))
    pooled = 64 // 2 ** len(widths)
    expected = parameters_of(widths, 3 * stack) + widths[-1] * (pooled**2 - 8**2) * 256
    assert sum(weight.numel() for weight in network.parameters()) == expected
    assert network(torch.zeros(5, 3 * stack, 64, 64)).shape == (5, 256)


@pytest.mark.parametrize(
    ("widths", "stack", "parameters", "millions"),
    [(COBBE_WIDTHS, 1, 625_999, 30.6), (COBBE_WIDTHS, 2, 626_431, 32.4),
     (PAPER_WIDTHS, 2, 2_970_415, 160.2)],
)  # fmt: skip
def test_the_published_sizes(widths, stack, parameters, millions):
    """Parameters, and multiply-adds for one observation."""
    network = built(lambda: impala_actor(widths, stack))
    assert parameters_of(widths, 3 * stack, 15) == parameters
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    products = []

    def count(layer, _, output):
        products.append(output.numel() * layer.weight[0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3 * stack, 64, 64, dtype=torch.uint8))
    assert round(sum(products) / 1e6, 1) == millions


def test_the_network_does_what_its_figure_says():
    """Against plain functional calls, on a network with its blocks taken apart."""
    network = built(lambda: impala_actor((2, 3), frame_stack=1, actions=4, features_dim=8))
    state = dict(network.state_dict())
    picture = channels_first(pictures(2, 3))
    conv, relu = nn.functional.conv2d, torch.relu

    def convolution(x, name):
        return conv(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    x = picture / 255
    for block in (0, 1):
        start = f"features.blocks.{block}"
        x = nn.functional.max_pool2d(convolution(x, f"{start}.0"), 3, stride=2, padding=1)
        for residual in (2, 3):
            change = convolution(relu(x), f"{start}.{residual}.first")
            x = x + convolution(relu(change), f"{start}.{residual}.second")
    x = relu(x).flatten(1) @ state["features.hidden.weight"].T + state["features.hidden.bias"]
    logits = relu(x) @ state["head.weight"].T + state["head.bias"]
    assert torch.allclose(network(picture), logits, atol=1e-5)


def test_the_network_leaves_its_input_alone(actor):
    features = noise(2, 6, 64, 64)
    inner = noise(2, 2, 8, 8)
    before = features.clone(), inner.clone()
    with torch.no_grad():
        actor.features(features)
        actor.features.blocks[0][2](inner)
    assert torch.equal(features, before[0])
    assert torch.equal(inner, before[1])


# --- PPO


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
    env = make_training_env(GAME, settings, TRAIN_LEVELS, "hard", seed=7)
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


# --- actors


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda env: PPO("MlpPolicy", env, n_steps=8, batch_size=8), "needs discrete actions"),
        (lambda env: DQN("MlpPolicy", env, buffer_size=10), "must be an actor-critic agent"),
    ],
)
def test_other_agents_are_refused(make, message):
    name = "Pendulum-v1" if "discrete" in message else "CartPole-v1"

    def agent():
        env = make_vec_env(name, 1, seed=0)
        env.close()
        return make(env)

    with pytest.raises(ValueError, match=message):
        Actor.from_agent(unseeded(agent))


def test_an_ensemble_of_an_actor_is_a_model_as_any(actor):
    mutations = quads(4, 0.0, 0.2, seed=0)
    ensemble = Ensemble.from_mutations(actor, mutations)
    observations = channels_first(pictures(3))
    with torch.no_grad():
        assert torch.allclose(ensemble(observations), actor(observations).log_softmax(-1))


# --- files


def test_a_saved_actor_comes_back_bit_for_bit(actor, tmp_path):
    path = tmp_path / "folder" / "policy.safetensors"
    save_actor(path, actor, {"game": GAME, "steps": 12})
    found, about = load_actor(path)
    assert about == {"game": GAME, "steps": 12}
    assert all_same_bits(found.state_dict(), actor.state_dict())
    assert found.features.widths == (2, 3, 4)
    assert found.observation_space == actor.observation_space
    assert not found.training
    observations = channels_first(pictures(3))
    with torch.no_grad():
        assert torch.equal(found(observations), actor(observations))
    # children are numbered by row whatever the memory format
    mutation = quads(4, 0.1, 0.2, seed=0)[0]
    children = [materialize(dict(model.named_parameters()), mutation) for model in (found, actor)]
    assert all_same_bits(*children)


def test_loading_an_actor_leaves_the_global_generators_alone(actor, tmp_path):
    """The fixture of conftest.py fails this test if it does not."""
    save_actor(tmp_path / "policy.safetensors", actor, {})
    load_actor(tmp_path / "policy.safetensors")


@pytest.fixture
def damaged(tmp_path, actor):
    """A function from a kind of damage to the path of such a file."""

    def make(damage):
        path = tmp_path / f"{damage}.safetensors"
        if damage == "missing":
            return path
        if damage == "folder":
            path.mkdir()
            return path
        own = copy.deepcopy(actor)
        with torch.no_grad():
            for bias in own.parameters():
                bias += 0.1  # zeros would be packed
        save_actor(path, own, {"game": GAME})
        data = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(data[:-100])
        elif damage == "empty":
            path.write_bytes(b"")
        elif damage == "text":
            path.write_text("weights")
        elif damage == "flipped":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif damage == "ensemble":
            Ensemble.from_mutations(actor, quads(4, 0.1, 0.2, 0)).save(path)
        elif damage in ("widths", "words", "nothing"):
            tensors, description = files.load_tensors(path, "evo_subnets.actor")
            other = {"widths": [2, 3, 5], "words": ["2", "3", "4"], "nothing": None}[damage]
            network = {**description["network"], "widths": other}
            files.save_tensors(
                path, tensors, "evo_subnets.actor", {"network": network, "about": {}}
            )
        return path

    return make


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "there is no such file"),
        ("folder", "there is no such file"),
        ("truncated", "truncated or not a safetensors file"),
        ("empty", "truncated or not a safetensors file"),
        ("text", "truncated or not a safetensors file"),
        ("flipped", "damaged"),
        ("ensemble", "expected a file of kind evo_subnets.actor, got evo_subnets.ensemble"),
        ("widths", "weights of another architecture"),
        ("words", "describes no Impala actor"),
        ("nothing", "describes no Impala actor"),
    ],
)
def test_a_file_that_is_no_actor_is_a_storage_error_in_one_line(damaged, damage, message):
    path = damaged(damage)
    with pytest.raises(StorageError, match=message) as error:
        load_actor(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_only_impala_actors_are_saved(cartpole_agent, tmp_path):
    with pytest.raises(ValueError, match="only Impala actors are saved, got FlattenExtractor"):
        save_actor(tmp_path / "policy.safetensors", Actor.from_agent(cartpole_agent), {})
    assert not list(tmp_path.iterdir())


# --- policies


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
    policy = EnsemblePolicy(model, LINE, temperature, seed=1)
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
        EnsemblePolicy(Fixed([0.0]), LINE, temperature)


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
    ensemble = Ensemble.from_mutations(actor, quads(4, 0.01, 0.2, seed=0))
    rewards, lengths = returns(EnsemblePolicy(ensemble, actor.observation_space))
    assert len(rewards) == 6
    assert rewards == lengths


# --- parents


SETTINGS = PPOSettings(num_envs=4, rollout_steps=8, minibatches=2, epochs=1, widths=(2, 2, 2))


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def find(parent, out, settings=SETTINGS, steps=64, **options):
    return find_parent(str(parent), options.pop("game", GAME), out, settings, steps, **options)


@pytest.mark.moves_generators
def test_a_parent_is_trained_once_and_found_again(tmp_path, monkeypatch, procgen_agent):
    actor, source = find("train", tmp_path, checkpoint_every=32)
    assert source == "parent: PPO, 64 steps"
    assert checkpoints(tmp_path) == ["checkpoint-32.safetensors", "checkpoint-64.safetensors"]

    again, _ = find("train", tmp_path)
    assert all_same_bits(again.state_dict(), actor.state_dict())

    path = tmp_path / "policy.safetensors"
    loaded, source = find(path, tmp_path / "elsewhere")
    assert source == f"parent: {path}"
    assert all_same_bits(loaded.state_dict(), actor.state_dict())
    assert load_actor(path)[1] == {"game": GAME, "mode": "easy", "seed": 0, "steps": 64}

    procgen_agent.save(tmp_path / "agent.zip")
    zipped, _ = find(tmp_path / "agent.zip", tmp_path / "elsewhere")
    assert all_same_bits(zipped.state_dict(), Actor.from_agent(procgen_agent).state_dict())

    shutil.copytree(tmp_path, tmp_path / "shipped" / GAME)
    monkeypatch.setattr(parents, "SHIPPED", tmp_path / "shipped")
    shipped, source = find("auto", tmp_path / "elsewhere")
    assert source == f"parent: {tmp_path / 'shipped' / GAME / 'policy.safetensors'}"
    assert all_same_bits(shipped.state_dict(), actor.state_dict())
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.moves_generators
def test_a_folder_with_a_run_of_other_settings_is_refused(tmp_path):
    find("train", tmp_path, steps=32)
    before = json.loads((tmp_path / "journal.json").read_text())
    other = PPOSettings(num_envs=4, rollout_steps=16, minibatches=2, epochs=1, widths=(2, 2, 3))
    with pytest.raises(ValueError, match=r"holds a run with .*widths .*: use"):
        find("train", tmp_path, other)
    for options, name in (({"seed": 1}, "seed"), ({"mode": "hard"}, "mode")):
        with pytest.raises(ValueError, match=f"with {name} "):
            find("train", tmp_path, **options)
    with pytest.raises(ValueError, match="with game "):
        find("train", tmp_path, game="maze")
    assert json.loads((tmp_path / "journal.json").read_text()) == before
    assert checkpoints(tmp_path) == ["checkpoint-32.safetensors"]
    actor, _ = find("train", tmp_path, steps=64)
    assert checkpoints(tmp_path) == ["checkpoint-32.safetensors", "checkpoint-64.safetensors"]
    assert actor.features.widths == (2, 2, 2)


@pytest.mark.moves_generators
def test_files_that_are_no_procgen_parent_are_refused(tmp_path, cartpole_agent, damaged):
    cartpole_agent.save(tmp_path / "cartpole.zip")
    with pytest.raises(ValueError, match=r"sees \(4,\) and has 2"):
        find(tmp_path / "cartpole.zip", tmp_path)
    whole = (tmp_path / "cartpole.zip").read_bytes()
    for name, data in (("truncated", whole[: len(whole) // 2]), ("empty", b"")):
        path = tmp_path / f"{name}.zip"
        path.write_bytes(data)
        with pytest.raises(StorageError, match="not a stable-baselines3 PPO agent") as error:
            find(path, tmp_path)
        assert "\n" not in str(error.value)
    for path in (tmp_path / "no.zip", tmp_path / "no.safetensors", tmp_path):
        with pytest.raises(StorageError, match="there is no such file"):
            find(path, tmp_path)
    for damage in ("truncated", "widths"):
        with pytest.raises(StorageError):
            find(damaged(damage), tmp_path)
    other = built(lambda: impala_actor((2, 2, 2), frame_stack=2, actions=4))
    save_actor(tmp_path / "four.safetensors", other, {})
    with pytest.raises(ValueError, match=r"has 15 actions, this one .* has 4"):
        find(tmp_path / "four.safetensors", tmp_path)
