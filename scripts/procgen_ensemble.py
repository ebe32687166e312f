"""The main job: mutate a Procgen agent, keep the best children, play unseen levels as one.

    python scripts/procgen_ensemble.py --env bigfish

Whitaker 2023, algorithm 1, with the quads of section 4.2.2 and the protocol of section 4.3.3. A run
that was stopped goes on when the same command is given again.
"""

import time
from dataclasses import asdict
from functools import partial

import tyro
from torch import nn

from agents.distillation import STUDENT, distil
from agents.evaluation import as_table, compare, verdict
from agents.impala import impala_actor
from agents.kept import as_code, find_region, show_children
from agents.parents import load_parent, train_further, train_parent
from agents.play.course import Course
from agents.play.kept import evolve_together, play_all
from agents.play.observations import collect_observations
from agents.play.records import record_clip, write_episodes
from configs import command_line
from configs.procgen import ProcgenArgs
from envs.games import TEST_LEVELS, normalized_return
from evo_subnets import files, shifted_views
from evo_subnets.engines import keep_freed_memory
from evo_subnets.evolution import check_strength
from evo_subnets.rl import EnsemblePolicy
from evo_subnets.runs import Run
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import parameters

TEMPERATURES = (0.25, 0.5, 0.71, 1.0, 1.41)
OBSERVATIONS = 512
OUTPUTS = (
    "parent",
    "further",
    STUDENT,
    "ensemble.safetensors",
    "lineage.json",
    "episodes.csv",
    "chosen.gif",
)


