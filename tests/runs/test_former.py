"""What a run was asked and has found, after a kill at any moment."""

import math

import pytest

from evo_subnets import Child, files, quads
from evo_subnets.runs.former import Journal

ASKED = {"sigma": 0.1, "env": "bigfish"}


def test_what_was_found_is_found_again_and_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"sigma": 0.1, "trials": ((1, 2.5), (2, float("nan")))}

    first = Journal(tmp_path, ASKED).once("region", compute)
    assert first == {"sigma": 0.1, "trials": [[1, 2.5], [2, None]]}, "as JSON, the first time too"
    assert Journal(tmp_path, ASKED).once("region", compute) == first
    assert calls == [1]


def test_children_come_back_bit_by_bit(tmp_path):
    mutations = quads(8, 0.1 / 3, density=0.3, seed=5)
    values = [1 / 3, math.inf, -math.inf, 0.0, 1e-300, 7.0, 2.0, 1.0]
    children = [Child(*pair) for pair in zip(mutations, values, strict=True)]
    children[3] = Child(mutations[3], math.nan, "ValueError: no\nluck")
    journal = Journal(tmp_path, ASKED)
    for child in [*children, *children]:
        journal.add_child("children", child)
    again = Journal(tmp_path, ASKED).children("children")
    assert [repr(child) for child in again] == [repr(child) for child in children]
    assert Journal(tmp_path, ASKED).children("others") == []


def test_another_question_is_refused_and_named(tmp_path):
    Journal(tmp_path, ASKED).once("sigma", lambda: 1)
    with pytest.raises(ValueError, match=r"sigma 0.1 \(now 0.2\).*--overwrite"):
        Journal(tmp_path, {**ASKED, "sigma": 0.2})
    with pytest.raises(ValueError, match="density None"):
        Journal(tmp_path, {**ASKED, "density": 0.2})
    assert Journal(tmp_path, ASKED).found == {"sigma": 1}, "the refusal changed nothing"


def test_overwrite_removes_the_outputs_and_nothing_else(tmp_path):
    Journal(tmp_path, ASKED).once("sigma", lambda: 1)
    for name in ("parent/model", "results.json", "diary.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    outputs = ["parent", "results.json", "missing"]
    Journal(tmp_path, {"sigma": 2}, True, outputs, needed=tmp_path / "parent" / "model")
    assert (tmp_path / "parent" / "model").exists(), "the parent that this run is to begin with"
    journal = Journal(tmp_path, {"sigma": 3}, True, outputs)
    assert journal.found == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["diary.txt", "journal.json"]


def test_a_damaged_journal_says_how_to_go_on(tmp_path):
    Journal(tmp_path, ASKED).once("sigma", lambda: 1)
    path = tmp_path / "journal.json"
    whole = path.read_text()
    for text in (whole[:-9], whole.replace("0.1", "0.2"), "[1]", "{}", ""):
        path.write_text(text)
        with pytest.raises(files.StorageError, match=r"journal.json.*--overwrite starts afresh"):
            Journal(tmp_path, ASKED)
    assert Journal(tmp_path, ASKED, overwrite=True).found == {}
