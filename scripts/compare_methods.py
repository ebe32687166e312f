"""A table or picture of the papers, or any list of methods: at one budget, over seeds.

    python scripts/compare_methods.py --preset small-budget --model lenet-s --seeds 3
    python scripts/compare_methods.py --methods sparse stochastic noisy --dataset digits

Every finished line of every seed is kept in the output folder, and what is being trained as well:
a run that was killed goes on where it stopped when the same command is given again.
"""

import hashlib
import json
import time
from functools import partial
from typing import Any

import tyro
from torch import nn

from configs.command_line import choose_device, run
from configs.compare import CompareArgs
from configs.experiments import Experiment, Preset
from evo_subnets import Ensemble
from evo_subnets.data import Dataset
from evo_subnets.engines import keep_freed_memory
from evo_subnets.methods import with_seed
from evo_subnets.metrics.contest import Contest, corrupted, further
from evo_subnets.metrics.tables import Line, draw, lines_csv, summary, table_text
from evo_subnets.models import build
from evo_subnets.options import described
from evo_subnets.runs import Run
from evo_subnets.streams import derive_seed
from evo_subnets.task import Task
from evo_subnets.tuning import tune_once


def main(args: CompareArgs) -> None:
    keep_freed_memory()
    device, table = choose_device(args.device), args.table
    data = args.loaded(device)
    print(f"{table.title} ({table.source}): {table.model} on {data.name}")
    outputs = ("table.txt", "lines.csv", "picture.png", "parents")
    with Run(args.folder, overwrite=args.overwrite, outputs=outputs) as story:
        story.ask("compare_methods", {**args.asked, "device": device})
        results: list[Line] = []
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            for experiment in table.experiments:
                measure = partial(measured, args, data, experiment, seed, story)
                results += story.once(line_name(experiment, seed), measure)
        lines = summary(results, {(row.label, row.x): row.published for row in table.experiments})
        text = table_text(lines, caption=caption(table, data), x_label=table.x_label)
        print(f"\n{text}")
        (args.folder / "table.txt").write_text(text + "\n")
        (args.folder / "lines.csv").write_text(lines_csv(results))
        draw(lines, args.folder / "picture.png", title=table.title, x_label=table.x_label)
        for line in lines:
            of = {"method": line["label"], "x": line["x"] or 0.0}
            part = story.part(f"tensorboard/{line['label']} {line['x'] or ''}".strip())
            part.hyper_parameters(of, {"accuracy": line["accuracy"], "nll": line["nll"]})
            part.close()
        story.finish({"arguments": {**args.asked, "device": device}, "lines": lines})
    print(f"\ntable.txt, lines.csv, picture.png and results.json are in {args.folder}")


def caption(table: Preset, data: Dataset) -> str:
    return (
        f"{table.title}. {table.model} on {data.name}, {len(data.train)} training and "
        f"{len(data.test)} test images; mean ± standard error over n seeds, each with a parent of "
        f"its own. Training: 1.00x is one dense network trained for {table.budget} epochs; "
        f"inference: 1.00x is one dense network asked once. {table.source}."
    )


def line_name(experiment: Experiment, seed: int) -> str:
    """Changes with everything that the line depends on and that the folder does not fix."""
    key = hashlib.sha256(json.dumps(described(experiment)).encode()).hexdigest()[:12]
    return f"{experiment.label} {experiment.x or ''} {seed} {key}"


def measured(
    args: CompareArgs, data: Dataset, experiment: Experiment, seed: int, story: Run
) -> list[Line]:
    """The lines of an experiment: several where it has prefixes."""
    start, table = time.monotonic(), args.table
    from_parent = experiment.method.starts_from == "parent"
    parent = find_parent(args, data, seed, story) if from_parent else None
    new = partial(network, args, data, experiment.dropout)
    own = derive_seed(seed, "children" if from_parent else experiment.label)  # common, if it can be
    part = story.part(f"runs/{line_name(experiment, seed)}".replace(" ", "-"))
    task = Task(data.train, data.validation)
    method = with_seed(experiment.method, own)
    result = method(parent or new, task, run=part, workers=args.workers.chosen)
    part.close()
    before, members = table.parent.epochs if parent else 0, list(result.ensemble.members)
    contest, rows = Contest(data.test, table.budget), []
    for size in experiment.prefixes or (len(members),):
        share = size / len(members)
        contest.judge(
            str(size), result.ensemble, size=size, epochs=before + share * result.epochs,
            dense_epochs=before + share * result.training, inference=share * result.inference,
            parameters=round(share * result.parameters),
        )  # fmt: skip
        row = contest.rows[str(size)]
        row |= {"label": experiment.label, "seed": seed}
        row["x"] = size if experiment.prefixes else experiment.x
        if table.columns:
            row |= further(Ensemble(members[:size]), data.test, parent=parent)
        if args.corruptions:
            some = Ensemble(members[:size])
            row |= corrupted(some, data.test, source=args.corruptions, seed=0)
        rows.append(row)
    minutes = (time.monotonic() - start) / 60
    print(
        f"seed {seed}  {experiment.label}{'' if experiment.x is None else f' at {experiment.x:g}'}"
        f": accuracy {100 * rows[-1]['accuracy']:.2f} %, NLL {rows[-1]['nll']:.3f} "
        f"({minutes:.1f} min)",
        flush=True,
    )
    return rows


def network(args: CompareArgs, data: Dataset, dropout: float, seed: int) -> nn.Module:
    """An untrained network of the table's architecture."""
    shape: Any = tuple(data.train.pixels.shape[1:])
    classes, device = len(data.classes), data.train.pixels.device
    found = build(args.table.model, shape, classes=classes, dropout=dropout, seed=seed)
    return found.to(device)


def find_parent(args: CompareArgs, data: Dataset, seed: int, story: Run) -> nn.Module:
    """The parent of a seed, trained once."""
    own, tuning = derive_seed(seed, "parent"), args.table.parent
    parent = network(args, data, 0.0, own)
    path = args.folder / "parents" / f"{seed}.safetensors"
    said = {"model": args.table.model, "dataset": data.name, "tuning": repr(tuning), "seed": seed}
    tune_once(
        parent, Task(data.train), path=path, about=said, tuning=tuning, seed=own, run=story
    )  # fmt: skip
    return parent


if __name__ == "__main__":
    run(lambda: tyro.cli(CompareArgs), main)
