"""Scores, diversity and costs: against plain Python, published numbers, and torch's counter."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Tied, all_same_bits, built, copied, impala, lenet, mlp, noise, normalised
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evo_subnets import metrics
from evo_subnets.metrics import diversity, predictive

FEW = settings(max_examples=25, deadline=None, derandomize=True)


def cached(members, samples, classes, seed=0, scale=2.0):
    """(members, samples, classes) log-probabilities of members that have something in common."""
    common = noise(samples, classes, seed=seed + 1000)
    logits = scale * (common + noise(members, samples, classes, seed=seed))
    return logits.double().log_softmax(dim=-1)


def drawn_labels(samples, classes, seed=0):
    return torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(seed))


def logarithm(probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def slow_scores(log_probabilities, labels, bins=15):
    rows = [[math.exp(x) for x in row] for row in log_probabilities.tolist()]
    labels = labels.tolist()
    right = [
        max(range(len(row)), key=row.__getitem__) == y for row, y in zip(rows, labels, strict=True)
    ]
    surprise = [
        -math.log(row[y]) if row[y] else math.inf for row, y in zip(rows, labels, strict=True)
    ]
    filled = [[] for _ in range(bins)]
    for row, is_right in zip(rows, right, strict=True):
        confidence = max(row)
        place = next(i for i in range(bins) if confidence <= (i + 1) / bins or i == bins - 1)
        filled[place].append((confidence, is_right))
    error = 0.0
    for content in filled:
        if content:
            confidence = sum(c for c, _ in content) / len(content)
            fraction = sum(r for _, r in content) / len(content)
            error += len(content) / len(rows) * abs(fraction - confidence)
    return sum(right) / len(right), sum(surprise) / len(surprise), error


def as_tuple(scores):
    return scores.accuracy, scores.nll, scores.ece


sizes = {
    "samples": st.integers(1, 40),
    "classes": st.integers(2, 7),
    "seed": st.integers(0, 10**6),
}


@FEW
@given(**sizes, scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_scores_are_those_of_plain_python(samples, classes, seed, scale):
    outputs = cached(1, samples, classes, seed, scale)[0]
    labels = drawn_labels(samples, classes, seed)
    expected = slow_scores(outputs, labels)
    assert as_tuple(metrics.scores(outputs, labels)) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    single = metrics.scores(outputs.float(), labels.to(torch.uint8))
    assert single.accuracy == expected[0]
    assert single.nll == pytest.approx(expected[1], rel=1e-4, abs=1e-5)


@FEW
@given(**sizes, bins=st.integers(1, 20))
def test_calibration_error_with_any_number_of_bins(samples, classes, seed, bins):
    outputs, labels = cached(1, samples, classes, seed)[0], drawn_labels(samples, classes, seed)
    expected = slow_scores(outputs, labels, bins)[2]
    assert metrics.calibration_error(outputs, labels, bins=bins) == pytest.approx(
        expected, abs=1e-12
    )


def test_a_confidence_of_one_is_in_the_last_bin():
    """A bin of its own would give (0.5 * 2 + 0.01 * 2) / 4: the trap in torchmetrics 1.9."""
    outputs = logarithm([[1.0, 0.0], [1.0, 0.0], [0.98, 0.02], [0.98, 0.02]])
    labels = torch.tensor([0, 1, 0, 0])
    assert metrics.calibration_error(outputs, labels) == pytest.approx(abs(3 / 4 - 0.99))
    apart = (abs(1 / 2 - 1.0) * 2 + abs(1 - 0.98) * 2) / 4
    assert apart == pytest.approx(0.26)
    rounded_up = outputs + 1e-9
    assert metrics.calibration_error(rounded_up, labels) == pytest.approx(0.24)


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    half, more = [0.5, 0.25, 0.25], [0.75, 0.25, 0.0]
    outputs, labels = logarithm([half, half, more, more]), torch.tensor([1, 1, 0, 0])
    assert outputs[0].exp().max() == 0.5
    apart, together = (2 * 0.5 + 2 * 0.25) / 4, abs(-2 * 0.5 + 2 * 0.25) / 4
    assert metrics.calibration_error(outputs, labels, bins=2) == pytest.approx(apart)
    assert metrics.calibration_error(outputs, labels, bins=1) == pytest.approx(together)


def test_scores_of_predictions_without_doubt():
    outputs = logarithm([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert metrics.scores(outputs, torch.tensor([0, 1])) == metrics.Scores(1.0, 0.0, 0.0)
    wrong = metrics.scores(outputs, torch.tensor([0, 0]))
    assert wrong == metrics.Scores(0.5, math.inf, 0.5)


@FEW
@given(**sizes)
def test_the_order_of_samples_does_not_matter(samples, classes, seed):
    outputs, labels = cached(3, samples, classes, seed), drawn_labels(samples, classes, seed)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    for other, theirs in ((outputs[:, order], labels[order]), (outputs.repeat(1, 2, 1), None)):
        theirs = labels.repeat(2) if theirs is None else theirs
        again = metrics.scores(other[0], theirs)
        assert as_tuple(again) == pytest.approx(as_tuple(metrics.scores(outputs[0], labels)))
        assert metrics.oracle_accuracy(other, theirs) == pytest.approx(
            metrics.oracle_accuracy(outputs, labels)
        )
        for measure in MEASURES:
            torch.testing.assert_close(measure(other), measure(outputs))


def slow_disagreement(a, b):
    return np.mean([x.argmax() != y.argmax() for x, y in zip(a, b, strict=True)])


def slow_kl(a, b):
    rows = zip(a.tolist(), b.tolist(), strict=True)
    return np.mean(
        [sum(p * math.log(p / q) for p, q in zip(x, y, strict=True) if p > 0) for x, y in rows]
    )


def slow_correlation(a, b):
    return np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])


MEASURES = {
    metrics.disagreement: slow_disagreement,
    metrics.pairwise_kl: slow_kl,
    metrics.output_correlation: slow_correlation,
}


@FEW
@given(**sizes, members=st.integers(1, 5))
def test_every_pair_of_members_is_as_in_plain_python(members, samples, classes, seed):
    outputs = cached(members, samples, classes, seed)
    probabilities = outputs.exp().numpy()
    for measure, slow in MEASURES.items():
        matrix = measure(outputs)
        assert matrix.shape == (members, members)
        assert matrix.dtype == torch.float64
        expected = [[slow(a, b) for b in probabilities] for a in probabilities]
        np.testing.assert_allclose(matrix.numpy(), expected, rtol=1e-9, atol=1e-12)


@FEW
@given(**sizes, members=st.integers(2, 5))
def test_permuted_members_permute_the_matrices(members, samples, classes, seed):
    outputs, labels = cached(members, samples, classes, seed), drawn_labels(samples, classes, seed)
    order = torch.randperm(members, generator=torch.Generator().manual_seed(seed))
    for measure in MEASURES:
        matrix, permuted = measure(outputs), measure(outputs[order])
        torch.testing.assert_close(permuted, matrix[order][:, order])
        assert metrics.mean_pairwise(permuted) == pytest.approx(metrics.mean_pairwise(matrix))
    oracle = metrics.oracle_accuracy(outputs, labels)
    assert oracle == metrics.oracle_accuracy(outputs[order], labels)
    assert oracle >= max(metrics.accuracy(member, labels) for member in outputs)


@FEW
@given(**sizes, members=st.integers(2, 5))
def test_the_matrices_are_what_they_should_be(members, samples, classes, seed):
    outputs = cached(members, samples, classes, seed)
    twins = torch.cat([outputs, outputs[:1]])
    disagreement, kl, correlation = (measure(twins) for measure in MEASURES)
    assert torch.equal(disagreement, disagreement.T)
    torch.testing.assert_close(correlation, correlation.T)
    assert (disagreement.diagonal() == 0).all()
    assert (kl.diagonal() == 0).all()
    assert (kl >= 0).all()
    torch.testing.assert_close(correlation.diagonal(), torch.ones(members + 1).double())
    assert (correlation.abs() <= 1).all()
    assert [disagreement[0, -1], kl[0, -1]] == pytest.approx([0, 0], abs=1e-14)
    assert correlation[0, -1].item() == pytest.approx(1)


def test_measures_and_intervals_do_not_depend_on_the_chunks(monkeypatch):
    outputs, labels = cached(3, 50, 4), drawn_labels(50, 4)
    outputs[0, 7] = logarithm([0.5, 0.5, 0.0, 0.0])

    def everything():
        matrices = torch.stack([measure(outputs) for measure in MEASURES])
        intervals = [
            metrics.difference_interval(
                outputs[1], outputs[2], labels=labels, score=score, resamples=60
            )
            for score in ("accuracy", "nll", "ece")
        ]
        return matrices, torch.tensor(intervals)

    whole = everything()
    monkeypatch.setattr(diversity, "CHUNK", 100)
    monkeypatch.setattr(predictive, "CHUNK", 7 * 50 + 3)
    torch.testing.assert_close(everything(), whole)


def test_kl_is_infinite_only_towards_a_member_that_rules_out_what_the_other_does_not():
    outputs = torch.stack(
        [
            logarithm([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]),
            logarithm([[0.4, 0.4, 0.2], [0.2, 0.3, 0.5]]),
        ]
    )
    kl = metrics.pairwise_kl(outputs)
    assert kl[1, 0] == math.inf
    assert kl[0, 1].item() == pytest.approx(math.log(0.5 / 0.4) / 2)
    assert kl.diagonal().tolist() == [0, 0]
    assert metrics.mean_pairwise(kl) == math.inf


def test_a_sample_without_a_preference_has_no_correlation():
    outputs = cached(3, 6, 4)
    outputs[1, 2] = -math.log(4)
    outputs[2] = -math.log(4)
    matrix = metrics.output_correlation(outputs)
    kept = [0, 1, 3, 4, 5]
    expected = metrics.output_correlation(outputs[:, kept])[0, 1].item()
    assert matrix[0, 1].item() == pytest.approx(expected)
    assert matrix[:2].diagonal().tolist() == pytest.approx([1, 1])
    assert matrix[2].isnan().all()


def test_oracle_accuracy_and_the_mean_over_pairs():
    outputs = torch.stack(
        [
            logarithm([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]),
            logarithm([[0.1, 0.9], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]),
        ]
    )
    labels = torch.tensor([0, 0, 1, 0])
    assert metrics.oracle_accuracy(outputs, labels) == 3 / 4
    assert metrics.mean_pairwise(metrics.disagreement(outputs)) == 2 / 4
    assert metrics.mean_pairwise(torch.tensor([[9.0, 1, 2], [3, 9, 4], [5, 6, 9]])) == 3.5
    assert math.isnan(metrics.mean_pairwise(metrics.disagreement(outputs[:1])))
    with pytest.raises(ValueError, match=r"expected a \(members, members\) matrix"):
        metrics.mean_pairwise(torch.zeros(2, 3))


def test_the_printed_means_of_figure_7_1_are_nearer_with_the_diagonal():
    """Random pruning's heat map: 0.893 is printed below it."""
    rows = """1 .87 .87 .87 .88 .87 .88; .87 1 .89 .89 .89 .88 .89; .87 .89 1 .88 .89 .88 .88;
        .87 .89 .88 1 .87 .88 .89; .88 .89 .89 .87 1 .89 .89; .87 .88 .88 .88 .89 1 .88;
        .88 .89 .88 .89 .89 .88 1"""
    matrix = torch.tensor([[float(x) for x in row.split()] for row in rows.split(";")])
    assert metrics.mean_pairwise(matrix) == pytest.approx(0.881, abs=5e-4)
    assert matrix.mean().item() == pytest.approx(0.898, abs=5e-4)


