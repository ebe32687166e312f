"""Kinds of outputs in files."""

import json

import pytest

from evo_subnets.actions import ActionValues, Categoricals, Deterministic, Gaussian
from evo_subnets.kinds import as_json, from_json
from evo_subnets.outputs import Binary, Classes, Distribution, Values


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        (Classes(), ["Classes", None]),
        (Classes(-1), ["Classes", -1]),
        (Binary(), ["Binary"]),
        (Values(), ["Values"]),
        (Categoricals((2, 3)), ["Categoricals", [2, 3]]),
        (Gaussian(True), ["Gaussian", True]),
        (Deterministic(0.3), ["Deterministic", 0.3]),
        (ActionValues(0.1), ["ActionValues", 0.1]),
    ],
)
def test_a_kind_comes_back_from_a_file(kind, written):
    found = json.loads(json.dumps(as_json(kind)))
    assert found == written
    assert from_json(found) == kind


@pytest.mark.parametrize(
    "kind", [Classes(read=len), Gaussian(read=len), Distribution(lambda found: found)]
)
def test_functions_are_not_kept(kind):
    assert as_json(kind) is None
