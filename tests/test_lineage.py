import json
import math
import subprocess
import sys

import pytest
import torch
from networks import lenet, mlp

from evo_subnets import Mutation, materialize, parameters, quads, singles
from evo_subnets.files import StorageError
from evo_subnets.lineage import (
    Adam,
    Lineage,
    Momentum,
    Plain,
    Step,
    best_child,
    centred_ranks,
    log_weights,
    pairs,
    weighted,
)
from evo_subnets.streams import Interval, normal, uniform_levels
from evo_subnets.subnetworks import included


def noise_of(name, weight, mutations):
    """Slow reference: the weighted noise of one parameter, in the mutations' order."""
    total = torch.zeros(weight.numel())
    for mutation in mutations:
        noise = normal(mutation.seed, name, count=weight.numel())
        levels = uniform_levels(mutation.seed, name, count=weight.numel())
        inside = Interval.of(mutation.low, mutation.high).contains(levels)
        total = torch.where(inside, total + noise * mutation.sigma, total)
    return total.view(weight.shape)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("rule", [Plain(), Momentum(), Adam()])
def test_no_steps_are_the_root(rule):
    root = parameters(lenet())
    assert same(Lineage(rule=rule).replay(root), root)


@pytest.mark.parametrize("mutation", [Mutation(3, 0.1, 0, 1), Mutation(4, -0.2, 0.25, 0.75)])
def test_one_step_of_one_mutation_is_the_child(mutation):
    root = parameters(lenet())
    lineage = Lineage((Step((mutation,)),))
    assert same(lineage.replay(root), materialize(root, mutation))


def test_steps_are_sums_of_their_mutations_noise_times_their_length():
    root = parameters(lenet())
    steps = [Step(tuple(quads(8, 0.1, density=0.3, seed=7)), 0.5),
             Step(tuple(singles(3, 0.02, density=1.0, seed=8)), -2.0)]  # fmt: skip
    found = Lineage(tuple(steps)).replay(root)
    for name in included(root):
        expected = root[name]
        for step in steps:
            expected = expected + step.length * noise_of(name, expected, step.mutations)
        assert torch.equal(found[name], expected), name
    assert found["0.bias"] is root["0.bias"]


def test_generations_one_by_one_are_the_whole_replay_and_threads_change_nothing():
    root = {"weight": torch.randn(700, 300, generator=torch.Generator().manual_seed(0))}
    steps = [Step(tuple(singles(4, 0.1, density=0.5, seed=seed)), 0.3) for seed in range(3)]
    at_once = Lineage(tuple(steps)).replay(root)
    lineage, current = Lineage(), root
    for step in steps:
        lineage, current = lineage.then(step), Lineage((step,)).replay(current)
    torch.set_num_threads(2)
    try:
        assert same(lineage.replay(root), current)
    finally:
        torch.set_num_threads(1)
    assert same(at_once, current)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    root = {"weight": torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).to(dtype)}
    steps = tuple(Step((Mutation(seed, 1e-3, 0, 1),)) for seed in range(40))
    found = Lineage(steps).replay(root)["weight"]
    exact = Lineage(steps).replay({"weight": root["weight"].float()})["weight"]
    assert found.dtype == dtype
    assert torch.equal(found, exact.to(dtype))


def test_momentum_is_torchs():
    root = parameters(mlp())
    steps = tuple(Step(tuple(singles(3, 0.1, density=1.0, seed=s)), 0.7) for s in range(5))
    found = Lineage(steps, Momentum(0.8)).replay(root)
    weight = torch.nn.Parameter(root["0.weight"].clone())
    optimizer = torch.optim.SGD([weight], lr=0.7, momentum=0.8)
    for step in steps:
        weight.grad = -noise_of("0.weight", weight, step.mutations)
        optimizer.step()
    torch.testing.assert_close(found["0.weight"], weight.data, rtol=1e-6, atol=1e-6)


def test_adam_is_torchs():
    root = parameters(mlp())
    steps = tuple(Step(tuple(singles(3, 0.1, density=1.0, seed=s)), 0.01) for s in range(6))
    found = Lineage(steps, Adam()).replay(root)
    weight = torch.nn.Parameter(root["0.weight"].clone())
    optimizer = torch.optim.Adam([weight], lr=0.01)
    for step in steps:
        weight.grad = -noise_of("0.weight", weight, step.mutations)
        optimizer.step()
    torch.testing.assert_close(found["0.weight"], weight.data, rtol=1e-5, atol=1e-6)


