"""The scripts for image classifiers, tiny, as processes."""

import csv
import json

import pytest
import torch
from PIL import Image
from script_client import check_late_failure, check_refusal, half_written

from configs.experiments import PRESETS
from evo_subnets import Ensemble, files
from evo_subnets.files.parents import load_parent
from evo_subnets.lineage import Lineage
from evo_subnets.methods import METHODS
from evo_subnets.models import build
from evo_subnets.subnetworks import parameters

DIGITS = ["--dataset", "digits", "--model", "mlp-32", "--limit", "150"]
TINY = [*DIGITS, "--parent-tuning.epochs", "2"]
COMMANDS = {
    "noisy": [*TINY, "--population-size", "4", "--ensemble-size", "2"],
    "sparse": [*TINY, "--ensemble-size", "2"],
    "stochastic": [*TINY, "--ensemble-size", "2", "--epochs", "2", "--annealing-epochs", "1"],
    "independent": [*DIGITS, "--epochs", "2"],
    "bagging": [*DIGITS, "--ensemble-size", "2"],
    "static_sparse": [*DIGITS, "--epochs", "2", "--ensemble-size", "2"],
    "dst": [*DIGITS, "--epochs", "2", "--ensemble-size", "2", "--schedule", "steps:0.1/0.01,0.5"],
    "edst": [*DIGITS, "--epochs", "3", "--ensemble-size", "2"],
    "snapshot": [*DIGITS, "--epochs", "2", "--ensemble-size", "2"],
    "fast_geometric": [*TINY, "--epochs", "2", "--ensemble-size", "2"],
    "swa": [*TINY, "--epochs", "1"],
    "soup": [*TINY, "--ingredients", "2"],
    "pep": [*TINY, "--ensemble-size", "2"],
    "distillation": [*DIGITS, "--epochs", "2", "--teachers", "2"],
}
SINGLE = ("independent", "swa", "soup", "distillation")
SPARSE = ("static_sparse", "dst", "edst")


def command(method, *more):
    return ["image_ensemble", method, *COMMANDS[method], *more]


def test_every_method_has_a_command_here():
    assert set(COMMANDS) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_whole_results(method, server, tmp_path):
    out = tmp_path / "out"
    result = server.run(*command(method, "--out", out))
    assert result.status == 0, result.stderr
    report = json.loads((out / "results.json").read_text())
    last = list(report["test"].values())[-1]
    assert 0 <= last["accuracy"] <= 1
    assert f"{100 * last['accuracy']:.2f}" in result.stdout
    network = build("mlp-32", (1, 32, 32), classes=10, seed=0)
    path = out / "ensemble.safetensors"
    loaded = Ensemble.load(path, network, restore=method in ("noisy", "pep"))
    assert len(loaded.members) == (1 if method in SINGLE else 2)
    assert loaded(torch.zeros(3, 1, 32, 32)).shape == (3, 10)
    assert list(out.glob("events.out.tfevents*"))
    parented = METHODS[method].starts_from == "parent"
    first = "parent" if parented else "one network"
    assert next(iter(report["test"])) == report["against"] == first
    density = {"sparse": 0.5, "stochastic": 0.5, **dict.fromkeys(SPARSE, 0.2)}.get(method, 1)
    assert last["inference"] == pytest.approx(len(loaded.members) * density, rel=0.05)
    one = report["test"][first]
    if parented:
        assert one["training"] == one["inference"] == 1
    else:  # one of its members
        assert one["training"] == pytest.approx(last["training"] / len(loaded.members))
        assert one["inference"] == pytest.approx(last["inference"] / len(loaded.members))
    assert f"Against the {first}, paired" not in result.stdout, "30 test images are too few"
    assert "are too few to tell models apart" in result.stdout
    assert report["arguments"]["limit"] == 150, "typed"
    assert report["arguments"]["augment"] is True
    assert set(report["provenance"]) >= {"commit", "command", "versions", "hardware", "started"}
    assert not half_written(out)


