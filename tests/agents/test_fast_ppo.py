"""FastPPO against stable-baselines3's PPO: the same learning, minibatches, logs and files."""

import copy
import random
import re
from dataclasses import replace
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from networks import all_same_bits, built, noise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from agents.fast import gradients as ppo_gradients
from agents.fast import impala_blocks
from agents.fast.ppo import FastPPO
from agents.fast.rollouts import DeviceRolloutBuffer
from agents.impala import ImpalaBlock, ImpalaCNN, compiled_blocks, impala_actor
from agents.parents import SHIPPED, load_parent
from agents.play.course import Course
from agents.play.population import play
from agents.ppo import PPOSettings, make_ppo, make_training_env
from envs import TRAIN_LEVELS
from evo_subnets.rl import EnsemblePolicy

from stable_baselines3 import PPO  # isort: skip  # after agents, which silences gym
from stable_baselines3.common.buffers import RolloutBuffer  # isort: skip
from stable_baselines3.common.env_util import make_vec_env  # isort: skip
from stable_baselines3.common.logger import Logger  # isort: skip

GAME = "bossfight"
TINY = PPOSettings(
    num_envs=4, rollout_steps=12, minibatches=2, epochs=2, widths=(16, 16, 16), target_kl=None,
    value_loss="clipped",  # stable-baselines3's
)  # fmt: skip
needs_compiler = pytest.mark.skipif(
    impala_blocks.library() is None, reason="there is no C compiler here"
)


