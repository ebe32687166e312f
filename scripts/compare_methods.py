"""A table or picture of the papers: several methods at one budget, over seeds.

    python scripts/compare_methods.py --preset small-budget --model lenet-s --seeds 3

Every finished line of every seed is kept in the output folder, and what is being trained as well:
a run that was killed goes on where it stopped when the same command is given again.
"""

import csv
import hashlib
import io
import statistics
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from configs.command_line import choose_device, run
from configs.experiments import PRESETS, Experiment, Preset, tiny
from configs.images import CompareArgs
from configs.workers import Workers
from evo_subnets import divergence, evaluate, metrics
from evo_subnets.data import Dataset, Images, load
from evo_subnets.engines import keep_freed_memory
from evo_subnets.ensemble import Ensemble
from evo_subnets.files import storage
from evo_subnets.files.parents import load_parent, save_parent
from evo_subnets.methods import Trained, bagging, independent, noisy, sparse, stochastic
from evo_subnets.models import build
from evo_subnets.runs.journal import remove
from evo_subnets.runs.tracking import Tracker, bar, table
from evo_subnets.streams import derive_seed
from evo_subnets.tuning import Tuning, predict, predict_members, tune

Row = dict[str, Any]
EXTRA_COLUMNS = (
    ("cAcc", "corrupted_accuracy", 100, 2),
    ("cNLL", "corrupted_nll", 1, 3),
    ("cECE", "corrupted_ece", 1, 3),
    ("vote", "vote_accuracy", 100, 2),
    ("KL from parent", "divergence", 1, 4),
)
"""Heading, number, factor and digits of columns that only some tables have."""


def main(args: CompareArgs) -> None:
    keep_freed_memory()
    preset = PRESETS[args.preset](*([args.model] if args.model else []))
    if args.dataset:
        preset = replace(preset, dataset=args.dataset)
    if args.tiny:
        preset = tiny(preset)
    if args.only:
        labels = list(dict.fromkeys(row.label for row in preset.experiments))
        unknown = [label for label in args.only if label not in labels]
        if unknown:
            raise ValueError(f"there are no experiments {unknown}; there are {labels}")
        rows = tuple(row for row in preset.experiments if row.label in args.only)
        preset = replace(preset, experiments=rows)
    out = args.out or Path("runs/compare_methods") / f"{args.preset}-{preset.model}"
    device = choose_device(args.device)
    dataset = load(
        preset.dataset, args.root, preset.validation, limit=300 if args.tiny else args.limit
    ).to(device)
    if not preset.augment:
        dataset = replace(
            dataset, augmentation=replace(dataset.augmentation, padding=0, flip=False)
        )
    if all(experiment.kind != "noisy" for experiment in preset.experiments):
        first, second = dataset.validation, dataset.test  # nothing is selected: all is the test
        pixels = torch.cat((first.pixels, second.pixels))
        whole = Images(pixels, torch.cat((first.labels, second.labels)))
        dataset = replace(dataset, test=whole)
    print(f"{preset.title} ({preset.source}): {preset.model} on {dataset.name}")
    if args.overwrite:
        for name in ("lines", "parents", "training"):
            remove(out / name)
    bench = Bench(preset, dataset, out, args.corruptions, args.workers)
    results = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for experiment in preset.experiments:
            results += bench.measured(experiment, seed)
    lines = summary(preset, results)
    report(preset, dataset, lines, results, out)