def test_the_unit_of_training_is_one_dense_network(server, tmp_path):
    """Four networks cost four times as much as one, and a bag of nine tenths costs so much."""
    out = tmp_path / "four"
    four = ["independent", *DIGITS, "--epochs", "2", "--ensemble-size", "4", "--out", out]
    assert server.run("image_ensemble", *four).status == 0
    rows = json.loads((out / "results.json").read_text())["test"]
    assert rows["independent ensemble of 4"]["training"] == 4
    assert rows["independent ensemble of 4"]["epochs"] == 8
    assert rows["one network"]["epochs"] == 2


def test_children_with_norms_of_their_own_are_compared_with_such_a_parent(server, tmp_path):
    """Two epochs leave running statistics behind: to re-estimate them helps the parent as well."""
    options = ["--model", "resnet-20", "--reestimate-norms", "--out", tmp_path]
    result = server.run(*command("noisy", *options))
    assert result.status == 0, result.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    assert list(report["test"])[:2] == ["parent", "parent, norms anew"]
    assert report["against"] == "parent, norms anew"
    assert report["test"]["parent"]["nll"] != report["test"]["parent, norms anew"]["nll"]
    others = {"parent", "best child", "2 random children", "noisy ensemble of 2"}
    assert set(report["differences"]) == others
    child = report["test"]["best child"]["nll"] - report["test"]["parent, norms anew"]["nll"]
    assert report["differences"]["best child"]["nll"][0] == pytest.approx(child, abs=1e-5)


GENERATIONS = ["--generations", "2", "--recombine", "log", "--step-kl", "0.01"]


def test_generations_choose_before_the_test_and_go_on_where_they_were_killed(server, tmp_path):
    whole = command("noisy", *GENERATIONS, "--sampler", "singles", "--out", tmp_path)
    result = server.run(*whole)
    assert result.status == 0, result.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    names = ["best child", "ensemble of 2", "soup of 2", "evolved parent",
             "2 around the evolved parent", "last 2 parents"]  # fmt: skip
    assert list(report["held_out"]) == ["parent", *names]
    chosen = report["chosen"]
    assert report["held_out"][chosen] == max(report["held_out"][name] for name in names)
    asked = report["arguments"]["method"]
    assert (asked["generations"], asked["moving"]["recombine"]) == (2, "log_weights")
    assert asked["search"]["sampler"] == "singles"
    assert len(report["generations"]) == 2
    assert report["generations"][1]["divergence"] == pytest.approx(0.01, rel=0.1)
    others = [name for name in names if name != chosen]
    controls = ["2 random children", "random walk"]
    assert list(report["test"]) == ["parent", *others, *controls, f"{chosen} (chosen)"]
    assert report["test"]["parent"]["inference"] == 1
    assert [report["test"][name]["inference"] for name in others] == [
        2 if name.startswith(("ensemble", "2", "last")) else 1 for name in others
    ]
    held_out = result.stdout.index("metric, held out")
    assert held_out < result.stdout.index(f"before the test: {chosen}")
    assert result.stdout.index(f"before the test: {chosen}") < result.stdout.index("oracle")
    parent = build("mlp-32", (1, 32, 32), classes=10, seed=0)
    load_parent(tmp_path / "parent.safetensors", parent, about={}, must=())
    lineage, _ = Lineage.load(tmp_path / "lineage.json", parameters(parent))
    assert len(lineage.steps) == 2

    # killed between two children of the second generation
    found = {name: (tmp_path / name).read_bytes() for name in
             ("ensemble.safetensors", "lineage.json")}  # fmt: skip
    journal = files.read_json(tmp_path / "journal.json")
    kept = ("trust region", "children: sigma 0", "children: step 0", "children: sigma 1")
    journal["found"] = {
        name: value for name, value in journal["found"].items() if name in ("parent", *kept)
    }
    name, children = "children of generation 1", journal["records"]["children of generation 1"]
    journal |= {"records": {name: dict(list(children.items())[:2])}, "finished": []}
    files.write_json(tmp_path / "journal.json", journal)
    for path in ("results.json", *found):
        (tmp_path / path).unlink()
    again = server.run(*whole)
    assert again.status == 0, again.stderr
    assert {name: (tmp_path / name).read_bytes() for name in found} == found
    later = json.loads((tmp_path / "results.json").read_text())
    own = {"provenance": 0, "format": 0}  # its checksum is of the provenance as well
    assert {**later, **own} == {**report, **own}


