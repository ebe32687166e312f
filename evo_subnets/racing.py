"""Racing: children judged in blocks of common samples, until it is clear which k are the best.

Maron and Moore 1994 (races, Hoeffding's bound), Mnih, Szepesvári and Audibert 2008 (empirical
Bernstein bounds), Heidrich-Meisner and Igel 2009 (the best k of a population).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from evo_subnets.evolution import Child, Evaluator, PopulationError
from evo_subnets.mutation import Mutation
from evo_subnets.streams import derive_seed
from evo_subnets.subnetworks import Include

Bound = Literal["normal", "bernstein", "hoeffding"]


@dataclass(frozen=True)
class Rules:
    """When a race ends for a child.

    It is dropped when at least k others are surely not worse than it by more than `margin`, and
    accepted when all but k - 1 others are surely not better by more. Sure are bounds on the mean of
    paired differences, all samples being finitely many and drawn without replacement:

    - "hoeffding" (Serfling 1974) and "bernstein" (Bardenet and Maillard 2015, theorem 4.3) hold for
      any scores within a range of `span`; with probability `confidence` all comparisons of a race
      are right together. They need many thousands of samples to tell near-equals apart.
    - "normal" is the central limit theorem's, and `confidence` is that of each comparison alone, as
      in the races of Moore and Lee 1994. It promises less and spends far fewer samples.

    Every decision may give away as much as the margin; without one (0) children that are as good as
    equal race to the last sample. `block`: samples between two looks.
    """

    bound: Bound = "normal"
    """On the mean of paired differences."""
    confidence: float = 0.97
    """Of each comparison ("normal"), or of all of a race together."""
    margin: float = 0.001
    """What a decision may give away, in units of the fitness."""
    block: int = 250
    """Samples between two looks."""
    span: float = 1.0
    """Range of the scores."""

    def __post_init__(self) -> None:
        if self.bound not in get_args(Bound):
            raise ValueError(f"bound must be one of {get_args(Bound)}, got {self.bound!r}")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence must be in (0.5, 1), got {self.confidence}")
        if self.margin < 0 or self.block < 2 or not self.span > 0:
            raise ValueError(
                "margin must be at least 0, block at least 2, span more than 0, "
                f"got {self.margin}, {self.block}, {self.span}"
            )

    def half_width(self, variance: Tensor, seen: int, *, total: int, comparisons: int) -> Tensor:
        """How far the mean of differences may be from that of all `total` samples, on one side.

        variance: of the differences that were seen. comparisons: of the whole race.
        """
        if seen == total:
            return torch.zeros_like(variance)
        unseen = 1 - seen / total
        if self.bound == "normal":
            # half a difference more than was seen: those who agree so far need not go on to
            cautious = variance + self.span**2 / (2 * seen)
            z = NormalDist().inv_cdf(self.confidence)
            return z * (cautious * unseen / (seen - 1)).sqrt()
        doubt = (1 - self.confidence) / comparisons
        left = 1 - (seen - 1) / total if 2 * seen <= total else unseen * (1 + 1 / seen)
        if self.bound == "hoeffding":
            width = 2 * self.span * math.sqrt(left * math.log(1 / doubt) / (2 * seen))
            return torch.full_like(variance, width)
        log, kappa = math.log(5 / doubt), 7 / 3 + 3 / math.sqrt(2)
        return (2 * left * log * variance / seen).sqrt() + kappa * 2 * self.span * log / seen


DEFAULT = Rules()


@dataclass(frozen=True)
class Outcome:
    """What a race has found."""

    chosen: tuple[int, ...]
    """The numbers of the best, best first; fewer than k where so many failed."""
    estimates: tuple[float, ...]
    """Of each racer: its mean score as far as it went, NaN where it failed."""
    seen: tuple[int, ...]
    """On how many samples each was judged."""


Judge = Callable[[int, Tensor], Tensor | None]
"""A racer's number and (n,) int64 numbers of samples to its (n,) scores, None where it failed."""


