"""Every script, tiny, as a process: what it leaves behind, and how it fails."""

import csv
import json
import math
import os
import shutil
import signal
import time
from dataclasses import asdict
from functools import partial

import numpy as np
import pytest
import torch
from networks import built
from PIL import Image
from script_client import check_late_failure, check_refusal, half_written

from agents import parents
from agents.checkpoints import save_milestone
from agents.distillation import STUDENT, Lessons, distil
from agents.evaluation import compare, verdict
from agents.impala import impala_actor
from agents.parents import load_actor, load_parent, save_actor
from configs.procgen import ProcgenArgs
from configs.sweep import SweepArgs
from envs import GAMES, TEST_LEVELS
from evo_subnets import Ensemble, Lineage, Mutation, files, parameters
from scripts import procgen_ensemble

SCRIPTS = ["procgen_ensemble", "population_sweep", "agent_ensemble", "train_parent"]
GAME = "fruitbot"
"""Its episodes are short whatever one does: a level ends after 200 steps or so."""
TINY_PPO = [
    "--ppo.num-envs", "4", "--ppo.rollout-steps", "8", "--ppo.minibatches", "2",
    "--ppo.epochs", "1", "--ppo.frame-stack", "1", "--ppo.widths", "16", "16", "16",
]  # fmt: skip
TINY = [
    "--population-size", "4", "--ensemble-size", "2", "--validation-episodes", "2",
    "--held-out-episodes", "2", "--test-episodes", "3",
]  # fmt: skip


# --- the main job


@pytest.fixture(scope="module")
def first_run(server, tmp_path_factory):
    """The main job with a parent that it trains: its folder and result."""
    out = tmp_path_factory.mktemp("first")
    result = server.run(
        "procgen_ensemble", "--env", GAME, "--parent", "train", "--out", out,
        "--total-timesteps", "64", "--deterministic", *TINY, *TINY_PPO,
    )  # fmt: skip
    return out, result


@pytest.fixture(scope="module")
def parent(first_run):
    return first_run[0] / "parent" / "policy.safetensors"


@pytest.fixture(scope="module")
def second_run(server, parent, tmp_path_factory):
    """The main job on that parent, with a given sigma and a clip."""
    out = tmp_path_factory.mktemp("second")
    result = server.run(
        "procgen_ensemble", "--env", GAME, "--parent", parent, "--out", out, "--sigma", 0.05,
        "--video", "--seed", 3, *TINY,
    )  # fmt: skip
    return out, result


@pytest.mark.parametrize("name", ["first_run", "second_run"])
def test_the_main_job_leaves_whole_results(request, name):
    out, result = request.getfixturevalue(name)
    assert result.status == 0, result.stderr
    assert "Warning" not in result.stderr
    assert "Gym has been unmaintained" not in result.stderr
    results = json.loads((out / "results.json").read_text())
    policies = [row["policy"] for row in results["test"]]
    assert policies[:2] == ["parent", "parent, greedy"]
    assert policies[2].startswith("parent, temperature ")
    assert policies[3] == "parent, views shifted by a pixel"
    assert policies[4:] == ["best child", "ensemble of 2", "soup of 2", "2 random children"]
    assert results["chosen"] in policies[4:]
    for row in results["test"]:
        assert row["n"] == 3
        assert row["low"] <= row["mean"] <= row["high"]
        assert row["difference"] == pytest.approx(row["mean"] - results["test"][0]["mean"])
        low, high = GAMES[GAME].easy
        assert row["normalized"] == pytest.approx((row["mean"] - low) / (high - low))
        assert f"{row['policy']} " in result.stdout
    assert len(results["children"]) == 4
    assert len(results["elites"]) == 2
    order = sorted(results["children"], key=lambda child: -child["fitness"])
    assert results["elites"][0]["fitness"] == order[0]["fitness"]
    first = results["elites"][0]["mutation"]
    mirror = {**first, "sigma": -first["sigma"]}
    others = [child["fitness"] for child in order if child["mutation"] != mirror]
    assert results["elites"][1]["fitness"] == others[1]
    assert results["temperature"]["chosen"] in (0.25, 0.5, 0.71, 1.0, 1.41)
    assert len(results["temperature"]["validation_returns"]) == 5
    assert results["arguments"]["env"] == GAME
    assert results["arguments"]["population_size"] == 4
    assert results["arguments"]["deterministic"] is (name == "first_run")
    assert {"commit", "command"} <= set(results["provenance"])
    assert f"Chosen: {results['chosen']}, no verdict, 3 episodes show nothing" in result.stdout
    assert not half_written(out)