@pytest.fixture
def two_threads():
    """torch with two threads meanwhile."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def picture_space(channels=6, side=64):
    return gymnasium.spaces.Box(0, 255, (channels, side, side), np.uint8)


# --- the compiled blocks


@pytest.fixture
def compiled_calls(monkeypatch):
    """The functions of the compiled blocks that were called."""
    calls = []
    original = impala_blocks._call
    monkeypatch.setattr(
        impala_blocks, "_call", lambda name, *rest: (calls.append(name), original(name, *rest))[1]
    )
    return calls


def features_and_gradients(network, pictures, compiled):
    network.compiled = compiled
    features = network(pictures)
    weight = noise(*features.shape, seed=3)
    gradients = torch.autograd.grad((features * weight).sum(), list(network.parameters()))
    return [features.detach(), *gradients]


@needs_compiler
@pytest.mark.parametrize(
    ("channels", "side", "widths"),
    [(6, 64, (16, 32)), (3, 17, (32, 16)), (1, 7, (16,)), (4, 10, (16, 16, 32))],
)
def test_the_compiled_blocks_are_torchs_convolutions(channels, side, widths, compiled_calls):
    """Also at odd sizes, where equal values meet in the pooling, and at an odd batch."""
    network = built(lambda: ImpalaCNN(picture_space(channels, side), 8, widths=widths))
    pictures = (4 * noise(5, channels, side, side)).round() / 4
    pictures[0] = 0
    expected = features_and_gradients(network, pictures, compiled=False)
    found = features_and_gradients(network, pictures, compiled=True)
    assert len(compiled_calls) == 2 * 3 * len(widths), (
        "forward and backward of three functions a block"
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())
    with torch.no_grad():
        assert torch.allclose(network(pictures), expected[0], atol=1e-5)
        torch.set_num_threads(2)
        assert torch.allclose(network(pictures), expected[0], atol=1e-5)
        torch.set_num_threads(1)


@needs_compiler
def test_the_gradient_of_a_pooling_goes_to_the_first_of_equals():
    block = built(lambda: ImpalaBlock(16, 16))
    x = torch.zeros(1, 5, 5, 16).requires_grad_()
    out = impala_blocks.Stem.apply(x, block[0].weight, block[0].bias)
    ours = torch.autograd.grad(out.sum(), x)[0].permute(0, 3, 1, 2)
    y = torch.zeros(1, 16, 5, 5).requires_grad_()
    theirs = torch.autograd.grad(block[1](block[0](y)).sum(), y)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


@needs_compiler
def test_not_a_number_stays_not_a_number():
    network = built(lambda: ImpalaCNN(picture_space(6, 8), 8, widths=(16,)))
    pictures = noise(2, 6, 8, 8)
    pictures[1, 0, 7, 7] = float("nan")  # not the first that a pooling sees
    network.compiled = True
    found = network(pictures)
    assert found[0].isfinite().all()
    assert found[1].isnan().any()


def test_other_networks_and_inputs_are_left_to_torch():
    network = built(lambda: ImpalaCNN(picture_space(6, 8), 8, widths=(16,)))
    narrow = built(lambda: ImpalaCNN(picture_space(6, 8), 8, widths=(8,)))
    pictures = noise(2, 6, 8, 8)
    assert not impala_blocks.fits(narrow, pictures)
    assert not impala_blocks.fits(network, pictures.double())
    assert not impala_blocks.fits(network, pictures.requires_grad_())
    assert not network.compiled
    for wrong in (noise(2, 3, 8, 8), noise(6, 8, 8), noise(0, 6, 8, 8)):
        assert not impala_blocks.fits(network, wrong)
    with torch.no_grad(), pytest.raises(RuntimeError, match="channels"):
        network(noise(2, 3, 8, 8))
    elsewhere = built(lambda: ImpalaCNN(picture_space(6, 8), 8, widths=(16,))).to("meta")
    assert not impala_blocks.fits(elsewhere, noise(2, 6, 8, 8))


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_without_gradients_the_blocks_are_compiled_and_keep_nothing(compiled_calls, threads):
    network = built(lambda: ImpalaCNN(picture_space(6, 16), 8, widths=(16, 32)))
    pictures = noise(3, 6, 16, 16)
    expected = network(pictures)
    assert not compiled_calls
    before = pictures.clone()
    torch.set_num_threads(threads)
    with torch.no_grad(), compiled_blocks(network):
        found = network(pictures)
        alone = torch.cat([network(one[None]) for one in pictures])
    torch.set_num_threads(1)
    assert set(compiled_calls) == {"impala_sizes", "impala_pack", "impala_same", "impala_blocks"}
    assert compiled_calls.count("impala_pack") == 1
    assert not found.requires_grad
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found, alone, atol=1e-6)  # the last layer is torch's
    assert torch.equal(pictures, before)


@needs_compiler
def test_weights_that_change_are_packed_anew(compiled_calls):
    """Also where torch does not know of it."""
    network = built(lambda: ImpalaCNN(picture_space(3, 8), 8, widths=(16,)))
    pictures = noise(2, 3, 8, 8)
    weight = network.blocks[0][3].second.weight
    for change in ("in place", "behind torch's back", "another tensor", "a copy"):
        if change == "in place":
            with torch.no_grad():
                weight.mul_(-2)
        elif change == "behind torch's back":
            weight.detach().numpy()[3, 4, 1, 2] += 0.5
        elif change == "another tensor":
            network.blocks[0][3].second.weight = nn.Parameter(weight.detach() + 0.1)
        else:
            network = copy.deepcopy(network)
            with torch.no_grad():
                network.blocks[0][0].weight += 0.1
        expected = network(pictures).detach()
        with torch.no_grad(), compiled_blocks(network):
            assert torch.allclose(network(pictures), expected, atol=1e-5), change
    assert compiled_calls.count("impala_pack") == 4


def test_who_looks_inside_sees_torchs_layers(compiled_calls):
    """Hooks, counters of operations, transforms; where `compiled` is chosen, replaced layers."""
    network = built(lambda: ImpalaCNN(picture_space(6, 8), 8, widths=(16,)))
    pictures, seen = noise(2, 6, 8, 8), []
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            network(pictures)
        assert counter.get_total_flops() > 2 * 2 * 9 * 6 * 16 * 64
        parameters = {name: weight.detach() for name, weight in network.named_parameters()}
        stacked = {name: torch.stack([weight, weight]) for name, weight in parameters.items()}
        call = torch.func.vmap(
            lambda weights: torch.func.functional_call(network, weights, pictures)
        )
        assert torch.allclose(call(stacked)[1], network(pictures), atol=1e-5)
        compiled_calls.clear()
        handle = network.blocks[0][2].second.register_forward_hook(lambda *_: seen.append(1))
        network(pictures)
        assert seen == [1]
        handle.remove()
        network.blocks[0][1] = nn.AvgPool2d(3, 2, 1)
        expected = network(pictures)
        with compiled_blocks(network):
            assert torch.equal(network(pictures), expected)
            network.blocks[0][1] = nn.MaxPool2d(3, 2, 1)
            network.blocks[0][2].second = nn.Sequential(network.blocks[0][2].second, nn.ReLU())
            expected = network(pictures)
            network.compiled = False
            assert torch.equal(network(pictures), expected)
            network.compiled = True
            with torch.autocast("cpu", torch.bfloat16):
                assert network(pictures).dtype == torch.bfloat16
    assert not compiled_calls


# --- rollouts


def filled(kind, space=None, steps=6, envs=3, full=True):
    """A buffer of random steps."""
    space = space or picture_space(3, 8)
    buffer = kind(steps, space, gymnasium.spaces.Discrete(5), "cpu", 0.95, 0.99, envs)
    draw = np.random.default_rng(0)
    for _ in range(steps if full else 1):
        pictures = draw.integers(0, 256, (envs, 8, 8, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
        rewards, values, chances = draw.normal(size=(3, envs)).astype(np.float32)
        buffer.add(pictures, draw.integers(0, 5, envs), rewards, draw.random(envs) < 0.3,
                   torch.tensor(values), torch.tensor(chances))  # fmt: skip
    buffer.compute_returns_and_advantage(torch.zeros(envs), np.zeros(envs, bool))
    return buffer


@pytest.mark.moves_generators
@pytest.mark.parametrize("size", [4, 5, None])
def test_minibatches_are_stable_baselines3s(size):
    ours, theirs = filled(DeviceRolloutBuffer), filled(RolloutBuffer)
    for seed in (0, 1):
        np.random.seed(seed)
        found = list(ours.get(size))
        np.random.seed(seed)
        expected = list(theirs.get(size))
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            for column, other_column in zip(one, other, strict=True):
                assert column.dtype == other_column.dtype
                assert torch.equal(column, other_column)
    assert found[0].observations.is_contiguous(memory_format=torch.channels_last)
    for name in ("values", "returns", "advantages"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_new_rollout_overwrites_the_old_one():
    buffer = filled(DeviceRolloutBuffer)
    before = buffer._pictures.data_ptr()
    buffer.reset()
    assert buffer.observations.size == 0, "pictures are kept once"
    assert buffer._pictures.data_ptr() == before
    with pytest.raises(AssertionError, match="not complete"):
        next(buffer.get(2))


# --- updates


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Minibatches here are small, and cut in parts all the same."""
    monkeypatch.setattr(ppo_gradients, "PART", 20)


