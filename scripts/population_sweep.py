"""How fitness depends on sigma, density and population size, for one parent.

python scripts/population_sweep.py --sigmas 0.003 0.01 0.03 --densities 0.2 0.5
tensorboard --logdir runs/population_sweep
"""

import math
from functools import partial

import numpy as np
import tyro
from torch import nn

from agents.kept import show_children
from agents.parents import load_parent
from agents.play.course import Course
from agents.play.kept import evolve_together
from agents.play.observations import collect_observations
from agents.play.population import play
from configs import command_line
from configs.sweep import SweepArgs
from envs.games import TRAIN_LEVELS
from evo_subnets import Lineage, files, search_trust_region
from evo_subnets.engines import keep_freed_memory
from evo_subnets.evolution import check_strength
from evo_subnets.generations import Evolved
from evo_subnets.rl import EnsemblePolicy
from evo_subnets.runs import Run
from evo_subnets.runs.report import table
from evo_subnets.streams import derive_seed


def main(args: SweepArgs) -> None:
    keep_freed_memory()
    device, largest = command_line.choose_device(args.device), max(args.population_sizes)
    actor = load_parent(args.parent_file, game=args.env, mode=args.mode)
    searches = [args.search(*pair, population_size=largest) for pair in args.grid]
    for search in searches:
        check_strength(actor, search.mutations())
    asked = {**args.asked, "device": device, "weights": files.fingerprint(actor.state_dict())}
    rows: list[dict[str, float]] = []

    with Run(args.out, overwrite=args.overwrite, needed=args.parent_file) as run:
        run.ask("population_sweep", asked)
        print(f"parent: {args.parent_file}")
        actor.to(device)

        def course(generation: int = 0) -> Course:
            name = f"validation {generation}" if generation else "validation"
            return Course(
                args.env, TRAIN_LEVELS, seed=derive_seed(args.seed, name), mode=args.mode,
                frame_stack=actor.observation_shape[0] // 3,
            )  # fmt: skip

        def validate(model: nn.Module) -> float:
            policy = EnsemblePolicy(model, device=device)
            return float(play(policy, course(), episodes=args.validation_episodes).returns.mean())

        parent_return: float = run.once("parent", partial(validate, actor))
        print(f"parent: return {parent_return:.2f} over {args.validation_episodes} episodes")
        policy = EnsemblePolicy(actor, device=device)
        observations = collect_observations(policy, course(), count=256)
        for (sigma, density), search in zip(args.grid, searches, strict=True):
            name = f"sigma={sigma:g},density={density:g}"
            region = search_trust_region(
                actor, observations, search=search, sigmas=(sigma,), target=math.inf
            )
            evolved = partial(
                evolve_together, actor, course=course, episodes=args.validation_episodes,
                generations=args.evolution.generations, moving=args.evolution.moving(None),
                inputs=observations, device=device, workers=args.workers.chosen,
            )  # fmt: skip
            moves = args.evolution.generations > 1
            whole = None if moves else evolved(search, run=run, name=name)
            for size in args.population_sizes:
                one = args.search(sigma, density, population_size=size)
                part = run.part(f"{name},population_size={size}")
                if whole is None:  # a parent that moves has other children in each size
                    evolution = evolved(one, run=part)
                else:  # smaller populations are the first children of the largest
                    evolution = Evolved(actor, one, root=actor, lineage=Lineage())
                    evolution.tell(whole.children[:size])
                populated = {"sigma": sigma, "density": density, "population_size": size}
                found = {
                    "kl": region.divergence,
                    "mean": float(np.nanmean([child.fitness for child in evolution.children])),
                    "best": evolution.elites[0].fitness,
                    "ensemble": part.once("ensemble", partial(validate, evolution.ensemble)),
                }
                if moves:
                    moved = part.once("evolved", partial(validate, evolution.evolved))
                    found |= {"evolved": moved, "drift": evolution.history[-1].drift}
                show_children(part, evolution)
                part.hyper_parameters(populated, found)
                part.close()
                rows.append({**populated, **found})
        print(f"\n{args.env}, training levels, return over {args.validation_episodes} episodes:\n")
        headings = ["sigma", "density", "children", "KL", "mean", "best", "ensemble", "parent"]
        lines = [
            [f"{row['sigma']:g}", f"{row['density']:g}", f"{row['population_size']}",
             f"{row['kl']:.4f}", f"{row['mean']:.2f}", f"{row['best']:.2f}",
             f"{row['ensemble']:.2f}", f"{parent_return:.2f}"]
            for row in rows
        ]  # fmt: skip
        if args.evolution.generations > 1:
            headings += ["evolved", "drift"]
            for line, row in zip(lines, rows, strict=True):
                line += [f"{row['evolved']:.2f}", f"{row['drift']:.4f}"]
        print(table(headings, lines))
        run.finish({"arguments": args.asked, "parent_return": parent_return, "rows": rows})


if __name__ == "__main__":
    command_line.run(lambda: tyro.cli(SweepArgs), main)
