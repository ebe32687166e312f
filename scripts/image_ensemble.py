"""An image classifier and an ensemble made of it, on test images that neither has seen.

    python scripts/image_ensemble.py sparse --sampling halves --model lenet-s --dataset digits

A subcommand for each method: Whitaker 2023, chapters 4 (noisy), 5 (sparse) and 6 (stochastic), and
networks trained from scratch. A run that was stopped goes on when the same command is given again.
"""

import copy
import time
from functools import partial
from typing import Any

from torch import nn

from configs.command_line import choose_device, run
from configs.images import BuilderArgs, ParentArgs, method_name, parsed
from evo_subnets import Ensemble
from evo_subnets.data import Dataset
from evo_subnets.engines import keep_freed_memory
from evo_subnets.files.parents import load_parent
from evo_subnets.metrics import count_corrupted_sets, count_parameters
from evo_subnets.metrics.contest import Contest, contest_text, corrupted
from evo_subnets.models import build
from evo_subnets.runs import Run
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import parameters
from evo_subnets.task import Task
from evo_subnets.tuning import tune_once

OUTPUTS = ("parent.safetensors", "ensemble.safetensors", "lineage.json")


def main(args: BuilderArgs | ParentArgs) -> None:
    started = time.monotonic()
    keep_freed_memory()
    device, method, name = choose_device(args.device), args.method, method_name(args.method)
    data = args.loaded(device, method.seed)
    print(
        f"{data.name}: {len(data.train)} training, {len(data.validation)} validation and "
        f"{len(data.test)} test images of {len(data.classes)} classes"
    )

    def new(seed: int) -> nn.Module:
        shape: Any = tuple(data.train.pixels.shape[1:])
        return build(args.model, shape, classes=len(data.classes), seed=seed).to(device)

    # What can be refused is refused before anything is written
    parent, epochs, given = None, 0, None
    if isinstance(args, ParentArgs):
        parent, given = new(derive_seed(method.seed, "parent")), args.parent
        if given is not None:
            epochs = load(args, parent, data)
    arguments = {**args.asked, "device": device}
    with Run(args.folder, overwrite=args.overwrite, outputs=OUTPUTS, needed=given) as story:
        story.ask("image_ensemble", arguments)
        if story.finished is not None:
            print(f"\n{contest_text(story.finished)}")
            print(f"\nfinished before; --overwrite starts afresh. All is in {args.folder}")
            return
        if isinstance(args, ParentArgs) and parent is not None and given is None:
            epochs = args.parent_tuning.epochs
            tune_once(
                parent, Task(data.train), path=args.folder / "parent.safetensors",
                about=about(args, data), tuning=args.parent_tuning,
                seed=derive_seed(method.seed, "parent"), run=story,
            )  # fmt: skip

        # The method
        task = Task(data.train, data.validation)
        result = method(parent or new, task, run=story, workers=args.workers.chosen)
        if said := result.text():
            print(f"\n{said}")

        # The test
        members = list(result.ensemble.members)
        alone, count = parent or members[0], len(members)
        unit, tuning = float(epochs or result.epochs / count), getattr(method, "tuning", None)
        if parent is None and tuning is not None:  # however many networks one training leaves
            unit = tuning.epochs * tuning.bagging
        contest = Contest(data.test, unit)

        def cost(size: int = 1) -> dict[str, Any]:
            found = {"inference": float(size), "parameters": size * count_parameters(alone)}
            return {"epochs": unit, "dense_epochs": unit, **found}

        share = {
            "epochs": result.epochs / count, "dense_epochs": result.training / count,
            "inference": result.inference / count, "parameters": result.parameters // count,
        }  # fmt: skip
        against = "parent" if parent is not None else "one network"
        contest.judge(against, Ensemble([alone]), **(cost() if parent is not None else share))
        if result.reference is not None:
            against = "parent, norms anew"
            contest.judge(against, Ensemble([result.reference]), **cost())
        if result.children and not result.candidates:
            best = members[-len(result.elites)]
            contest.judge("best child", Ensemble([copy.deepcopy(best)]), **cost())
        last = name if count == 1 else f"{name} ensemble of {count}"
        for other, model in result.candidates.items():
            if other == result.chosen:
                last = f"{other} (chosen)"
            else:
                contest.judge(other, model, **cost(len(model.members)))
        for other, model in result.controls.items():
            contest.judge(other, model, **cost(len(model.members)))
        contest.judge(
            last, result.ensemble, epochs=epochs + result.epochs,
            dense_epochs=epochs + result.training, inference=result.inference,
            parameters=result.parameters,
        )  # fmt: skip
        if args.corruptions:
            for who, model in ((against, Ensemble([alone])), (last, result.ensemble)):
                with story.bar("corruptions", count_corrupted_sets(args.corruptions)) as advance:
                    scored = partial(
                        corrupted, model, data.test, source=args.corruptions, seed=method.seed,
                        on_set=partial(advance, 1),
                    )  # fmt: skip
                    contest.rows[who] |= story.once(f"corrupted {who}", scored)
        scores = {f"test/{key}": contest.rows[last][key] for key in ("accuracy", "nll", "ece")}
        story.hyper_parameters(arguments, scores)
        results = {
            "arguments": arguments,
            "unit_epochs": unit,
            "test_images": len(data.test),
            "test": contest.rows,
            "against": against,
            "differences": contest.differences(against),
            **result.story(),
        }
        print(f"\n{contest_text(results)}")
        result.ensemble.save(args.folder / "ensemble.safetensors")
        if result.lineage is not None:
            assert result.search is not None
            path, include = args.folder / "lineage.json", result.search.include
            result.lineage.save(path, parameters(alone), include=include)
        story.finish(results)
    minutes = (time.monotonic() - started) / 60
    print(f"\n{minutes:.1f} minutes; results, ensemble and TensorBoard logs are in {args.folder}")


def about(args: ParentArgs, data: Dataset) -> dict[str, Any]:
    """What a parent's file says of itself."""
    return {
        "model": args.model, "classes": list(data.classes), "dataset": data.name,
        "training_images": len(data.train), "tuning": repr(args.parent_tuning),
        "augment": args.augment, "seed": args.method.seed, "epochs": args.parent_tuning.epochs,
    }  # fmt: skip


def load(args: ParentArgs, parent: nn.Module, data: Dataset) -> int:
    """Gives the network the weights of the parent that is named; the epochs of its training."""
    assert args.parent is not None
    said = load_parent(args.parent, parent, about=about(args, data), must=("model", "classes"))
    if not isinstance(said.get("epochs"), int):
        raise ValueError(f"{args.parent} does not say how long it was trained: train another")
    print(f"parent: {args.parent}")
    return int(said["epochs"])


if __name__ == "__main__":
    run(parsed, main)
