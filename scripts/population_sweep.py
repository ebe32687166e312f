"""How fitness depends on sigma, density and population size, for one parent.

python scripts/population_sweep.py --sigmas 0.003 0.01 0.03 --densities 0.2 0.5
tensorboard --logdir runs/population_sweep
"""

from functools import partial

import numpy as np
import tyro
from torch import nn

from agents.evaluation import collect_observations
from agents.parents import SHIPPED, find_parent
from agents.play.course import Course
from agents.play.population import evaluate_population, play
from agents.policies import EnsemblePolicy
from agents.ppo import PPOSettings
from configs.command_line import choose_device, run
from configs.sweep import SweepArgs
from envs.procgen import TRAIN_LEVELS
from evo_subnets import Child, Ensemble, files, quads, search_trust_region, select
from evo_subnets.engines import keep_freed_memory
from evo_subnets.runs.former import Journal, Tracker
from evo_subnets.runs.report import table
from evo_subnets.runs.tracking import bar
from evo_subnets.streams import derive_seed


def main(args: SweepArgs) -> None:
    keep_freed_memory()
    device = choose_device(args.device)
    shipped = SHIPPED / args.env / "policy.safetensors"
    if args.parent == "train" or (args.parent == "auto" and not shipped.exists()):
        raise ValueError("a sweep needs a parent: train one with scripts/procgen_ensemble.py")
    actor, source = find_parent(
        args.parent, args.env, args.out / "parent", PPOSettings(), 10_000_000, args.mode,
        args.seed, device,
    )  # fmt: skip
    print(source)
    weights = files.fingerprint(actor.state_dict())
    asked = {**args.asked, "device": device, "weights": weights}
    journal = Journal(args.out, asked, args.overwrite, ["results.json"])
    (args.out / "results.json").unlink(missing_ok=True)  # until this run is whole
    space = actor.observation_space
    course = Course(
        args.env,
        TRAIN_LEVELS,
        derive_seed(args.seed, "validation"),
        args.mode,
        actor.observation_shape[0] // 3,
    )

    def validate(model: nn.Module) -> float:
        agent = EnsemblePolicy(model, space, device=device)
        return float(play(agent, course, args.validation_episodes).returns.mean())

    parent_return: float = journal.once("parent", lambda: validate(actor))
    print(f"parent: return {parent_return:.2f} over {args.validation_episodes} episodes")
    observations = collect_observations(EnsemblePolicy(actor, space, device=device), course, 256)
    largest = max(args.population_sizes)
    rows: list[dict[str, float]] = []
    with bar("children", len(args.grid) * largest) as advance:
        for sigma, density in args.grid:
            population = f"sigma={sigma:g},density={density:g}"
            kl = search_trust_region(
                actor, observations, densities=(density,), sigmas=(sigma,), seed=args.seed
            ).divergence

            def on_child(child: Child, population: str = population) -> None:
                journal.add_child(population, child)
                advance(1, f"{population}: {child.fitness:.2f}")

            mutations = quads(largest, sigma, density, args.seed)
            children = evaluate_population(
                actor, mutations, course, args.validation_episodes, False, device, on_child,
                journal.children(population), workers=args.workers.chosen,
            )  # fmt: skip
            for size in args.population_sizes:
                elites = select(children[:size], min(args.ensemble_size, size))
                members = [child.mutation for child in elites]
                fitness = [child.fitness for child in children[:size]]
                name = f"{population},population_size={size}"
                ensemble = Ensemble.from_mutations(actor, members)
                row = {
                    "sigma": sigma, "density": density, "population_size": size, "kl": kl,
                    "mean": float(np.nanmean(fitness)), "best": elites[0].fitness,
                    "ensemble": journal.once(f"{name} ensemble", partial(validate, ensemble)),
                }  # fmt: skip
                rows.append(row)
                with Tracker(args.out / name) as tracker:
                    for number, child in enumerate(children[:size]):
                        tracker.scalar("children/fitness", child.fitness, number)
                        tracker.text("children/recipe", f"`{child}`", number)
                    tracker.histogram("children/fitness_histogram", fitness)
                    tracker.hyper_parameters(
                        {"sigma": sigma, "density": density, "population_size": size},
                        {key: row[key] for key in ("kl", "mean", "best", "ensemble")},
                    )
    print(f"\n{args.env}, training levels, mean return over {args.validation_episodes} episodes:\n")
    headings = ["sigma", "density", "children", "KL", "mean", "best", "ensemble", "parent"]
    lines = [
        [f"{row['sigma']:g}", f"{row['density']:g}", f"{row['population_size']}",
         f"{row['kl']:.4f}", f"{row['mean']:.2f}", f"{row['best']:.2f}",
         f"{row['ensemble']:.2f}", f"{parent_return:.2f}"]
        for row in rows
    ]  # fmt: skip
    print(table(headings, lines))
    files.write_json(args.out / "results.json", {"parent_return": parent_return, "rows": rows})


if __name__ == "__main__":
    run(lambda: tyro.cli(SweepArgs), main)
