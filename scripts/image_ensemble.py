"""An image classifier and an ensemble made of it, on test images that neither has seen.

    python scripts/image_ensemble.py --method sparse --model lenet-s --dataset digits

Whitaker 2023, chapters 4 (noisy), 5 (sparse) and 6 (stochastic). A run that was stopped goes on
when the same command is given again.
"""

import copy
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from torch import Tensor, nn

from configs.command_line import choose_device, run
from configs.images import ImageArgs
from evo_subnets import Child, Ensemble, evaluate, metrics
from evo_subnets.data import Dataset, Images, load
from evo_subnets.engines import keep_freed_memory
from evo_subnets.files import storage
from evo_subnets.files.parents import load_parent, save_parent
from evo_subnets.methods import Trained, bagging, independent, noisy, sparse, stochastic
from evo_subnets.models import build
from evo_subnets.racing import Rules
from evo_subnets.runs.journal import Journal, remove
from evo_subnets.runs.tracking import Tracker, bar, table
from evo_subnets.streams import derive_seed
from evo_subnets.tuning import predict_members, reestimate_norms, tune

REESTIMATED = "parent, norms anew"
OUTPUTS = ("training", "parent.safetensors", "ensemble.safetensors", "results.json")


def main(args: ImageArgs) -> None:
    started = time.monotonic()
    keep_freed_memory()
    device = choose_device(args.device)
    out = args.folder
    dataset = load(
        args.dataset, args.root, args.validation, seed=args.seed, limit=args.limit
    ).to(device)  # fmt: skip
    if not args.augment:
        plain = replace(dataset.augmentation, padding=0, flip=False)
        dataset = replace(dataset, augmentation=plain)
    print(
        f"{dataset.name}: {len(dataset.train)} training, {len(dataset.validation)} validation and "
        f"{len(dataset.test)} test images of {len(dataset.classes)} classes"
    )
    journal = Journal(out, {**args.asked, "device": device}, args.overwrite, OUTPUTS, args.parent)
    results_file, training = out / "results.json", out / "training"
    if results_file.exists() and "finished" in journal.found:
        show(storage.read_json(results_file))
        print(f"\nfinished before; --overwrite starts afresh. Results and ensemble are in {out}")
        return
    results_file.unlink(missing_ok=True)  # until this run is whole there are no results

    with Tracker(out) as tracker:
        rows: dict[str, dict[str, Any]] = {}
        answers: dict[str, Tensor] = {}

        def judge(name: str, ensemble: Ensemble, **costs: Any) -> None:
            """A row of the table."""
            logits = predict_members(ensemble, dataset.test, dataset.augmentation)
            answers[name] = ensemble.combined(logits)
            report = metrics.report(logits, answers[name], dataset.test.labels)
            rows[name] = {**asdict(report), **costs}

        parent: nn.Module | None = None
        extra: dict[str, Any] = {}
        if args.method not in ("independent", "bagging"):
            parent = find_parent(args, dataset, tracker, training)
            weights = metrics.count_parameters(parent)
            dense = {"epochs": args.parent_epochs, "flops": 1.0}
            judge("parent", Ensemble([parent]), **dense, parameters=weights)
            if args.method == "noisy" and args.reestimate_norms:
                # what the children gain by their norms alone, the parent would have gained as well
                again = copy.deepcopy(parent)
                reestimate_norms(again, dataset.train, dataset.augmentation)
                judge(REESTIMATED, Ensemble([again]), **dense, parameters=weights)
        if args.method == "noisy":
            assert parent is not None
            ensemble, extra = mutated(args, parent, dataset, tracker, journal)
            best = Ensemble([copy.deepcopy(ensemble.members[0])])
            judge("best child", best, **dense, parameters=weights)
            costs = {**dense, "parameters": weights * len(ensemble.members)}
        else:
            trained = built(args, parent, dataset, tracker, training)
            ensemble = trained.ensemble
            before = 0 if parent is None else args.parent_epochs
            total = before + trained.epochs
            flops = (before + trained.dense_epochs) / total
            costs = {"epochs": total, "flops": flops, "parameters": trained.parameters}
        size = len(ensemble.members)  # fewer than asked where many noisy children failed
        name = args.method if size == 1 else f"{args.method} ensemble of {size}"
        judge(name, ensemble, **costs)
        if args.corruptions:
            contestants = {name: ensemble} | (
                {} if parent is None else {"parent": Ensemble([parent])}
            )
            for who, model in contestants.items():
                rows[who] |= journal.once(
                    f"corrupted {who}",
                    partial(corrupted, model, dataset, args.corruptions, args.seed),
                )
        for number, row in enumerate(rows.values()):
            for key in ("accuracy", "nll", "ece"):
                tracker.scalar(f"test/{key}", row[key], number)
        tracker.hyper_parameters(
            {key: str(value) for key, value in asdict(args).items()},
            {"test/accuracy": rows[name]["accuracy"], "test/nll": rows[name]["nll"]},
        )

    if parent is not None:
        own = answers.pop(REESTIMATED if REESTIMATED in answers else "parent")
        extra["against_parent"] = {
            who: compared(own, answer, dataset.test.labels)
            for who, answer in answers.items()
            if who != "parent"
        }
    results = {"arguments": journal.asked, "test": rows, **extra}
    show(results)
    ensemble.save(out / "ensemble.safetensors")
    storage.write_json(results_file, results)
    journal.once("finished", lambda: True)
    remove(training)
    minutes = (time.monotonic() - started) / 60
    print(f"\n{minutes:.1f} minutes; results, ensemble and TensorBoard logs are in {out}")


