"""What users bring, and the right answer: modules, inputs and files as one table.

A case is a function; it stands under the kind of fault that it is an example of, and its first line
says what a user expects. Every case runs with one torch thread and with two, where members and
batches may go side by side.
"""

import math
import tempfile
from collections import namedtuple
from collections.abc import Callable

import pytest
import torch
import torch.distributions as td
from networks import all_same_bits, built, copied, noise, pictures, same_bits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from evo_subnets import (
    Binary,
    Classes,
    Distribution,
    Ensemble,
    Search,
    Task,
    Values,
    divergence,
    metrics,
    quads,
    search_trust_region,
)
from evo_subnets.data import Images
from evo_subnets.data.downloads import import_torchvision
from evo_subnets.methods import Noisy, Sparse
from evo_subnets.prediction import Validation, predict, reestimate_norms
from evo_subnets.schedules import Constant
from evo_subnets.tuning import Tuning, tune

try:  # here, as it draws from Python's generator
    import gymnasium

    from evo_subnets import rl
except ModuleNotFoundError:
    rl = None

CASES: list[Callable[[], None]] = []


def case(check: Callable[[], None]) -> Callable[[], None]:
    """Adds a row to the table."""
    assert check.__doc__, f"{check.__name__} does not say what is expected"
    CASES.append(check)
    return check


# --- Outputs and inputs ---------------------------------------------------------------------------

X = noise(40, 8, seed=3)
Q = quads(4, 0.1, density=0.5, seed=0)
ADAM = Tuning(3, Constant(0.01), "adam")


def linear(outputs: int, seed: int = 0) -> nn.Module:
    return built(lambda: nn.Linear(8, outputs), seed)


class Returns(nn.Module):
    """A linear layer's outputs, in whatever `wrap` puts them."""

    def __init__(self, wrap, outputs=3):
        super().__init__()
        self.layer, self.wrap = linear(outputs), wrap

    def forward(self, x):
        return self.wrap(self.layer(x))


@case
def one_logit_is_no_choice_among_classes():
    """A sigma for one logit or one value, as the user says; without it a refusal that names both"""
    for ask in (
        lambda: search_trust_region(linear(1), X),
        lambda: Ensemble.from_mutations(linear(1), Q)(X),
        lambda: tune(linear(1), Task([(X, X[:, 0] > 0)]), tuning=ADAM),
        lambda: Ensemble([Returns(lambda out: out[:, 0])])(X),
        lambda: divergence(X[:, 0], X[:, 0]),
    ):
        with pytest.raises(ValueError, match=r"outputs=Binary\(\).*outputs=Values\(\)"):
            ask()
    for outputs in (Binary(), Values()):
        region = search_trust_region(linear(1), X, outputs=outputs)
        assert region.divergence == pytest.approx(0.02, rel=0.1)


@case
def yes_or_no_is_the_mean_probability():
    """The logit of the members' mean probability, of (n,) and (n, 1) logits; and it is learned"""
    members = [linear(1, seed) for seed in range(3)]
    mean = torch.stack([member(X).sigmoid() for member in members]).mean(0)
    torch.testing.assert_close(Ensemble(members, outputs=Binary())(X).sigmoid(), mean)
    votes = torch.stack([member(X) > 0 for member in members]).float().mean(0)
    found = Ensemble(members, "vote", outputs=Binary())(X).sigmoid()
    torch.testing.assert_close(found, votes)
    sure = torch.tensor([math.inf, -math.inf, 0.0])
    assert Binary().divergence(sure, sure) == 0
    assert Binary().divergence(sure, sure.clamp(-9, 9)) < 1e-3
    task = Task([(X, (X[:, 0] > 0).long())], outputs=Binary())
    module = linear(1)
    tune(module, task, tuning=Tuning(60, Constant(0.1), "adam"))
    assert Validation(task.train, outputs=Binary())(module) > 0.9
    with pytest.raises(ValueError, match="0 and 1, or probabilities between, got -1 to 1"):
        tune(module, Task([(X, X[:, 0].sign())], outputs=Binary()), tuning=ADAM)


