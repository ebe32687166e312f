"""The scripts for image classifiers, tiny, as processes."""

import csv
import json

import pytest
import torch
from PIL import Image
from script_client import check_late_failure, check_refusal, half_written

from configs.experiments import PRESETS
from evo_subnets import Ensemble
from evo_subnets.models import build

TINY = ["--dataset", "digits", "--model", "mlp-32", "--limit", "150", "--parent-epochs", "2"]
METHODS = {
    "noisy": ["--population-size", "4", "--members", "2"],
    "sparse": ["--members", "2"],
    "stochastic": ["--members", "2", "--child-epochs", "2", "--annealing.epochs", "1"],
    "independent": ["--members", "2"],
    "bagging": ["--members", "2"],
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_whole_results(method, server, tmp_path):
    out = tmp_path / "out"
    result = server.run("image_ensemble", "--method", method, *TINY, *METHODS[method], "--out", out)
    assert result.status == 0, result.stderr
    report = json.loads((out / "results.json").read_text())
    last = list(report["test"].values())[-1]
    assert 0 <= last["accuracy"] <= 1
    assert f"{100 * last['accuracy']:.2f}" in result.stdout
    loaded = Ensemble.load(out / "ensemble.safetensors", build("mlp-32", (1, 32, 32), classes=10, seed=0),
                           restore=method == "noisy")  # fmt: skip
    assert len(loaded.members) == (1 if method == "independent" else 2)
    assert loaded(torch.zeros(3, 1, 32, 32)).shape == (3, 10)
    assert list(out.glob("events.out.tfevents*"))
    if method in ("noisy", "sparse", "stochastic"):
        assert "Against the parent" in result.stdout
        rows = [row for row in report["test"] if row != "parent"]
        assert list(report["against_parent"]) == rows
        assert report["test"]["parent"]["epochs"] == 2
    assert not half_written(out)


def test_children_with_norms_of_their_own_are_compared_with_such_a_parent(server, tmp_path):
    """Two epochs leave running statistics behind: to re-estimate them helps the parent as well."""
    command = ["--method", "noisy", *TINY, *METHODS["noisy"], "--model", "resnet-20"]
    result = server.run("image_ensemble", *command, "--reestimate-norms", "--out", tmp_path)
    assert result.status == 0, result.stderr
    assert "Against the parent, norms anew, paired" in result.stdout
    report = json.loads((tmp_path / "results.json").read_text())
    assert list(report["test"])[:2] == ["parent", "parent, norms anew"]
    assert report["test"]["parent"]["nll"] != report["test"]["parent, norms anew"]["nll"]
    assert list(report["against_parent"]) == ["best child", "noisy ensemble of 2"]
    child = report["test"]["best child"]["nll"] - report["test"]["parent, norms anew"]["nll"]
    assert report["against_parent"]["best child"]["nll"][0] == pytest.approx(child, abs=1e-5)


def test_the_same_command_again_shows_what_was_found(server, tmp_path):
    command = ["--method", "sparse", *TINY, "--members", "2", "--out", tmp_path]
    first = server.run("image_ensemble", *command)
    assert first.status == 0, first.stderr
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert not (tmp_path / "training").exists()
    second = server.run("image_ensemble", *command)
    assert second.status == 0, second.stderr
    assert "finished before" in second.stdout
    lines = [line for line in first.stdout.splitlines() if line.startswith("sparse ensemble of 2")]
    assert lines[0] in second.stdout
    for path in tmp_path.glob("*.*"):
        assert path.name.startswith("events") or path.read_bytes() == whole[path.name]

    longer = server.run("image_ensemble", *command, "--parent-epochs", "3")
    assert longer.status == 1
    assert "parent_epochs 2 (now 3)" in longer.stderr
    assert "--overwrite" in longer.stderr
    afresh = server.run("image_ensemble", *command, "--parent-epochs", "3", "--overwrite")
    assert afresh.status == 0, afresh.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["test"]["parent"]["epochs"] == 3


def test_a_parent_of_another_run_can_be_given(server, tmp_path):
    first = [*TINY, "--method", "sparse", "--members", "2", "--out", tmp_path / "first"]
    assert server.run("image_ensemble", *first).status == 0
    parent = tmp_path / "first" / "parent.safetensors"
    results = json.loads((tmp_path / "first" / "results.json").read_text())
    second = server.run(
        "image_ensemble", *first[:-1], tmp_path / "second", "--parent", parent,
        "--corruptions", "generated",
    )  # fmt: skip
    assert second.status == 0, second.stderr
    assert f"parent: {parent}" in second.stdout
    assert "cNLL" in second.stdout
    again = json.loads((tmp_path / "second" / "results.json").read_text())
    assert again["test"]["parent"]["nll"] == results["test"]["parent"]["nll"]
    assert again["test"]["sparse ensemble of 2"]["corrupted_nll"] > 0
    other = server.run(
        "image_ensemble", *first[:-1], tmp_path / "other", "--parent", parent,
        "--model", "mlp-16",
    )  # fmt: skip
    check_late_failure(other, 1, "mlp-32, this run asks for mlp-16", tmp_path / "other")


def picture_folder(folder, classes):
    for split in ("train", "test"):
        for name in classes:
            for number in range(3):
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(path)
    return folder


def test_bad_data_is_one_line(server, tmp_path):
    def refused(folder, word):
        result = server.run(
            "image_ensemble", "--dataset", f"imagefolder:{folder}", "--root", tmp_path / "root",
            "--out", tmp_path / "out",
        )  # fmt: skip
        assert result.status == 1, result.stderr
        assert "Traceback" not in result.stderr
        assert word in result.stderr.splitlines()[-1]
        assert not (tmp_path / "out" / "results.json").exists()

    refused(tmp_path / "nothing", "nothing")
    refused(picture_folder(tmp_path / "one", ["cat"]), "class")
    broken = picture_folder(tmp_path / "broken", ["cat", "dog"])
    (broken / "train" / "dog" / "1.png").write_bytes(b"\x89PNG no more")
    refused(broken, "1.png")
    result = server.run("image_ensemble", "--dataset", "imagenet", "--out", tmp_path / "out")
    check_refusal(result, 1, "cifar10", "digits", "imagefolder:PATH")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--members", "3"], ["multiple of 2", "3"]),
        (["--pruning.sampling", "parts", "--pruning.sparsity", "0.6"], ["1 - 1/k"]),
        (["--pruning.sparsity", "0.9"], ["0.5"]),
        (["--parent-epochs", "0"], ["parent_epochs"]),
        (["--child-epochs", "0"], ["child_epochs"]),
        (["--method", "stochastic"], ["annealing must end", "--child-epochs"]),
        (["--method", "noisy", "--population-size", "6"], ["multiple of 4"]),
        (["--method", "noisy", "--density", "0"], ["density"]),
        (["--method", "magic"], ["magic"]),
        (["--sigma", "-1"], ["sigma"]),
    ],
)
def test_bad_options_are_refused_at_once(options, words, server):
    check_refusal(server.run("image_ensemble", *options), 2, *words)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_to_its_table(preset, server, tmp_path):
    seeds = 2 if preset == "small-budget" else 1
    command = ["compare_methods", "--preset", preset, "--tiny", "--out", tmp_path]
    result = server.run(*command, "--seeds", seeds)
    assert result.status == 0, result.stderr
    text = (tmp_path / "table.txt").read_text()
    assert ("±" in text.split("printed")[-1]) == (seeds == 2)
    assert "nan" not in text
    assert text.strip() in result.stdout
    with (tmp_path / "lines.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert ("KL from parent" in text) == (preset == "mutation")
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 500
    assert not half_written(tmp_path)


def test_a_comparison_goes_on_where_it_stopped(server, tmp_path):
    command = ["compare_methods", "--preset", "small-budget", "--tiny", "--out", tmp_path]
    assert server.run(*command).status == 0
    text = (tmp_path / "table.txt").read_text()
    kept = sorted((tmp_path / "lines").glob("*.json"))
    assert len(kept) == 5
    times = {path: path.stat().st_mtime_ns for path in kept}
    kept[1].unlink()
    again = server.run(*command)
    assert (tmp_path / "table.txt").read_text() == text, "what was lost comes back the same"
    assert again.stdout.count("min)") == 1, "and nothing else is done again"
    for path in kept[:1] + kept[2:]:
        assert path.stat().st_mtime_ns == times[path]
    two = server.run(*command, "--seeds", "2")
    assert " ± " in two.stdout


def test_a_comparison_on_corrupted_images(server, tmp_path):
    command = ["compare_methods", "--preset", "large-budget", "--tiny", "--out", tmp_path]
    result = server.run(*command, "--corruptions", "generated", "--only", "halves")
    assert result.status == 0, result.stderr
    assert "cNLL" in result.stdout
    refused = server.run(*command, "--corruptions", tmp_path / "nothing")
    assert refused.status == 1
    assert "expected the .npy files of CIFAR-10-C" in refused.stderr.splitlines()[-1]


def test_comparisons_refuse_what_they_do_not_know(server):
    check_refusal(server.run("compare_methods", "--preset", "table-5.1"), 2, "table-5.1")
    check_refusal(server.run("compare_methods"), 2, "preset")
    result = server.run("compare_methods", "--preset", "small-budget", "--only", "thirds")
    check_refusal(result, 1, "thirds", "halves")
    result = server.run("compare_methods", "--preset", "sparsity", "--seeds", "0")
    check_refusal(result, 2, "seeds must be at least 1")


def test_a_ray_that_does_not_answer_is_one_line(server, tmp_path):
    result = server.run(
        "image_ensemble", "--method", "noisy", *TINY, *METHODS["noisy"], "--out", tmp_path,
        "--workers", 2, "--ray-address", "127.0.0.1:1",
    )  # fmt: skip
    check_late_failure(result, 1, "no Ray answers at 127.0.0.1:1", tmp_path)
    assert (tmp_path / "parent.safetensors").exists(), "earlier work is intact"
    check_refusal(server.run("image_ensemble", "--ray-address", "auto"), 2, "--workers")
