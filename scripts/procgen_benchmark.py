"""The main job over many games and parents, with the paper's table 4.2 beside it.

    python scripts/procgen_benchmark.py --seeds 3
    python scripts/procgen_benchmark.py --games bigfish fruitbot --parents mine --generations 6

Options that are not its own are the main job's. Every run is a folder of the main job's, so a
benchmark that was stopped goes on when the same command is given again, and one whose run fails
says why in that run's row.
"""

import runpy
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from agents.evaluation import bootstrap_interval
from agents.parents import load_actor
from agents.play.records import read_returns
from agents.scores import (
    Played,
    aggregate_table,
    aggregates,
    draw,
    over_runs,
    resampled,
)
from configs import command_line
from configs.benchmark import PRINTED, BenchmarkArgs, Job
from configs.procgen import PAPER_SIGMA, ProcgenArgs
from envs.games import normalized_return
from evo_subnets import files
from evo_subnets.runs import Run
from evo_subnets.runs.report import interval, table

MAIN_JOB = Path(__file__).resolve().with_name("procgen_ensemble.py")

CHOSEN = "chosen on training levels"


def main(asked: tuple[BenchmarkArgs, list[str]]) -> None:
    args, others = asked
    outputs = ("table.txt", "picture.png", *(job.name for job in args.jobs))
    with Run(args.out, overwrite=args.overwrite, outputs=outputs) as run:
        run.ask("procgen_benchmark", {"main job": others, "mode": args.mode, "tiny": args.tiny})
        failed: dict[str, str] = {}
        runner = partial(play_job, args=args, others=others)
        with run.bar("runs", len(args.jobs)) as advance:
            for number, reason in args.workers.chosen.map(runner, args.jobs):
                job = args.jobs[number]
                if reason:
                    failed[job.name] = reason
                advance(1, f"{job.name}{': failed' if reason else ''}")
        played = [read(args, job) for job in args.jobs if job.name not in failed]
        told = "\n".join(f"{name} failed: {reason}" for name, reason in failed.items())
        if not played:
            raise ValueError(f"every run failed, the first with: {next(iter(failed.values()))}")
        text, found = report(args, played)
        text = f"{text}\n\n{told}" if told else text
        print(f"\n{text}")
        files.write_atomically(args.out / "table.txt", f"{text}\n".encode())
        picture(played, args.out / "picture.png")
        run.finish(
            {"main job": others, "failed": failed, "jobs": [job.name for job in args.jobs], **found}
        )
    print(f"\ntable.txt, picture.png, results.json and a folder for each run are in {args.out}")


def play_job(job: Job, *, args: BenchmarkArgs, others: Sequence[str]) -> str:
    """Runs the main job; why it failed, or nothing."""
    if (args.out / job.name / "results.json").exists():
        return ""
    try:
        main_job = runpy.run_path(str(MAIN_JOB))["main"]
        main_job(tyro.cli(ProcgenArgs, args=args.command(job, others)))
    except Exception as error:  # the other runs go on
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def read(args: BenchmarkArgs, job: Job) -> Played:
    """The episodes of a run, under names that are the same in every run."""
    folder = args.out / job.name
    chosen = files.read_json(folder / "results.json")["chosen"]
    returns = read_returns(folder / "episodes.csv")
    named = {
        "parent, best temperature" if name.startswith("parent, temperature") else name: values
        for name, values in returns.items()
    }
    steps = load_actor(job.parent)[1].get("steps") if job.parent.suffix == ".safetensors" else None
    return Played(job.game, {**named, CHOSEN: returns[chosen]}, steps)


