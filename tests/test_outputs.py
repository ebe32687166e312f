"""Each kind of output against plain references, and four networks that are no classifiers of
pictures through the whole library."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import built, noise
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from evo_subnets import Ensemble, Moving, Mutation, Search, Task, evolve, quads, search_trust_region
from evo_subnets.inputs import ask, batches_of
from evo_subnets.methods import Sparse
from evo_subnets.methods.sparse import Pruning
from evo_subnets.outputs import Binary, Classes, Distribution, Values, read
from evo_subnets.prediction import Validation, predict
from evo_subnets.schedules import Constant
from evo_subnets.trust_region import divergence
from evo_subnets.tuning import Tuning, tune

GAUSSIAN = Distribution(lambda found: Normal(found[:, 0], found[:, 1].exp()))


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 4, 3, 2)])
def test_classes_diverge_as_torchs_categorical_on_a_named_axis(shape):
    parent, child = noise(*shape), noise(*shape, seed=1)
    axis = {2: 1, 3: -1, 4: 1}[len(shape)]
    moved = [Categorical(logits=each.double().movedim(axis, -1)) for each in (parent, child)]
    expected = kl_divergence(*moved).mean().item()
    assert divergence(parent, child, outputs=Classes(axis)) == pytest.approx(expected, rel=1e-6)


def test_binary_logits_diverge_as_bernoullis_and_values_by_squares():
    parent, child = noise(7, 3), noise(7, 3, seed=1)
    expected = kl_divergence(*(Bernoulli(logits=each.double()) for each in (parent, child)))
    found = divergence(parent, child, outputs=Binary())
    assert found == pytest.approx(expected.mean().item(), rel=1e-6)
    squares = (parent - child).double().square().sum(1).mean().item()
    assert divergence(parent, child, outputs=Values()) == pytest.approx(squares, rel=1e-6)
    one = divergence(parent[:, 0], child[:, 0], outputs=Values())
    assert one == pytest.approx((parent - child)[:, 0].double().square().mean().item(), rel=1e-6)


def test_a_distribution_diverges_as_torch_says():
    parent, child = noise(7, 2), noise(7, 2, seed=1)
    two = (GAUSSIAN.make(each.double()) for each in (parent, child))
    expected = kl_divergence(*two).mean().item()
    assert divergence(parent, child, outputs=GAUSSIAN) == pytest.approx(expected, rel=1e-6)


def test_masked_logits_have_a_divergence():
    parent = torch.tensor([[0.0, 1.0, -math.inf]])
    child = torch.tensor([[1.0, 0.0, -math.inf]])
    expected = divergence(parent[:, :2], child[:, :2])
    assert divergence(parent, child) == pytest.approx(expected)
    assert divergence(parent, torch.tensor([[1.0, 0.0, 5.0]])) > expected
    assert divergence(parent, torch.tensor([[1.0, -math.inf, 0.0]])) == math.inf
    assert math.isnan(divergence(parent, torch.full((1, 3), -math.inf)))


def test_members_are_combined_on_the_classes_axis():
    members, weights = noise(3, 5, 4, 6), torch.tensor([0.5, 0.3, 0.2])
    mean = Classes(1).combined(members, weights, how="mean")
    expected = torch.einsum("m,mbct->bct", weights, members.softmax(2))
    torch.testing.assert_close(mean.exp(), expected)
    votes = Classes(1).combined(members, weights, how="vote").exp()
    counted = torch.einsum("m,mbtc->bct", weights, F.one_hot(members.argmax(2), 4).float())
    torch.testing.assert_close(votes, counted)
    logits = Classes(1).combined(members, weights, how="logits")
    expected = torch.einsum("m,mbct->bct", weights, members).log_softmax(1)
    torch.testing.assert_close(logits, expected)


def test_binary_members_are_combined_to_a_logit():
    members, weights = noise(3, 5) * 3, torch.tensor([0.5, 0.3, 0.2])
    mean = Binary().combined(members, weights, how="mean")
    torch.testing.assert_close(mean.sigmoid(), weights @ members.sigmoid())
    torch.testing.assert_close(Binary().combined(members, weights, how="logits"), weights @ members)
    votes = Binary().combined(members, weights, how="vote").sigmoid()
    torch.testing.assert_close(votes, weights @ (members > 0).float())
    far = Binary().combined(torch.full((2, 1), 200.0), torch.tensor([0.5, 0.5]), how="mean")
    assert far.item() == pytest.approx(200.0)


def test_values_have_a_mean_and_a_spread():
    members, weights = noise(3, 5, 2), torch.tensor([0.5, 0.5, 0.0])
    mean = Values().combined(members, weights, how="mean")
    torch.testing.assert_close(mean, members[:2].mean(0))
    spread = Values().spread(members, weights)
    torch.testing.assert_close(spread, members[:2].std(0, correction=0))


@pytest.mark.parametrize("kind", [Classes(), Binary(), Values()])
@pytest.mark.parametrize("how", ["mean", "vote", "logits"])
def test_a_member_that_is_nan_makes_the_whole_nan_unless_it_counts_for_nothing(kind, how):
    if how not in kind.ways:
        return
    members = noise(3, 4, 3)
    members[1] = math.nan
    weights = torch.tensor([0.5, 0.25, 0.25])
    assert kind.combined(members, weights, how=how).isnan().all()


def test_losses_are_torchs():
    logits, labels = noise(6, 4, 3), torch.arange(18).reshape(6, 3) % 4
    assert Classes(1).loss(logits, labels) == F.cross_entropy(logits, labels)
    soft = noise(6, 4).softmax(1)
    assert Classes().loss(logits[..., 0], soft) == F.cross_entropy(logits[..., 0], soft)
    ones = (noise(6) > 0).float()
    expected = F.binary_cross_entropy_with_logits(logits[:, 0, 0], ones)
    assert Binary().loss(logits[:, 0, :1], ones) == expected
    assert Values().loss(logits[:, 0, :1], ones) == F.mse_loss(logits[:, 0, 0], ones)
    parameters = noise(6, 2)
    expected = -Normal(parameters[:, 0], parameters[:, 1].exp()).log_prob(ones).mean()
    assert GAUSSIAN.loss(parameters, ones) == expected


@pytest.mark.parametrize(
    ("kind", "outputs", "targets", "words"),
    [
        (Classes(), noise(4, 3), torch.zeros(4), r"whole-numbered labels, or probabilities"),
        (Classes(), noise(4, 3), torch.zeros(4, 1, dtype=int), r"labels of shape \(4,\), got"),
        (Classes(), noise(4, 3), torch.full((4,), 3), r"3 classes must be in 0\.\.2, got 3\.\.3"),
        (Classes(1), noise(4, 3, 5), torch.zeros(4, dtype=int), r"labels of shape \(4, 5\), got"),
        (Binary(), noise(4, 3), torch.zeros(4), r"outputs \(4, 3\) go with zeros and ones"),
        (Values(), noise(4, 3), torch.zeros(3, 4), r"outputs \(4, 3\) go with values of the same"),
        (Values(), noise(4), torch.zeros(4, 4), r"go with values of the same shape, got \(4, 4\)"),
    ],
)
def test_targets_that_do_not_fit_are_refused(kind, outputs, targets, words):
    with pytest.raises(ValueError, match=words):
        kind.loss(outputs, targets)


class Returned:
    def __init__(self, **values):
        vars(self).update(values)


def test_the_tensor_is_found_in_what_networks_return():
    x = noise(2, 3)
    for found in (x, {"logits": x, "hidden": noise(2)}, {"out": x, "aux": noise(2)}, {"any": x},
                  (x, noise(2)), [x], Returned(logits=x, loss=None)):  # fmt: skip
        assert read(found) is x
    for found, words in (
        ({"a": x, "b": x}, "a mapping of a, b: say which tensor is meant"),
        ({}, "a mapping of nothing"),
        ("text", "the network returned a str"),
        ((), "returned a tuple"),
        (None, "returned a NoneType"),
    ):
        with pytest.raises(ValueError, match=words):
            read(found)
    assert Classes(read=lambda found: found["b"]).tensor({"a": 0, "b": x}) is x


def test_ways_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"'vote' means nothing for Values, .* combined by mean"):
        Ensemble([built(lambda: nn.Linear(3, 2))], "vote", outputs=Values())


# --- whole networks


class Language(nn.Module):
    """A small GPT, whose embedding is its classifier: (batch, time) tokens to (..., tokens)."""

    def __init__(self, tokens=11, width=16, length=8):
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.position = nn.Parameter(0.1 * torch.randn(1, length, width))
        self.block = nn.TransformerEncoderLayer(
            width, 2, 32, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embedding.weight
        self.length = length

    def forward(self, tokens):
        mask = torch.full((tokens.shape[1],) * 2, -math.inf).triu(1)
        x = self.embedding(tokens) + self.position[:, : tokens.shape[1]]
        return {"logits": self.head(self.block(x, src_mask=mask)), "hidden": x}


class Recurrent(nn.Module):
    """(batch, time, 3) to one class for each."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x, scale):
        found, _ = self.lstm(x * scale)
        return self.head(found[:, -1])


