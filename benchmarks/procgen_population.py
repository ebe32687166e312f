"""Judging a population on Procgen: all children together, and one by one in stable-baselines3.

    python benchmarks/procgen_population.py

The other side is what a user writes: for each child, its weights go into a PPO agent, and
`evaluate_policy` plays as many episodes. Where it has as many environments as there are episodes,
they are the same levels. The script first checks that children play together, bit for bit, what
each plays alone; the report shows that the other side's mean return agrees within chance.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from agents.impala import ImpalaCNN
from agents.parents import load_actor
from agents.play.course import Course, Episodes
from agents.play.population import play, play_population
from benchmarks.timing import Device, publish, ratios, spread
from envs import TRAIN_LEVELS, ProcgenSimulator, ProcgenVecEnv, SlotState
from envs.states import Frames
from evo_subnets import Ensemble, quads
from evo_subnets.engines import keep_freed_memory
from evo_subnets.rl import Actor, EnsemblePolicy
from evo_subnets.runs.report import table

from stable_baselines3 import PPO  # isort: skip  # after envs, which silences gym
from stable_baselines3.common.evaluation import evaluate_policy  # isort: skip

PARENT = Path(__file__).parent.parent / "parents/bigfish/policy.safetensors"


@dataclass(frozen=True)
class Args:
    """Times the evaluation of a population against stable-baselines3's `evaluate_policy`."""

    game: str = "bigfish"
    """Procgen game."""
    parent: Path = PARENT
    """The network that children are made of."""
    children: int = 4
    """Of the population."""
    episodes: int = 16
    """Of each child."""
    other_envs: tuple[int, ...] = (16,)
    """Environments of the other side, each tried."""
    blocks: int | None = None
    """Blocks of a simulator; None: the library's choice."""
    rounds: int = 5
    """Alternations; medians and extremes are reported."""
    threads: int = 2
    """torch's threads."""
    device: Device = "cpu"
    """Where the networks lie."""
    save: bool = False
    """Add the outcome to benchmarks/results/procgen_population.md."""


class PlainImpala(ImpalaCNN):
    """Impala as it is usually written, in torch's default layout."""

    def forward(self, observations: Tensor) -> Tensor:
        """As in the base class."""
        return F.relu(self.hidden(F.relu(self.blocks(observations)).flatten(1)))


class Run(NamedTuple):
    """One evaluation of the whole population."""

    seconds: float
    returns: list[float]
    """Of each child, the mean."""
    deviation: float
    """The standard deviation of all episodes' returns."""
    counted: int
    """Environment steps of episodes that count."""
    steps: int
    """All environment steps in which a network was asked for an action."""


