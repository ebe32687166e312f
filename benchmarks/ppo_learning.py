"""Whether FastPPO learns as stable-baselines3's PPO does: curves of both, over seeds.

    python benchmarks/ppo_learning.py --games coinrun bigfish --total-timesteps 200000

Both sides of a seed start from the same weights on the same levels; rounding parts them within
some updates, after which they differ as two seeds do. The script prints the mean over the second
half of each run, and how far apart the two sides' means over seeds are in units of the standard
error of their difference.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro

from agents.fast.ppo import FastPPO
from agents.ppo import make_ppo, make_training_env
from benchmarks.timing import publish
from configs.ppo import CPU
from envs.procgen import TRAIN_LEVELS
from evo_subnets.engines import keep_freed_memory
from evo_subnets.runs.report import table

from stable_baselines3 import PPO  # isort: skip  # after agents, which silences gym
from stable_baselines3.common.callbacks import BaseCallback  # isort: skip
from stable_baselines3.common.logger import Logger  # isort: skip

SIDES: dict[str, type[PPO]] = {"stable-baselines3": PPO, "FastPPO": FastPPO}
COLUMNS = ("return", "entropy", "value loss", "explained variance")


@dataclass(frozen=True)
class Args:
    """Trains both sides on several games and seeds."""

    games: tuple[str, ...] = ("coinrun", "bigfish")
    """Procgen games."""
    seeds: int = 3
    """Runs of each side on each game."""
    total_timesteps: int = 200_000
    """Steps of a run."""
    rollout_steps: int = 16
    """Steps of each of the 64 environments between updates."""
    minibatches: int = 4
    """Minibatches of a rollout."""
    widths: tuple[int, ...] = CPU.widths
    """Channels of the Impala blocks."""
    threads: int = 2
    """torch's threads."""
    save: bool = False
    """Add the outcome to benchmarks/results/ppo_learning.md."""


class Curve(BaseCallback):
    """A row of COLUMNS for each update; the last row's losses are the update's before."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[float, ...]] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        self.returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        logged: dict[str, Any] = self.logger.name_to_value
        names = ("train/entropy_loss", "train/value_loss", "train/explained_variance")
        if "train/value_loss" in logged:
            entropy, value_loss, explained = (float(logged[name]) for name in names)
            self.rows.append((-entropy, value_loss, explained))


class KeepingLogger(Logger):
    """Keeps what was recorded until it is recorded again."""

    def dump(self, step: int = 0) -> None:
        """Nothing is written."""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    sections = [
        f"{args.seeds} seeds, {args.total_timesteps:,} steps, Impala "
        f"{'-'.join(map(str, args.widths))}, updates every {64 * args.rollout_steps} steps, "
        f"{args.threads} threads. Means over a run's second half, for every seed."
    ]
    for game in args.games:
        found = {
            side: [run(args, game, seed, agent) for seed in range(args.seeds)]
            for side, agent in SIDES.items()
        }
        rows = [row(name, [[each[i] for each in found[side]] for side in SIDES])
                for i, name in enumerate(COLUMNS)]  # fmt: skip
        sections.append(f"{game}\n" + table(["", *SIDES, "difference / its error"], rows))
    publish(__file__, "\n\n".join(sections), args.save)


def run(args: Args, game: str, seed: int, kind: type[PPO]) -> tuple[float, ...]:
    """The means over a run's second half, in the order of COLUMNS."""
    settings = replace(
        CPU, rollout_steps=args.rollout_steps, minibatches=args.minibatches, widths=args.widths,
        target_kl=None, value_loss="clipped",
    )  # fmt: skip
    env = make_training_env(game, settings, TRAIN_LEVELS, "easy", seed)
    agent = make_ppo(env, settings, seed, "cpu", kind)
    agent.set_logger(KeepingLogger(None, []))
    curve = Curve()
    agent.learn(args.total_timesteps, curve)
    env.close()
    late, ended = curve.rows[len(curve.rows) // 2 :], curve.returns[len(curve.returns) // 2 :]
    losses = (statistics.fmean(each) for each in zip(*late, strict=True))
    means = (statistics.fmean(ended) if ended else float("nan"), *losses)
    print(game, seed, kind.__name__, *(f"{mean:.4f}" for mean in means), flush=True)
    return means


def row(name: str, sides: Sequence[Sequence[float]]) -> list[str]:
    """Every seed's value of both sides, and the difference of their means over its error."""
    texts = [" ".join(f"{value:.3f}" for value in values) for values in sides]
    difference = statistics.fmean(sides[1]) - statistics.fmean(sides[0])
    if len(sides[0]) < 2:
        return [name, *texts, "-"]
    error = sum(statistics.variance(values) / len(values) for values in sides) ** 0.5
    return [name, *texts, f"{difference / error:+.2f}" if error else "0"]


if __name__ == "__main__":
    main(tyro.cli(Args))