@pytest.mark.parametrize("name", ["first_run", "second_run"])
def test_episodes_come_with_their_levels_the_same_for_every_policy(request, name):
    out, _ = request.getfixturevalue(name)
    results = json.loads((out / "results.json").read_text())
    with (out / "episodes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["policy", "episode", "level_seed", "return", "length"]
    by_policy = {}
    for row in rows:
        by_policy.setdefault(row["policy"], []).append(row)
    assert list(by_policy) == [row["policy"] for row in results["test"]]
    levels = [[row["level_seed"] for row in rows] for rows in by_policy.values()]
    assert all(other == levels[0] for other in levels)
    assert len(levels[0]) == 3
    assert all(level.isdigit() and int(level) in TEST_LEVELS for level in levels[0])
    for row in results["test"]:
        returns = [float(line["return"]) for line in by_policy[row["policy"]]]
        assert np.mean(returns) == pytest.approx(row["mean"])
        assert all(line["length"].isdigit() for line in by_policy[row["policy"]])
        assert [line["episode"] for line in by_policy[row["policy"]]] == list("012")


@pytest.mark.parametrize("name", ["first_run", "second_run"])
def test_the_ensemble_loads_onto_its_parent(request, name, parent):
    out, _ = request.getfixturevalue(name)
    results = json.loads((out / "results.json").read_text())
    actor, about = load_actor(parent)
    assert about == {"game": GAME, "mode": "easy", "seed": 0, "steps": 64}
    ensemble = Ensemble.load(out / "ensemble.safetensors", actor)
    recipes = [asdict(mutation) for mutation in ensemble.recipe.mutations]
    assert recipes == [child["mutation"] for child in results["elites"]]
    density = results["arguments"]["density"]
    siblings = results["sigma"] * math.sqrt(density / (1 - density))  # they perturb the rest
    for recipe in recipes:
        first = recipe["high"] - recipe["low"] == pytest.approx(density)
        assert abs(recipe["sigma"]) == pytest.approx(results["sigma"] if first else siblings)
    other = built(lambda: impala_actor((16, 16, 16), frame_stack=1))
    with pytest.raises(ValueError, match="was made of another parent"):
        Ensemble.load(out / "ensemble.safetensors", other)


def events(folder):
    """What TensorBoard reads in a folder: tags by kind, and the accumulator."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    found.Reload()
    return found.Tags(), found


def test_tensorboard_shows_the_search_the_children_and_the_test(first_run):
    """Children and policies as distributions and tables: nothing there is a series in time."""
    results = json.loads((first_run[0] / "results.json").read_text())
    tags, found = events(first_run[0])

    def text(tag):
        (shown,) = found.Tensors(f"{tag}/text_summary")
        return shown.tensor_proto.string_val[0].decode()

    assert f"{results['sigma']:.5f}" in text("trust_region")
    for child in results["children"]:
        assert repr(Mutation(**child["mutation"])) in text("children/recipes")
    for row in results["test"]:
        assert f"{row['policy']} " in text("test")
    histograms = {"children/fitness", *(f"test/{row['policy']}" for row in results["test"])}
    assert histograms <= set(tags["histograms"])
    assert set(tags["scalars"]) == {"test/chosen", "test/parent"}, "of the HPARAMS page"
    assert "_hparams_/session_start_info" in found.summary_metadata
    training = events(first_run[0] / "parent")[0]
    assert "train/approx_kl" in training["scalars"]


def test_the_first_run_trained_its_parent_and_searched_for_sigma(first_run):
    out, result = first_run
    assert "parent: PPO, 64 steps" in result.stdout
    assert "trust region: target KL 0.2, density 0.2" in result.stdout
    assert [path.name for path in (out / "parent").glob("checkpoint-*")] == [
        "checkpoint-64.safetensors"
    ]
    rows = json.loads((out / "results.json").read_text())["test"]
    assert rows[0]["mean"] == rows[1]["mean"], "the parent acts as deterministically as asked"


def test_the_second_run_took_its_parent_its_sigma_and_made_a_clip(second_run, parent):
    out, result = second_run
    assert f"parent: {parent}" in result.stdout
    assert "trust region" not in result.stdout
    results = json.loads((out / "results.json").read_text())
    assert results["sigma"] == 0.05
    with Image.open(out / "chosen.gif") as clip:
        assert clip.format == "GIF"
        assert clip.n_frames >= 2


def test_the_same_play_as_further_training_is_a_control(server, first_run, parent, tmp_path):
    """Beside it: generations, and children that are judged on levels the parent has not seen."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(parent, home)
    settings = {"num_envs": 4, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "frame_stack": 1,
                "widths": [16, 16, 16]}  # fmt: skip
    files.write_json(home / "card.json", {"ppo": settings})
    save_milestone(first_run[0] / "parent" / "checkpoint-64.safetensors",
                   home / "milestone.safetensors")  # fmt: skip
    command = [
        "procgen_ensemble", "--env", GAME, "--parent", home / "policy.safetensors",
        "--validation-levels", "300", "50", "--generations", "2", "--further-training",
        "--out", tmp_path / "out", *TINY,
    ]  # fmt: skip
    result = server.run(*command)
    assert result.status == 0, result.stderr
    names = [row["policy"] for row in read_results(tmp_path / "out")["test"]]
    assert names[-3:] == ["2 random children", "random walk", "parent, trained further"]
    said = result.stdout.split("further training of the parent: ")[1].split()[0]
    steps = int(said.replace(",", ""))
    assert steps % (2 * 4) == 0, "of two generations of four children"
    (checkpoint,) = (tmp_path / "out" / "further").glob("checkpoint-*")
    assert 0 <= int(checkpoint.stem.split("-")[1]) - 64 - steps < 32
    paths = parent, tmp_path / "out" / "further" / "policy.safetensors"
    before, after = (load_actor(path)[0].head.weight for path in paths)
    assert not torch.equal(before, after)


def read_results(out):
    return json.loads((out / "results.json").read_text())


def without_provenance(path):
    return {
        key: value
        for key, value in json.loads(path.read_text()).items()
        if key not in ("provenance", "format")
    }


def test_generations_move_the_parent_and_leave_their_lineage(server, parent, tmp_path):
    command = ["--env", GAME, "--parent", parent, "--out", tmp_path, "--generations", 2, *TINY]
    result = server.run("procgen_ensemble", *command, "--step-kl", 0.05)
    assert result.status == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [generation["spread"]["cases"] for generation in results["generations"]] == [2, 2]
    policies = [row["policy"] for row in results["test"]]
    assert policies[-4:] == [
        "2 around the evolved parent", "last 2 parents", "2 random children", "random walk"
    ]  # fmt: skip
    root = parameters(load_parent(parent, game=GAME))
    lineage, _ = Lineage.load(tmp_path / "lineage.json", root)
    assert len(lineage.steps) == 2
    scalars = events(tmp_path)[0]["scalars"]
    assert {"generations/fitness_median", "generations/drift"} <= set(scalars)


def test_the_main_job_goes_on_where_it_was_killed(server, parent, tmp_path):
    command = ["--env", GAME, "--parent", parent, "--out", tmp_path, *TINY]
    assert server.run("procgen_ensemble", *command).status == 0
    results = without_provenance(tmp_path / "results.json")
    episodes = (tmp_path / "episodes.csv").read_bytes()
    journal = files.read_json(tmp_path / "journal.json")
    assert len(journal["found"]) == 1 + 3 + 5 + 8
    assert len(journal["records"]["children"]) == 4
    # killed between two children: what came before is not done again, all else is
    journal["found"] = {"trust region": journal["found"]["trust region"]}
    kept = dict(list(journal["records"]["children"].items())[:2])
    journal |= {"records": {"children": kept}, "finished": []}
    files.write_json(tmp_path / "journal.json", journal)
    (tmp_path / "results.json").unlink()
    result = server.run("procgen_ensemble", *command)
    assert result.status == 0, result.stderr
    assert without_provenance(tmp_path / "results.json") == results
    assert (tmp_path / "episodes.csv").read_bytes() == episodes
    other = server.run("procgen_ensemble", *command, "--density", 0.3)
    assert other.status == 1
    assert "density 0.2 (now 0.3)" in other.stderr
    assert "--overwrite" in other.stderr


@pytest.mark.parametrize(
    ("count", "worse", "words"),
    [
        (1, 0.0, "no verdict, 1 episodes show nothing (at least 30 are needed)"),
        (29, 1.0, "no verdict, 29 episodes show nothing"),
        (30, 1.0, "worse than the parent"),
        (30, -1.0, "better than the parent"),
        (30, 0.0, "no difference from the parent that this many episodes can show"),
    ],
)
def test_a_verdict_needs_episodes(count, worse, words):
    """Without warnings, however few there are."""
    parent = np.full(count, 3.0)
    rows = compare({"parent": parent, "ensemble": parent - worse})
    assert [row.mean for row in rows] == [3, 3 - worse]
    assert rows[1].n == count
    assert verdict(rows[1]).startswith(words)


# --- help, typos, bad values


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(server, script):
    arguments = ["cpu", "--help"] if script == "train_parent" else ["--help"]
    result = server.run(script, *arguments)
    assert (result.status, result.stderr) == (0, "")
    for option in ("--env", "--total-timesteps" if script != "population_sweep" else "--sigmas"):
        assert option in result.stdout
    assert "--seed" in result.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_typos_are_refused(server, script):
    preset = ["cpu"] if script == "train_parent" else []
    result = server.run(script, *preset, "--sed", 1)
    check_refusal(result, 2, "Unrecognized options: --sed", "--seed")


BAD_VALUES = [
    ("--env pong", list(GAMES)),
    ("--population-size 18", ["quads come in fours", "multiple of 4, got 18"]),
    ("--population-size 0", ["population_size must be at least 1, got 0"]),
    ("--ensemble-size 17", ["ensemble_size must be in 1..16", "got 17"]),
    ("--density 0", ["density must be in (0, 1], got 0"]),
    ("--density 1.5", ["density must be in (0, 1], got 1.5"]),
    ("--density nan", ["density must be in (0, 1], got nan"]),
    ("--test-episodes -1", ["test_episodes must be at least 1, got -1"]),
    ("--validation-episodes 0", ["validation_episodes must be at least 1, got 0"]),
    ("--total-timesteps -5", ["total_timesteps must be at least 1, got -5"]),
    ("--sigma -0.1", ["sigma must be positive and finite, got -0.1"]),
    ("--target-kl 0", ["target_kl must be positive, got 0"]),
    ("--seed -1", ["seed must be an int in 0..2**31 - 1, got -1"]),
    ("--seed one", ["--seed", "one"]),
    ("--mode extreme", ["--mode", "extreme"]),
    ("--ppo.minibatches 7", ["cannot be cut into 7 equal minibatches"]),
]


@pytest.mark.parametrize(("options", "words"), BAD_VALUES, ids=[case[0] for case in BAD_VALUES])
def test_bad_values_are_one_line_before_any_compute(server, tmp_path, options, words):
    result = server.run("procgen_ensemble", *options.split(), "--out", tmp_path / "out")
    check_refusal(result, 2, *words)
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("population_sweep", "--env pong", list(GAMES)),
        ("population_sweep", "--densities 0.2 2", ["density must be in (0, 1], got 2"]),
        ("population_sweep", "--population-sizes 4 6", ["multiple of 4, got 6"]),
        ("population_sweep", "--sigmas 0", ["sigma must be positive and finite, got 0"]),
        ("population_sweep", "--validation-episodes -1", ["validation_episodes"]),
        ("population_sweep", "--ensemble-size 0", ["ensemble_size must be in 1..16", "got 0"]),
        ("agent_ensemble", "--env Nope-v1", ["makes no environment 'Nope-v1'"]),
        ("agent_ensemble", "--population-size 18", ["multiple of 4, got 18"]),
        ("agent_ensemble", "--ensemble-size 17", ["ensemble_size", "17"]),
        ("agent_ensemble", "--test-episodes -1", ["test_episodes must be at least 1, got -1"]),
        ("agent_ensemble", "--generations 0", ["--generations must be at least 1, got 0"]),
        ("train_parent", "cpu --env pong", list(GAMES)),
        ("train_parent", "cpu --total-timesteps 0", ["total_timesteps must be at least 1, got 0"]),
        ("train_parent", "gpu", ["cpu", "paper"]),
        ("train_parent", "", ["cpu", "paper"]),
    ],
)
def test_bad_values_of_the_other_scripts(server, script, options, words):
    result = server.run(script, *options.split())
    check_refusal(result, 2, *words)
    assert result.stdout == ""


