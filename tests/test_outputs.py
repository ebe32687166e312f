"""Networks of every kind of output through everything, and outputs against plain references."""

import math

import pytest
import torch
import torch.distributions as td
from networks import all_same_bits, built, copied, noise, same_bits
from torch import nn

from evo_subnets import (
    Binary,
    Classes,
    Distribution,
    Ensemble,
    Search,
    Task,
    Values,
    divergence,
    evolve,
    quads,
    search_trust_region,
)
from evo_subnets.data.downloads import import_torchvision
from evo_subnets.methods import Noisy, Pruning, Sparse
from evo_subnets.prediction import Validation, predict, predict_members
from evo_subnets.schedules import Constant
from evo_subnets.tuning import Tuning, tune

ADAM = Tuning(4, Constant(0.01), "adam")
TOKENS = Classes(axis=-1)


@pytest.fixture(params=[1, 2])
def threads(request):
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


class GPT(nn.Module):
    """(batch, time) tokens to (batch, time, 7) logits, by attention to what came before."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(7, 16), nn.Embedding(9, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.out = nn.LayerNorm(16), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 7, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        time = tokens.shape[1]
        x = self.tokens(tokens) + self.positions.weight[:time]
        future = torch.ones(time, time, dtype=torch.bool).triu(1)
        y = self.norm(x)
        x = x + self.attention(y, y, y, attn_mask=future, need_weights=False)[0]
        return self.head(self.out(x + self.mlp(x)))


class LSTM(nn.Module):
    """(batch, time, 5) to (batch, time, 4) logits."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 12, batch_first=True), nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class UNet(nn.Module):
    """(batch, 2, 8, 8) to (batch, 3, 8, 8) logits."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.norm, self.up = nn.BatchNorm2d(8), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        fine = self.norm(self.fine(x)).relu()
        up = self.up(self.coarse(nn.functional.max_pool2d(fine, 2)).relu())
        return self.head(torch.cat((fine, up), 1))


def regression():
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))


def scale():
    """(batch, 6) to mean and logarithm of the deviation."""
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))


def yes():
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 1))


WORDS = torch.randint(7, (24, 9), generator=torch.Generator().manual_seed(0))
STEPS, PICTURES, ROWS = noise(24, 6, 5), noise(24, 2, 8, 8), noise(48, 6)
NORMAL = Distribution(lambda out: td.Normal(out[:, 0], out[:, 1].exp()))
NETWORKS = {
    "gpt": (GPT, TOKENS, WORDS, WORDS.roll(1, 1)),
    "lstm": (LSTM, TOKENS, STEPS, STEPS[..., :4].cumsum(1).argmax(-1)),
    "unet": (UNet, Classes(axis=1), PICTURES, (PICTURES[:, 0] > 0).long()),
    "regression": (regression, Values(), ROWS, ROWS[:, :2] * ROWS[:, 2:4]),
    "distribution": (scale, NORMAL, ROWS, ROWS[:, 0].abs()),
    "binary": (yes, Binary(), ROWS, (ROWS[:, 0] * ROWS[:, 1] > 0).long()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_goes_through_everything(name, threads, tmp_path):
    make, kind, inputs, targets = NETWORKS[name]
    data = list(zip(inputs.split(12), targets.split(12), strict=True))
    module = built(make)
    fitness = Validation(data, outputs=kind)
    untrained = fitness(module)
    tune(module, Task(data, outputs=kind), tuning=ADAM)
    assert fitness(module) > untrained
    before = copied(module.state_dict())

    region = search_trust_region(module, inputs, search=Search(8, 4, seed=1), outputs=kind)
    assert region.divergence == pytest.approx(0.02, rel=0.1)
    found = evolve(module, fitness, search=region.search, outputs=kind)
    assert all(math.isfinite(child.fitness) for child in found.children)
    ensemble = found.ensemble
    with torch.no_grad():
        said = ensemble(inputs)
        each = torch.stack([member(inputs) for member in ensemble.members])
    torch.testing.assert_close(predict_members(ensemble, data), each, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predict(ensemble, data), said, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ensemble.combined(each), said, rtol=1e-4, atol=1e-5)
    assert fitness(ensemble) == pytest.approx(fitness(module), abs=0.5)

    again = None if not isinstance(kind, Distribution) else kind
    ensemble.save(tmp_path / "recipes")
    Ensemble(list(ensemble.members), outputs=kind).save(tmp_path / "members")
    for file in ("recipes", "members"):
        loaded = Ensemble.load(tmp_path / file, built(make, 5), restore=file == "recipes",
                               outputs=again)  # fmt: skip
        assert loaded.outputs == kind
        with torch.no_grad():
            assert same_bits(loaded(inputs), said)
    assert all_same_bits(copied(module.state_dict()), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_methods_hand_the_kind_to_their_ensemble(name, threads):
    make, kind, inputs, targets = NETWORKS[name]
    data = list(zip(inputs.split(12), targets.split(12), strict=True))
    task, module = Task(data, data, outputs=kind), built(make)
    tune(module, task, tuning=ADAM)
    noisy = Noisy(Search(4, 2), target_kl=0.05)(module, task)
    assert noisy.divergence == pytest.approx(0.05, rel=0.1)
    halves = Sparse(2, Pruning("halves", classifier=True), ADAM)(module, task)
    for result in (noisy, halves):
        assert result.ensemble.outputs == kind
        assert math.isfinite(Validation(data, outputs=kind)(result.ensemble))
    assert len(noisy.elites) == 2


def test_networks_of_torchvision_in_training_and_for_segmentation():
    models = import_torchvision().models
    kind, pictures = Classes(axis=1), noise(2, 3, 32, 32)
    once = Tuning(1, Constant(0.001), "adam")
    segmenting = built(
        lambda: models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=3
        )
    )
    tune(segmenting, Task([(pictures, pictures[:, :3].argmax(1))], outputs=kind), tuning=once)
    ensemble = Ensemble.from_mutations(
        segmenting, quads(4, 0.001, density=0.5, seed=0)[:1], outputs=kind
    )
    with torch.no_grad():
        assert ensemble(pictures).shape == (2, 3, 32, 32)
    network = built(lambda: models.googlenet(weights=None, num_classes=4, init_weights=False))
    before = copied(network.aux1.state_dict())
    data = [(noise(2, 3, 64, 64), torch.tensor([1, 3]))]
    tune(network, Task(data), tuning=once)
    assert all_same_bits(
        {name: value for name, value in copied(network.aux1.state_dict()).items()
         if "running" not in name and "num_batches" not in name},
        {name: value for name, value in before.items()
         if "running" not in name and "num_batches" not in name},
    )  # fmt: skip
    assert predict(network, data).shape == (2, 4)


class Pair(nn.Module):
    """A convolution's logits and what else it has to say."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        features = self.layers(x).mean((2, 3))
        return self.head(features), features