def test_densities_are_chosen_by_the_fitness_of_their_children(server, tmp_path):
    options = ["--densities", "0.2", "0.5", "--combine", "vote", "--include-parent"]
    result = server.run(*command("noisy", *options, "--out", tmp_path))
    assert result.status == 0, result.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    assert [trial["density"] for trial in report["trials"]] == [0.2, 0.5]
    best = max(report["trials"], key=lambda trial: trial["fitness"])
    assert report["search"]["density"] == best["density"]
    assert f"chosen on samples of the trust region: density {best['density']:g}" in result.stdout
    rows = ["parent", "best child", "2 random children", "noisy ensemble of 3"]
    assert list(report["test"]) == rows
    child = report["test"]["best child"]["nll"]
    assert child != report["test"]["parent"]["nll"], "the first member is the parent"


def test_a_difference_is_in_the_unit_of_its_metric(server, tmp_path):
    options = ["--limit", "600", "--out", tmp_path]
    result = server.run(*command("sparse", *options))
    assert result.status == 0, result.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    rows = report["test"]
    points = 100 * (rows["sparse ensemble of 2"]["accuracy"] - rows["parent"]["accuracy"])
    assert "Against the parent, paired over 120 test images" in result.stdout
    assert f"  {points:+.2f} [" in result.stdout


def test_the_same_command_again_shows_what_was_found(server, tmp_path):
    same = command("sparse", "--out", tmp_path)
    first = server.run(*same)
    assert first.status == 0, first.stderr
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert not (tmp_path / "training").exists()
    second = server.run(*same)
    assert second.status == 0, second.stderr
    assert "finished before" in second.stdout
    lines = [line for line in first.stdout.splitlines() if line.startswith("sparse ensemble of 2")]
    assert lines[0] in second.stdout
    for path in tmp_path.glob("*.*"):
        assert path.name.startswith("events") or path.read_bytes() == whole[path.name]

    longer = server.run(*same, "--epochs", "3")
    assert longer.status == 1
    assert "epochs 1 (now 3)" in longer.stderr
    assert "--overwrite" in longer.stderr
    afresh = server.run(*same, "--epochs", "3", "--overwrite")
    assert afresh.status == 0, afresh.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["test"]["sparse ensemble of 2"]["epochs"] == 2 + 2 * 3