@pytest.fixture
def bad_parent(parent, tmp_path):
    """A function from a kind of damage to the path of such a parent."""

    def make(damage):
        path = tmp_path / f"{damage}.safetensors"
        if damage == "truncated":
            path.write_bytes(parent.read_bytes()[:-1000])
        elif damage == "widths":
            tensors, description = files.load_tensors(parent, "evo_subnets.actor")
            description["network"]["widths"] = [2, 2, 3]
            files.save_tensors(path, tensors, kind="evo_subnets.actor", description=description)
        elif damage == "actions":
            actor = built(lambda: impala_actor((2, 2, 2), frame_stack=2, actions=4))
            save_actor(path, actor, about={})
        elif damage == "zip":
            path = path.with_suffix(".zip")
            path.write_bytes(b"PK")
        return path

    return make


@pytest.mark.parametrize("script", ["procgen_ensemble", "population_sweep"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "there is no such file"),
        ("truncated", "truncated or not a safetensors file"),
        ("widths", "weights of another architecture"),
        ("actions", "a Procgen parent sees (3 * frame_stack, 64, 64) and has 15 actions"),
        ("zip", "not a stable-baselines3 PPO agent that can be a parent"),
    ],
)
def test_bad_parents_are_one_line(server, tmp_path, bad_parent, script, damage, words):
    path, out = bad_parent(damage), tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text("{}")  # of an earlier run, which stays as it is
    result = server.run(script, "--env", GAME, "--parent", path, "--out", out)
    check_refusal(result, 1, str(path), words)
    assert [file.name for file in out.iterdir()] == ["results.json"]
    assert not half_written(out)


