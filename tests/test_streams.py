"""The draws: known answers and independence."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_subnets import streams

quick = settings(max_examples=30, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**63 - 1)


def reference_word(seed, name, stream, element):
    """Philox 4x32-10 in Python's integers, for one element."""
    tile, place = divmod(element, 64)
    w, lane = divmod(place, 16)
    hashed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    c = [(16 * tile + lane) % 2**32, stream, hashed % 2**32, hashed >> 32]
    k = [seed % 2**32, seed >> 32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 ^ c[1] ^ k[0], b % 2**32, a >> 32 ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c[w]


ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    first = torch.tensor([counter[0]], dtype=torch.int64)
    drawn = streams.philox((first, *counter[1:]), key)
    assert tuple(word.item() for word in drawn) == expected


@pytest.mark.parametrize("start", [0, 64, 2**20, 2**34 - 64])
def test_words_and_uniform_are_those_of_a_plain_reference(start):
    seed, name, stream = 2**62 + 12345, "layer.weight", streams.training_stream(3)
    expected = [reference_word(seed, name, stream, start + i) for i in range(130)]
    words = streams.words(seed, name, stream, 130, start).reshape(-1)[:130]
    assert words.tolist() == expected
    uniform = streams.uniform(seed, name, 130, start, stream=stream)
    assert uniform.dtype == torch.float32
    assert uniform.tolist() == [(word >> 8) / 2**24 for word in expected]


@quick
@given(seed=seeds, tile=st.integers(0, 40), count=st.integers(1, 300))
def test_draws_do_not_depend_on_the_chunking(seed, tile, count):
    start = 64 * tile
    for draw in (streams.uniform, streams.uniform_levels, streams.normal):
        whole = draw(seed, "w", start + count)
        assert torch.equal(draw(seed, "w", count, start), whole[start:])


def test_draws_start_at_whole_tiles():
    with pytest.raises(ValueError, match="multiple of 64 elements, got 63"):
        streams.uniform(0, "w", 10, 63)


def test_draws_differ_between_parameters_seeds_streams_and_places():
    draws = [
        streams.words(seed, name, stream, 4096, start).reshape(-1)
        for seed in (0, 1, 2**32, 2**62)
        for name in ("a.weight", "b.weight", "")
        for stream in (streams.UNIFORM, streams.NORMAL, streams.training_stream(0))
        for start in (0, 4096)
    ]
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert (one == other).float().mean() < 1e-3


def test_uniform_is_in_zero_one_and_in_whole_levels():
    u = streams.uniform(3, "w", 100_000)
    assert u.min() >= 0
    assert u.max() < 1
    assert torch.equal(u * 2**24, (u * 2**24).round())
    assert torch.equal(u, streams.uniform_levels(3, "w", 100_000).float() / 2**24)


def test_normal_is_box_muller_of_the_same_words():
    drawn = streams.words(5, "w", streams.NORMAL, 64 * 3000)
    w0, w1 = drawn[:, 0::2].numpy(), drawn[:, 1::2].numpy()
    u = (w0 >> 1).astype(np.float32) * np.float32(2**-31) + np.float32(2**-32)
    radius = np.sqrt(-2 * np.log(u.astype(np.float64)))
    turn = 2 * np.pi * w1 / 2**32
    expected = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=2).reshape(-1)
    found = streams.normal(5, "w", 64 * 3000)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() < 1e-6


def test_box_muller_is_finite_at_the_extremes():
    extremes = torch.tensor([0, 1, 2, 2**29 - 1, 2**29, 2**30, 2**31, 3 << 29, 2**32 - 1])
    w0, w1 = torch.cartesian_prod(extremes, extremes).T
    first, second = streams.box_muller(w0, w1)
    u = ((w0 >> 1).float() * 2.0**-31 + 2.0**-32).double()
    turn = 2 * torch.pi * w1.double() / 2**32
    radius = (-2 * u.log()).sqrt()
    assert torch.allclose(first.double(), radius * turn.cos(), rtol=0, atol=1e-6)
    assert torch.allclose(second.double(), radius * turn.sin(), rtol=0, atol=1e-6)


def test_moments():
    count = 2**20
    u, n = streams.uniform(7, "w", count).double(), streams.normal(7, "w", count).double()
    error = 5 / count**0.5
    assert abs(u.mean() - 1 / 2) < error * 12**-0.5
    assert abs(u.var() - 1 / 12) < error * 180**-0.5
    assert abs(n.mean()) < error
    assert abs(n.var() - 1) < error * 2**0.5
    assert abs((n**3).mean()) < error * 15**0.5
    assert abs((n**4).mean() - 3) < error * 96**0.5
    assert abs((n.abs() > 3).double().mean() - 0.0026998) < error * 0.052
    for lag in (1, 16, 32, 64):  # 16: the other number of a pair
        assert abs((n[lag:] * n[:-lag]).mean()) < error
        assert abs((n[lag:].square() * n[:-lag].square()).mean() - 1) < error * 8**0.5
    assert abs((u * n).mean()) < error * 3**-0.5
    normal = torch.distributions.Normal(0.0, 1.0)
    ecdf = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert (normal.cdf(n.sort().values) - ecdf).abs().max() < 2.5 / count**0.5


def test_the_bits_never_change():
    """Saved ensembles of earlier releases are rebuilt from these draws."""
    bits = [
        streams.uniform(1, "w", 4096).numpy().tobytes(),
        streams.normal(1, "w", 4096).numpy().tobytes(),
        str(streams.derive_seed(1, 2, "three")).encode(),
    ]
    found = [hashlib.sha256(part).hexdigest()[:16] for part in bits]
    assert found == ["e86402d4d0983845", "a1dd7a71ca8c9c85", "0cd6c7f5a16b6b5e"]


def test_training_streams_are_apart_from_the_others():
    assert streams.training_stream(0) not in (streams.UNIFORM, streams.NORMAL)
    assert streams.training_stream(2**32 - 3) == 2**32 - 1
    for step in (-1, 2**32 - 2):
        with pytest.raises(ValueError, match="a training step must be in"):
            streams.training_stream(step)


def test_derived_seeds_are_distinct_and_fit_float64():
    derived = {streams.derive_seed(seed, index) for seed in range(50) for index in range(50)}
    assert len(derived) == 2500
    assert all(0 <= seed < 2**53 for seed in derived)
    assert streams.derive_seed(1, 2) == streams.derive_seed(1, 2) != streams.derive_seed(12)
