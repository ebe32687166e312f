"""Any stable-baselines3 agent in any gymnasium environment: mutate it, keep the best children, play
episodes that nobody was chosen by.

    python scripts/agent_ensemble.py --agent PATH.zip --env Pendulum-v1
    python scripts/agent_ensemble.py --env CartPole-v1     # trains a small PPO first

What `procgen_ensemble.py` does for Procgen. A run that was stopped goes on when the same command is
given again.
"""

from evo_subnets.rl import Actor, MeanReturn, mean_return, observations  # isort: skip  # first: it silences gym's notice

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from torch import nn

from agents.evaluation import as_table, compare, verdict
from agents.kept import as_code, find_region, played_once, show_children, write_returns
from agents.small import check_further, train_further, train_small
from configs import command_line
from configs.agent import TOTAL_TIMESTEPS, AgentArgs
from evo_subnets import evolve, files
from evo_subnets.actions import Deterministic
from evo_subnets.evolution import check_strength
from evo_subnets.runs import Run
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import parameters

Models = dict[str, tuple[nn.Module, bool]]  # with each comes whether it acts without chance
Returns = npt.NDArray[np.float64]
OBSERVATIONS = 512
OUTPUTS = ("parent.zip", "further.zip", "ensemble.safetensors", "lineage.json", "episodes.csv")


def main(args: AgentArgs) -> None:
    started = time.monotonic()
    device, search = command_line.choose_device(args.device), args.search

    def seen_by(actor: Actor) -> Any:
        return observations(
            args.env, actor, count=OBSERVATIONS, seed=derive_seed(args.seed, "observations"),
            num_envs=args.num_envs, device=device,
        )  # fmt: skip

    # What can be refused is refused before the folder is touched
    actor = None if args.agent is None else Actor.from_zip(args.agent, **args.of_agent)
    if actor is not None and search.sigma is not None:
        check_strength(actor, search.mutations())
    if actor is not None and args.agent is not None and args.further_training:
        check_further(
            args.agent, algorithm=args.algorithm, normalized=bool(actor.normalization),
            frames=args.frame_stack or 1,
        )  # fmt: skip
    seen = None if actor is None else seen_by(actor)

    with Run(args.folder, overwrite=args.overwrite, outputs=OUTPUTS, needed=args.agent) as run:
        run.ask("agent_ensemble", {**args.asked, "device": device})
        source = str(args.agent)
        if actor is None:
            path, steps = args.folder / "parent.zip", args.total_timesteps or TOTAL_TIMESTEPS
            seed = derive_seed(args.seed, "training") % 2**31
            trained = run.once(
                "training", lambda: train_small(args.env, steps=steps, seed=seed, path=path)
            )
            source = f"PPO, {trained:,} steps"
            actor = Actor.from_zip(path, algorithm="PPO", normalization=False)
        print(f"parent: {source}; outputs: {type(actor.outputs).__name__}"
              f"{', normalised observations' if actor.normalization else ''}")  # fmt: skip
        run.ask("weights", {"parent": files.fingerprint(actor.state_dict())})
        seen = seen_by(actor) if seen is None else seen

        def returns_on(name: str, episodes: int, *, greedy: bool) -> MeanReturn:
            # one seed for all, and others for each purpose
            return mean_return(
                args.env, episodes=episodes, seed=derive_seed(args.seed, name),
                num_envs=args.num_envs, deterministic=greedy, device=device,
            )  # fmt: skip

        def play_all(models: Models, name: str, episodes: int) -> dict[str, Returns]:
            def play(model: nn.Module, greedy: bool) -> dict[str, list[float]]:
                return {"returns": returns_on(name, episodes, greedy=greedy).cases(model)}

            found = played_once(models, play, run=run, name=name)
            return {each: np.array(lists["returns"]) for each, lists in found.items()}

        # How strong a mutation may be
        if search.sigma is None:
            region = find_region(actor, seen, search=search, target=args.target, run=run)
            search = region.search
            print(f"trust region: sigma {search.sigma:.5f}, KL {region.divergence:.5f}")

        # Generations of children, each judged on episodes of its own
        fitness = returns_on("validation", args.validation_episodes, greedy=args.deterministic)
        evolution = evolve(
            actor,
            fitness,
            search=search,
            generations=args.evolution.generations,
            moving=args.evolution.moving(None if args.sigma else args.target),
            inputs=seen,
            again=args.again,
            run=run,
            workers=args.workers.chosen,
        )
        show_children(run, evolution)
        candidates: Models = {
            name: (model, args.deterministic) for name, model in evolution.models().items()
        }
        held_out = play_all(candidates, "held out", args.held_out_episodes)
        chosen = max(held_out, key=lambda name: held_out[name].mean())
        print(f"chosen on held-out episodes, before the test: {chosen}")

        # What chance, or further training, comes to with the same noise or the same play
        controls: Models = {
            name: (model, args.deterministic) for name, model in evolution.controls().items()
        }
        if args.further_training:
            path, generations = args.folder / "further.zip", max(1, len(evolution.history))
            steps = fitness.steps(actor) * args.population_size * generations
            print(f"further training of the parent: {steps:,} steps, as many as the search played")
            seed = derive_seed(args.seed, "further") % 2**31
            before = args.agent or args.folder / "parent.zip"
            run.once(
                "further training",
                lambda: train_further(before, args.env, steps=steps, seed=seed, path=path),
            )
            further = Actor.from_zip(path, algorithm=args.algorithm, normalization=False)
            controls["parent, trained further"] = (further, args.deterministic)

        # The test: the same episodes for everyone
        parents: Models = {"parent": (actor, args.deterministic)}
        if not args.deterministic and not isinstance(actor.outputs, Deterministic):
            parents["parent, without chance"] = (actor, True)
        played = play_all({**parents, **candidates, **controls}, "test", args.test_episodes)
        rows = compare(played)
        row = next(row for row in rows if row.policy == chosen)
        print(
            f"\n{args.env}, episodes that chose nobody, the same for every row; intervals over "
            f"episodes, of this one parent:\n\n{as_table(rows)}\n\n"
            f"Chosen: {chosen}, {verdict(row)}."
        )
        run.text("test", as_code(as_table(rows)))
        run.hyper_parameters(
            {**args.asked, "sigma": search.sigma},
            {"test/chosen": row.mean, "test/parent": rows[0].mean},
        )

        # What it leaves behind
        evolution.ensemble.save(args.folder / "ensemble.safetensors")
        evolution.lineage.save(args.folder / "lineage.json", parameters(actor), include=None)
        write_returns(args.folder / "episodes.csv", played)
        run.finish(
            {
                "arguments": args.asked,
                "parent": source,
                "sigma": search.sigma,
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
    command_line.run(lambda: tyro.cli(AgentArgs), main)