class Bench:
    """Runs experiments, each at most once: parents and finished lines lie in the folder."""

    def __init__(
        self,
        preset: Preset,
        dataset: Dataset,
        out: Path,
        corruptions: str | None,
        workers: Workers,
    ) -> None:
        self.preset, self.dataset, self.out = preset, dataset, out
        self.corruptions, self.workers = corruptions, workers
        self.test = (dataset.test, dataset.augmentation)
        self.parents: dict[int, nn.Module] = {}

    def key(self, *parts: object) -> str:
        """A name that changes with everything that the result depends on."""
        about = (self.dataset.name, len(self.dataset.train), self.preset.augment, *parts)
        return hashlib.sha256(repr(about).encode()).hexdigest()[:12]

    def measured(self, experiment: Experiment, seed: int) -> list[Row]:
        """The lines of an experiment: several where it has prefixes."""
        key = self.key(self.preset.model, self.preset.parent, experiment, seed)
        if self.corruptions is not None:
            key = self.key(key, self.corruptions)
        name = f"{experiment.label.replace(' ', '-')}-{seed}-{key}"
        kept, training = self.out / "lines" / f"{name}.json", self.out / "training" / name
        if kept.exists():
            rows: list[Row] = storage.read_json(kept)["rows"]
            return rows
        start = time.monotonic()
        rows = self.run(experiment, seed, training)
        minutes = (time.monotonic() - start) / 60
        for row in rows:
            row.update(label=experiment.label, seed=seed, minutes=minutes)
            row.setdefault("x", experiment.x)
        storage.write_json(kept, {"experiment": repr(experiment), "rows": rows})
        remove(training)
        last = rows[-1]
        print(
            f"seed {seed}  {experiment.label}"
            + ("" if experiment.x is None else f" at {experiment.x:g}")
            + f": accuracy {100 * last['accuracy']:.2f}, NLL {last['nll']:.3f}, "
            f"ECE {last['ece']:.3f} ({minutes:.1f} min)",
            flush=True,
        )
        return rows

    def run(self, experiment: Experiment, seed: int, training: Path) -> list[Row]:
        """Trains and tests; `training` keeps what is trained until then."""
        if experiment.kind == "noisy":
            return [self.run_noisy(experiment, seed)]
        trained, parent_epochs = self.train(experiment, seed, training)
        ensemble = trained.ensemble
        logits = predict_members(ensemble, *self.test)
        total = parent_epochs + trained.epochs
        costs = {
            "epochs": total,
            "flops": (parent_epochs + trained.dense_epochs) / total,
            "parameters": trained.parameters,
        }
        rows = []
        for size in experiment.prefixes or (len(logits),):
            row = self.scored(ensemble, logits[:size]) | costs
            rows.append(row | ({"x": size} if experiment.prefixes else {}))
        return rows

    def train(self, experiment: Experiment, seed: int, training: Path) -> tuple[Trained, int]:
        """The ensemble, and the epochs that its parent took."""
        images, augmentation = self.dataset.train, self.dataset.augmentation
        epochs = experiment.tuning.epochs
        has_parent = experiment.kind in ("sparse", "stochastic")
        parent = self.parent(seed) if has_parent else None  # its bar ends before the next begins
        with bar(experiment.label, experiment.members * epochs) as advance:

            def on_epoch(name: str, epoch: int, loss: float) -> None:
                advance(1, f"{name}, loss {loss:.3f}")

            def new(network_seed: int) -> nn.Module:
                return self.build(network_seed, experiment.dropout)

            report, mapper = self.workers.training(on_epoch, lambda note: advance(epochs, note))
            how: dict[str, Any] = {
                "members": experiment.members, "on_epoch": report, "folder": training,
                "mapper": mapper,
            }  # fmt: skip
            seed_of_method = derive_seed(seed, experiment.label)
            common = (images, augmentation, experiment.tuning)
            if experiment.kind == "independent":
                return independent(new, *common, seed=seed_of_method, **how), 0
            if experiment.kind == "bagging":
                return bagging(new, *common, seed=seed_of_method, **how), 0
            assert parent is not None
            how["seed"] = derive_seed(seed, "children")  # what can be common to methods, is
            pruning = experiment.pruning
            if experiment.kind == "sparse":
                trained = sparse(parent, *common, pruning, **how)
            else:
                trained = stochastic(parent, *common, experiment.annealing, pruning, **how)
            return trained, self.preset.parent.epochs

    def run_noisy(self, experiment: Experiment, seed: int) -> Row:
        """Mutates and selects; also the children's divergence and the vote (figure 4.3)."""
        parent = self.parent(seed)
        found = noisy(
            parent, self.dataset.validation, self.dataset.augmentation, experiment.members,
            experiment.elites, experiment.density, experiment.sigma,
            seed=derive_seed(seed, "noisy"), evaluation=partial(evaluate, **self.workers.options),
        )  # fmt: skip
        logits = predict_members(found.ensemble, *self.test)
        row = self.scored(found.ensemble, logits)
        own = predict(parent, *self.test)
        votes = Ensemble(list(found.ensemble.members), "vote").combined(logits)
        row["divergence"] = statistics.fmean(divergence(own, child) for child in logits)
        row["vote_accuracy"] = float((votes.argmax(1) == self.dataset.test.labels).double().mean())
        row["epochs"], row["flops"] = self.preset.parent.epochs, 1.0
        row["parameters"] = metrics.count_parameters(parent)
        return row

    def scored(self, ensemble: Ensemble, logits: Tensor) -> Row:
        """What the test images say of (members, samples, classes) logits."""
        whole = Ensemble(list(ensemble.members)[: len(logits)], ensemble.combine)
        row = asdict(metrics.report(logits, whole.combined(logits), self.dataset.test.labels))
        if self.corruptions is None:
            return row

        def answers(images: Images) -> Tensor:
            return whole.combined(predict_members(whole, images, self.dataset.augmentation))

        found = metrics.corrupted_scores(answers, self.dataset.test, self.corruptions)
        return row | {f"corrupted_{key}": value for key, value in asdict(found).items()}

    def build(self, seed: int, dropout: float = 0.0) -> nn.Module:
        """An untrained network of the preset's architecture."""
        channels, height, width = self.dataset.train.pixels.shape[1:]
        classes = len(self.dataset.classes)
        return build(self.preset.model, (channels, height, width), classes, dropout, seed)

    def parent(self, seed: int) -> nn.Module:
        """The parent of a seed, trained once."""
        if seed in self.parents:
            return self.parents[seed]
        network = self.build(derive_seed(seed, "parent")).to(self.dataset.train.pixels.device)
        tuning: Tuning = self.preset.parent
        name = f"{self.key(self.preset.model, tuning, seed)}.safetensors"
        kept, training = self.out / "parents" / name, self.out / "training" / name
        about = {
            "model": self.preset.model, "classes": list(self.dataset.classes),
            "dataset": self.dataset.name, "tuning": repr(tuning), "seed": seed,
        }  # fmt: skip
        if kept.exists():
            load_parent(kept, network, about, about)
        else:
            with bar("parent", tuning.epochs) as advance:
                tune(
                    network, self.dataset.train, self.dataset.augmentation, tuning,
                    derive_seed(seed, "parent"),
                    on_epoch=lambda epoch, loss: advance(1, f"loss {loss:.3f}"),
                    checkpoint=training,
                )  # fmt: skip
            save_parent(kept, network, about)
            remove(training)
        self.parents = {seed: network}
        return network