SCORES = {
    "accuracy": metrics.accuracy,
    "nll": metrics.negative_log_likelihood,
    "ece": metrics.calibration_error,
}


@pytest.mark.parametrize("score", SCORES)
def test_the_interval_is_that_of_resamples_scored_one_by_one(score):
    (a, b), labels = cached(2, 60, 4), drawn_labels(60, 4)
    found = metrics.difference_interval(
        a, b, labels=labels, score=score, resamples=300, seed=3, level=0.8
    )
    rows = torch.from_numpy(np.random.default_rng(3).integers(60, size=(300, 60)))
    score_of = SCORES[score]
    differences = [score_of(b[row], labels[row]) - score_of(a[row], labels[row]) for row in rows]
    expected = score_of(b, labels) - score_of(a, labels), *np.quantile(differences, [0.1, 0.9])
    assert found == pytest.approx(expected)
    assert found[1] < found[2]


def test_the_interval_has_the_textbook_width_and_needs_pairs():
    """Of accuracy: the standard error of the mean of paired differences, times 1.96."""
    labels = torch.zeros(1000, dtype=torch.long)
    right, wrong = logarithm([[0.9, 0.1]]), logarithm([[0.1, 0.9]])
    a = torch.cat([right.expand(700, 2), wrong.expand(300, 2)])
    b = torch.cat([wrong.expand(50, 2), right.expand(800, 2), wrong.expand(150, 2)])
    paired = np.array([-1.0] * 50 + [0.0] * 650 + [1.0] * 150 + [0.0] * 150)
    half = 1.96 * paired.std() / math.sqrt(1000)
    difference, low, high = metrics.difference_interval(a, b, labels=labels, resamples=4000)
    assert difference == pytest.approx(0.1)
    assert (low, high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.0025)
    assert metrics.difference_interval(a, a, labels=labels, score="ece", resamples=50) == (0, 0, 0)
    back = metrics.difference_interval(b, a, labels=labels, resamples=4000)
    assert back == pytest.approx((-difference, -high, -low))


