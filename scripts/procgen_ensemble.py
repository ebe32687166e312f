"""The main job: mutate a Procgen agent, keep the best children, play unseen levels as one.

    python scripts/procgen_ensemble.py --env bigfish

Whitaker 2023, algorithm 1, with the quads of section 4.2.2 and the protocol of section 4.3.3. A run
that was stopped goes on when the same command is given again.
"""

import csv
import io
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import tyro
from torch import nn

from agents.evaluation import bootstrap_interval, collect_observations, record_clip, spread
from agents.parents import find_parent
from agents.play.course import Course, Episodes
from agents.play.population import evaluate_population, play
from agents.policies import EnsemblePolicy
from configs.command_line import choose_device, run
from configs.procgen import ProcgenArgs
from envs.procgen import TEST_LEVELS, TRAIN_LEVELS, normalized_return
from evo_subnets import Child, Evolution, files, search_trust_region
from evo_subnets.engines import keep_freed_memory
from evo_subnets.runs.former import Journal, Tracker
from evo_subnets.runs.report import table
from evo_subnets.runs.tracking import bar
from evo_subnets.streams import derive_seed

TEMPERATURES = (0.25, 0.5, 0.71, 1.0, 1.41)
OBSERVATIONS = 512
OUTPUTS = ("parent", "results.json", "ensemble.safetensors", "episodes.csv", "ensemble.gif")


def main(args: ProcgenArgs) -> None:
    started = time.monotonic()
    keep_freed_memory()
    device = choose_device(args.device)
    out = args.folder
    journal = Journal(out, {**args.asked, "device": device}, args.overwrite, OUTPUTS, args.parent)
    results_file = out / "results.json"
    results_file.unlink(missing_ok=True)  # until this run is whole there are no results

    actor, source = find_parent(
        args.parent, args.env, out / "parent", args.ppo, args.total_timesteps, args.mode,
        args.seed, device, args.checkpoint_every,
    )  # fmt: skip
    print(source)
    weights = files.fingerprint(actor.state_dict())
    if journal.once("parent", lambda: weights) != weights:
        raise ValueError(
            f"{out} holds a run of another parent than this one: use another --out, or --overwrite "
            "to start afresh"
        )
    space = actor.observation_space

    def policy(model: nn.Module, temperature: float = 1.0) -> EnsemblePolicy:
        return EnsemblePolicy(model, space, temperature, device)

    def course(levels: str) -> Course:
        # one seed for all children and all temperatures, another for the observations and the test
        seed = derive_seed(args.seed, levels)
        chosen = TEST_LEVELS if levels == "test" else TRAIN_LEVELS
        return Course(args.env, chosen, seed, args.mode, actor.observation_shape[0] // 3)

    def validate(model: nn.Module, temperature: float = 1.0) -> float:
        agent = policy(model, temperature)
        episodes = play(agent, course("validation"), args.validation_episodes, args.deterministic)
        return float(episodes.returns.mean())

    with Tracker(out) as tracker:
        # How strong a mutation may be
        sigma = args.sigma
        if sigma is None:
            print(f"trust region: target KL {args.target_kl}, density {args.density}")

            told: list[list[float]] = []

            def tell(trial: list[float]) -> None:
                told.append(trial)
                step = round(trial[0] * 1e6)
                tracker.scalar("trust_region/divergence_by_sigma_e-6", trial[1], step)
                print(f"  sigma {trial[0]:.5f}: KL {trial[1]:.5f}")

            def searched() -> dict[str, Any]:
                observations = collect_observations(
                    policy(actor), course("observations"), OBSERVATIONS
                )
                region = search_trust_region(
                    actor, observations, args.target_kl, (args.density,), seed=args.seed,
                    on_trial=lambda trial: tell([trial.sigma, trial.divergence]),
                )  # fmt: skip
                return {"sigma": region.sigma, "trials": told}

            region = journal.once("trust region", searched)
            for trial in region["trials"][len(told) :]:  # of a run that was stopped
                tell(trial)
            sigma = float(region["sigma"])

        # A population, judged on training levels
        evolution = Evolution(
            actor, args.population_size, args.ensemble_size, sigma, args.density, args.seed,
            sample=args.sample,
        )  # fmt: skip
        with bar("children", args.population_size) as advance:
            count = 0

            def on_child(child: Child) -> None:
                nonlocal count
                journal.add_child("children", child)
                tracker.scalar("children/fitness", child.fitness, count)
                tracker.text("children/recipe", f"`{child}`", count)
                count += 1
                advance(1, f"return {child.fitness:.2f}")

            evolution.tell(
                evaluate_population(
                    actor, evolution.ask(), course("validation"), args.validation_episodes,
                    args.deterministic, device, on_child, journal.children("children"),
                    workers=args.workers.chosen,
                )
            )  # fmt: skip
        for child in evolution.children:
            if child.failed:
                print(f"  {child.mutation} failed: {child.reason}")
        fitness = [child.fitness for child in evolution.children if not child.failed]
        tracker.histogram("children/fitness_histogram", fitness)
        ensemble, best = evolution.ensemble, evolution.elites[0]

        # The parent's best softmax temperature: averaging members changes the entropy as well
        with bar("temperatures", len(TEMPERATURES)) as advance:
            tuned: dict[float, float] = {}
            for temperature in TEMPERATURES:
                tuned[temperature] = journal.once(
                    f"temperature {temperature}", partial(validate, actor, temperature)
                )
                advance(1, f"{temperature}: return {tuned[temperature]:.2f}")
        temperature = max(tuned, key=lambda key: tuned[key])

        # The test: the same unseen levels for everyone
        best_child = evolution.model(best)
        contestants = {
            "parent": (policy(actor), args.deterministic),
            "parent, greedy": (policy(actor), True),
            f"parent, temperature {temperature:g}": (policy(actor, temperature), False),
            "best child": (policy(best_child), args.deterministic),
            f"ensemble of {len(evolution.elites)}": (policy(ensemble), args.deterministic),
        }
        played: dict[str, Episodes] = {}
        with bar("test episodes", len(contestants) * args.test_episodes) as advance:
            for name, (agent, greedy) in contestants.items():

                def tested(
                    name: str = name, agent: EnsemblePolicy = agent, greedy: bool = greedy
                ) -> dict[str, list[float]]:
                    episodes = play(
                        agent, course("test"), args.test_episodes, greedy,
                        lambda value: advance(1, name),
                    )  # fmt: skip
                    return {key: value.tolist() for key, value in asdict(episodes).items()}

                if f"test {name}" in journal.found:
                    advance(args.test_episodes, name)
                lists = journal.once(f"test {name}", tested)
                played[name] = Episodes(**{key: np.array(value) for key, value in lists.items()})

        rows = report(args, played)
        for number, (name, episodes) in enumerate(played.items()):
            tracker.histogram(f"test/{name}", episodes.returns.tolist())
            tracker.scalar("test/mean_return", float(episodes.returns.mean()), number)
        tracker.hyper_parameters(
            {**asdict(args), "sigma": sigma},
            {"test/ensemble": float(rows[-1]["mean"]), "test/parent": float(rows[0]["mean"])},
        )
        if args.video:
            clip = out / "ensemble.gif"
            record_clip(policy(ensemble), course("test"), clip, deterministic=args.deterministic)

    ensemble.save(out / "ensemble.safetensors")
    write_episodes(args, played)
    files.write_json(
        results_file,
        {
            "arguments": journal.asked,
            "parent": source,
            "sigma": sigma,
            "temperature": {"chosen": temperature, "validation_returns": tuned},
            "children": [asdict(child) for child in evolution.children],
            "elites": [asdict(child) for child in evolution.elites],
            "test": rows,
        },
    )
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:.1f} minutes; results, ensemble and TensorBoard logs are in {out}")