def summary(preset: Preset, results: list[Row]) -> list[Row]:
    """One line a method and point: means and standard errors over the seeds."""
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for row in results:
        groups.setdefault((row["label"], row["x"]), []).append(row)
    published = {(row.label, row.x): row.published for row in preset.experiments}
    lines = []
    for (label, x), rows in groups.items():
        line: Row = {
            "label": label,
            "x": x,
            "n": len(rows),
            "published": published.get((label, x), ""),
        }
        numbers = [key for key, value in rows[0].items() if isinstance(value, float | int)]
        for key in numbers:
            if key in ("x", "seed"):
                continue
            values = [float(row[key]) if row[key] is not None else float("nan") for row in rows]
            line[key] = statistics.fmean(values)
            if len(values) > 1:
                # numpy's, for statistics.stdev fails where one network has no disagreement, NaN
                line[f"{key}_error"] = float(np.std(values, ddof=1)) / len(values) ** 0.5
        lines.append(line)
    return lines


def report(
    preset: Preset, dataset: Dataset, lines: list[Row], results: list[Row], out: Path
) -> None:
    """Prints the table, and writes text, CSV, picture and TensorBoard scalars."""

    def cell(line: Row, key: str, scale: float = 1.0, digits: int = 2) -> str:
        if line.get(key) is None or line[key] != line[key]:
            return ""
        text = f"{scale * line[key]:.{digits}f}"
        error = line.get(f"{key}_error")
        return text if error is None else f"{text} ± {scale * error:.{digits}f}"

    headings = ["method", "accuracy", "NLL", "ECE", "members' accuracy", "disagreement", "oracle",
                "epochs", "FLOPs", "parameters", "n", "printed"]  # fmt: skip
    extra = [column for column in EXTRA_COLUMNS if any(column[1] in line for line in lines)]
    headings[4:4] = [heading for heading, *_ in extra]
    if preset.x_label:
        headings.insert(1, preset.x_label)
    cells = []
    for line in lines:
        row = [
            line["label"], cell(line, "accuracy", 100), cell(line, "nll", 1, 3),
            cell(line, "ece", 1, 3), cell(line, "member_accuracy", 100),
            cell(line, "disagreement", 1, 3), cell(line, "oracle", 100), f"{line['epochs']:g}",
            f"{line['flops']:.2f}x", f"{line['parameters'] / 1e6:.2f}M", str(line["n"]),
            line["published"],
        ]  # fmt: skip
        row[4:4] = [cell(line, key, scale, digits) for _, key, scale, digits in extra]
        if preset.x_label:
            row.insert(1, f"{line['x']:g}")
        cells.append(row)
    text = (
        f"{preset.title}. {preset.model} on {dataset.name}, {len(dataset.train)} training and "
        f"{len(dataset.test)} test images; mean ± standard error over n seeds. {preset.source}.\n\n"
        + table(headings, cells)
    )
    print(f"\n{text}")
    storage.write_atomically(out / "table.txt", (text + "\n").encode())
    columns = list(dict.fromkeys(key for row in results for key in row))
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, columns)
    writer.writeheader()
    writer.writerows(results)
    storage.write_atomically(out / "lines.csv", sheet.getvalue().encode())
    draw(preset, lines, out / "picture.png")
    with Tracker(out / "tensorboard") as tracker:
        for number, line in enumerate(lines):
            step = number if line["x"] is None else round(line["x"] * 1e4)
            tracker.scalar(f"accuracy/{line['label']}", line["accuracy"], step)
    print(f"\ntable.txt, lines.csv and picture.png are in {out}")


def draw(preset: Preset, lines: list[Row], path: Path) -> None:
    """A curve a method, or a bar where there is no axis to draw along."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    labels = list(dict.fromkeys(line["label"] for line in lines))
    for label in labels:
        mine = [line for line in lines if line["label"] == label]
        values = [100 * line["accuracy"] for line in mine]
        errors = [100 * line.get("accuracy_error", 0.0) for line in mine]
        if preset.x_label:
            axes.errorbar([line["x"] for line in mine], values, errors, marker="o", label=label)
        else:
            axes.barh(label, values, xerr=errors, color="tab:blue")
    if preset.x_label:
        axes.set(xlabel=preset.x_label, ylabel="test accuracy, %")
        axes.legend(fontsize="small")
    else:
        low = min(100 * line["accuracy"] for line in lines)
        axes.set(xlabel="test accuracy, %", xlim=(max(0.0, low - 5), None))
        axes.invert_yaxis()
    axes.set_title(preset.title, fontsize="medium")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    storage.write_atomically(path, data.getvalue())


if __name__ == "__main__":
    run(lambda: tyro.cli(CompareArgs), main)