@case
def regression_gives_the_mean_and_the_spread():
    """The members' mean, not log-softmaxed, and how far they are apart; a file keeps the kind"""
    for outputs in (1, 3):
        module = linear(outputs)
        ensemble = Ensemble.from_mutations(module, Q, outputs=Values())
        each = torch.stack([member(X) for member in ensemble.members])
        torch.testing.assert_close(ensemble(X), each.mean(0))
        mean, spread = ensemble.spread(X)
        torch.testing.assert_close(mean, each.mean(0))
        torch.testing.assert_close(spread, each.std(0, correction=0))
        with tempfile.TemporaryDirectory() as folder:
            ensemble.save(f"{folder}/e")
            assert same_bits(Ensemble.load(f"{folder}/e", module)(X), ensemble(X))
            Ensemble(list(ensemble.members), outputs=Values()).save(f"{folder}/m")
            assert same_bits(Ensemble.load(f"{folder}/m", module)(X), ensemble(X))
    with pytest.raises(ValueError, match="a spread is of real values"):
        Ensemble([linear(3)]).spread(X)
    for combine in ("vote", "logits"):
        with pytest.raises(ValueError, match=f"combine='{combine}' means nothing for .*Values"):
            Ensemble([linear(1)], combine, outputs=Values())


@case
def targets_of_regression_are_not_broadcast():
    """(n,) targets of (n, 1) outputs are n errors, not n times n; other shapes are refused"""
    outputs, targets = noise(6, 1), noise(6, seed=1)
    wanted = (outputs[:, 0] - targets).square().mean()
    torch.testing.assert_close(Values().loss(outputs, targets), wanted)
    assert Values().metric(outputs, targets) == pytest.approx(-wanted.item())
    normal = Distribution(lambda out: td.Normal(out, 1.0))
    assert normal.loss(outputs, targets).item() == pytest.approx(
        wanted.item() / 2 + math.log(2 * math.pi) / 2
    )
    for kind in (Values(), Binary(), normal):
        with pytest.raises(ValueError, match=r"outputs of shape \(6, 1\) go with .*got \(5,\)"):
            kind.loss(outputs, targets[:5])


