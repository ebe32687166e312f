"""JSON that keeps its types."""

import math
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evo_subnets import quads
from evo_subnets.runs.report import interval, number, table
from evo_subnets.runs.values import decoded, differences, encoded, plain

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)  # small: a busy machine makes large ones too slowly


@given(JSON)
def test_values_stay_what_they_are(value):
    assert repr(plain(value)) == repr(value)
    assert repr(decoded(encoded(value))) == repr(value)
    assert not differences({"a": encoded(value)}, {"a": encoded(value)})


@dataclass(frozen=True)
class Constant:
    rate: float


@dataclass(frozen=True)
class Falling:
    rate: float


class Kind(Enum):
    ONE = 1


def test_other_values_have_a_plain_form():
    for value, expected in [
        ((1, [2]), [1, [2]]),
        (Path("a") / "b", "a/b"),
        (np.float32(0.5), 0.5),
        (np.int64(8), 8),
        (np.bool_(True), True),
        (torch.tensor(3), 3),
        (torch.float64, "torch.float64"),
        (torch.device("cpu"), "cpu"),
        ({1: {"a": (2,)}}, {"1": {"a": [2]}}),
        ({3, 1, 2}, [1, 2, 3]),
        (Kind.ONE, 1),
        (quads, "evo_subnets.mutation.quads"),
        (partial(quads, 4, seed=1), {"class": "partial", "function": "evo_subnets.mutation.quads",
                                     "arguments": [4], "keywords": {"seed": 1}}),
        (Constant(0.5), {"class": "Constant", "rate": 0.5}),
    ]:  # fmt: skip
        found = plain(value)
        assert found == expected
        assert type(found) is type(expected)
    assert plain(Constant(0.5)) != plain(Falling(0.5))
    for value in (object(), torch.ones(2), np.ones(2), b"bytes", 1j, {"not finite": 1}):
        with pytest.raises(ValueError, match=r"cannot be kept|is a journal's own"):
            plain([value])


def test_differences_are_named_to_the_last_key():
    before = encoded(plain({"a": {"b": 1, "c": [1, True]}, "d": math.nan, "e": {}}))
    for now, expected in [
        ({"a": {"b": 1.0, "c": [1, True]}, "d": math.nan, "e": {}}, []),
        ({"a": {"b": 2, "c": [1, 1]}, "d": math.nan, "e": {}},
         ["a.b 1 (now 2)", "a.c [1, True] (now [1, 1])"]),
        ({"a": {"b": True, "c": [1, True]}, "d": math.inf, "e": {"f": 1}},
         ["a.b 1 (now True)", "d nan (now inf)", "e {} (now absent)", "e.f absent (now 1)"]),
    ]:  # fmt: skip
        assert differences(before, encoded(plain(now))) == expected


def test_numbers_and_tables_as_text():
    assert table(["method", "n"], [["noisy", "8"], ["a", "16"]]) == (
        "method   n\n------  --\nnoisy    8\na       16"
    )
    assert number(0.126) == "0.13"
    assert number(93.125, digits=1, error=0.25) == "93.1 ± 0.2"
    assert number(None) == number(math.nan) == number(math.nan, error=0.1) == ""
    assert interval(0.5, 1) == "[0.50, 1.00]"
    assert interval(-0.25, 0.5, digits=1, signed=True) == "[-0.2, +0.5]"
