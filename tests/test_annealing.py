"""Stochastic masks: their probabilities, their end, and what they leave alone on the way."""

import pytest
import torch
from networks import small_classifier as network
from test_pruning import steps_of

from evo_subnets.annealing import (
    Annealed,
    decayed,
    gaussian_probabilities,
    random_probabilities,
    temperature_probabilities,
)
from evo_subnets.subnetworks import Subnetwork, parameters
from evo_subnets.tuning import Tuning


@pytest.mark.parametrize("decay", ["linear", "cosine", "exponential"])
def test_decays_fall_from_one_to_zero(decay):
    values = [decayed(decay, step / 50) for step in range(60)]
    assert values[0] == 1
    assert values[50:] == [0] * 10
    assert values == sorted(values, reverse=True)


def test_decays_are_the_printed_ones():
    assert decayed("linear", 0.25) == 0.75
    assert decayed("cosine", 0.5) == pytest.approx(0.5)
    assert decayed("exponential", 0.2) == pytest.approx(0.36787944)
    with pytest.raises(ValueError, match="decay must be"):
        decayed("step", 0.5)


def masks_of(module, low, high):
    return Subnetwork(4, low, high).mask(parameters(module))


def test_a_uniform_start_agrees_with_its_mask_and_opposes_its_partner():
    module = network()
    for low, high, opposed in ((0.0, 0.5, True), (0.5, 1.0, False), (0.0, 0.1, True)):
        masks = masks_of(module, low, high)
        start = random_probabilities(masks, 4, opposed=opposed)
        sparsity = 1 - (high - low)
        for name, mask in masks.items():  # section 6.2.1: above the sparsity they anneal to 1
            assert ((start[name] > sparsity) == mask).double().mean() > 0.999
            assert start[name].min() >= 0
            assert start[name].max() <= 1
    pair = [
        random_probabilities(masks_of(module, 0, 0.5), 4, opposed=o)["6.weight"]
        for o in (True, False)
    ]
    torch.testing.assert_close(pair[0] + pair[1], torch.ones_like(pair[0]))  # eq. 6.1


def test_temperatures_of_both_forms():
    mask = {"w": torch.tensor([[True, False], [False, True]])}
    only_outside = temperature_probabilities(mask, 0.3)["w"]
    torch.testing.assert_close(only_outside, torch.tensor([[1.0, 0.3], [0.3, 1.0]]))  # eq. 6.6
    both = temperature_probabilities(mask, 0.3, both=True)["w"]
    torch.testing.assert_close(both, torch.tensor([[0.7, 0.3], [0.3, 0.7]]))
    with pytest.raises(ValueError, match="probability"):
        temperature_probabilities(mask, 1.2)


def test_mixtures_have_the_means_that_are_asked_for():
    mask = {"w": Subnetwork(0, 0, 0.4).mask({"w": torch.zeros(100, 200)})["w"]}
    start = gaussian_probabilities(mask, 7, outside=(0.2, 0.05), inside=(0.7, 0.02))["w"]
    assert start[mask["w"]].mean().item() == pytest.approx(0.7, abs=0.002)
    assert start[mask["w"]].std().item() == pytest.approx(0.02, rel=0.05)
    assert start[~mask["w"]].mean().item() == pytest.approx(0.2, abs=0.002)


def annealed(module, start, epochs=1.0, seed=0):
    masks = masks_of(module, 0.0, 0.3)
    return Annealed(
        module, masks, probabilities=start(masks), epochs=epochs, decay="linear", seed=seed
    ), masks


def half(masks):
    return temperature_probabilities(masks, 0.5)


def test_passes_see_weights_with_their_probabilities():
    module = network().train()
    binding, masks = annealed(module, half, epochs=1e9)
    optimizer = Tuning(1).make_optimizer(module)
    weight, mask = module[6].weight, masks["6.weight"]
    whole = weight.detach().clone()
    active = torch.zeros_like(whole)
    for _ in range(400):
        binding.before_pass(0.0, optimizer)
        active += weight.detach() != 0
        assert torch.equal(weight[mask], whole[mask]), "the subnetwork is in every pass"
        binding.before_step()
        assert torch.equal(weight, whole), "a pass does not change what is out of it"
    assert (active[~mask] / 400).mean().item() == pytest.approx(0.5, abs=0.01)
    assert (active[~mask] / 400).std().item() == pytest.approx(0.5 / 20, rel=0.2)


def test_weights_out_of_a_pass_get_no_gradient():
    module = network().train()
    binding, _ = annealed(module, half, epochs=100)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    weight = module[6].weight
    before = weight.detach().clone()
    out = None
    for _ in steps_of(module, binding, optimizer, epochs=1):
        out = binding.drawn[1] == 0
        assert binding.masks["6.weight"].shape == out.shape
        moved = weight.detach() != before
        assert not moved[out].any()
        before = weight.detach().clone()


def test_the_chance_cools_and_then_only_the_subnetwork_is_left():
    module = network().train()
    binding, masks = annealed(module, half, epochs=2)
    optimizer = Tuning(1).make_optimizer(module)
    weight, mask = module[6].weight, masks["6.weight"]
    shares = []
    for step in steps_of(module, binding, optimizer, epochs=3):
        if step < 20:
            shares.append(binding.drawn[1][~mask].mean().item())
        else:
            assert not weight[~mask].any()
            assert not optimizer.state[weight]["momentum_buffer"][~mask].any()
            assert weight[mask].all()
    for step, share in enumerate(shares):
        assert share == pytest.approx(0.5 * (1 - step / 20), abs=0.06)


def test_draws_depend_on_the_seed_alone():
    def drawn(seed):
        module = network()
        binding, _ = annealed(module, half, seed=seed)
        binding.before_pass(0.0, Tuning(1).make_optimizer(module))
        return binding.drawn[1]

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_annealing_takes_time():
    with pytest.raises(ValueError, match="more than 0 epochs"):
        annealed(network(), half, epochs=0)
