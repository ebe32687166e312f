"""Sparse tensors packed: smaller, and the same bits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import all_same_bits, lenet

from evo_subnets import Ensemble, Subnetwork, files, parameters
from evo_subnets.files.packing import INTEGERS, pack, unpack
from evo_subnets.pruning import Pruned


def sparse_tensor(count, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < density, values, 0.0)


@pytest.mark.parametrize(("sparsity", "smaller"), [(0.5, 1.9), (0.8, 4.3), (0.9, 7.6)])
def test_the_size_is_a_bit_an_element_and_the_values(sparsity, smaller):
    tensor = sparse_tensor(400_000, 1 - sparsity)
    bits, values = pack(tensor)
    size = bits.numel() + 4 * values.numel()
    assert 4 * tensor.numel() / size == pytest.approx(smaller, abs=0.1)
    assert 4 * tensor.numel() / size == pytest.approx(1 / (1 / 32 + 1 - sparsity), rel=0.01)


@given(
    st.lists(st.floats(width=32) | st.just(0.0) | st.just(-0.0), min_size=1, max_size=70),
    st.sampled_from(sorted(INTEGERS, key=str)),
)
def test_every_bit_comes_back(numbers, dtype):
    tensor = torch.tensor([*numbers, *[0.0] * 1000]).to(dtype)
    bits, values = pack(tensor)
    again = unpack(bits, values, shape=tensor.shape)
    assert again.dtype == dtype
    assert torch.equal(again.view(INTEGERS[dtype]), tensor.view(INTEGERS[dtype]))


@pytest.mark.parametrize("dtype", sorted(INTEGERS, key=str))
def test_every_nan_keeps_its_bits(dtype):
    integers = torch.zeros(1000, dtype=INTEGERS[dtype])
    integers[:3] = torch.tensor([-1, -2, torch.iinfo(integers.dtype).max])
    again = unpack(*pack(integers.view(dtype)), shape=(1000,))
    assert torch.equal(again.view(integers.dtype), integers)


def test_shapes_come_back_and_dense_tensors_stay_as_they_are():
    tensor = sparse_tensor(30 * 5 * 7, 0.3).view(30, 5, 7)
    assert torch.equal(unpack(*pack(tensor), shape=tensor.shape), tensor)
    assert torch.equal(unpack(*pack(tensor.mT), shape=tensor.mT.shape), tensor.mT)
    for dense in (torch.ones(100), torch.zeros(100, dtype=torch.int64), torch.zeros(0)):
        assert pack(dense) is None
    assert pack(torch.zeros(640)) is not None
    assert pack(torch.zeros(16)) is None, "hardly smaller"
    assert pack(sparse_tensor(3200, 0.99)) is None


def test_parts_that_do_not_fit_are_refused():
    bits, values = pack(sparse_tensor(800, 0.2))
    for *parts, shape in (
        (bits[:-1], values, (800,)), (bits, values[:-1], (800,)), (bits, values, (801,)),
        (bits.float(), values, (800,)), (bits, values, (-800,)), (bits, values, (10**12,)),
        (bits, values, (-8, -100)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"no bits for|expected \d+ values"):
            unpack(*parts, shape=shape)


def test_files_of_pruned_members_are_smaller_and_load_bit_by_bit(tmp_path):
    members = [lenet(seed) for seed in (1, 2)]
    Ensemble(members).save(tmp_path / "dense")
    for seed, member in enumerate(members):
        names = [name for name, weight in member.named_parameters() if weight.ndim > 1]
        Pruned(member, Subnetwork(seed, 0, 0.1).mask(parameters(member), names))
    Ensemble(members).save(tmp_path / "sparse")
    sizes = {name: (tmp_path / name).stat().st_size for name in ("dense", "sparse")}
    assert sizes["dense"] / sizes["sparse"] > 6.5
    loaded = Ensemble.load(tmp_path / "sparse", lenet(3))
    for member, again in zip(members, loaded.members, strict=True):
        assert all_same_bits(member.state_dict(), again.state_dict())


def test_names_that_look_packed_are_left_alone(tmp_path):
    tensors = {"a": torch.zeros(990), "a.bits": torch.ones(2), "b": sparse_tensor(990, 0.1)}
    files.save_tensors(tmp_path / "file", tensors, kind="kind", description={})
    loaded, _ = files.load_tensors(tmp_path / "file", "kind")
    assert sorted(loaded) == sorted(tensors)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