def test_a_parent_for_other_observations_is_one_line(server, cartpole_zip, tmp_path):
    out = tmp_path / "out"
    result = server.run("procgen_ensemble", "--parent", cartpole_zip, "--out", out)
    check_refusal(
        result, 1, "a Procgen parent sees (3 * frame_stack, 64, 64)", "sees (4,) and has 2"
    )
    assert not out.exists()


@pytest.fixture
def cartpole_zip(tmp_path):
    """An agent of stable-baselines3 for CartPole, made in a process of its own."""
    import random

    from stable_baselines3 import PPO

    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        agent = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
        agent.save(tmp_path / "cartpole.zip")
    agent.env.close()
    np.random.set_state(states[0])
    random.setstate(states[1])
    return tmp_path / "cartpole.zip"


@pytest.mark.parametrize("script", ["procgen_ensemble", "population_sweep", "train_parent"])
def test_an_out_folder_that_is_a_file_is_one_line(server, parent, tmp_path, script):
    out = tmp_path / "out"
    out.write_text("mine")
    if script == "train_parent":
        options = ["cpu", "--total-timesteps", 32, *TINY_PPO]
    elif script == "population_sweep":
        options = [
            "--parent", parent, "--sigmas", 0.01, "--densities", 0.5, "--population-sizes", 4,
            "--validation-episodes", 1,
        ]  # fmt: skip
    else:
        options = ["--parent", parent]
    result = server.run(script, *options, "--env", GAME, "--out", out)
    assert result.status == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert str(out) in result.stderr.splitlines()[-1]
    assert out.read_text() == "mine"
    assert "return" not in result.stdout, "it computed first"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_one_line(server, tmp_path):
    result = server.run("procgen_ensemble", "--device", "cuda", "--out", tmp_path / "out")
    check_refusal(result, 1, "there is no CUDA device here")