def test_the_interval_is_the_same_for_a_seed():
    (a, b), labels = cached(2, 60, 4), drawn_labels(60, 4)
    one = metrics.difference_interval(a, b, labels=labels, score="nll", resamples=100, seed=1)
    assert one == metrics.difference_interval(
        a, b, labels=labels, score="nll", resamples=100, seed=1
    )
    assert one != metrics.difference_interval(
        a, b, labels=labels, score="nll", resamples=100, seed=2
    )


def test_an_infinite_score_has_no_interval():
    (a, b), labels = cached(2, 3, 2), torch.tensor([0, 0, 1])
    b[0] = logarithm([0.0, 1.0])
    difference, low, high = metrics.difference_interval(
        a, b, labels=labels, score="nll", resamples=10
    )
    assert difference == math.inf
    assert math.isnan(low)
    assert math.isnan(high)
    assert (
        metrics.difference_interval(b, a, labels=labels, score="nll", resamples=10)[0] == -math.inf
    )
    assert math.isnan(
        metrics.difference_interval(b, b, labels=labels, score="nll", resamples=10)[0]
    )
    assert all(
        map(
            math.isfinite,
            metrics.difference_interval(a, b, labels=labels, score="ece", resamples=10),
        )
    )


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (noise(4, 3), torch.zeros(4, dtype=torch.long), r"of logits take log_softmax\(dim=-1\)"),
        (noise(4, 3).softmax(-1), torch.zeros(4, dtype=torch.long), "expected log-probabilities"),
        (cached(1, 4, 3)[0] * math.nan, torch.zeros(4, dtype=torch.long), "where it is NaN"),
        (cached(2, 4, 3), torch.zeros(4, dtype=torch.long), r"expected \(samples, classes\)"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), r"got a tensor of shape \(0, 3\)"),
        (cached(1, 4, 3)[0], torch.zeros(4), r"expected \(4,\) whole-numbered labels"),
        (cached(1, 4, 3)[0], torch.zeros(3, dtype=torch.long), r"got \(3,\) of torch.int64"),
        (cached(1, 4, 3)[0], torch.full((4,), 3), r"must be in 0\.\.2, got 3\.\.3"),
        (cached(1, 4, 3)[0], torch.full((4,), -1), r"must be in 0\.\.2, got -1\.\.-1"),
    ],
)
def test_what_are_no_predictions_is_refused(outputs, labels, message):
    for score in SCORES.values():
        with pytest.raises(ValueError, match=message):
            score(outputs, labels)


