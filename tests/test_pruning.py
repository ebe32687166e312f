"""Masks of exact counts; weights outside that stay zero."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from networks import PLAIN, pictures
from networks import small_classifier as network

from evo_subnets.methods import Pruning
from evo_subnets.models import build
from evo_subnets.pruning import (
    IterativelyPruned,
    Pruned,
    density_of,
    keep_highest,
    magnitudes,
)
from evo_subnets.structure.classifier import classifier
from evo_subnets.subnetworks import Subnetwork, parameters
from evo_subnets.tuning import Tuning


@given(st.integers(1, 60), st.integers(1, 40), st.floats(0.01, 1))
def test_the_highest_are_kept_in_every_layer(first, second, density):
    generator = torch.Generator().manual_seed(first)
    scores = {name: torch.rand(n, generator=generator) for name, n in (("a", first), ("b", second))}
    for name, mask in keep_highest(scores, density).items():
        count = round(density * len(mask))
        assert int(mask.sum()) == count
        if 0 < count < len(mask):
            assert scores[name][mask].min() >= scores[name][~mask].max()


def test_the_highest_are_kept_in_the_whole_network():
    scores = {"small": torch.full((3, 2), 0.1), "large": torch.arange(1.0, 7.0).view(2, 3)}
    masks = keep_highest(scores, 0.5, scope="global")
    assert not masks["small"].any()
    assert masks["large"].all()
    assert masks["large"].shape == (2, 3)


def test_equal_scores_do_not_keep_more():
    masks = keep_highest({"w": torch.ones(10)}, 0.3)
    assert int(masks["w"].sum()) == 3


@pytest.mark.parametrize(("density", "scope"), [(0.0, "layer"), (1.1, "layer"), (0.5, "network")])
def test_bad_densities_and_scopes_are_refused(density, scope):
    with pytest.raises(ValueError, match=r"density must be|scope must be"):
        keep_highest({"w": torch.ones(4)}, density, scope=scope)


def steps_of(module, binding, optimizer, epochs=2):
    """Trains by hand, so that the optimizer can be looked into."""
    images = pictures()
    inputs = PLAIN.normalize(images.pixels)
    for step in range(10 * epochs):
        binding.before_pass(step / 10, optimizer)
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), images.labels).backward()
        binding.before_step()
        optimizer.step()
        yield step


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_pruned_weights_and_what_the_optimizer_remembers_stay_zero(kind):
    module = network().train()
    masks = Subnetwork(1, 0, 0.3).mask(parameters(module))
    optimizer = Tuning(1, optimizer=kind).make_optimizer(module)
    named = dict(module.named_parameters())
    before = {name: named[name].detach().clone() for name in masks}
    for _ in steps_of(module, Pruned(module, masks), optimizer):
        for name, mask in masks.items():
            assert not named[name][~mask].any()
            for value in optimizer.state[named[name]].values():
                if torch.is_tensor(value) and value.shape == mask.shape:
                    assert not value[~mask].any()
    for name, mask in masks.items():
        moved = named[name][mask] != before[name][mask]
        assert moved.double().mean() > 0.5, "the others are tuned, but for dead neurons"


def test_iterative_pruning_takes_equal_shares_and_ends_at_the_target():
    module = network().train()
    params = parameters(module)
    seen = []

    def masks_at(density):
        seen.append(density)
        return keep_highest(magnitudes(params), density)

    binding = IterativelyPruned(module, masks_at, density=0.2, epochs=4)
    optimizer = Tuning(1).make_optimizer(module)
    weight = module[6].weight
    zeros = []
    for step in steps_of(module, binding, optimizer, 5):
        if step % 10 == 9:
            zeros.append(int((weight == 0).sum()))
            assert not optimizer.state[weight]["momentum_buffer"][weight == 0].any()
    assert seen == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert zeros == [weight.numel() - round(d * weight.numel()) for d in (0.8, 0.6, 0.4, 0.2, 0.2)]


def test_random_children_halves_and_parts_share_the_parent_out():
    module = build("lenet-s", seed=0)
    names = {name for name, _ in module.named_parameters() if name.endswith("weight")}
    for pruning, members in (
        (Pruning("halves"), 4),
        (Pruning("parts", 2 / 3), 3),
        (Pruning("parts", 1 - 1 / 6, classifier=True), 6),
    ):
        masks = [pruning.masks(module, s) for s in pruning.subnetworks(members, seed=3)]
        assert set(masks[0]) == (names if pruning.classifier else names - set(classifier(module)))
        for name in masks[0]:
            for start in range(0, members, pruning.parts):
                one_set = [mask[name] for mask in masks[start : start + pruning.parts]]
                assert (torch.stack(one_set).sum(0) == 1).all(), "disjoint, and all of the parent"
    random = Pruning("random", 0.8)
    first, second = (random.masks(module, subnetwork) for subnetwork in random.subnetworks(2, 0))
    for name, density in density_of(first).items():
        count = first[name].numel()
        assert density == pytest.approx(0.2, abs=5 * (0.16 / count) ** 0.5), "in every layer"
        assert not torch.equal(first[name], second[name])


def test_global_masks_hold_in_the_network_and_layers_differ():
    module = build("lenet-s", seed=0)
    pruning = Pruning("random", 0.9, by="magnitude", scope="global")
    masks = pruning.masks(module, pruning.subnetworks(1, 0)[0])
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.1 * total)
    densities = list(density_of(masks).values())
    assert max(densities) > 2 * min(densities)
    random = Pruning("random", 0.9, scope="global")
    drawn = random.masks(module, random.subnetworks(1, 0)[0])
    assert sum(int(mask.sum()) for mask in drawn.values()) == round(0.1 * total)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampling": "halves", "sparsity": 0.6}, "0.5"),
        ({"sampling": "parts", "sparsity": 0.6}, "1 - 1/k"),
        ({"sampling": "parts", "sparsity": 0.0}, "1 - 1/k"),
        ({"sampling": "random", "sparsity": 1.0}, r"\[0, 1\)"),
        ({"sampling": "halves", "by": "magnitude"}, "magnitudes"),
    ],
)
def test_sparsities_that_no_partition_gives_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Pruning(**options)


def test_odd_halves_are_refused():
    with pytest.raises(ValueError, match="multiple of 2, got 5"):
        Pruning("halves").check_size(5)