# --- ends that nobody planned


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_run_at_once_in_one_line(server, parent, tmp_path, threads):
    """While children play: with two threads, in two groups."""
    out = tmp_path / "out"
    pid = server.start(
        "procgen_ensemble", "--env", GAME, "--parent", parent, "--sigma", 0.05, "--out", out,
        "--validation-episodes", 20_000, threads=threads,
    )  # fmt: skip
    for _ in range(200):
        if (out / "journal.json").exists():
            break
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(pid, signal.SIGINT)
    result = server.finish(5)
    check_late_failure(result, 130, "interrupted", out)


def test_ctrl_c_in_training_leaves_a_run_that_goes_on(server, tmp_path):
    out = tmp_path / "out"
    options = [
        "cpu", "--env", GAME, "--out", out, "--checkpoint-every", 32, "--card-episodes", 2,
        *TINY_PPO,
    ]  # fmt: skip
    pid = server.start("train_parent", *options)
    for _ in range(200):
        if list(out.glob("checkpoint-*")):
            break
        time.sleep(0.05)
    os.kill(pid, signal.SIGINT)
    check_late_failure(server.finish(5), 130, "interrupted", out)
    assert not (out / "policy.safetensors").exists()
    steps = max(int(path.stem.split("-")[1]) for path in out.glob("checkpoint-*"))
    result = server.run("train_parent", *options, "--total-timesteps", steps + 32)
    assert result.status == 0, result.stderr
    assert (out / f"checkpoint-{steps + 32}.safetensors").exists()
    assert files.read_json(out / "card.json")["steps"] == steps + 32