def test_bad_arguments_of_scores_and_measures_are_refused():
    outputs, labels = cached(2, 4, 3), drawn_labels(4, 3)
    for measure in MEASURES:
        with pytest.raises(ValueError, match=r"expected \(members, samples, classes\)"):
            measure(outputs[0])
    with pytest.raises(ValueError, match=r"must be in 0\.\.2"):
        metrics.oracle_accuracy(outputs, labels + 3)
    with pytest.raises(ValueError, match="at least one bin"):
        metrics.calibration_error(outputs[0], labels, bins=0)
    a, b = outputs
    for wrong in ({"resamples": 0}, {"level": 1.0}, {"score": "auc"}, {"seed": -1}):
        with pytest.raises(ValueError, match=r"expected resamples|score must|a seed must"):
            metrics.difference_interval(a, b, labels=labels, **wrong)
    with pytest.raises(ValueError, match="of the same samples and classes"):
        metrics.difference_interval(a, b[:3], labels=labels)


class AllKinds(nn.Module):
    """Layers of all kinds; one is used twice, on feature maps of two sizes."""

    def __init__(self, groups):
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups)
        self.shared = nn.Conv2d(8, 8, 3, dilation=2, padding=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, groups=groups)
        self.series = nn.Conv1d(4, 2, 5)
        self.volume = nn.Conv3d(1, 2, (2, 1, 3))
        self.rows = nn.Linear(3, 5)
        self.unused = nn.Linear(7, 7)

    def forward(self, x):
        x = self.shared(self.grouped(x))
        x = self.up(self.shared(x[:, :, ::2, ::2]))
        x = self.series(x.flatten(2))
        x = self.volume(x[:, None, :, :, None].unfold(3, 3, 2).squeeze(4))
        return self.rows(x.flatten(2)[..., :3])


