"""The benchmark over games: its table, runs that fail, and going on."""

import pytest
from networks import built

from agents.impala import impala_actor
from agents.parents import save_actor
from configs.benchmark import PRINTED, parents_of
from envs.games import GAMES
from evo_subnets import files

TINY = [
    "--tiny", "--sigma", "0.01", "--validation-episodes", "1", "--held-out-episodes", "1",
    "--test-episodes", "2",
]  # fmt: skip


@pytest.fixture
def parents(tmp_path):
    """Of bigfish two, trained for known steps, of starpilot one, and one that is none."""
    folder = tmp_path / "parents"
    for game, steps in (("bigfish", 1), ("bigfish", 2), ("starpilot", 5)):
        about = {"game": game, "mode": "easy", "steps": steps * 10**6}
        path = folder / game / str(steps) / "policy.safetensors"
        save_actor(path, built(lambda: impala_actor((4, 4, 4), 1)), about=about)
    (folder / "heist.pt").write_bytes(b"no network")
    return folder


def test_games_parents_and_seeds_come_to_one_table(server, parents, tmp_path):
    out = tmp_path / "out"
    command = ["procgen_benchmark", "--parents", parents, "--out", out, *TINY]
    result = server.run(*command)
    assert result.status == 0, result.stderr
    assert "heist-parent-1-seed-0 failed: " in result.stdout
    text = (out / "table.txt").read_text()
    assert text.strip() in result.stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert rows["bigfish"].endswith("2         4")
    assert rows["starpilot"].endswith("1         2")
    assert "13.7 ± 5.47" in rows["bigfish"]
    assert "games: 2, parents: 4, populations of each: 1" in text
    assert "over episodes, which say nothing of other parents" in text
    assert (out / "picture.png").read_bytes()[1:4] == b"PNG"
    results = files.read_json(out / "results.json")
    assert results["jobs"] == [
        "bigfish-parent-1-seed-0", "bigfish-parent-2-seed-0", "heist-parent-1-seed-0",
        "starpilot-parent-1-seed-0",
    ]  # fmt: skip
    assert list(results["failed"]) == ["heist-parent-1-seed-0"]
    names = [each["policy"] for each in results["aggregates"]]
    assert names[-1] == "chosen on training levels"
    assert "parent, best temperature" in names

    # a run that is whole is left alone, one that is not goes on
    kept = out / "starpilot-parent-1-seed-0" / "results.json"
    before = kept.stat().st_mtime_ns
    (out / "bigfish-parent-2-seed-0" / "results.json").unlink()
    again = server.run(*command)
    assert again.status == 0, again.stderr
    assert (out / "table.txt").read_text() == text
    assert kept.stat().st_mtime_ns == before

    # other options of the main job are another benchmark
    other = server.run(*command, "--density", "0.5")
    assert other.status == 1
    assert "main job" in other.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--games", "mace"], "there is no Procgen game 'mace'"),
        (["--games", "maze", "maze"], "games has maze twice"),
        (["--games", "jumper"], "has no parent of jumper"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--parents", "nowhere"], "there is no folder nowhere"),
        (["--populaton-size", "4"], "--populaton-size"),
        (["--population-size", "5"], "ensemble_size must be in 1..5"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_folder_is_touched(
    server, tmp_path, options, words
):
    result = server.run("procgen_benchmark", *options, "--out", tmp_path / "out")
    assert result.status == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_parents_are_found_by_the_names_of_their_files(tmp_path):
    for name in ("maze.pt", "maze-7.zip", "mazes.pt", "maze.txt", "heist/one.pth", "heist/x.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = {game: parents_of(game, tmp_path) for game in ("maze", "heist", "miner")}
    names = {game: [path.name for path in paths] for game, paths in found.items()}
    assert names == {"maze": ["maze-7.zip", "maze.pt"], "heist": ["one.pth"], "miner": []}
    assert set(PRINTED) == set(GAMES)