@pytest.mark.parametrize(
    ("limit", "victim"), [(300, "TensorBoard's events"), (100_000, "the ensemble")]
)
def test_a_full_disk_is_one_line(server, parent, tmp_path, limit, victim):
    """No file may grow over a limit, which fails as a write to a full disk does."""
    out = tmp_path / "out"
    result = server.run(
        "procgen_ensemble", "--env", GAME, "--parent", parent, "--sigma", 0.05, "--out", out,
        *TINY, file_limit=limit,
    )  # fmt: skip
    assert result.status == 1
    check_late_failure(result, 1, "error: [Errno 27] File too large", out)
    assert not (out / "ensemble.safetensors").exists(), victim


def test_a_full_disk_in_training_is_one_line(server, tmp_path):
    out = tmp_path / "out"
    result = server.run(
        "train_parent", "cpu", "--env", GAME, "--out", out, "--total-timesteps", 32, *TINY_PPO,
        file_limit=20_000,
    )  # fmt: skip
    check_late_failure(result, 1, "error: ", out)
    assert not list(out.glob("checkpoint-*"))
    assert not (out / "policy.safetensors").exists()


# --- the other scripts


def test_a_sweep_is_one_group_of_runs(server, parent, tmp_path):
    out = tmp_path / "sweep"
    command = [
        "population_sweep", "--env", GAME, "--parent", parent, "--sigmas", 0.01,
        "--densities", 0.5, "--population-sizes", 4, 8, "--ensemble-size", 2,
        "--validation-episodes", 2, "--out", out,
    ]  # fmt: skip
    result = server.run(*command)
    assert result.status == 0, result.stderr
    assert "Warning" not in result.stderr
    results = json.loads((out / "results.json").read_text())
    rows = results["rows"]
    assert [(row["sigma"], row["density"], row["population_size"]) for row in rows] == [
        (0.01, 0.5, 4),
        (0.01, 0.5, 8),
    ]
    assert rows[0]["best"] <= rows[1]["best"], "the first children of the larger one"
    assert rows[0]["kl"] == rows[1]["kl"]
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert folders == [f"sigma=0.01,density=0.5,population_size={size}" for size in (4, 8)]
    tags, found = events(out / folders[1])
    assert set(tags["scalars"]) == {"kl", "mean", "best", "ensemble"}
    assert tags["histograms"] == ["children/fitness"]
    (shown,) = found.Tensors("children/recipes/text_summary")
    assert shown.tensor_proto.string_val[0].decode().count("Mutation(") == 8
    assert results["arguments"]["sigmas"] == [0.01]
    assert results["parent_return"] == pytest.approx(results["parent_return"])
    assert not half_written(out)


def test_a_sweep_of_singles(server, parent, tmp_path):
    command = ["population_sweep", "--env", GAME, "--parent", parent, "--sigmas", 0.01,
               "--densities", 0.5, "--population-sizes", 2, 3, "--sampler", "singles",
               "--validation-episodes", 1, "--out", tmp_path]  # fmt: skip
    result = server.run(*command)
    assert result.status == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["population_size"] for row in results["rows"]] == [2, 3], "no fours"
    assert results["arguments"]["sampler"] == "singles"


def test_a_sweep_of_generations(server, parent, tmp_path):
    command = ["population_sweep", "--env", GAME, "--parent", parent, "--sigmas", 0.01,
               "--densities", 0.5, "--population-sizes", 4, 8, "--generations", 2,
               "--step-kl", 0.01, "--validation-episodes", 1, "--out", tmp_path]  # fmt: skip
    result = server.run(*command)
    assert result.status == 0, result.stderr
    rows = read_results(tmp_path)["rows"]
    assert [row["population_size"] for row in rows] == [4, 8]
    assert all(0.005 < row["drift"] < 0.03 for row in rows)
    (heading,) = [line for line in result.stdout.splitlines() if line.startswith("sigma ")]
    assert heading.split()[-2:] == ["evolved", "drift"]