def main(args: ProcgenArgs) -> None:
    started = time.monotonic()
    keep_freed_memory()
    device, file, search = command_line.choose_device(args.device), args.parent_file, args.search

    # What can be refused is refused before the folder is touched
    if file is not None:
        actor, source = load_parent(file, game=args.env, mode=args.mode), f"parent: {file}"
    else:  # as it is before its training
        actor = impala_actor(args.ppo.widths, args.ppo.frame_stack)
    if search.sigma is not None:
        check_strength(actor, search.mutations())

    with Run(args.folder, overwrite=args.overwrite, outputs=OUTPUTS, needed=file) as run:
        run.ask("procgen_ensemble", {**args.asked, "device": device})
        if file is None:
            actor, about = train_parent(
                args.env, args.ppo, run=run.part("parent"), device=device, **args.training
            )
            source = f"parent: PPO, {about['steps']:,} steps"
        print(source)
        run.ask("weights", {"parent": files.fingerprint(actor.state_dict())})
        actor.to(device)

        def policy(model: nn.Module, temperature: float = 1.0) -> EnsemblePolicy:
            return EnsemblePolicy(model, temperature=temperature, device=device)

        def course(name: str) -> Course:
            # one seed for all children and all temperatures, others for observations and the test
            return Course(
                args.env, TEST_LEVELS if name == "test" else args.levels, mode=args.mode,
                seed=derive_seed(args.seed, name), frame_stack=actor.observation_shape[0] // 3,
            )  # fmt: skip

        # How strong a mutation may be
        seen = collect_observations(policy(actor), course("observations"), count=OBSERVATIONS)
        if search.sigma is None:
            print(f"trust region: target KL {args.target}, density {args.density}")
            region = find_region(actor, seen, search=search, target=args.target, run=run)
            for trial in region.table:
                print(f"  sigma {trial.sigma:.5f}: KL {trial.divergence:.5f}")
            search = region.search

        # Generations of children, each judged on training levels of its own
        evolution = evolve_together(
            actor, search, episodes=args.validation_episodes, inputs=seen,
            course=lambda number: course(f"validation {number}" if number else "validation"),
            generations=args.evolution.generations,
            moving=args.evolution.moving(None if args.sigma else args.target), again=args.again,
            deterministic=args.deterministic, device=device, run=run, workers=args.workers.chosen,
        )  # fmt: skip
        show_children(run, evolution)
        candidates = {
            name: (policy(model), args.deterministic) for name, model in evolution.models().items()
        }
        episodes, name = args.held_out_episodes, "held out"
        held_out = play_all(candidates, course(name), episodes=episodes, run=run, name=name)
        chosen = max(held_out, key=lambda name: held_out[name].returns.mean())
        print(f"chosen on training levels, before the test: {chosen}")

        # The parent's best softmax temperature: averaging members changes the entropy as well
        tuned = play_all(
            {str(each): (policy(actor, each), False) for each in TEMPERATURES},
            course("validation"), episodes=args.validation_episodes, run=run, name="temperatures",
        )  # fmt: skip
        returns = {each: float(episodes.returns.mean()) for each, episodes in tuned.items()}
        temperature = float(max(returns, key=lambda each: returns[each]))

        # What chance, or further training, comes to with the same noise or the same play
        controls = {
            name: (policy(model), args.deterministic)
            for name, model in evolution.controls().items()
        }
        if args.further_training and file is not None:
            a_child = int(tuned["1.0"].lengths.sum())
            steps = a_child * args.population_size * max(1, len(evolution.history))
            print(f"further training of the parent: {steps:,} steps, as many as the search played")
            further = train_further(
                file, steps=steps, run=run.part("further"), game=args.env, mode=args.mode,
                seed=derive_seed(args.seed, "further") % 2**31, device=device,
            ).to(device)  # fmt: skip
            controls["parent, trained further"] = (policy(further), args.deterministic)

        if args.distill:  # one network instead of the ensemble's members
            student = distil(
                evolution.ensemble, actor, course=lambda number: course(f"lessons {number}"),
                seed=args.seed, device=device, run=run,
            )  # fmt: skip
            controls["student of the ensemble"] = (policy(student), args.deterministic)

        # The test: the same unseen levels for everyone
        contestants = {
            "parent": (policy(actor), args.deterministic),
            "parent, greedy": (policy(actor), True),
            f"parent, temperature {temperature:g}": (policy(actor, temperature), False),
            "parent, views shifted by a pixel": (policy(shifted_views(actor)), args.deterministic),
            **candidates,
            **controls,
        }
        played = play_all(contestants, course("test"), episodes=args.test_episodes, run=run)
        rows = compare(
            {name: episodes.returns for name, episodes in played.items()},
            normalized=partial(normalized_return, game=args.env, mode=args.mode),
        )
        row = next(row for row in rows if row.policy == chosen)
        print(
            f"\n{args.env} ({args.mode}), levels never trained on, the same for every row; "
            f"intervals over episodes, of this one parent:\n\n{as_table(rows)}\n\n"
            f"Chosen: {chosen}, {verdict(row)}."
        )
        run.text("test", as_code(as_table(rows)))
        run.hyper_parameters(
            {**args.asked, "sigma": search.sigma},
            {"test/chosen": row.mean, "test/parent": rows[0].mean},
        )

        # What it leaves behind
        if args.video:
            clip, (player, greedy) = args.folder / "chosen.gif", candidates[chosen]
            record_clip(player, course("test"), path=clip, deterministic=greedy)
        evolution.ensemble.save(args.folder / "ensemble.safetensors")
        evolution.lineage.save(args.folder / "lineage.json", parameters(actor), include=None)
        write_episodes(args.folder / "episodes.csv", played)
        run.finish(
            {
                "arguments": args.asked,
                "parent": source,
                "sigma": search.sigma,
                "temperature": {"chosen": temperature, "validation_returns": returns},
                "children": [asdict(child) for child in evolution.children],
                "elites": [asdict(child) for child in evolution.elites],
                "generations": [asdict(generation) for generation in evolution.history],
                "chosen": chosen,
                "test": [asdict(row) for row in rows],
            }
        )
    minutes = (time.monotonic() - started) / 60
    print(f"{minutes:.1f} minutes; results, ensemble and TensorBoard logs are in {args.folder}")


if __name__ == "__main__":
    command_line.run(lambda: tyro.cli(ProcgenArgs), main)