def report(args: BenchmarkArgs, played: Sequence[Played]) -> tuple[str, dict[str, Any]]:
    """Both tables as text, and what they say as JSON."""
    games = list(dict.fromkeys(run.game for run in played))
    policies = [name for name in played[0].returns if all(name in run.returns for run in played)]
    policies.sort(key=lambda name: name == CHOSEN)  # the others as the main job has them
    normalized = partial(_normalized, mode=args.mode)
    found = aggregates(resampled(played, policies, normalized=normalized))
    headings = ["game", "printed σ", "printed parent", "printed ensemble", "parent", CHOSEN,
                "difference", "runs", "episodes"]  # fmt: skip
    rows = [game_row(game, played) for game in games]
    printed = {
        name: np.array([float(normalized(PRINTED[game][place], game)) for game in games])
        for name, place in (("printed, parent", 0), ("printed, ensemble", 2))
    }
    over = "runs" if over_runs(played) else "episodes"
    parents = len({job.parent for job in args.jobs})
    text = (
        f"Whitaker 2023, table 4.2 (10 episodes, ± a standard deviation), and ours ({args.mode}, "
        f"levels never trained on, common to all rows of a run; [95 % intervals] over {over}):\n\n"
        f"{table(headings, rows)}\n\n"
        f"Normalised returns (games: {len(games)}, parents: {parents}, populations of each: "
        f"{args.seeds}); IQM: mean of the middle half; stratified bootstrap over {over}"
        f"{'' if over == 'runs' else ', which say nothing of other parents'}.\n\n"
        f"{aggregate_table(found, printed)}"
    )
    about = {"over": over, "games": games, "parents": parents}
    return text, {**about, "aggregates": [asdict(each) for each in found]}


def game_row(game: str, played: Sequence[Played]) -> list[str]:
    """A game's line of the first table."""
    mean, sd, noisy, noisy_sd = PRINTED[game]
    runs, apart = [run for run in played if run.game == game], over_runs(played)
    parent, chosen, difference = (
        _summary([which(run) for run in runs], apart=apart, signed=which is _difference)
        for which in (_parent, _chosen, _difference)
    )
    episodes = sum(len(run.returns["parent"]) for run in runs)
    theirs = [f"{PAPER_SIGMA[game]:g}", f"{mean:.1f} ± {sd:.2f}", f"{noisy:.1f} ± {noisy_sd:.2f}"]
    return [game, *theirs, parent, chosen, difference, str(len(runs)), f"{episodes:,}"]


def _parent(run: Played) -> Any:
    return run.returns["parent"]


def _chosen(run: Played) -> Any:
    return run.returns[CHOSEN]


def _difference(run: Played) -> Any:
    return run.returns[CHOSEN] - run.returns["parent"]


def _summary(values: Sequence[Any], *, apart: bool, signed: bool) -> str:
    """A mean with its interval: over runs where they are taken apart, else over all episodes."""
    many = np.array([each.mean() for each in values]) if apart else np.concatenate(values)
    limits = interval(*bootstrap_interval(many), signed=signed)
    return f"{many.mean():{'+' if signed else ''}.2f} {limits}"


def _normalized(returns: Any, game: str, *, mode: Any) -> Any:
    return normalized_return(returns, game, mode=mode)


def picture(played: Sequence[Played], path: Path) -> None:
    """Figure 4.4: parent and chosen, by the steps that the parents were trained for."""
    known = all(run.steps for run in played)
    known &= any(len({run.steps for run in played if run.game == game}) > 1 for game in PRINTED)
    points: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
    for number, run in enumerate(played):
        earlier = sum(other.game == run.game for other in played[:number])
        x = (run.steps or 0) / 1e6 if known else 1 + earlier
        for policy in ("parent", CHOSEN):
            values = run.returns[policy]
            point = (x, float(values.mean()), *bootstrap_interval(values))
            points.setdefault(run.game, {}).setdefault(policy, []).append(point)
    draw(
        points, path, x_label="parent's training, million steps" if known else "run",
        title="Return on unseen levels, 95 % intervals over episodes",
    )  # fmt: skip


def parsed() -> tuple[BenchmarkArgs, list[str]]:
    """Own options, and the main job's, which are looked at before anything runs."""
    args, others = tyro.cli(BenchmarkArgs, return_unknown_args=True)
    for job in args.jobs:
        tyro.cli(ProcgenArgs, args=args.command(job, others))
    return args, others


if __name__ == "__main__":
    command_line.run(parsed, main)