def report(args: ProcgenArgs, played: dict[str, Episodes]) -> list[dict[str, float | str]]:
    """Prints the table, every row compared with the first, level by level; its rows come back."""
    parent = next(iter(played.values())).returns
    rows: list[dict[str, float | str]] = []
    lines: list[list[str]] = []
    for name, episodes in played.items():
        returns = episodes.returns
        low, high = bootstrap_interval(returns)
        difference = returns - parent
        below, above = bootstrap_interval(difference)
        normalized = float(normalized_return(returns.mean(), args.env, args.mode))
        row: dict[str, float | str] = {
            "policy": name, "mean": float(returns.mean()), "sd": spread(returns),
            "n": len(returns), "low": low, "high": high, "normalized": normalized,
            "difference": float(difference.mean()), "difference_low": below,
            "difference_high": above,
        }  # fmt: skip
        rows.append(row)
        compared = f"{row['difference']:+.2f} [{below:+.2f}, {above:+.2f}]" if lines else ""
        lines.append(
            [name, f"{row['mean']:.2f}", f"{row['sd']:.2f}", str(row["n"]),
             f"[{low:.2f}, {high:.2f}]", f"{normalized:.3f}", compared]
        )  # fmt: skip
    print(f"\n{args.env} ({args.mode}), levels never trained on, the same for every row:\n")
    headings = ["policy", "return", "sd", "n", "95 % interval", "normalised", "against parent"]
    print(table(headings, lines))
    ensemble = rows[-1]
    below, above = float(ensemble["difference_low"]), float(ensemble["difference_high"])
    verdict = (
        "better than the parent" if below > 0
        else "worse than the parent" if above < 0
        else "no difference from the parent that this many episodes can show"
    )  # fmt: skip
    print(f"\nThe ensemble: {verdict}.")
    return rows


def write_episodes(args: ProcgenArgs, played: dict[str, Episodes]) -> None:
    """One line an episode and policy, with the level it was played on."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["policy", "episode", "level_seed", "return", "length"])
    for name, episodes in played.items():
        for number, (level, value, length) in enumerate(
            zip(episodes.level_seeds, episodes.returns, episodes.lengths, strict=True)
        ):
            writer.writerow([name, number, int(level), float(value), int(length)])
    files.write_atomically(args.folder / "episodes.csv", text.getvalue().encode())


if __name__ == "__main__":
    run(lambda: tyro.cli(ProcgenArgs), main)
