"""What every method is, what it gives back, and how its members are trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from evo_subnets import files
from evo_subnets.ensemble import Ensemble
from evo_subnets.evolution import HERE, NOTHING_KEPT, Child
from evo_subnets.lineage import Lineage
from evo_subnets.metrics import count_parameters
from evo_subnets.options import described
from evo_subnets.runs import Run
from evo_subnets.runs.report import table
from evo_subnets.search import Search
from evo_subnets.task import Task
from evo_subnets.trust_region import Trial
from evo_subnets.tuning import Tuning
from evo_subnets.walk import Generation
from evo_subnets.workers import Workers

__all__ = [
    "HERE",
    "NOTHING_KEPT",
    "Build",
    "Method",
    "Result",
    "begin",
    "train_members",
    "with_seed",
]

Build = Callable[[int], nn.Module]
"""A seed to an untrained network."""


@dataclass(frozen=True)
class Result:
    """An ensemble and what it cost; what the parent's training cost is not counted."""

    ensemble: Ensemble
    epochs: float
    """Passes over the training data, of all members together."""
    training: float
    """Training operations, in epochs of one dense network."""
    inference: float
    """Operations of a prediction, in predictions of one dense network."""
    parameters: int
    """Weights that are kept, of all members together."""
    children: tuple[Child, ...] = ()
    """Of methods that select: all that were judged."""
    elites: tuple[Child, ...] = ()
    """Of these: whose ensemble it is, best first."""
    search: Search | None = None
    """Of methods that mutate: how strong, and how drawn."""
    divergence: float | None = None
    """That the trust region found for it; None where sigma was given."""
    trials: tuple[Trial, ...] = ()
    """Of a choice among densities: the one at the target of each, with the children's fitness."""
    seen: tuple[int, ...] | None = None
    """Of a race: the samples that each child was judged on."""
    reference: nn.Module | None = None
    """What the members are to be compared with, where it is not the parent as it was given."""
    candidates: Mapping[str, Ensemble] = field(default_factory=dict)
    """Of generations: what came of them, by name. `ensemble` is the chosen one."""
    controls: Mapping[str, Ensemble] = field(default_factory=dict)
    """What chance comes to with the same noise, by name."""
    held_out: Mapping[str, float] = field(default_factory=dict)
    """Of these, and of the parent: the metric on validation samples that no generation has seen."""
    chosen: str | None = None
    """The best of the candidates; of equals the first."""
    lineage: Lineage | None = None
    """Of generations: from the parent to the evolved one."""
    history: tuple[Generation, ...] = ()
    """Each generation."""

    def story(self) -> dict[str, Any]:
        """How the members were found, as JSON; empty for methods that only train."""
        found: dict[str, Any] = {}
        if self.search is not None:
            found |= {"search": self.search.about(), "divergence": self.divergence}
        if self.trials:
            found["trials"] = [asdict(trial) for trial in self.trials]
        if self.children:
            found["children"] = [asdict(child) for child in self.children]
            found["elites"] = [asdict(child) for child in self.elites]
        if self.seen is not None:
            found["seen"] = self.seen
        if self.candidates:
            found |= {"chosen": self.chosen, "held_out": dict(self.held_out)}
            found["generations"] = [asdict(generation) for generation in self.history]
        return found

    def text(self) -> str:
        """What was compared on validation samples, and chosen; empty where nothing was."""
        parts = []
        if self.trials and self.search is not None:
            cells = [
                [f"{trial.density:g}", f"{trial.sigma:.4g}", f"{trial.divergence:.4g}",
                 "" if trial.fitness is None else f"{trial.fitness:.4g}"]
                for trial in self.trials
            ]  # fmt: skip
            parts += [
                table(["density", "sigma", "divergence", "children's mean metric"], cells),
                f"chosen on samples of the trust region: density {self.search.density:g}",
            ]
        if self.held_out:
            cells = [[name, f"{value:.4g}"] for name, value in self.held_out.items()]
            parts += [
                table(["model", "metric, held out"], cells),
                f"chosen on validation samples that are held out, before the test: {self.chosen}",
            ]
        return "\n\n".join(parts)


def untrained(parent: nn.Module, ensemble: Ensemble, **others: Any) -> Result:
    """The result of members as large as the parent, for which nothing was trained."""
    count = len(ensemble.members)  # fewer than asked for where many failed
    kept = count * count_parameters(parent)
    return Result(ensemble, 0.0, 0.0, float(count), kept, **others)


class Method(Protocol):
    """A published way to an ensemble: a frozen dataclass whose fields are its options."""

    starts_from: ClassVar[Literal["parent", "builder"]]
    """What it is called with: a trained network, or a `Build`."""
    selects: ClassVar[bool]
    """Whether it looks at validation data."""

    @property
    def ensemble_size(self) -> int:
        """Members that are asked for."""

    @property
    def seed(self) -> int:
        """Of everything that it draws."""

    def __call__(
        self, start: Any, task: Task, /, *, run: Run = NOTHING_KEPT, workers: Workers = HERE
    ) -> Result:
        """The ensemble; `start` is left alone.

        `run` keeps what was found and trained, so that the same call goes on where an earlier one
        was stopped. `workers`: where members are judged or trained.
        """


def with_seed(method: Any, seed: int) -> Any:
    """The same method with another seed, which is a field of it or of its search."""
    names = {field.name for field in fields(method)}
    if "seed" in names:
        return replace(method, seed=seed)
    return replace(method, search=replace(method.search, seed=seed))


def begin(run: Run, method: Any, *, start: Any) -> None:
    """Tells the run what is asked: it refuses a folder in which something else was."""
    asked = described(method)
    if isinstance(start, nn.Module):
        asked["parent"] = files.fingerprint(files.state_of(start))
    run.ask(type(method).__name__.lower(), asked)


def train_members(
    train: Callable[[int, Path | None, Callable[[int, float], None]], nn.Module],
    tunings: Sequence[Tuning],
    *,
    what: str,
    run: Run,
    workers: Workers,
) -> list[nn.Module]:
    """The members, each trained by `train(index, checkpoint, on_epoch)`.

    tunings: of each member. Where `workers` are other processes, epochs are not told one by one.
    """
    told = dict.fromkeys(range(len(tunings)), 0)
    members: dict[int, nn.Module] = {}
    with run.bar(what, sum(tuning.epochs for tuning in tunings)) as advance:

        def one(index: int) -> nn.Module:
            def on_epoch(epoch: int, loss: float) -> None:
                told[index] = epoch
                run.scalar(f"loss/member {index + 1}", loss, epoch)
                advance(1, f"member {index + 1} of {len(tunings)}, loss {loss:.3f}")

            return train(index, checkpoints[index], on_epoch)

        checkpoints = [run.checkpoint(f"member-{index}") for index in range(len(tunings))]
        for index, member in workers.map(one, range(len(tunings))):
            members[index] = member
            advance(tunings[index].epochs - told[index], f"member {index + 1} of {len(tunings)}")
    return [members[index] for index in range(len(tunings))]