def new_network(args: ImageArgs, dataset: Dataset, seed: int) -> nn.Module:
    channels, height, width = dataset.train.pixels.shape[1:]
    return build(args.model, (channels, height, width), len(dataset.classes), seed=seed)


def find_parent(args: ImageArgs, dataset: Dataset, tracker: Tracker, training: Path) -> nn.Module:
    """The parent that is named, that lies in the output folder, or that is trained now."""
    network = new_network(args, dataset, derive_seed(args.seed, "parent"))
    network.to(dataset.train.pixels.device)
    about = {
        "model": args.model, "classes": list(dataset.classes), "dataset": dataset.name,
        "training_images": len(dataset.train), "tuning": repr(args.tuning(args.parent_epochs)),
        "augment": args.augment, "seed": args.seed,
    }  # fmt: skip
    path = args.parent or args.folder / "parent.safetensors"
    if args.parent is not None or path.exists():
        must = about if args.parent is None else ("model", "classes")
        load_parent(path, network, about, must)
        print(f"parent: {path}")
        return network
    with bar("parent", args.parent_epochs) as advance:

        def on_epoch(epoch: int, loss: float) -> None:
            tracker.scalar("parent/loss", loss, epoch)
            advance(1, f"loss {loss:.3f}")

        tune(
            network, dataset.train, dataset.augmentation, args.tuning(args.parent_epochs),
            derive_seed(args.seed, "parent"), on_epoch=on_epoch,
            checkpoint=training / "parent.safetensors",
        )  # fmt: skip
    save_parent(path, network, about)
    return network


