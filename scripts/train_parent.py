"""Trains a Procgen parent with PPO, and goes on where an earlier run was stopped.

    python scripts/train_parent.py cpu --env bigfish --out runs/bigfish

`policy.safetensors`, `card.json` and `curve.csv` of the folder are what `parents/ENV` holds.
"""

import shlex
import sys
from dataclasses import asdict
from typing import Any

import tyro

from agents.evaluation import bootstrap_interval, spread
from agents.parents import POLICY, save_actor, train_parent, training_outputs
from agents.play.course import Course
from agents.play.population import play
from configs import command_line
from configs.ppo import PRESETS, ParentArgs
from envs.games import TEST_LEVELS, TRAIN_LEVELS, Levels, normalized_return
from evo_subnets import files
from evo_subnets.rl import EnsemblePolicy
from evo_subnets.runs import Run
from evo_subnets.streams import derive_seed


def main(args: ParentArgs) -> None:
    device = command_line.choose_device(args.device)
    outputs = training_outputs(args.out)
    with Run(args.out, overwrite=args.overwrite, outputs=outputs) as run:
        actor, about = train_parent(args.env, args.ppo, run=run, device=device, **args.training)
        policy = EnsemblePolicy(actor, device=device)

        def returns(levels: Levels, name: str) -> dict[str, Any]:
            print(f"playing {args.card_episodes} episodes on {name} levels")
            course = Course(
                args.env, levels, seed=derive_seed(args.seed, "card", name), mode=args.mode,
                frame_stack=actor.observation_shape[0] // 3,
            )  # fmt: skip
            played = play(policy, course, episodes=args.card_episodes).returns
            low, high = bootstrap_interval(played)
            print(f"  return {played.mean():.2f} [{low:.2f}, {high:.2f}]")
            return {
                "mean": float(played.mean()),
                "sd": spread(played),
                "interval": [low, high],
                "normalized": float(normalized_return(played.mean(), args.env, mode=args.mode)),
            }

        card = {
            **about,
            "ppo": asdict(args.ppo),
            "command": shlex.join(["python", *sys.argv]),
            "episodes": args.card_episodes,
            "train_levels": returns(TRAIN_LEVELS, "training"),
            "test_levels": returns(TEST_LEVELS, "unseen"),
        }
        save_actor(args.out / POLICY, actor, about=card)
        files.write_json(args.out / "card.json", card)
        run.finish(card)


if __name__ == "__main__":
    command_line.run(lambda: tyro.extras.overridable_config_cli(PRESETS), main)