class Segmenter(nn.Module):
    """A U-shaped network, (batch, 1, 16, 16) to two classes a pixel."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        fine = self.down(x)
        return self.head(torch.cat([fine, self.up(self.deep(fine))], dim=1))


def regression():
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


def tokens(seed):
    return torch.randint(11, (24, 8), generator=torch.Generator().manual_seed(seed))


NETWORKS = {
    "language": (Language, Classes(-1), lambda seed: (tokens(seed), (tokens(seed) + 1) % 11)),
    "recurrent": (
        Recurrent,
        Classes(),
        lambda seed: (
            {"x": noise(24, 5, 3, seed=seed), "scale": torch.ones(24, 1, 1)},
            noise(24, 5, 3, seed=seed).sum((1, 2)).gt(0).long(),
        ),
    ),
    "segmentation": (
        Segmenter,
        Classes(1),
        lambda seed: (noise(24, 1, 16, 16, seed=seed), (noise(24, 16, 16, seed=seed) > 0).long()),
    ),
    "regression": (
        regression,
        Values(),
        lambda seed: (noise(24, 4, seed=seed), noise(24, 4, seed=seed)[:, 0]),
    ),
    "binary": (
        regression,
        Binary(),
        lambda seed: (noise(24, 4, seed=seed), (noise(24, 4, seed=seed)[:, 0] > 0).float()),
    ),
    "distribution": (
        lambda: nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2)),
        GAUSSIAN,
        lambda seed: (noise(24, 4, seed=seed), noise(24, 4, seed=seed)[:, 0]),
    ),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_goes_through_everything(name, threads, tmp_path):
    make, kind, samples = NETWORKS[name]
    torch.set_num_threads(threads)
    try:
        network = built(make)
        train, validation = ([samples(seed)] * 4 for seed in (0, 1))
        task = Task(train, validation, outputs=kind)
        before = Validation(task.train, outputs=kind)(network)
        tune(network, task, tuning=Tuning(8, Constant(0.02), "adam"))
        assert Validation(task.train, outputs=kind)(network) > before

        inputs = samples(1)[0]
        region = search_trust_region(network, inputs, target=0.02, outputs=kind)
        assert region.divergence == pytest.approx(0.02, rel=0.1)
        found = evolve(
            network, Validation(validation, outputs=kind), search=region.search, outputs=kind,
            generations=2, moving=Moving(noise=0.05, step=0.01), inputs=inputs,
        )  # fmt: skip
        assert found.history[-1].divergence == pytest.approx(0.01, rel=0.1)

        ensemble = found.ensemble
        members = [kind.tensor(ask(member.eval(), inputs)) for member in ensemble.members]
        together = predict(ensemble, validation[:1])
        alone = ensemble.combined(torch.stack(members))
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)

        sparse = Sparse(2, Pruning("halves"), Tuning(1, Constant(0.01), "adam"))
        children = sparse(network, task).ensemble
        assert children.outputs == kind
        assert torch.isfinite(predict(children, validation[:1])).all()
    finally:
        torch.set_num_threads(1)


def test_inputs_come_in_batches_of_any_shape():
    x, y = noise(5, 2), noise(5, 3)
    assert [len(batch) for batch in batches_of(x, 2)] == [2, 2, 1]
    assert [[len(each) for each in batch] for batch in batches_of((x, y), 3)] == [[3, 3], [2, 2]]
    assert [list(batch) for batch in batches_of({"x": x, "y": y}, 9)] == [["x", "y"]]
    assert list(batches_of([x, y], 1)) == [x, y]
    for wrong, words in (
        (3, "a tensor, a tuple of tensors, a mapping .* got a int"),
        ("text", "got a str"),
        ((x, noise(4)), r"as many rows each, got \[4, 5\] rows"),
        ((x, 3), "got a int among them"),
        (noise(0, 2), "at least one sample"),
    ):
        with pytest.raises(ValueError, match=words):
            list(batches_of(wrong, 2))


class Flattening(nn.Module):
    """Flattens by `view`, behind a batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.head = nn.Linear(4 * 6 * 6, 3)

    def forward(self, x):
        x = self.drop(self.norm(self.first(x)))
        return self.head(x.view(len(x), -1))