def test_a_file_replays_in_another_process_with_another_number_of_threads(tmp_path):
    root = parameters(lenet())
    steps = tuple(Step(tuple(singles(8, 0.01, density=0.5, seed=s)), 0.1 * s) for s in range(50))
    lineage = Lineage(steps, Momentum())
    lineage.save(tmp_path / "lineage.json", root, include=None)
    assert Lineage.load(tmp_path / "lineage.json", root) == (lineage, included(root))
    code = (
        "import sys, torch; sys.path.insert(0, 'tests'); torch.set_num_threads(2)\n"
        "from networks import lenet\nfrom evo_subnets import parameters\n"
        "from evo_subnets.files import fingerprint\nfrom evo_subnets.lineage import Lineage\n"
        "root = parameters(lenet())\n"
        f"lineage, names = Lineage.load({str(tmp_path / 'lineage.json')!r}, root)\n"
        "print(fingerprint(lineage.replay(root, include=names)))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    from evo_subnets.files import fingerprint

    assert other.stdout.strip() == fingerprint(lineage.replay(root)), other.stderr


def test_a_hundred_generations_of_64_are_a_small_file(tmp_path):
    root = parameters(mlp())
    steps = []
    for generation in range(100):
        mutations = quads(64, 0.0123456789, density=1.0, seed=generation)
        ranks = centred_ranks([float(fitness % 61) for fitness in range(64)])
        steps.append(Step(weighted(mutations, ranks), 0.1 + generation / 7))
    Lineage(tuple(steps)).save(tmp_path / "lineage.json", root, include=None)
    assert (tmp_path / "lineage.json").stat().st_size < 400_000


def test_files_of_other_roots_and_other_kinds_are_refused(tmp_path):
    root, path = parameters(mlp()), tmp_path / "lineage.json"
    Lineage((Step((Mutation(0, 0.1, 0, 1),)),)).save(path, root, include=None)
    with pytest.raises(StorageError, match=r"of another root: fingerprint \w+, these weights have"):
        Lineage.load(path, parameters(mlp(1)))
    path.write_text(path.read_text()[:-20])
    with pytest.raises(StorageError, match="truncated"):
        Lineage.load(path, root)
    with pytest.raises(StorageError, match="there is no such file"):
        Lineage.load(tmp_path / "none.json", root)
    other = tmp_path / "other.json"
    from evo_subnets.files import write_json

    write_json(other, {"kind": "evo_subnets.journal"})
    with pytest.raises(StorageError, match="not a whole lineage"):
        Lineage.load(other, root)


def test_rules_that_a_file_cannot_name_are_refused(tmp_path):
    class Own:
        memories = 0

        def update(self, noise, memories, *, number):
            return noise.sign()

    root = parameters(mlp())
    lineage = Lineage((Step((Mutation(0, 0.1, 0, 1),)),), Own())
    moved = lineage.replay(root)["0.weight"] - root["0.weight"]
    torch.testing.assert_close(moved.abs(), torch.ones_like(moved), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"can name the rules .* not Own"):
        lineage.save(tmp_path / "lineage.json", root, include=None)


def test_ranks_share_ties_and_add_up_to_nothing():
    assert centred_ranks([3.0, 1.0, 2.0]) == [0.5, -0.5, 0.0]
    assert centred_ranks([1.0, 1.0, 2.0, 0.0]) == pytest.approx([0, 0, 0.5, -0.5])
    assert centred_ranks([5.0, math.nan, 4.0]) == [0.5, 0.0, -0.5]
    assert centred_ranks([2.0, 2.0, 2.0]) == [0.0, 0.0, 0.0]
    assert centred_ranks([1.0]) == [0.0]
    assert centred_ranks([math.nan, math.nan]) == [0.0, 0.0]


def test_log_weights_are_those_of_cma_es():
    found = log_weights([4.0, 3.0, 2.0, 1.0])
    raw = [math.log(2.5) - math.log(1), math.log(2.5) - math.log(2)]
    assert found == pytest.approx([raw[0] / sum(raw), raw[1] / sum(raw), 0, 0])
    assert sum(log_weights([1.0, 5.0, 5.0, math.nan, 0.0, 2.0, 7.0])) == pytest.approx(1)
    tied = log_weights([3.0, 3.0, 1.0, 0.0])
    assert tied[0] == tied[1] == pytest.approx(0.5)
    assert log_weights([2.0]) == [1.0]


def test_the_best_child_is_the_first_of_equals():
    assert best_child([1.0, math.nan, 3.0, 3.0]) == [0, 0, 1, 0]
    assert best_child([math.nan]) == [0]


def test_mirrors_become_one_and_equal_ones_cancel():
    first, second, mirror, other = quads(4, 0.1, density=0.3, seed=0)
    assert weighted([first, mirror], [0.5, 0.5]) == ()
    (one,) = weighted([first, mirror], [0.5, -0.25])
    assert one.sigma == pytest.approx(0.075)
    assert (one.seed, one.low, one.high) == (first.seed, first.low, first.high)
    assert len(weighted([first, second], [1.0, 1.0])) == 2
    assert list(pairs([first, second, mirror, other])) == [(0, 2), (1, 3)]
    assert list(pairs(singles(4, 0.1, density=0.3, seed=0))) == []


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="length must be finite"):
        Step((), math.nan)
    with pytest.raises(ValueError, match="decay must be in"):
        Momentum(1.0)
    with pytest.raises(ValueError, match="decays must be in"):
        Adam(square_decay=1.0)


def test_json_keeps_every_bit(tmp_path):
    root = parameters(mlp())
    lineage = Lineage((Step((Mutation(2**63 - 1, 1 / 3, 0.1, 0.7),), 2 / 3),))
    lineage.save(tmp_path / "l.json", root, include=None)
    assert json.loads((tmp_path / "l.json").read_text())["steps"][0][0] == 2 / 3
    assert Lineage.load(tmp_path / "l.json", root)[0] == lineage


def test_steps_of_noise_with_a_mean_replay_from_their_file(tmp_path):
    root = parameters(mlp())
    mutations = [
        Mutation(1, 0.1, 0.0, 0.5, 2.0),
        Mutation(2, -0.2, 0.5, 1.0),
        Mutation(1, 0.1, 0.0, 0.5),
    ]
    lineage = Lineage((Step(weighted(mutations, [0.5, 1.0, 0.25]), 2.0),))
    assert [each.mean for each in lineage.steps[0].mutations] == [2.0, 0.0, 0.0]
    expected = {name: weight.clone() for name, weight in root.items()}
    for mutation, weight in zip(mutations, (0.5, 1.0, 0.25), strict=True):
        child = materialize(root, mutation)
        for name in root:
            expected[name] += 2 * weight * (child[name] - root[name])
    lineage.save(tmp_path / "lineage.json", root, include=None)
    loaded, _ = Lineage.load(tmp_path / "lineage.json", root)
    assert loaded == lineage
    for name, weight in loaded.replay(root).items():
        torch.testing.assert_close(weight, expected[name])