def all_kinds(groups=2):
    return built(lambda: AllKinds(groups))


NETWORKS = {
    "mlp": (mlp, (5,)),
    "normalised": (normalised, (5,)),
    "lenet": (lenet, (1, 28, 28)),
    "impala": (impala, (3, 16, 16)),
    "all kinds": (lambda: all_kinds(groups=1), (4, 9, 9)),
    "grouped": (all_kinds, (4, 9, 9)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_dense_flops_are_those_that_torch_counts(name):
    make, shape = NETWORKS[name]
    module, inputs = make().eval(), noise(2, *shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(inputs)
    assert metrics.inference_flops(module, inputs) * 2 == counter.get_total_flops()
    assert set(metrics.multiply_adds(module, inputs)) <= set(dict(module.named_parameters()))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "grouped"])
def test_training_flops_are_those_that_torch_counts(name):
    """With gradients of the inputs, which the first layer's share of the convention is.

    Torch counts the gradients of a grouped convolution's weights as if it had no groups.
    """
    make, shape = NETWORKS[name]
    module, inputs = make().eval(), noise(3, *shape).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        module(inputs).sum().backward()
    counted = counter.get_total_flops()
    assert metrics.training_flops(module, inputs, samples=3, epochs=1) == counted
    assert metrics.training_flops(module, inputs, samples=3000, epochs=2.5) == counted * 2500


def test_multiply_adds_by_hand():
    found = metrics.multiply_adds(all_kinds(), noise(5, 4, 9, 9))
    assert found["grouped.weight"] == 5 * 5 * 8 * (2 * 9)
    assert found["shared.weight"] == (5 * 5 + 3 * 3) * 8 * (8 * 9)
    assert found["up.weight"] == 3 * 3 * 8 * (2 * 9)
    assert found["series.weight"] == 45 * 2 * (4 * 5)
    assert "unused.weight" not in found
    both = built(Tied)
    assert metrics.multiply_adds(both, noise(1, 5)) == {"first.weight": 2 * 25}
    assert metrics.count_parameters(both) == 25 + 2 * 5
    assert metrics.multiply_adds(built(lambda: nn.Linear(3, 2)), noise(7, 3)) == {"weight": 6}


def test_a_parametrised_weight_goes_by_its_layer():
    module = built(lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))))
    assert metrics.multiply_adds(module, noise(1, 3)) == {"0.weight": 6}
    assert metrics.inference_flops(module, noise(1, 3), densities={"0.weight": 0.5}) == 6