def test_a_parent_of_another_run_can_be_given(server, tmp_path):
    assert server.run(*command("sparse", "--out", tmp_path / "first")).status == 0
    parent = tmp_path / "first" / "parent.safetensors"
    results = json.loads((tmp_path / "first" / "results.json").read_text())
    given = ["sparse", *DIGITS, "--ensemble-size", "2", "--parent", parent, "--out"]
    second = server.run("image_ensemble", *given, tmp_path / "second", "--corruptions", "generated")
    assert second.status == 0, second.stderr
    assert f"parent: {parent}" in second.stdout
    assert "cNLL" in second.stdout
    again = json.loads((tmp_path / "second" / "results.json").read_text())
    assert again["test"]["parent"]["nll"] == results["test"]["parent"]["nll"]
    assert again["test"]["parent"]["epochs"] == 2
    assert again["test"]["sparse ensemble of 2"]["corrupted_nll"] > 0


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("sparse", ["--parent", "PARENT", "--model", "mlp-16"], ["mlp-32", "asks for mlp-16"]),
        ("sparse", ["--parent", "nothing.safetensors"], ["nothing.safetensors", "no such file"]),
        ("sparse", ["--model", "resnet-21"], ["depth", "21"]),
        ("sparse", ["--model", "alexnet"], ["alexnet", "lenet-s"]),
        ("sparse", ["--dataset", "imagenet"], ["cifar10", "digits", "imagefolder:PATH"]),
        ("sparse", ["--dataset", "imagefolder:nowhere"], ["nowhere"]),
        ("sparse", ["--corruptions", "nowhere"], ["CIFAR-10-C"]),
        ("sparse", ["--ensemble-size", "3"], ["multiple of 2", "3"]),
        ("sparse", ["--sampling", "parts", "--sparsity", "0.6"], ["1 - 1/k"]),
        ("sparse", ["--sparsity", "0.9"], ["0.5"]),
        ("sparse", ["--scope", "global"], ["scope has no effect with sampling 'halves'"]),
        ("sparse", ["--structure", "neurons", "--classifier"], ["classifier has no effect"]),
        ("sparse", ["--epochs", "0"], ["epochs=0"]),
        ("sparse", ["--parent-tuning.epochs", "0"], ["epochs=0"]),
        ("sparse", ["--momentum", "0.5"], ["momentum has no effect with Adam"]),
        ("sparse", ["--schedule", "never"], ["constant, step-linear, one-cycle, cosine"]),
        ("sparse", ["--schedule", "constant:1,2,3"], ["constant:1,2,3"]),
        ("sparse", ["--density", "0.2"], ["--density"]),
        ("sparse", ["--sigma", "1"], ["--sigma"]),
        ("sparse", ["--racing"], ["--racing"]),
        ("sparse", ["--ray-address", "auto"], ["--workers"]),
        ("sparse", ["--out", ""], ["folder"]),
        ("sparse", ["--limit", "0"], ["limit must be at least 1"]),
        ("stochastic", ["--epochs", "2"], ["annealing must end", "annealing_epochs"]),
        ("stochastic", ["--start", "one-shot", "--decay", "linear"], ["decay has no effect"]),
        ("stochastic", ["--start", "gaussian", "--both"], ["both has no effect"]),
        ("noisy", ["--population-size", "10"], ["multiple of 4", "got 10"]),
        ("noisy", ["--density", "0"], ["density"]),
        ("noisy", ["--sigma", "-1"], ["sigma"]),
        ("noisy", ["--sigma", "0.1", "--target-kl", "0.1"], ["target_kl has no effect"]),
        ("noisy", ["--racing", "--reestimate-norms"], ["leave out racing or reestimate_norms"]),
        ("noisy", ["--bound", "bernstein"], ["rules has no effect with no race"]),
        ("noisy", ["--epochs", "3"], ["--epochs"]),
        ("noisy", ["--step-kl", "0.1"], ["step has no effect with one generation"]),
        ("noisy", ["--generations", "0"], ["generations must be at least 1, got 0"]),
        ("noisy", ["--generations", "2", "--stop"], ["stop has no effect with the accuracy"]),
        ("noisy", ["--generations", "2", "--include-parent"], ["include_parent has no effect"]),
        ("noisy", ["--densities", "0.2", "0.2"], ["densities has 0.2 twice"]),
        ("noisy", ["--densities", "0.2", "2"], ["density must be in (0, 1], got 2"]),
        ("noisy", ["--densities", "0.2", "--density", "0.3"], ["density has no effect with dens"]),
        ("noisy", ["--densities", "0.2", "--sigma", "0.3"], ["densities has no effect with a s"]),
        ("noisy", ["--combine", "median"], ["median"]),
        ("noisy", ["--sampler", "triples"], ["triples"]),
        ("independent", ["--parent", "some.safetensors"], ["--parent"]),
        ("independent", ["--parent-tuning.epochs", "3"], ["--parent-tuning"]),
        ("independent", ["--ensemble-size", "0"], ["ensemble_size must be at least 1"]),
        ("bagging", ["--bagging", "0.5"], ["leave bagging out"]),
        ("bagging", ["--fraction", "0"], ["bagging must be in (0, 1]"]),
        ("magic", [], ["magic"]),
    ],
)
def test_what_cannot_act_is_refused_before_a_folder_is_touched(
    method, options, words, server, tmp_path
):
    """Every option acts, or is refused by name; a corrected command finds nothing in its way."""
    if "PARENT" in options:
        assert server.run(*command("sparse", "--out", tmp_path / "p")).status == 0
        options = [tmp_path / "p/parent.safetensors" if o == "PARENT" else o for o in options]
    small = [] if "--model" in options or "--dataset" in options else DIGITS[:4]
    small += ["--dataset", "digits"] if "--model" in options else []
    out = [] if "--out" in options else ["--out", tmp_path / "out"]
    result = server.run("image_ensemble", method, *small, *options, *out)
    assert result.status != 0, result.stdout
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: "), result.stderr
    for word in words:
        assert word in last
    assert not (tmp_path / "out").exists()


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
            "image_ensemble", "sparse", "--dataset", f"imagefolder:{folder}", "--root",
            tmp_path / "root", "--out", tmp_path / "out",
        )  # fmt: skip
        assert result.status == 1, result.stderr
        assert "Traceback" not in result.stderr
        assert word in result.stderr.splitlines()[-1]
        assert not (tmp_path / "out").exists()

    refused(picture_folder(tmp_path / "one", ["cat"]), "class")
    broken = picture_folder(tmp_path / "broken", ["cat", "dog"])
    (broken / "train" / "dog" / "1.png").write_bytes(b"\x89PNG no more")
    refused(broken, "1.png")


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
    first = server.run(*command)
    assert first.status == 0, first.stderr
    text = (tmp_path / "table.txt").read_text()
    assert first.stdout.count("min)") == 5
    again = server.run(*command)
    assert again.status == 0, again.stderr
    assert (tmp_path / "table.txt").read_text() == text
    assert again.stdout.count("min)") == 0, "nothing is done again"
    two = server.run(*command, "--seeds", "2")
    assert two.stdout.count("min)") == 5, "another seed is added"
    assert " ± " in two.stdout
    other = server.run(*command[:-3], "--out", tmp_path, "--dataset", "digits", "--limit", "150")
    check_refusal(other, 1, "limit 300 (now 150)", "--overwrite")


