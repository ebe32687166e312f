"""The options of the benchmark of many games."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents.parents import POLICY, SHIPPED
from configs.workers import WorkerArgs, WorkerOptions
from envs.games import GAMES, check_game
from evo_subnets.options import check_distinct
from evo_subnets.streams import check_seed

LAYOUTS = {".safetensors", ".zip", ".pt", ".pth", ".pkl", ".cleanrl_model"}
"""Endings of files that may be parents."""
TINY = ("--population-size", "4", "--ensemble-size", "2", "--validation-episodes", "2",
        "--held-out-episodes", "2", "--test-episodes", "4")  # fmt: skip
Printed = tuple[float, float, float, float]
PRINTED: dict[str, Printed] = {
    "bigfish": (13.7, 5.47, 25.9, 5.59), "bossfight": (9.1, 1.93, 12.4, 0.32),
    "caveflyer": (3.9, 1.53, 7.3, 1.32), "chaser": (2.3, 0.22, 3.7, 1.0),
    "climber": (5.1, 1.61, 7.0, 1.75), "coinrun": (8.0, 1.26, 7.0, 1.44),
    "dodgeball": (0.8, 0.51, 2.0, 0.56), "fruitbot": (30.2, 3.16, 32.4, 0.69),
    "heist": (3.0, 1.54, 4.0, 1.55), "jumper": (6.0, 1.55, 7.0, 1.45),
    "leaper": (6.0, 1.55, 9.0, 0.94), "maze": (6.0, 1.54, 5.0, 1.58),
    "miner": (7.4, 1.78, 4.7, 1.74), "ninja": (5.0, 1.58, 7.0, 1.45),
    "plunder": (10.6, 3.02, 13.6, 2.97), "starpilot": (20.1, 5.42, 39.1, 6.85),
}  # fmt: skip
"""Whitaker 2023, table 4.2: mean and standard deviation of a parent, and of eight noisy children,
over ten episodes."""


@dataclass(frozen=True)
class Job:
    """A run of the main job."""

    game: str
    parent: Path
    seed: int
    name: str
    """Of its folder."""


@dataclass(frozen=True)
class BenchmarkArgs:
    """Runs the main job over games, parents and seeds, and puts the paper's table 4.2 beside what
    came of it. Options that are not listed here are the main job's (procgen_ensemble.py --help).
    """

    games: tuple[str, ...] = ()
    """Procgen games; none: those that PARENTS has a parent of."""
    parents: Path = SHIPPED
    """A folder with GAME/**/policy.safetensors, or else with agents that the main job's --parent
    reads in GAME/ or as GAME*.EXTENSION. Several of a game are its runs."""
    seeds: int = 1
    """Populations of each parent, each from a seed of its own."""
    first_seed: int = 0
    """The first of them."""
    mode: Literal["easy", "hard"] = "easy"
    """Procgen's distribution mode."""
    tiny: bool = False
    """Four children and four episodes of each kind at most: to see that it runs."""
    out: Path = Path("runs/procgen_benchmark")
    """Folder of the results, where a benchmark that was stopped goes on: more games, parents and
    seeds may be asked for."""
    overwrite: bool = False
    """Start afresh in a folder that holds another benchmark."""
    workers: WorkerOptions = WorkerArgs()

    def __post_init__(self) -> None:
        for game in self.games:
            check_game(game)
        check_distinct("games", self.games)
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        object.__setattr__(self, "first_seed", check_seed(self.first_seed, bits=31))
        if not self.parents.is_dir():
            raise ValueError(f"parents: there is no folder {self.parents}")
        _ = self.jobs

    @property
    def jobs(self) -> list[Job]:
        """What is to be run, game by game."""
        found = {game: parents_of(game, self.parents) for game in self.games or GAMES}
        lacking = [game for game, files in found.items() if self.games and not files]
        if lacking or not any(found.values()):
            raise ValueError(
                f"{self.parents} has no parent of {', '.join(lacking) or 'any game'}: expected "
                f"GAME/{POLICY} there, or GAME*.EXTENSION of {', '.join(sorted(LAYOUTS))}"
            )
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        return [
            Job(game, file, seed, f"{game}-parent-{number}-seed-{seed}")
            for game, files in found.items()
            for number, file in enumerate(files, start=1)
            for seed in seeds
        ]

    def command(self, job: Job, others: Sequence[str]) -> list[str]:
        """The main job's arguments."""
        about = {"--env": job.game, "--parent": job.parent.resolve(), "--seed": job.seed,
                 "--mode": self.mode, "--out": self.out.resolve() / job.name}  # fmt: skip
        own = [str(each) for pair in about.items() for each in pair]
        return [*(TINY if self.tiny else ()), *others, *own]


def parents_of(game: str, folder: Path) -> list[Path]:
    """The parents of a game, by name."""
    policies = sorted((folder / game).glob(f"**/{POLICY}"))
    if policies:
        return policies
    inside = [path for path in (folder / game).glob("*") if path.suffix in LAYOUTS]
    named = [
        path
        for path in folder.glob(f"{game}*")
        if path.is_file() and re.fullmatch(rf"{game}([._-].*)?", path.stem)
        if path.suffix in LAYOUTS
    ]
    return sorted(inside) + sorted(named)