def test_a_sweep_takes_every_pair_of_sigma_and_density():
    args = SweepArgs(sigmas=(0.1, 0.2), densities=(0.5, 1.0))
    assert args.grid == [(0.1, 0.5), (0.1, 1.0), (0.2, 0.5), (0.2, 1.0)]


def test_a_sweep_never_trains_its_parent(server, monkeypatch, tmp_path):
    out = tmp_path / "out"
    for options in ("--parent train", "--env maze", "--env bigfish --mode hard"):
        result = server.run("population_sweep", *options.split(), "--out", out)
        check_refusal(result, 2, "a sweep needs a parent", "scripts/train_parent.py")
    assert not out.exists()
    monkeypatch.setattr(parents, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match="there is none of bigfish"):
        SweepArgs(env="bigfish")


def test_a_parent_is_trained_in_parts_and_has_a_card(server, tmp_path):
    out = tmp_path / "parent"
    options = ["cpu", "--env", GAME, "--out", out, "--card-episodes", 3, *TINY_PPO]
    for steps in (32, 64):
        result = server.run("train_parent", *options, "--total-timesteps", steps)
        assert result.status == 0, result.stderr
        assert "Warning" not in result.stderr
        card = files.read_json(out / "card.json")
        assert (card["game"], card["steps"], card["seed"]) == (GAME, steps, 0)
        assert card["ppo"]["widths"] == [16, 16, 16]
        assert card["episodes"] == 3
        assert card["command"].startswith(f"python scripts/train_parent.py cpu --env {GAME}")
        for levels in ("train_levels", "test_levels"):
            low, high = card[levels]["interval"]
            assert low <= card[levels]["mean"] <= high
        actor, about = load_actor(out / "policy.safetensors")
        assert about["steps"] == steps
        assert actor.features.widths == (16, 16, 16)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        "checkpoint-32.safetensors",
        "checkpoint-64.safetensors",
    ]
    assert not half_written(out)


@pytest.mark.parametrize("options", ["--ppo.widths 16 16 32", "--env maze", "--seed 5"])
def test_a_card_never_says_what_is_not_so(server, trained_folder, options):
    """A folder with a run of another network, game or seed is refused, not relabelled."""
    before = (trained_folder / "card.json").read_text()
    result = server.run(
        "train_parent", "cpu", "--env", GAME, "--out", trained_folder, "--card-episodes", 2,
        *TINY_PPO, "--total-timesteps", 32, *options.split(),
    )  # fmt: skip
    assert result.status == 1, "the card now says what is not so"
    assert (trained_folder / "card.json").read_text() == before


@pytest.fixture(scope="module")
def trained_folder(server, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained")
    result = server.run(
        "train_parent", "cpu", "--env", GAME, "--out", out, "--card-episodes", 2,
        "--total-timesteps", 32, *TINY_PPO,
    )  # fmt: skip
    assert result.status == 0, result.stderr
    return out


def test_children_without_siblings_are_all_as_dense_as_asked():
    args = ProcgenArgs(population_size=6, ensemble_size=6, sampler="singles", sigma=0.1)
    assert {mutation.density for mutation in args.search.mutations()} == {0.2}
    assert args.asked["sampler"] == "singles"


def test_a_student_of_the_ensemble_has_a_row(parent, tmp_path, monkeypatch):
    """In this process, with fewer lessons than the command gives."""
    few = partial(distil, lessons=Lessons(rounds=1, observations=8, batch_size=4))
    monkeypatch.setattr(procgen_ensemble, "distil", few)
    args = ProcgenArgs(
        env=GAME, parent=str(parent), population_size=4, ensemble_size=2, validation_episodes=2,
        held_out_episodes=2, test_episodes=2, out=tmp_path / "out", distill=True,
    )  # fmt: skip
    procgen_ensemble.main(args)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["test"][-1]["policy"] == "student of the ensemble"
    student, _ = load_actor(tmp_path / "out" / STUDENT)
    before, _ = load_actor(parent)
    assert not torch.equal(student.head.weight, before.head.weight)