def built(
    args: ImageArgs, parent: nn.Module | None, dataset: Dataset, tracker: Tracker, training: Path
) -> Trained:
    """The ensemble of a method that trains."""
    whole = args.parent_epochs + args.members * args.child_epochs
    share = max(1, whole // args.members)
    members = 1 if args.method == "independent" else args.members
    epochs = {"independent": whole, "bagging": share}.get(args.method, args.child_epochs)
    data = (dataset.train, dataset.augmentation)
    with bar(args.method, members * epochs) as advance:

        def on_epoch(name: str, epoch: int, loss: float) -> None:
            tracker.scalar(f"loss/{name}", loss, epoch)
            advance(1, f"{name}, loss {loss:.3f}")

        def new(seed: int) -> nn.Module:
            return new_network(args, dataset, seed)

        seed = derive_seed(args.seed, args.method)
        report, mapper = args.workers.training(on_epoch, lambda note: advance(epochs, note))
        how: dict[str, Any] = {
            "members": members, "seed": seed, "on_epoch": report, "folder": training,
            "mapper": mapper,
        }  # fmt: skip
        if args.method == "independent":
            return independent(new, *data, args.tuning(whole), **how)
        if args.method == "bagging":
            return bagging(new, *data, args.tuning(share), **how)
        assert parent is not None
        tuning = args.tuning(args.child_epochs, child=True)
        if args.method == "sparse":
            return sparse(parent, *data, tuning, args.pruning, **how)
        return stochastic(parent, *data, tuning, args.annealing, args.pruning, **how)


def mutated(
    args: ImageArgs, parent: nn.Module, dataset: Dataset, tracker: Tracker, journal: Journal
) -> tuple[Ensemble, dict[str, Any]]:
    """The fittest mutations, best first, and the population's story."""
    with bar("children", args.population_size) as advance:
        done = journal.children("children")
        count = 0

        def on_child(child: Child) -> None:
            nonlocal count
            journal.add_child("children", child)
            tracker.scalar("children/fitness", child.fitness, count)
            count += 1
            advance(1, f"accuracy {100 * child.fitness:.2f}")

        found = noisy(
            parent, dataset.validation, dataset.augmentation, args.population_size, args.members,
            args.density, args.sigma, args.target_kl, args.seed,
            dataset.train if args.reestimate_norms else None, on_child,
            partial(evaluate, done=done, **args.workers.options),
            Rules() if args.racing else None,
        )  # fmt: skip
    for child in found.children:
        if child.failed:
            print(f"  {child.mutation} failed: {child.reason}")
    region = found.region
    reached = "" if region is None else f" moves the outputs by a KL of {region.divergence:.4f}"
    print(f"sigma {found.sigma:.5f}{reached}")
    if found.seen is not None:
        saved = len(found.seen) * len(dataset.validation) / sum(found.seen)
        print(f"racing: {saved:.1f} times fewer evaluations of an image")
    fitness = [child.fitness for child in found.children if not child.failed]
    tracker.histogram("children/fitness_histogram", fitness)
    story = {
        "sigma": found.sigma,
        "children": [asdict(child) for child in found.children],
        "elites": [asdict(child) for child in found.elites],
    }
    if found.seen is not None:
        story["seen"] = found.seen
    return found.ensemble, story


def corrupted(ensemble: Ensemble, dataset: Dataset, source: str, seed: int) -> dict[str, float]:
    """Scores on corrupted test images."""

    def answers(images: Images) -> Tensor:
        return ensemble.combined(predict_members(ensemble, images, dataset.augmentation))

    with bar("corruptions", metrics.count_corrupted_sets(source)) as advance:
        found = metrics.corrupted_scores(
            answers, dataset.test, source, seed, lambda name: advance(1, name)
        )
    return {f"corrupted_{key}": value for key, value in asdict(found).items()}


def compared(
    parent: Tensor, log_probabilities: Tensor, labels: Tensor
) -> dict[str, tuple[float, float, float]]:
    """A model minus the parent, with the bounds of paired bootstrap intervals."""
    names: tuple[Any, ...] = ("accuracy", "nll", "ece")
    return {
        name: metrics.difference_interval(parent, log_probabilities, labels, name) for name in names
    }


def show(results: dict[str, Any]) -> None:
    """Prints the table, and how the ensemble compares with its parent."""
    print(f"\n{table(*printed(results['test']))}")
    if "against_parent" in results:
        lines = [
            [who, *(f"{x:+.4f} [{low:+.4f}, {high:+.4f}]" for x, low, high in found.values())]
            for who, found in results["against_parent"].items()
        ]
        base = REESTIMATED if REESTIMATED in results["test"] else "parent"
        print(f"\nAgainst the {base}, paired over test images, with 95 % intervals:\n")
        print(table(["model", "accuracy", "NLL", "ECE"], lines))


def printed(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table."""
    headings = ["model", "accuracy", "NLL", "ECE", "members", "disagreement", "oracle", "epochs",
                "FLOPs", "parameters"]  # fmt: skip
    with_corruptions = any("corrupted_accuracy" in row for row in rows.values())
    if with_corruptions:
        headings += ["cAcc", "cNLL", "cECE"]
    cells = []
    for name, row in rows.items():
        pair = row["disagreement"]
        disagreement = "" if pair is None or pair != pair else f"{pair:.3f}"
        line = [
            name, f"{100 * row['accuracy']:.2f}", f"{row['nll']:.3f}", f"{row['ece']:.3f}",
            f"{100 * row['member_accuracy']:.2f}", disagreement,
            f"{100 * row['oracle']:.2f}", f"{row['epochs']:g}", f"{row['flops']:.2f}x",
            f"{row['parameters'] / 1e6:.3f}M",
        ]  # fmt: skip
        if with_corruptions and "corrupted_accuracy" in row:
            line += [f"{100 * row['corrupted_accuracy']:.2f}", f"{row['corrupted_nll']:.3f}",
                     f"{row['corrupted_ece']:.3f}"]  # fmt: skip
        elif with_corruptions:
            line += ["", "", ""]
        cells.append(line)
    return headings, cells


if __name__ == "__main__":
    run(lambda: tyro.cli(ImageArgs), main)
