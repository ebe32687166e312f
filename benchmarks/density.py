"""Trust regions by density: sigma of sparse and dense mutations, and whether the bound holds.

    nice python benchmarks/density.py

Nothing is timed. Of every network, sampler and density: the sigma that the search found (mean over
seeds and extremes), and the divergence of fresh children of each of these sigmas, of a seed that no
search used, as a fraction of the target. A trained MLP and LeNet on scikit-learn's digits, and
agents on what they see while they play.
"""

import statistics
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from agents.parents import load_parent
from agents.play.course import Course
from agents.play.observations import collect_observations
from benchmarks.timing import publish, spread
from envs.games import TRAIN_LEVELS
from evo_subnets import Search, models, quads, search_trust_region, singles
from evo_subnets.data import load
from evo_subnets.prediction import inputs_for
from evo_subnets.recipes import WorkCopy
from evo_subnets.rl import EnsemblePolicy
from evo_subnets.runs.report import table
from evo_subnets.schedules import Constant
from evo_subnets.task import Task
from evo_subnets.trust_region import divergence, outputs_of
from evo_subnets.tuning import Tuning, tune

SAMPLERS = {"singles": singles, "quads": quads}
FRESH = 12345
"""The seed of the children that no search has seen."""
PARENTS = Path("parents")


@dataclass(frozen=True)
class Args:
    """Searches trust regions over densities and seeds, and asks fresh children."""

    networks: tuple[str, ...] = ("mlp", "lenet-s", "bigfish", "fruitbot", "starpilot")
    """Classifiers of digits, and games of which there is a parent."""
    densities: tuple[float, ...] = (0.2, 0.05, 0.1, 0.5, 0.8)
    """Fractions of the weights."""
    seeds: int = 20
    """Searches of the first density."""
    other_seeds: int = 3
    """Searches of the others."""
    target: float = 0.02
    """KL divergence, in nats."""
    fresh: int = 1600
    """Children that each found sigma is tried on."""
    inputs: int = 256
    """Pictures or observations."""
    tiny: bool = False
    """One small network, two seeds."""
    save: bool = False
    """Add the outcome to benchmarks/results/density.md."""


def main(args: Args) -> None:
    if args.tiny:
        args = replace(args, networks=("mlp",), densities=(0.1, 0.5), seeds=1, fresh=20, inputs=32)
        args = replace(args, other_seeds=1)
    rows: list[list[str]] = []
    worst = 0.0
    for name in args.networks:
        module, inputs = subject(name, inputs=args.inputs, tiny=args.tiny)
        for sampler in SAMPLERS:
            for number, density in enumerate(args.densities):
                seeds = range(args.other_seeds if number else args.seeds)
                found = [searched(module, inputs, sampler, density, seed, args) for seed in seeds]
                sigmas, ratios = [each[0] for each in found], [each[1] for each in found]
                worst = max(worst, *(abs(ratio - 1) for ratio in ratios))
                children = statistics.median(each[2] for each in found)
                rows.append([name, sampler, f"{density:g}", f"{len(seeds)}", spread(sigmas, 5),
                             f"{max(sigmas) / min(sigmas):.3f}", spread(ratios, 3),
                             f"{children:.0f}"])  # fmt: skip
                print("  ".join(rows[-1]), flush=True)
    headings = ["network", "sampler", "density", "searches", "sigma", "largest / smallest",
                "fresh children's KL / target", "children"]  # fmt: skip
    text = (
        f"Target KL {args.target:g}, {args.inputs} inputs, {args.fresh} fresh children a search; "
        f"medians [extremes]. Farthest from the target: {100 * worst:.1f} %.\n\n"
        f"{table(headings, rows)}"
    )
    publish(__file__, text, args.save)


def subject(
    name: str, *, inputs: int, seed: int = 0, tiny: bool = False
) -> tuple[nn.Module, Tensor]:
    """A trained network, and inputs."""
    if (PARENTS / name).is_dir():
        actor = load_parent(PARENTS / name / "policy.safetensors", game=name, mode="easy")
        course = Course(name, TRAIN_LEVELS, seed=1, frame_stack=actor.observation_shape[0] // 3)
        policy = EnsemblePolicy(actor, device="cpu")
        return actor, collect_observations(policy, course, count=inputs)
    data = load("digits")
    module = models.build(name, image_shape=(1, 32, 32), classes=10, seed=seed)
    budget = Tuning(2 if tiny else 8, Constant(0.001), "adam")
    tune(module, Task(data.train), tuning=budget, seed=seed)
    return module.eval(), torch.cat(list(inputs_for(module, data.validation)))[:inputs]


def searched(
    module: nn.Module, inputs: Tensor, sampler: str, density: float, seed: int, args: Args
) -> tuple[float, float, int]:
    """Sigma, the mean divergence of fresh children as a fraction of the target, and how many
    children the search measured."""
    search = Search(16, 8, density=density, seed=seed, sampler=SAMPLERS[sampler])
    region = search_trust_region(module, inputs, search=search, target=args.target)
    fresh = replace(search, seed=FRESH).measured(region.sigma, density)
    work, shares = WorkCopy(module), torch.split(inputs, 16)
    parent = [outputs_of(work.parent(), share) for share in shares]
    values: dict[bool, list[float]] = {True: [], False: []}
    for mutation in islice(fresh, args.fresh):
        share = len(values[mutation.low == 0]) % len(shares)
        after = outputs_of(work.child(mutation), shares[share])
        values[mutation.low == 0].append(divergence(parent[share], after))
    # the halves of a quad are bounded both
    mean = max(statistics.fmean(half) for half in values.values() if half)
    return region.sigma, mean / args.target, max(trial.children for trial in region.table)


if __name__ == "__main__":
    main(tyro.cli(Args))