def run_race(
    judge: Judge,
    racers: int,
    *,
    samples: int,
    k: int,
    rules: Rules = DEFAULT,
    strata: Tensor | None = None,
    seed: int = 0,
    on_leave: Callable[[int, float], None] | None = None,
) -> Outcome:
    """The best k of `racers` by their mean score over `samples` samples; higher is better.

    All racers see the same samples, in an order drawn from `seed`. strata: (samples,) int64
    numbers from 0 on of groups of samples; those in which racers differ more get more of the blocks
    (Neyman 1934), so put together what they are likely to disagree on. `on_leave` gets the number
    and the estimate of each racer whose race is over.
    """
    if not 1 <= k <= racers:
        raise ValueError(f"k must be in 1..{racers}, the number of racers, got {k}")
    if strata is None:
        strata = torch.zeros(samples, dtype=torch.int64)
    if strata.shape != (samples,):
        raise ValueError(f"strata must be ({samples},), one for each sample, got {strata.shape}")
    field = _Field(strata, racers, rules=rules, seed=seed)
    running, accepted, seen = list(range(racers)), list[int](), [0] * racers
    estimates = [math.nan] * racers
    while running:
        racing = list(running)
        block = field.next_block(running)
        for i in racing:
            scores = judge(i, torch.cat(block))
            seen[i] += sum(map(len, block))
            if scores is None:
                running.remove(i)
                estimates[i] = math.nan
            else:
                field.add(i, block, scores=scores)
        field.advance(block)
        if running:
            means, surely = field.compare(running)
            for i, mean in zip(running, means.tolist(), strict=True):
                estimates[i] = mean
            now_in, now_out = _decided(means, surely, k - len(accepted))
            accepted += [running[i] for i in now_in]
            running = [i for n, i in enumerate(running) if n not in {*now_in, *now_out}]
        if on_leave is not None:
            for i in racing:
                if i not in running:
                    on_leave(i, estimates[i])
    accepted.sort(key=lambda i: (-estimates[i], i))
    return Outcome(tuple(accepted), tuple(estimates), tuple(seen))


def _decided(means: Tensor, surely: Tensor, places: int) -> tuple[list[int], list[int]]:
    """Who is accepted, who is dropped; `surely`: row is surely not better than column."""
    count = len(means)
    order = means.argsort(descending=True, stable=True)
    leading = torch.zeros(count, dtype=torch.bool)
    leading[order[:places]] = True
    accepted = leading & (surely.sum(0) >= count - places)
    dropped = ~leading & (surely.sum(1) >= places)
    return accepted.nonzero()[:, 0].tolist(), dropped.nonzero()[:, 0].tolist()


