"""The examples, tiny, as processes."""

import re

import pytest

from docs.imports import ROOT

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES)
def test_it_prints_a_table_of_parent_and_ensemble(server, example):
    printed = server.printed(f"examples/{example}", "--tiny")
    rows = [
        line for line in printed.splitlines() if re.match(r"parent|ensemble|noisy|sparse", line)
    ]
    assert len(rows) >= 2
    for row in rows:
        assert re.findall(r"-?\d+\.\d+", row)
        assert "nan" not in row