def test_flops_scale_with_the_density_of_their_weight():
    module, inputs = lenet(), noise(1, 1, 28, 28)
    found = metrics.multiply_adds(module, inputs)
    assert metrics.inference_flops(module, inputs) == 2 * sum(found.values())
    densities = {"0.weight": 0.5, "7.weight": 0.25, "11.weight": 0.0, "0.bias": 0.1}
    done = sum(2 * count * densities.get(name, 1) for name, count in found.items())
    assert metrics.inference_flops(module, inputs, densities=densities) == done
    assert (
        metrics.training_flops(module, inputs, samples=10, epochs=4, densities=densities)
        == 120 * done
    )
    for wrong, message in [
        ({"0.weights": 0.5}, r"name no parameters \['0.weights'\]"),
        ({"0.weight": 1.5}, r"fractions in \[0, 1\], got {'0.weight': 1.5}"),
        ({"0.weight": math.nan}, "fractions in"),
    ]:
        with pytest.raises(ValueError, match=message):
            metrics.inference_flops(module, inputs, densities=wrong)


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("as planned")


def test_the_module_is_left_alone():
    module, inputs = normalised().train(), noise(4, 5)
    module[1].eval()
    state = copied(module.state_dict())
    modes = [layer.training for layer in module.modules()]
    metrics.training_flops(module, inputs, samples=10, epochs=2)
    failing = nn.Sequential(module, Failing())
    with pytest.raises(RuntimeError, match="as planned"):
        metrics.multiply_adds(failing, inputs)
    assert [layer.training for layer in module.modules()] == modes
    assert failing.training
    assert all_same_bits(copied(module.state_dict()), state)
    assert not any(layer._forward_hooks for layer in module.modules())
    assert all(parameter.grad is None for parameter in module.parameters())
    with pytest.raises(ValueError, match="at least one sample is needed"):
        metrics.multiply_adds(module, inputs[:0])


def wide_resnet():
    """WRN-28-10 of CIFAR-10, without memory."""
    from evo_subnets.models import WideResNet

    with torch.device("meta"):
        return built(lambda: WideResNet(28, 10))


def test_wide_resnet_costs_what_was_published():
    module = wide_resnet()
    assert metrics.count_parameters(module) == 36_479_194
    found = metrics.multiply_adds(module, torch.empty(1, 3, 32, 32, device="meta"))
    assert sum(found.values()) / 1e9 == pytest.approx(5.24, abs=0.01)
    kept = [metrics.ensemble_parameters(module, [density] * 6) for density in (1 / 2, 1 / 3, 1 / 6)]
    # table 5.3 has 36.5 for the last: see the docstring
    assert [round(count / 1e6, 1) for count in kept] == [109.5, 73.0, 36.6]
    assert metrics.ensemble_parameters(module, [1.0]) == 36_479_194


def test_ensemble_parameters_keep_what_is_not_pruned():
    module = mlp()
    assert metrics.ensemble_parameters(module, [0.5, 0.25, 0]) == 64 * 0.75 + 3 * 11
    assert metrics.ensemble_parameters(module, []) == 0
    with pytest.raises(ValueError, match="densities are fractions"):
        metrics.ensemble_parameters(module, [0.5, 2.0])


def test_relative_budgets_of_table_5_3():
    found = [
        metrics.relative_budget(140, 6, member_epochs=10, density=density)
        for density in (1 / 2, 1 / 3, 1 / 6)
    ]
    assert found == pytest.approx([0.85, 0.80, 0.75])
    assert metrics.relative_budget(200, 0, member_epochs=10, density=0.5) == 1
    for wrong in ((140, 6, 10, 1.5), (-1, 6, 10, 0.5), (0, 0, 10, 0.5), (140, -6, 10, 0.5)):
        with pytest.raises(ValueError, match=r"densities are|cannot be negative|no epochs"):
            metrics.relative_budget(*wrong[:2], member_epochs=wrong[2], density=wrong[3])


def test_a_relative_budget_is_a_ratio_of_training_flops():
    module, inputs = lenet(), noise(1, 1, 28, 28)
    half = dict.fromkeys(metrics.multiply_adds(module, inputs), 0.5)
    parent = metrics.training_flops(module, inputs, samples=100, epochs=140)
    children = 6 * metrics.training_flops(module, inputs, samples=100, epochs=10, densities=half)
    dense = metrics.training_flops(module, inputs, samples=100, epochs=200)
    assert (parent + children) / dense == pytest.approx(
        metrics.relative_budget(140, 6, member_epochs=10, density=0.5)
    )
    with pytest.raises(ValueError, match="cannot be negative"):
        metrics.training_flops(module, inputs, samples=100, epochs=-1)
