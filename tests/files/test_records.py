"""JSON files, and files that are whole or absent."""

import math

import pytest

from evo_subnets import files


def test_json_files_know_their_version_and_their_content(tmp_path):
    path = tmp_path / "file.json"
    content = {"b": [1, 2.5, None], "a": {"ü": "x"}}
    files.write_json(path, content)
    assert files.read_json(path) == content
    whole = path.read_text()
    path.write_text(whole.replace('"version": "1"', '"version": "2"'))
    with pytest.raises(files.StorageError, match="version 2 is not 1"):
        files.read_json(path)
    path.write_text(whole.replace("2.5", "2.75"))
    with pytest.raises(files.StorageError, match="checksum"):
        files.read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(files.StorageError, match="not a JSON file"):
        files.read_json(path)
    with pytest.raises(ValueError, match="format"):
        files.write_json(path, {"format": 1})


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(files.LARGEST_JSON + 1)
    with pytest.raises(files.StorageError, match="too large"):
        files.read_json(path)


def test_what_json_has_not_is_null(tmp_path):
    content = {"a": (math.nan, math.inf, [-math.inf, 1.5]), 2: {"b": None}}
    expected = {"a": [None, None, [None, 1.5]], "2": {"b": None}}
    assert files.as_json(content) == expected
    for indent in (2, None):
        files.write_json(tmp_path / "file.json", content, indent=indent)
        assert files.read_json(tmp_path / "file.json") == expected


def test_what_is_removed_is_what_was_named(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for name in ("file", "folder/inner/file"):
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in ("missing", "file", "link"):
        files.remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "inner" / "file").exists()
    files.remove(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_kill_are_known_by_their_names(tmp_path, monkeypatch):
    others = [".hidden", "name.0a1b2c3d", ".name.0a1b2c3", ".name.0a1b2c3g", ".0a1b2c3d"]
    for name in others:
        (tmp_path / name).touch()
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # as if killed there
        with pytest.raises(KeyboardInterrupt):
            files.write_atomically(tmp_path / "results.json", b"1")
    assert len(list(tmp_path.iterdir())) == len(others) + 1
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)
    files.remove_leftovers(tmp_path / "missing")