@case
def a_distribution_of_ones_own():
    """Divergence, likelihood and the mixture's mean and spread, of what a function makes"""
    kind = Distribution(lambda out: td.Normal(out[:, 0], out[:, 1].exp()))
    module = linear(2)
    region = search_trust_region(module, X, outputs=kind)
    assert region.divergence == pytest.approx(0.02, rel=0.1)
    ensemble = Ensemble.from_mutations(module, Q, outputs=kind)
    each = torch.stack([member(X) for member in ensemble.members])
    means, variances = each[..., 0], each[..., 1].exp().square()
    mean, spread = ensemble.spread(X)
    torch.testing.assert_close(mean, means.mean(0))
    torch.testing.assert_close(spread, (variances + means.square()).mean(0).sub(mean**2).sqrt())
    data = [(X, X[:, 0])]
    likelihood = td.Normal(means, variances.sqrt()).log_prob(X[:, 0]).exp().mean(0).log().mean()
    found = Validation(data, outputs=kind)(ensemble)
    assert found == pytest.approx(likelihood.item(), abs=1e-5)
    before = Validation(data, outputs=kind)(module)
    tune(module, Task(data, outputs=kind), tuning=Tuning(50, Constant(0.05), "adam"))
    assert Validation(data, outputs=kind)(module) > before + 0.3
    with tempfile.TemporaryDirectory() as folder:
        ensemble.save(f"{folder}/e")
        again = Ensemble.load(f"{folder}/e", linear(2), restore=True, outputs=kind)
        assert same_bits(again(X), ensemble(X))
        with pytest.raises(
            ValueError, match=r"are Distribution, with a function for make.*outputs"
        ):
            Ensemble.load(f"{folder}/e", linear(2), restore=True)
    for wrong, words in (
        (lambda out: out, "must give a torch.distributions.Distribution, got a Tensor"),
        (lambda out: td.Categorical(logits=out), r"take outputs=Classes\(\)"),
        (lambda out: td.MixtureSameFamily(td.Categorical(out.exp()), td.Normal(out, 1.0)),
         "no KL divergence of a MixtureSameFamily"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            search_trust_region(linear(2), X, outputs=Distribution(wrong))


@case
def classes_on_a_named_axis():
    """Sequences and segmentation are normalised over their classes; without the axis refused"""
    logits = [noise(4, 3, 5, 6, seed=seed) for seed in range(2)]
    flat = [each.movedim(1, -1).reshape(-1, 3) for each in logits]
    labels = noise(4, 5, 6, seed=9).gt(0).long()
    for axis, parts, wanted in (
        (1, logits, labels),
        (-3, logits, labels),
        (-1, [each.movedim(1, -1) for each in logits], labels),
    ):
        kind = Classes(axis=axis)
        assert divergence(*parts, outputs=kind) == pytest.approx(divergence(*flat), rel=1e-9)
        torch.testing.assert_close(
            kind.loss(parts[0], wanted), nn.functional.cross_entropy(flat[0], labels.flatten())
        )
        assert kind.metric(parts[0], wanted) == Classes().metric(flat[0], labels.flatten())
        for combine in ("mean", "logits", "vote"):
            members = [nn.Identity(), nn.Identity()]
            weights = torch.tensor([0.3, 0.7])
            whole = kind.combined(torch.stack(parts), weights, combine=combine)
            expected = Ensemble(members, combine, weights=[3, 7]).combined(torch.stack(flat))
            found = whole.movedim(kind.axis_of(whole), -1).reshape(-1, 3)
            torch.testing.assert_close(found, expected)
    for ask in (
        lambda: divergence(*logits),
        lambda: Ensemble([nn.Identity()])(logits[0]),
        lambda: Classes().loss(logits[0], labels),
    ):
        with pytest.raises(ValueError, match=r"Classes\(axis=1\).*Classes\(axis=-1\)"):
            ask()
    for axis in (0, 4, -4, -5):
        with pytest.raises(ValueError, match=f"have no classes on axis {axis} "):
            divergence(*logits, outputs=Classes(axis=axis))


@case
def masked_logits():
    """A class that both rule out adds nothing; one that the child alone rules out is infinite"""
    masked = noise(5, 4)
    masked[:, 2] = -math.inf
    other = noise(5, 4, seed=1)
    other[:, 2] = -math.inf
    left = [0, 1, 3]
    expected = divergence(masked[:, left], other[:, left])
    assert divergence(masked, other) == pytest.approx(expected, rel=1e-9)
    assert divergence(noise(5, 4), masked) == math.inf
    assert math.isfinite(divergence(masked, noise(5, 4)))

    def mask(out):
        return out.masked_fill(torch.tensor([False, True, False]), -math.inf)

    assert search_trust_region(Returns(mask), X).divergence == pytest.approx(0.02, rel=0.1)
    for combine in ("mean", "logits", "vote"):
        members = [Returns(mask), linear(3)]
        for weights in ([0, 1], [1, 0], [1, 1]):
            found = Ensemble(members, combine, weights=weights)(X)
            assert not found.isnan().any()
            torch.testing.assert_close(found.exp().sum(1), torch.ones(40))


@case
def a_member_that_is_nan_is_not_class_0():
    """The vote is NaN where a member with a vote is, as the mean is; accuracy counts it as wrong"""
    broken = linear(3, 1)
    with torch.no_grad():
        broken.weight.fill_(math.nan)
    for combine in ("vote", "mean", "logits"):
        assert Ensemble([linear(3), broken], combine)(X).isnan().all()
        left_out = Ensemble([linear(3), broken], combine, weights=[1, 0])(X)
        assert same_bits(left_out.argmax(1), linear(3)(X).argmax(1))
        assert not left_out.isnan().any()
    one, other = linear(1), linear(1, 1)
    with torch.no_grad():
        other.bias.fill_(math.nan)
    assert Ensemble([one, other], "vote", outputs=Binary())(X).isnan().all()
    assert Ensemble([one, other], outputs=Values())(X).isnan().all()
    assert Validation([(X, torch.zeros(40).long())])(broken) == 0
    assert math.isnan(Validation([(X, X[:, 0])], outputs=Values())(other))


@case
def what_a_network_returns_is_read():
    """The logits of a mapping, a named tuple, a tuple; others are refused, naming what came"""
    Named = namedtuple("Named", ["logits", "aux"])
    plain = Returns(lambda out: out)
    ways = [
        lambda out: {"out": out, "aux": out * 9},
        lambda out: {"loss": out.sum(), "logits": out},
        lambda out: Named(out, out * 9),
        lambda out: (out, out * 9),
        lambda out: [out, None],
    ]
    expected = search_trust_region(plain, X)
    data = [(X, X[:, :3].argmax(1))]
    trained = Returns(lambda out: out)
    tune(trained, Task(data), tuning=ADAM)
    for way in ways:
        module = Returns(way)
        assert search_trust_region(module, X) == expected
        assert same_bits(
            Ensemble.from_mutations(module, Q)(X), Ensemble.from_mutations(plain, Q)(X)
        )
        assert same_bits(predict(module, data), predict(plain, data))
        assert Validation(data)(module) == Validation(data)(plain)
        tune(module, Task(data), tuning=ADAM)
        assert all_same_bits(copied(module.state_dict()), copied(trained.state_dict()))
    named = Returns(lambda out: {"scores": out, "other": out})
    for ask in (
        lambda: search_trust_region(named, X),
        lambda: Ensemble([named])(X),
        lambda: predict(named, data),
        lambda: tune(named, Task(data), tuning=ADAM),
    ):
        with pytest.raises(ValueError, match=r"returned a dict of scores, other.*read=lambda"):
            ask()
    kind = Classes(read=lambda out: out["scores"])
    assert search_trust_region(named, X, outputs=kind) == expected
    for way, words in (
        (lambda out: None, "returned a NoneType"),
        (lambda out: {"logits": out, "out": out}, "returned a dict of logits, out"),
        (lambda out: ({}, out), "returned a tuple of dict, Tensor"),
        (lambda out: out.argmax(1), "floating-point numbers, got torch.int64"),
        (lambda out: out.sum(), "got a single number"),
    ):
        with pytest.raises(ValueError, match=words):
            search_trust_region(Returns(way), X)


@case
def outputs_that_differ_in_training():
    """The main output is trained on, its auxiliary ones are left out; and eval gives a tensor"""
    Outputs = namedtuple("GoogLeNetOutputs", ["logits", "aux_logits2", "aux_logits1"])

    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.aux = linear(3), linear(3, 1)

        def forward(self, x):
            return Outputs(self.body(x), self.aux(x), None) if self.training else self.body(x)

    module, before = Auxiliary(), linear(3, 1)
    tune(module, Task([(X, X[:, :3].argmax(1))]), tuning=ADAM)
    assert all_same_bits(copied(module.aux.state_dict()), copied(before.state_dict()))
    assert not same_bits(module.body.weight, linear(3).weight)


@case
def a_transformers_classifier():
    """Keyword inputs and ModelOutput work in trust region, training, ensemble and predict"""
    transformers = pytest.importorskip("transformers")
    import_torchvision()  # which it imports, where it is installed
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=12, num_labels=3,
    )  # fmt: skip
    module = built(lambda: transformers.BertForSequenceClassification(config)).eval()
    words = torch.randint(20, (12, 7), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": words, "attention_mask": (words > 2).long()}
    labels = words[:, 0] % 3
    region = search_trust_region(module, inputs, target=0.002)
    assert region.divergence == pytest.approx(0.002, rel=0.1)
    ensemble = Ensemble.from_mutations(module, region.search.mutations()[:2])
    expected = torch.stack([each(**inputs).logits.softmax(1) for each in ensemble.members]).mean(0)
    torch.testing.assert_close(ensemble(**inputs).exp(), expected)
    data = [(inputs, labels)]
    torch.testing.assert_close(predict(ensemble, data).exp(), expected)
    assert predict(module, data).shape == (12, 3)
    tune(module, Task(data), tuning=Tuning(1, Constant(0.01), "adam"))
    result = Noisy(Search(4, 2), target_kl=0.002)(module, Task(data, data))
    assert result.ensemble(**inputs).shape == (12, 3)


@case
def inputs_of_any_form_for_a_trust_region():
    """A tensor, a tuple, a mapping, a list, a DataLoader and a generator give the same sigma"""
    module, data = linear(3), TensorDataset(X, torch.zeros(40))
    expected = search_trust_region(module, X)
    named = {"input": X}
    for given in (
        (X,), named, [X], [X[:30], X[30:]], [{"input": X[:9]}, {"input": X[9:]}],
        DataLoader(TensorDataset(X), 7), DataLoader(data, 7), (part for part in X.split(9)),
        [(named, None)], [((X,), None)],
    ):  # fmt: skip
        found = search_trust_region(module, given)
        assert found.sigma == pytest.approx(expected.sigma, rel=1e-5)
    shuffled = search_trust_region(module, DataLoader(data, 7, shuffle=True))
    assert shuffled.sigma == pytest.approx(expected.sigma, rel=1e-5)
    for wrong, words in (
        (3, "inputs are a tensor, a tuple or a mapping.*got a int"),
        ([(X, X, X)], "a pair of .inputs, targets. at a time, got 3"),
        ({"inputs": X}, r"Linear takes \(input.*give 0 by position, inputs"),
        ((X, X), "Linear takes .*give 2 by position"),
        ([], "needs target > 0.*0 inputs"),
    ):
        with pytest.raises(ValueError, match=words):
            search_trust_region(module, wrong)
    with pytest.raises(ValueError, match="batch_size has no effect on inputs that are in batches"):
        search_trust_region(module, [X], batch_size=3)


@case
def sequences_of_other_lengths():
    """Batches may be of other lengths in a trust region and in training; joined they are refused"""
    lstm = built(lambda: nn.LSTM(8, 3, batch_first=True))
    kind = Classes(axis=-1)
    batches = [noise(4, 5, 8), noise(4, 7, 8, seed=1)]
    data = [(x, x[..., :3].argmax(-1)) for x in batches]
    region = search_trust_region(lstm, batches, outputs=kind)
    total = 0.0
    parts = list(zip(batches, (20, 28), strict=True))
    for mutation in region.search.mutations()[:4]:
        child = Ensemble.from_mutations(lstm, [mutation], outputs=kind).members[0]
        with torch.no_grad():
            total += sum(n * divergence(lstm(x), child(x), outputs=kind) for x, n in parts) / 48 / 4
    assert total == pytest.approx(region.divergence, rel=1e-3)
    tune(lstm, Task(data, outputs=kind), tuning=ADAM)
    with pytest.raises(ValueError, match=r"different shapes.*pad them"):
        predict(lstm, data)


@case
def a_last_batch_of_one():
    """BatchNorm trains: in memory the one is left out; a loader is refused, naming drop_last"""
    images, tuning = pictures(17), Tuning(2, Constant(0.01), "adam", batch_size=8)

    def flat(norm):
        return built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), norm(), nn.Linear(6, 4)))

    for norm in (lambda: nn.BatchNorm1d(6), lambda: nn.GroupNorm(6, 6), nn.Identity):
        module = flat(norm)
        tune(module, Task(images), tuning=tuning)
        assert predict(module, images).isfinite().all()
    module = flat(lambda: nn.BatchNorm1d(6))
    tune(module, Task(images), tuning=tuning)
    assert int(module[2].num_batches_tracked) == 4
    pair = [(x.contiguous(), y) for x, y in images.in_order(8)]
    with pytest.raises(ValueError, match=r"batch 3 of the loader has one sample.*drop_last"):
        tune(module, Task(pair), tuning=Tuning(1))
    with pytest.raises(ValueError, match="make batch_size larger"):
        tune(module, Task(images), tuning=Tuning(1, batch_size=1))
    reestimate_norms(module, images, batch_size=8)
    reestimate_norms(module, pair)
    wide = built(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    tune(wide, Task(pair), tuning=Tuning(1))  # a picture has many values a channel
    assert int(wide[1].num_batches_tracked) == 3

    class Frozen(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(False)

    tune(flat(lambda: Frozen(6)), Task(pair), tuning=Tuning(1))


@case
def networks_that_flatten_by_view():
    """Pictures in memory train, are judged and predicted, as where they are flattened by Flatten"""

    class View(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    def network(flatten, channels):
        return built(
            lambda: nn.Sequential(
                nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), flatten(), nn.Linear(288, 4)
            )
        )

    for channels in (1, 3):
        grey = pictures(20)
        images = Images(grey.pixels.repeat(1, channels, 1, 1), grey.labels)
        task, fitness = Task(images, images), Validation(images)
        found = []
        for flatten in (nn.Flatten, View):
            module = network(flatten, channels)
            tune(module, task, tuning=ADAM)
            reestimate_norms(module, images)
            noisy = Noisy(Search(4, 2))(module, task)
            sparse = Sparse(2, tuning=Tuning(1, Constant(0.01), "adam"))(module, task)
            assert 1 < sparse.inference < 2
            both = predict(module, images), predict(noisy.ensemble, images, side_by_side=True)
            found.append((*both, torch.tensor(fitness(module))))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@case
def labels_of_other_types_and_shapes():
    """Whole labels of any type and (n, 1) are right, -100 is left out, soft ones are learned"""
    logits, labels = noise(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    loss, right = Classes().loss(logits, labels), Classes().metric(logits, labels)
    for same in (labels.int(), labels.to(torch.uint8), labels[:, None], labels[:, None].short()):
        torch.testing.assert_close(Classes().loss(logits, same), loss)
        assert Classes().metric(logits, same) == right
    soft = nn.functional.one_hot(labels).float()
    torch.testing.assert_close(Classes().loss(logits, soft), loss)
    assert Classes().metric(logits, soft) == right
    ignored = torch.cat((labels[:5], torch.tensor([-100])))
    assert Classes().metric(logits, ignored) == Classes().metric(logits[:5], labels[:5])
    for wrong, words in (
        (labels.float(), "labels of classes are whole numbers"),
        (labels + 1, r"labels of 3 classes are in 0\.\.2, got 1\.\.3"),
        (labels - 1, r"in 0\.\.2, got -1\.\.1"),
        (labels[:4], r"go with labels of shape \(6,\), got \(4,\)"),
        (soft.long(), r"got \(6, 3\) \(several labels a sample are outputs=Binary\(\)\)"),
        ((soft > -1).float(), r"probabilities that sum to 1.*outputs=Binary\(\)"),
    ):
        module = built(lambda: nn.Linear(3, 3))
        for ask in (
            lambda wrong=wrong, module=module: tune(module, Task([(logits, wrong)]), tuning=ADAM),
            lambda wrong=wrong, module=module: Validation([(logits, wrong)])(module),
        ):
            with pytest.raises(ValueError, match=words):
                ask()
    many = (X[:, :4] > 0).long()
    module = linear(4)
    tune(module, Task([(X, many)], outputs=Binary()), tuning=Tuning(60, Constant(0.1), "adam"))
    assert Validation([(X, many)], outputs=Binary())(module) > 0.9


@case
def data_that_is_empty_or_not_finite():
    """A sentence that says which batch, not that the learning rate is too high"""
    module, labels = linear(3), X[:, :3].argmax(1)
    nan = X.clone()
    nan[3, 2] = math.nan
    with pytest.raises(
        ValueError, match="batch 2 of the data, in order, holds numbers that are not"
    ):
        tune(module, Task([(X, labels), (nan, labels)]), tuning=Tuning(1))
    for wrong in (nan, [X, nan]):
        with pytest.raises(ValueError, match=r"outputs.*not finite: some of the inputs are not"):
            search_trust_region(linear(3), wrong)
    with pytest.raises(ValueError, match="batch 2 of the training data has no samples"):
        tune(linear(3), Task([(X, labels), (X[:0], labels[:0])]), tuning=Tuning(1))
    for ask in (lambda: predict(module, []), lambda: Validation([])(module)):
        with pytest.raises(ValueError, match="nothing to predict: the data has no batches"):
            ask()
    assert Ensemble.from_mutations(linear(3), Q)(X[:0]).shape == (0, 3)
    frozen = linear(3).requires_grad_(False)
    with pytest.raises(ValueError, match="a Linear has no parameter that is trained"):
        tune(frozen, Task([(X, labels)]), tuning=Tuning(1))
    each = Task([(X, labels)], loss=lambda out, y: nn.functional.cross_entropy(
        out, y, reduction="none"))  # fmt: skip
    with pytest.raises(ValueError, match=r"a loss is one number.*got shape \(40,\)"):
        tune(linear(3), each, tuning=Tuning(1))


@case
def modes_of_layers_stay():
    """Predicting leaves a norm that is frozen in a training network frozen"""
    module = nn.Sequential(linear(3), nn.BatchNorm1d(3)).train()
    module[1].eval()
    predict(module, [(X, X)])
    reestimate_norms(module, [(X, X)])
    assert [layer.training for layer in module.modules()] == [True, True, False]


@case
def policies_act_by_the_kind_of_output():
    """Continuous actions of values and distributions; NaN chooses no action, and no action 0"""
    if rl is None:
        pytest.skip("stable-baselines3 is not installed")
    EnsemblePolicy, seen = rl.EnsemblePolicy, X[:5].numpy()
    space = gymnasium.spaces.Box(-1, 1, (8,))
    ensemble = Ensemble.from_mutations(linear(2), Q, outputs=Values())
    for model, outputs in ((ensemble, None), (linear(2), Values())):
        policy = EnsemblePolicy(model, space, outputs=outputs)
        actions, _ = policy.predict(seen)
        assert actions.dtype == "float32"
        torch.testing.assert_close(torch.from_numpy(actions), model(X[:5]).detach())
        assert policy.predict(seen[0])[0].shape == (2,)
    kind = Distribution(lambda out: td.Independent(td.Normal(out, 0.1), 1))
    mixed = EnsemblePolicy(Ensemble.from_mutations(linear(2), Q, outputs=kind), space, seed=1)
    exact = mixed.predict(seen, deterministic=True)[0]
    sampled = mixed.predict(seen)[0]
    assert 0 < abs(sampled - exact).max() < 2
    with pytest.raises(ValueError, match=r"outputs=Values\(\)"):
        EnsemblePolicy(linear(1), space).predict(seen)
    with pytest.raises(ValueError, match="got Binary"):
        EnsemblePolicy(linear(1), space, outputs=Binary())
    with pytest.raises(ValueError, match="temperature 2 divides logits"):
        EnsemblePolicy(ensemble, space, temperature=2)
    broken = linear(3)
    with torch.no_grad():
        broken.weight.fill_(math.nan)
    for deterministic in (True, False):
        with pytest.raises(ValueError, match="gives NaN for an observation"):
            EnsemblePolicy(broken, space).predict(seen, deterministic=deterministic)


@case
def numbers_for_classifiers_refuse_values():
    """Accuracy of real values is refused, naming what there is instead"""
    with pytest.raises(ValueError, match="of real values mean_squared_error"):
        metrics.accuracy(X[:, :3] + 5, torch.zeros(40).long())
    values, spread = X[:, 0], X[:, 1].abs() + 0.1
    targets = X[:, 2:3]
    off = (values - targets[:, 0]).double()
    assert metrics.mean_squared_error(values, targets) == pytest.approx(off.square().mean().item())
    normal = td.Normal(values.double(), spread.double())
    expected = -normal.log_prob(targets[:, 0]).mean().item()
    assert metrics.gaussian_nll(values, spread, targets=targets) == pytest.approx(expected)
    share = (off.abs() <= 2 * spread).double().mean().item()
    assert metrics.within_spreads(values, spread, targets=targets, spreads=2.0) == share
    with pytest.raises(ValueError, match="a spread for each value"):
        metrics.gaussian_nll(values, spread[:, None], targets=targets)


# --- An ensemble is its members; a child is the parent plus its mutation ----------------------------


# --- What is a weight -------------------------------------------------------------------------------


# --- Simulators, agents, folders of pictures, devices, seeds ----------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("check", CASES, ids=lambda check: check.__name__)
def test_what_users_expect(check, threads):
    torch.set_num_threads(threads)
    try:
        check()
    finally:
        torch.set_num_threads(1)