class _Field:
    """The scores so far, by stratum, and what they say."""

    def __init__(self, strata: Tensor, racers: int, *, rules: Rules, seed: int) -> None:
        generator = torch.Generator().manual_seed(derive_seed(seed, "race"))
        order = torch.randperm(len(strata), generator=generator)
        groups = [order[strata[order] == group] for group in torch.unique(strata)]
        self.groups, self.total, self.rules = groups, len(strata), rules
        self.scores = [torch.empty(racers, len(group)) for group in groups]
        self.seen = [0] * len(groups)
        # with strata it is chance how many samples of one are seen at a look: any number up to all
        looks = -(-self.total // rules.block) if len(groups) == 1 else self.total
        self.comparisons = racers * (racers - 1) * looks

    def next_block(self, running: list[int]) -> list[Tensor]:
        """The numbers of the samples to be judged next, by stratum."""
        left = [len(group) - seen for group, seen in zip(self.groups, self.seen, strict=True)]
        need = [float(len(group)) for group in self.groups]
        if any(self.seen):
            spreads = [self._variances(h, running).mean().sqrt() for h in range(len(self.groups))]
            need = [size * float(spread) for size, spread in zip(need, spreads, strict=True)]
        need = [want if rest else 0.0 for want, rest in zip(need, left, strict=True)]
        if not sum(need):
            need = [float(rest) for rest in left]
        counts = [math.ceil(self.rules.block * want / sum(need)) for want in need]
        if not any(self.seen):
            counts = [max(count, 2) for count in counts]  # of which a variance can be taken
        return [
            group[seen : seen + count]
            for group, seen, count in zip(self.groups, self.seen, counts, strict=True)
        ]

    def add(self, racer: int, block: list[Tensor], *, scores: Tensor) -> None:
        parts = torch.split(scores, [len(part) for part in block])
        for table, seen, part in zip(self.scores, self.seen, parts, strict=True):
            table[racer, seen : seen + len(part)] = part

    def advance(self, block: list[Tensor]) -> None:
        self.seen = [seen + len(part) for seen, part in zip(self.seen, block, strict=True)]

    def compare(self, running: list[int]) -> tuple[Tensor, Tensor]:
        """The means of those who run, and whether the row is surely not better than the column."""
        means, squares, widths = (torch.zeros((), dtype=torch.float64) for _ in range(3))
        for h, (group, seen) in enumerate(zip(self.groups, self.seen, strict=True)):
            share = len(group) / self.total
            # a sum first, and divided once: of whole numbers those of equals are equal
            means = means + len(group) / seen * self._table(h, running).sum(1)
            variance = self._variances(h, running)
            width = self.rules.half_width(
                variance, seen, total=len(group), comparisons=self.comparisons
            )
            squares, widths = squares + (share * width) ** 2, widths + share * width
        means = means / self.total
        half = squares.sqrt() if self.rules.bound == "normal" else widths
        surely = means[:, None] - means[None, :] + half <= self.rules.margin
        return means, surely.fill_diagonal_(False)

    def _table(self, h: int, running: list[int]) -> Tensor:
        return self.scores[h][running, : self.seen[h]].double()

    def _variances(self, h: int, running: list[int]) -> Tensor:
        """(running, running): of the differences between two."""
        table = self._table(h, running)
        centred = table - table.mean(1, keepdim=True)
        products = centred @ centred.T / table.shape[1]
        own = products.diagonal()
        return (own[:, None] + own[None, :] - 2 * products).clamp(min=0)


Score = Callable[[nn.Module, Tensor], Tensor]
"""A model and (n,) int64 numbers of samples to its (n,) scores on them, higher is better."""


@dataclass(frozen=True)
class Race:
    """The children in the order of their mutations, the chosen ones best first.

    The fitness of a child that was dropped early is the mean over the samples it saw, `seen`.
    """

    children: tuple[Child, ...]
    chosen: tuple[Child, ...]
    seen: tuple[int, ...]


def race(
    module: nn.Module,
    mutations: Sequence[Mutation],
    *,
    score: Score,
    samples: int,
    k: int,
    rules: Rules = DEFAULT,
    strata: Tensor | None = None,
    seed: int = 0,
    include: Include = None,
    on_child: Callable[[Child], None] | None = None,
) -> Race:
    """The k best children of `module` for a part of the evaluations that `evaluate` needs.

    `score` gets children as a fitness does (see `Evaluator`), and the numbers of `samples`:
    validation images to 0 or 1, levels to returns. A child that raises or scores NaN fails, and is
    never chosen; a PopulationError says that more than half have. `on_child` sees each child as its
    race ends. The other arguments: `run_race`.
    """
    failed: dict[int, Child] = {}
    latest = torch.empty(0)
    chosen_samples = latest

    def fitness(model: nn.Module) -> float:
        nonlocal latest
        latest = score(model, chosen_samples).detach().to("cpu", torch.float32)
        if latest.shape != chosen_samples.shape:
            raise ValueError(f"expected {len(chosen_samples)} scores, got {tuple(latest.shape)}")
        return latest.mean().item()

    evaluator = Evaluator(module, fitness, include=include)

    def judge(number: int, numbers: Tensor) -> Tensor | None:
        nonlocal chosen_samples
        chosen_samples = numbers
        child = evaluator(mutations[number])
        if not child.failed:
            return latest
        failed[number] = child
        if 2 * len(failed) > len(mutations):
            raise PopulationError(
                f"more than half of the children failed, {len(failed)} of {len(mutations)} so "
                f"far, the last with: {child.reason}"
            )
        return None

    def child(number: int, estimate: float) -> Child:
        return failed.get(number) or Child(mutations[number], estimate)

    def leave(number: int, estimate: float) -> None:
        if on_child is not None:
            on_child(child(number, estimate))

    outcome = run_race(
        judge, len(mutations), samples=samples, k=k, rules=rules, strata=strata, seed=seed,
        on_leave=leave,
    )  # fmt: skip
    children = tuple(map(child, range(len(mutations)), outcome.estimates))
    return Race(children, tuple(children[i] for i in outcome.chosen), outcome.seen)