def main(args: Args) -> None:
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    actor = load_actor(args.parent)[0].to(args.device)
    mutations = quads(args.children, sigma=0.0146, density=0.2, seed=0)
    children = [
        model for model in Ensemble.from_mutations(actor, mutations).members
        if isinstance(model, Actor)
    ]  # fmt: skip
    course = Course(args.game, TRAIN_LEVELS, seed=5, frame_stack=actor.observation_shape[0] // 3)
    check(children, course)

    sides: dict[str, Callable[[], Run]] = {
        "together": lambda: together(children, course, args.episodes, args.blocks)
    }
    for count in args.other_envs:
        name = f"evaluate_policy, {count} environments"
        sides[name] = partial(one_by_one, children, course, args.episodes, count, args.device)
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, job in sides.items():
            runs[name].append(job())
    publish(__file__, report(args, runs), args.save)


def together(children: list[Actor], course: Course, episodes: int, blocks: int | None) -> Run:
    """The whole population in `play_population`."""
    start = time.perf_counter()
    device = next(children[0].parameters()).device
    playing = play_population(
        makers(children), course, episodes=episodes, device=device, blocks=blocks
    )
    outcomes = dict(playing)
    seconds = time.perf_counter() - start
    played = [each for each in outcomes.values() if isinstance(each, Episodes)]
    assert len(played) == len(children), outcomes
    counted = int(sum(each.lengths.sum() for each in played))
    means = [float(each.returns.mean()) for each in played]
    deviation = float(np.concatenate([each.returns for each in played]).std(ddof=1))
    return Run(seconds, means, deviation, counted, counted)


def one_by_one(
    children: list[Actor], course: Course, episodes: int, num_envs: int, device: Device
) -> Run:
    """Child after child in `evaluate_policy`; the agent and its environment are made once."""
    states = [state for group in course.groups(num_envs) for state in group.states]
    env = CountingEnv(course.simulator(num_envs), states)
    with torch.random.fork_rng(devices=[]):
        agent = PPO(
            "CnnPolicy", env, device=device,
            policy_kwargs={
                "features_extractor_class": PlainImpala,
                "features_extractor_kwargs": {"widths": widths(children[0])},
                "net_arch": [],
            },
        )  # fmt: skip
        start, found, counted = time.perf_counter(), [], 0
        for child in children:
            load(agent, child)
            returns, lengths = evaluate_policy(
                agent, env, episodes, deterministic=False, return_episode_rewards=True, warn=False
            )
            assert isinstance(returns, list)
            assert isinstance(lengths, list)
            found.append(returns)
            counted += sum(lengths)
        seconds = time.perf_counter() - start
    env.close()
    means = [float(np.mean(returns)) for returns in found]
    return Run(seconds, means, float(np.std(found, ddof=1)), int(counted), env.steps)


class CountingEnv(ProcgenVecEnv):
    """Which counts its steps, and always starts on the same levels."""

    def __init__(self, simulator: ProcgenSimulator, states: list[SlotState]) -> None:
        super().__init__(simulator)
        self.steps, self.states = 0, states

    def reset(self) -> Frames:
        """The first levels again."""
        return self.simulator.set_state(self.states)

    def step_async(self, actions: Any) -> None:
        """As in the base class."""
        self.steps += self.num_envs
        super().step_async(actions)


def load(agent: PPO, child: Actor) -> None:
    """The child's weights, in an agent of stable-baselines3's."""
    agent.policy.features_extractor.load_state_dict(child.features.state_dict())
    agent.policy.action_net.load_state_dict(child.head.state_dict())


def widths(actor: Actor) -> tuple[int, ...]:
    """Of an Impala network's blocks."""
    assert isinstance(actor.features, ImpalaCNN)
    return actor.features.widths


def makers(children: list[Actor]) -> list[Callable[[], EnsemblePolicy]]:
    """As `play_population` takes them."""
    device = next(children[0].parameters()).device
    return [
        partial(EnsemblePolicy, child, child.observation_space, device=device) for child in children
    ]


def check(children: list[Actor], course: Course) -> None:
    """Together each child plays, bit for bit, what it plays alone."""
    some = children[:2]
    device = next(children[0].parameters()).device
    found = dict(play_population(makers(some), course, episodes=4, device=device))
    for index, make in enumerate(makers(some)):
        alone, outcome = play(make(), course, episodes=4), found[index]
        assert isinstance(outcome, Episodes)
        assert np.array_equal(alone.returns, outcome.returns)
        assert np.array_equal(alone.lengths, outcome.lengths)
        assert np.array_equal(alone.level_seeds, outcome.level_seeds)


def report(args: Args, runs: dict[str, list[Run]]) -> str:
    """The table, and whether the sides' returns agree."""
    ours = runs["together"]
    rows = []
    for name, each in runs.items():
        faster = ratios([run.seconds for run in each], [run.seconds for run in ours])
        speed = [run.counted / run.seconds for run in each]
        rows.append(
            [name, spread([run.seconds for run in each], 1), spread(speed, 0),
             spread([run.steps / run.seconds for run in each], 0),
             spread(ratios([run.counted / run.seconds for run in ours], speed)), spread(faster)]
        )  # fmt: skip
    headings = [
        "side", "s", "counted steps/s", "all steps/s", "together, in counted steps/s",
        "together, in time",
    ]  # fmt: skip
    lines = [
        f"{args.game}, {args.children} children of {args.parent.parent.name}, {args.episodes} "
        f"episodes each, {args.device}, {args.threads} threads, {args.rounds} alternations.",
        table(headings, rows),
        "Mean return of a child, and the difference from `together` with the standard error of one "
        "child's episodes, as children share levels and chance:",
    ]
    own = float(np.mean([run.returns for run in ours]))
    for name, each in runs.items():
        mean = float(np.mean([run.returns for run in each]))
        line = f"  {name:34} {mean:.3f}"
        if each is not ours:
            error = math.hypot(ours[0].deviation, each[0].deviation) / math.sqrt(args.episodes)
            line += f"   {mean - own:+.3f} +- {error:.3f}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Args))