@pytest.fixture(scope="module")
def env():
    env = make_training_env(GAME, TINY)
    yield env
    env.close()


def seeded(seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def both(make):
    """stable-baselines3's agent and ours after the same rollout, with lively weights."""
    agents = []
    for kind in (PPO, FastPPO):
        agent = make(kind)
        agent.set_logger(Logger(None, []))
        agents.append(agent)
    theirs, ours = agents
    ours.policy.load_state_dict(theirs.policy.state_dict())
    return theirs, ours


def give_rollout(agent, seed=5):
    """A rollout of random pictures, the same for every kind of agent."""
    draw, buffer = np.random.default_rng(seed), agent.rollout_buffer
    buffer.reset()
    coarse = draw.integers(0, 256, (buffer.buffer_size, agent.n_envs, 6, 4, 4), dtype=np.uint8)
    for pictures in coarse.repeat(16, axis=3).repeat(16, axis=4):
        rewards, values = draw.normal(size=(2, agent.n_envs)).astype(np.float32)
        actions = draw.integers(0, 15, agent.n_envs)
        with torch.no_grad():
            _, chances, _ = agent.policy.evaluate_actions(
                torch.from_numpy(pictures), torch.from_numpy(actions)
            )
        chances += 0.1 * torch.from_numpy(draw.normal(size=agent.n_envs).astype(np.float32))
        buffer.add(pictures, actions, rewards, draw.random(agent.n_envs) < 0.2,
                   torch.from_numpy(values), chances)  # fmt: skip
    last = torch.zeros(agent.n_envs)
    buffer.compute_returns_and_advantage(last, np.zeros(agent.n_envs, bool))


def after_an_update(agent):
    """The last gradients, the weights, and what was logged."""
    seeded()
    agent.train()
    gradients = [weight.grad.clone() for weight in agent.policy.parameters()]
    return gradients, dict(agent.policy.state_dict()), dict(agent.logger.name_to_value)


@pytest.mark.moves_generators
@pytest.mark.parametrize(
    "options",
    [{}, {"clip_range_vf": None}, {"normalize_advantage": False}, {"batch_size": 19},
     {"n_epochs": 1, "batch_size": 48}, {"target_kl": 0.004, "n_epochs": 6},
     {"max_grad_norm": 1e-3}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("threads", [1, 2])
def test_an_update_is_stable_baselines3s(env, options, threads, request):
    """The same losses, gradients, clipping, early stop and weights."""
    if threads == 2:
        request.getfixturevalue("two_threads")
    theirs, ours = both(lambda kind: make_ppo(env, TINY, seed=0, device="cpu", agent=kind))
    for agent in (theirs, ours):
        for name, value in options.items():
            setattr(agent, name, value)
        give_rollout(agent)
    expected, found = after_an_update(theirs), after_an_update(ours)
    assert theirs._n_updates == ours._n_updates
    if "target_kl" in options:
        assert theirs._n_updates < 6, "stopped early"
    assert found[2].keys() == expected[2].keys()
    for name, value in expected[2].items():
        assert found[2][name] == pytest.approx(value, abs=1e-5, rel=1e-4), name
    accuracy = 1e-5 if "n_epochs" in options else 1e-4  # of later updates, whose weights differ
    for one, other in zip(found[0], expected[0], strict=True):
        assert (one - other).abs().max() <= accuracy
    for name, weight in expected[1].items():
        assert torch.allclose(found[1][name], weight, atol=5e-5), name
    assert torch.get_num_threads() == threads
    assert not ours.policy.features_extractor.compiled


@pytest.mark.moves_generators
@pytest.mark.parametrize(
    ("game", "policy", "options"),
    [
        ("CartPole-v1", "MlpPolicy", {}),
        ("Pendulum-v1", "MlpPolicy", {}),
        ("Pendulum-v1", "MlpPolicy", {"use_sde": True}),
        ("CartPole-v1", "MlpPolicy", {"ent_coef": 0.01, "clip_range_vf": 0.2, "target_kl": 0.01}),
    ],
)
def test_other_environments_learn_the_same(game, policy, options):
    def run(kind):
        env = make_vec_env(game, 2, seed=0)
        if kind is FastPPO and "clip_range_vf" in options:
            kind = partial(FastPPO, value_loss="clipped")
        agent = kind(policy, env, n_steps=64, batch_size=50, n_epochs=3, seed=0, device="cpu",
                     **options)  # fmt: skip
        agent.set_logger(Logger(None, []))
        agent.learn(256)
        env.close()
        return agent

    with pytest.warns(UserWarning, match="truncated mini-batch"):
        theirs, ours = run(PPO), run(FastPPO)
    for name, weight in theirs.policy.state_dict().items():
        assert torch.allclose(ours.policy.state_dict()[name], weight, atol=1e-4), name
    assert ours.logger.name_to_value.keys() == theirs.logger.name_to_value.keys()


@pytest.mark.moves_generators
def test_pictures_and_numbers_together_learn_the_same():
    """Observations that are dictionaries."""

    class Both(gymnasium.Env):
        observation_space = gymnasium.spaces.Dict(
            {
                "number": gymnasium.spaces.Box(-1, 1, (3,)),
                "other": gymnasium.spaces.Box(-1, 1, (2,)),
            }
        )
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            self.draw = np.random.default_rng(seed or 0)
            return self.see(), {}

        def see(self):
            first, second = self.draw.random(3), self.draw.random(2)
            return {"number": first.astype(np.float32), "other": second.astype(np.float32)}

        def step(self, action):
            return self.see(), float(action), bool(self.draw.random() < 0.1), False, {}

    found = []
    for kind in (PPO, FastPPO):
        agent = kind("MultiInputPolicy", Both(), n_steps=64, batch_size=32, seed=0, device="cpu")
        agent.set_logger(Logger(None, []))
        found.append(agent.learn(128).policy.state_dict())
    for name, weight in found[0].items():
        assert torch.allclose(found[1][name], weight, atol=1e-4), name


class Watching(nn.Module):
    """Remembers how many observations came at once."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.seen = layer, []

    def forward(self, x):
        self.seen.append(len(x))
        return self.layer(x)


@pytest.mark.moves_generators
@pytest.mark.parametrize(
    ("layer", "expected"),
    [(nn.Identity(), {20, 8}), (nn.BatchNorm1d(64), {48}), (nn.Dropout(), {48})],
)
def test_layers_that_see_the_batch_are_not_given_parts(env, layer, expected):
    agent = make_ppo(env, replace(TINY, minibatches=1), seed=0, device="cpu")
    agent.set_logger(Logger(None, []))
    give_rollout(agent)
    features = agent.policy.features_extractor
    width = features.hidden.in_features
    layer = nn.BatchNorm1d(width) if isinstance(layer, nn.BatchNorm1d) else layer
    features.hidden = nn.Sequential(watching := Watching(layer), features.hidden)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(impala_blocks, "fits", lambda *_: False)
        agent.train()
    assert set(watching.seen) == expected


@pytest.mark.moves_generators
def test_equal_runs_end_with_equal_bits(env, two_threads):
    ends = []
    for _ in range(2):
        agent = make_ppo(env, TINY, seed=0, device="cpu")
        agent.set_logger(Logger(None, []))
        give_rollout(agent)
        ends.append(after_an_update(agent)[1])
    assert all_same_bits(*ends)


def plain_gradients(policy, rows, clip):
    """PPO's gradients with the larger of two squared errors, over a whole minibatch, in loops."""
    values, chances, entropy = policy.evaluate_actions(rows.observations, rows.actions.flatten())
    policy_loss = value_loss = 0
    for index, (value, chance) in enumerate(zip(values.flatten(), chances, strict=True)):
        ratio = (chance - rows.old_log_prob[index]).exp()
        held = min(max(ratio, torch.tensor(1 - clip)), torch.tensor(1 + clip))
        advantage = rows.advantages[index]
        policy_loss = policy_loss - min(ratio * advantage, held * advantage)
        old, wanted = rows.old_values[index], rows.returns[index]
        change = min(max(value - old, torch.tensor(-clip)), torch.tensor(clip))
        value_loss = value_loss + max((value - wanted) ** 2, (old + change - wanted) ** 2)
    loss = (policy_loss + 0.25 * value_loss) / len(rows.returns) - 0.01 * entropy.mean()
    return torch.autograd.grad(loss, list(policy.parameters())), value_loss / len(rows.returns)


@pytest.mark.moves_generators
@pytest.mark.parametrize("threads", [1, 2])
def test_the_value_loss_is_the_larger_of_the_clipped_and_the_unclipped(env, threads, request):
    """As in the reference, by default; values that ran away keep their gradient."""
    if threads == 2:
        request.getfixturevalue("two_threads")
    agent = make_ppo(env, replace(TINY, value_loss="larger"), seed=0, device="cpu")
    assert FastPPO("CnnPolicy", env, n_steps=12, batch_size=48, device="cpu").value_loss == "larger"
    give_rollout(agent)
    rows = next(agent.rollout_buffer.get(48))
    away = (rows.old_values - agent.policy.predict_values(rows.observations).flatten()).abs() > 0.2
    assert 8 < away.sum() < 48, "some values are clipped and some are not"
    expected, value_loss = plain_gradients(agent.policy, rows, 0.2)
    with ppo_gradients.workers(agent.policy) as gradients:
        found, statistics = gradients(rows, agent._settings())
        clipped = gradients(rows, replace(agent._settings(), value_loss="clipped"))[0]
    names = dict(agent.policy.named_parameters())
    for name, ours, theirs in zip(names, found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5, name
    assert statistics[1].item() == pytest.approx(value_loss.item(), rel=1e-5)
    assert max((one - other).abs().max() for one, other in zip(clipped, found, strict=True)) > 1e-3


@pytest.mark.moves_generators
def test_a_value_loss_that_an_agent_does_not_have_is_refused(env):
    with pytest.raises(ValueError, match="PPO has the clipped value loss alone"):
        make_ppo(env, replace(TINY, value_loss="larger"), seed=0, device="cpu", agent=PPO)
    with pytest.raises(ValueError, match="must be 'larger' or 'clipped', got 'huber'"):
        FastPPO("CnnPolicy", env, value_loss="huber")
    with pytest.raises(ValueError, match="'clipped' changes nothing without clip_range_vf"):
        FastPPO("CnnPolicy", env, n_steps=8, batch_size=8, value_loss="clipped")


# --- files


@pytest.mark.moves_generators
def test_it_saves_and_loads_as_stable_baselines3_does(env, tmp_path):
    agent = make_ppo(env, TINY, seed=0, device="cpu")
    agent.set_logger(Logger(None, []))
    agent.learn(48)
    agent.save(tmp_path / "agent.zip")
    for kind in (FastPPO, PPO):
        loaded = kind.load(tmp_path / "agent.zip", env, device="cpu")
        assert type(loaded) is kind
        assert loaded.num_timesteps == 48
        assert all_same_bits(loaded.policy.state_dict(), agent.policy.state_dict())
        loaded.set_logger(Logger(None, []))
        loaded.learn(48, reset_num_timesteps=False)
        assert loaded.num_timesteps == 96
    other = make_ppo(env, TINY, seed=1, device="cpu")
    other.set_parameters(str(tmp_path / "agent.zip"), device="cpu")
    assert all_same_bits(other.policy.state_dict(), agent.policy.state_dict())
    plain = make_ppo(env, TINY, seed=0, device="cpu", agent=PPO)
    plain.save(tmp_path / "plain.zip")
    FastPPO.load(tmp_path / "plain.zip", env, device="cpu").set_logger(Logger(None, []))


def test_the_blocks_are_compiled_only_meanwhile():
    network = built(lambda: ImpalaCNN(picture_space(), 8, widths=(16,)))
    with compiled_blocks(network):
        assert network.compiled
    assert not network.compiled


@needs_compiler
@pytest.mark.parametrize("engines", ["on", "off"])
def test_play_compiles_the_blocks_meanwhile(engines, compiled_calls, monkeypatch):
    monkeypatch.setenv("EVO_SUBNETS_ENGINES", engines)
    actor = built(lambda: impala_actor((16, 16), frame_stack=1))
    course = Course(GAME, TRAIN_LEVELS, seed=3, frame_stack=1, num_envs=2)
    play(EnsemblePolicy(actor), course, episodes=1)
    assert bool(compiled_calls) == (engines == "on")
    assert not actor.features.compiled
    parent = load_parent(SHIPPED / "bigfish" / "policy.safetensors", game="bigfish")
    assert parent.features.compiled


# --- benchmarks


def test_the_benchmark_runs_to_its_end(server):
    text = server.printed(
        "benchmarks/ppo", "--widths", 16, "--num-envs", 4, "--rollout-steps", 4, "--rounds", 1,
        "--threads", 1,
    )  # fmt: skip
    assert len(re.findall(r"losses differ by \de[+-]\d+, gradients by \de-\d+", text)) == 2
    for side in ("stable-baselines3", "stable-baselines3, our network", "FastPPO"):
        assert re.search(rf"^{side} +\d+ \[\d+, \d+\] +[\d.]+ \[[\d.]+, [\d.]+\]", text, re.M)
        assert re.search(rf"^{side}: \d+ \[\d+, \d+\] steps a second", text, re.M)
    assert "The simulator's stepping would take" in text


def test_the_learning_benchmark_runs_to_its_end(server):
    text = server.printed(
        "benchmarks/ppo_learning", "--games", "bossfight", "--seeds", 2, "--total-timesteps",
        256, "--rollout-steps", 1, "--minibatches", 1, "--widths", 2, "--threads", 1,
    )  # fmt: skip
    values = r"[\d.]+ [\d.]+"
    assert re.search(rf"^entropy +{values} +{values} +[+-][\d.]+", text, re.M)