def test_engines_read_what_members_return(threads, monkeypatch):
    members = [built(Pair, seed).eval() for seed in range(4)]
    ensemble, x = Ensemble(members, side_by_side=True), noise(160, 3, 20, 20)
    data = [(part, None) for part in x.split(40)]
    with torch.no_grad():
        found = ensemble.member_logits(x)
        both = predict_members(ensemble, data, side_by_side=True)
    monkeypatch.setenv("EVO_SUBNETS_ENGINES", "off")
    with torch.no_grad():
        expected = ensemble.member_logits(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-5)


def test_kl_of_yes_or_no_is_that_of_two_classes():
    one, other = noise(9), noise(9, seed=1)
    pair = [torch.stack((torch.zeros(9), each), 1) for each in (one, other)]
    assert divergence(one, other, outputs=Binary()) == pytest.approx(divergence(*pair), rel=1e-6)
    members = torch.stack((one, other))
    weights = torch.tensor([0.25, 0.75])
    whole = torch.stack((torch.zeros_like(members), members), -1)
    for combine in ("mean", "logits", "vote"):
        expected = Classes().combined(whole, weights, combine=combine)
        found = Binary().combined(members, weights, combine=combine)
        torch.testing.assert_close(found, expected[:, 1] - expected[:, 0])
    targets = (one > 0.2).long()
    loss = Binary().loss(other, targets)
    torch.testing.assert_close(loss, Classes().loss(pair[1], targets))
    assert Binary().metric(other, targets) == Classes().metric(pair[1], targets)


def test_divergence_of_a_distribution_is_torchs():
    one, other = noise(9, 2), noise(9, 2, seed=1)
    expected = td.kl_divergence(
        NORMAL.make(one.double()), NORMAL.make(other.double())
    ).mean().item()  # fmt: skip
    assert divergence(one, other, outputs=NORMAL) == pytest.approx(expected)
    broken = other.clone()
    broken[2] = math.nan
    assert math.isnan(divergence(one, broken, outputs=NORMAL))
    assert math.isnan(NORMAL.metric(broken, one[:, 0]))


def test_a_mixture_is_that_of_its_parts():
    members, weights = noise(3, 500, 2), torch.tensor([0.5, 0.0, 0.5])
    members[1] = math.nan
    found = NORMAL.mixture(members, weights)
    parts = td.Normal(
        torch.stack((members[0, :, 0], members[2, :, 0]), -1),
        torch.stack((members[0, :, 1], members[2, :, 1]), -1).exp(),
    )
    expected = td.MixtureSameFamily(td.Categorical(torch.ones(500, 2)), parts)
    torch.testing.assert_close(found.mean, expected.mean)
    torch.testing.assert_close(found.variance, expected.variance)
    torch.testing.assert_close(found.log_prob(ROWS[:1, 0].expand(500)),
                               expected.log_prob(ROWS[:1, 0].expand(500)))  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        assert found.sample().shape == (500,)
    mean, spread = Ensemble([nn.Identity()] * 3, outputs=NORMAL, weights=[1, 0, 1]).outputs.spread(
        members, weights
    )
    torch.testing.assert_close(spread, expected.variance.sqrt())
    torch.testing.assert_close(mean, expected.mean)


def test_files_of_other_kinds_are_refused(tmp_path):
    module = built(regression)
    path = tmp_path / "e"
    Ensemble([module], outputs=Values()).save(path)
    with pytest.raises(ValueError, match="outputs are Values: load it with outputs=Values"):
        Ensemble.load(path, module, outputs=Classes())
    own = Values(read=lambda out: out * 2)
    Ensemble([module], outputs=own).save(path)
    with pytest.raises(ValueError, match=r"are Values, with a function for read, as no file"):
        Ensemble.load(path, module)
    assert Ensemble.load(path, module, outputs=own).outputs is own
    Ensemble([module]).save(path)
    assert Ensemble.load(path, module).outputs == Classes()
    assert Ensemble.load(path, module, outputs=Values()).outputs == Values(), "files of before"