def test_any_list_of_methods_is_a_table(server, tmp_path):
    options = ["--methods", "sparse", "noisy", "independent", "--tiny", "--out", tmp_path]
    result = server.run("compare_methods", *options)
    assert result.status == 0, result.stderr
    report = json.loads((tmp_path / "results.json").read_text())
    lines = {line["label"]: line for line in report["lines"]}
    assert list(lines) == ["sparse", "noisy", "independent"]
    assert lines["independent"]["training"] == lines["independent"]["inference"] == 1
    assert lines["sparse"]["training"] == pytest.approx(1 + 2 * 0.5, abs=0.1)
    assert lines["noisy"]["training"] == 1, "the parent's, and nothing else"
    assert "KL from parent" in result.stdout


def test_a_comparison_on_corrupted_images(server, tmp_path):
    command = ["compare_methods", "--preset", "large-budget", "--tiny", "--out", tmp_path]
    result = server.run(*command, "--corruptions", "generated", "--only", "halves")
    assert result.status == 0, result.stderr
    assert "cNLL" in result.stdout
    refused = server.run(*command, "--corruptions", tmp_path / "nothing")
    assert refused.status == 2
    assert "expected the .npy files of CIFAR-10-C" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--preset", "table-5.1"], ["table-5.1"]),
        ([], ["--preset or --methods"]),
        (["--preset", "sparsity", "--methods", "sparse"], ["--preset or --methods"]),
        (["--methods", "magic"], ["magic", "noisy"]),
        (["--methods", "sparse", "--only", "sparse"], ["only has no effect with methods"]),
        (["--preset", "small-budget", "--only", "thirds"], ["thirds", "halves"]),
        (["--preset", "sparsity", "--seeds", "0"], ["seeds must be at least 1"]),
        (["--preset", "sparsity", "--tiny", "--model", "mlp"], ["model has no effect with tiny"]),
        (["--preset", "sparsity", "--model", "alexnet"], ["alexnet"]),
        (["--preset", "sparsity", "--dataset", "imagenet"], ["imagenet"]),
        (["--preset", "sparsity", "--tiny", "--out", ""], ["folder"]),
    ],
)
def test_comparisons_refuse_what_they_do_not_know(options, words, server):
    result = server.run("compare_methods", *options)
    assert result.status != 0
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr.splitlines()[-1]


def test_a_ray_that_does_not_answer_is_one_line(server, tmp_path):
    options = ["--out", tmp_path, "--workers", 2, "--ray-address", "127.0.0.1:1"]
    result = server.run(*command("noisy", *options))
    check_late_failure(result, 1, "no Ray answers at 127.0.0.1:1", tmp_path)
    assert (tmp_path / "parent.safetensors").exists(), "earlier work is intact"