def test_a_network_that_flattens_by_view_is_trained_as_on_plain_pictures():
    x, y = noise(9, 3, 8, 8), torch.arange(9) % 3
    outcomes = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = built(Flattening)
        batches = [(x.contiguous(memory_format=layout), y)] * 3
        tune(network, Task(batches), tuning=Tuning(2, Constant(0.1)))
        outcomes.append(network.state_dict())
        assert predict(network, batches[:1]).shape == (9, 3)
    for name, value in outcomes[0].items():
        torch.testing.assert_close(value, outcomes[1][name], rtol=1e-4, atol=1e-5)


def test_ensembles_of_modules_with_keyword_arguments():
    network = built(Recurrent)
    ensemble = Ensemble.from_mutations(network, quads(4, 0.1, density=0.5, seed=0))
    x, scale = noise(6, 5, 3), torch.ones(6, 1, 1)
    torch.testing.assert_close(ensemble(x=x, scale=scale), ensemble(x, scale))
    torch.testing.assert_close(ensemble(x, scale=scale), ensemble(x, scale))


def test_a_single_value_must_be_said_to_be_one():
    search = Search(4, 2, sampler=quads)
    with pytest.raises(ValueError, match=r"one output cannot be classes.*Binary\(\).*Values\(\)"):
        search_trust_region(built(regression), noise(8, 4), search=search)
    with pytest.raises(ValueError, match="one output cannot be classes"):
        Ensemble.from_mutations(built(regression), [Mutation(0, 0.1, 0, 1)])(noise(8, 4))
    with pytest.raises(ValueError, match="one output cannot be classes"):
        Task([(noise(8, 4), torch.zeros(8, dtype=int))]).loss_of(noise(8, 1), torch.zeros(8))


@pytest.mark.parametrize("kind", [Classes(), Classes(1), Binary(), Values(), GAUSSIAN])
@pytest.mark.parametrize("tuned", [False, True])
def test_a_file_keeps_the_kind_of_outputs(kind, tuned, tmp_path):
    network = built(lambda: nn.Linear(4, 2))
    ensemble = Ensemble.from_mutations(network, quads(4, 0.1, density=0.5, seed=0), outputs=kind)
    if tuned:
        ensemble.members[0].bias.data.add_(1)
    ensemble.save(tmp_path / "ensemble")
    if kind is GAUSSIAN:
        with pytest.raises(ValueError, match=r"functions of its own: give outputs="):
            Ensemble.load(tmp_path / "ensemble", network)
        again = Ensemble.load(tmp_path / "ensemble", network, outputs=GAUSSIAN)
    else:
        again = Ensemble.load(tmp_path / "ensemble", network)
    assert again.outputs == kind
    x = noise(6, 4)
    torch.testing.assert_close(again(x), ensemble(x))
