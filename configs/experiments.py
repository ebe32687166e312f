"""Nine tables and figures of Whitaker 2023, chapters 4 to 6, as presets; each says what it lacks.

`docs/results.md` lists them beside those that are not there.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from evo_subnets import Search, singles
from evo_subnets.methods import (
    METHODS,
    Annealing,
    Bagging,
    Independent,
    Method,
    Noisy,
    Pruning,
    Sparse,
    Stochastic,
)
from evo_subnets.schedules import Constant, OneCycle, StepLinear
from evo_subnets.tuning import Tuning


@dataclass(frozen=True)
class Experiment:
    """One line of a table, or one point of a picture."""

    label: str
    """The method's name in the table, the curve's in the picture."""
    method: Method
    """Its seed is replaced by one of the table's."""
    dropout: float = 0.0
    """Of networks that it builds."""
    x: float | None = None
    """Where the point stands in the picture."""
    prefixes: tuple[int, ...] = ()
    """Ensemble sizes to report besides, of the first so many members."""
    published: str = ""
    """What the paper prints: CIFAR-10 with its own images, on its hardware."""


@dataclass(frozen=True)
class Preset:
    """A table or picture of a paper, or a part of one: experiments on one parent's children."""

    title: str
    source: str
    model: str
    parent: Tuning
    budget: int
    """Epochs of the one dense network in whose training the table measures training."""
    experiments: tuple[Experiment, ...]
    dataset: str = "cifar10"
    augment: bool = True
    """Whether training images are cropped and flipped at random."""
    validation: Literal["train", "test"] = "test"
    x_label: str = ""
    """Of the picture; empty for a bar a method."""
    columns: tuple[Literal["vote", "divergence"], ...] = ()
    """Further ones: accuracy of the vote, mean divergence of the members from the parent."""


def adam(epochs: int) -> Tuning:
    """The papers' small budgets: Adam at 0.001, throughout."""
    return Tuning(epochs, Constant(0.001), "adam")


def sgd(epochs: int) -> Tuning:
    """The papers' parents: SGD with Nesterov momentum, step-linear from 0.1 to 0.001."""
    return Tuning(epochs, StepLinear())


def one_cycle(epochs: int) -> Tuning:
    """The papers' children: 0.001 to 0.1 in a tenth of the budget, then down to 1e-7."""
    return Tuning(epochs, OneCycle())


def small_budget(model: str = "lenet-l") -> Preset:
    """Table 5.1: 16 epochs in all; dropout for LeNets alone."""
    printed = {
        "lenet-l": ("70.29 ± 0.21", "70.06 ± 0.32", "70.97 ± 0.13", "75.51 ± 0.06", "75.75 ± 0.06"),
        "resnet-18": (
            "80.99 ± 0.11", "72.97 ± 0.41", "79.88 ± 0.05", "84.61 ± 0.07", "84.68 ± 0.04",
        ),
        "densenet-121": (
            "84.14 ± 0.09", "79.59 ± 0.36", "81.16 ± 0.04", "86.26 ± 0.07", "86.35 ± 0.04",
        ),
    }.get(model, ("",) * 5)  # fmt: skip
    experiments = [
        Experiment("independent", Independent(1, adam(16))),
        Experiment("dropout", Independent(1, adam(16)), dropout=0.5),
        Experiment("bagging", Bagging(8, 0.9, adam(2))),
        Experiment("random", Sparse(8, Pruning("random"), adam(1))),
        Experiment("halves", Sparse(8, Pruning("halves"), adam(1))),
    ]
    rows = [replace(row, published=text) for row, text in zip(experiments, printed, strict=True)]
    if not model.startswith("lenet"):  # the only ones that take dropout after every layer
        rows = [row for row in rows if row.label != "dropout"]
    return Preset(
        "Small training budget: 16 epochs, ensembles of 8",
        "Whitaker 2023, table 5.1",
        model,
        adam(8),
        16,
        tuple(rows),
        augment=False,
    )


def large_budget(model: str = "wrn-28-10") -> Preset:
    """Of tables 5.2 and 6.2, 200 epochs, the independent network, halves and annealed halves."""
    published = ("96.0", "96.5", "96.7") if model == "wrn-28-10" else ("",) * 3
    return Preset(
        "Large training budget: 200 epochs, ensembles of 6",
        "Whitaker 2023, of tables 5.2 and 6.2",
        model,
        sgd(140),
        200,
        (
            Experiment("independent", Independent(1, sgd(200)), published=published[0]),
            Experiment("halves", Sparse(6, tuning=one_cycle(10)), published=published[1]),
            Experiment(
                "annealed halves", Stochastic(6, tuning=one_cycle(10)), published=published[2]
            ),
        ),
    )


def partitions(model: str = "wrn-28-10") -> Preset:
    """Table 5.3: parts of 1/2, 1/3 and 1/6."""
    published = ("96.5", "96.4", "95.1") if model == "wrn-28-10" else ("",) * 3
    return Preset(
        "Partition size: 6 children of one parent",
        "Whitaker 2023, table 5.3",
        model,
        sgd(140),
        200,
        tuple(
            Experiment(
                f"parts of 1/{k}",
                Sparse(6, Pruning("parts", 1 - 1 / k, classifier=True), one_cycle(10)),
                published=printed,
            )
            for k, printed in zip((2, 3, 6), published, strict=True)
        ),
    )  # fmt: skip


def annealing(
    model: str = "lenet-m", *, sparsities: tuple[float, ...] = (0.95, 0.98), epochs: int = 5
) -> Preset:
    """Of table 6.1 random pruning at two sparsities: a child, tuned while or after it is pruned."""
    steps = max(1, round(epochs * 0.5))
    ways = {
        "one-shot": Annealing("one-shot"),
        "iterative": Annealing("iterative", steps),
        "random annealing": Annealing("random", steps, "linear"),
        "temperature annealing": Annealing("temperature", steps, "cosine"),
    }
    tunings = {"constant": Tuning(epochs, Constant(0.01)), "one-cycle": one_cycle(epochs)}
    return Preset(
        f"One child, {epochs} tuning epochs, {steps} of them pruning or annealing",
        "Whitaker 2023, of table 6.1 (there ResNet-18 on CIFAR-100, 20 tuning epochs)",
        model,
        sgd(10),
        10 + epochs,
        tuple(
            Experiment(
                f"{way}, {rate}",
                Stochastic(1, options, Pruning("random", sparsity), tuning),
                x=sparsity,
            )
            for rate, tuning in tunings.items()
            for way, options in ways.items()
            for sparsity in sparsities
        ),
        x_label="sparsity",
    )  # fmt: skip


def sparsity(model: str = "lenet-m") -> Preset:
    """Figure 5.4, left: the children's sparsity; one of its three networks a run."""
    return Preset(
        "Sparsity of 8 children, 3 tuning epochs",
        "Whitaker 2023, figure 5.4, left",
        model,
        adam(10),
        34,
        tuple(
            Experiment(model, Sparse(8, Pruning("random", s, scope="global"), adam(3)), x=s)
            for s in (0.1, 0.3, 0.5, 0.7, 0.9)
        ),
        augment=False,
        x_label="sparsity",
    )


def structure(model: str = "lenet-l") -> Preset:
    """Figure 5.4, right: connections against neurons."""
    return Preset(
        "Connections against neurons: 8 children, 3 tuning epochs",
        "Whitaker 2023, figure 5.4, right",
        model,
        adam(10),
        34,
        tuple(
            Experiment(unit, Sparse(8, Pruning("random", s, unit), adam(3)), x=s)
            for unit in ("connections", "neurons")
            for s in (0.1, 0.3, 0.5, 0.7, 0.9)
        ),
        augment=False,
        x_label="sparsity",
    )


def ensemble_size(model: str = "lenet-m") -> Preset:
    """Figure 5.5, left: up to 128 children of one parent."""
    sizes = (4, 8, 16, 32, 64, 128)
    return Preset(
        "Ensemble size: children of sparsity 0.5, 1 tuning epoch",
        "Whitaker 2023, figure 5.5, left",
        model,
        adam(10),
        10,
        (Experiment(model, Sparse(128, Pruning("random"), adam(1)), prefixes=sizes),),
        augment=False,
        x_label="ensemble size",
    )


def mutation(model: str = "lenet-l") -> Preset:
    """Figure 4.3: sigma and sparsity of mutations, the best 4 of 16; on a smaller network."""
    return Preset(
        "Mutations: the best 4 of 16 children",
        "Whitaker 2023, figure 4.3 (there WideResNet-28-10, parents of 100 epochs)",
        model,
        sgd(10),
        10,
        tuple(
            Experiment(f"sparsity {s:g}", Noisy(Search(16, 4, sigma, 1 - s, 0, singles)), x=sigma)
            for s in (0.0, 0.5, 0.9, 0.99)
            for sigma in (0.001, 0.003, 0.01, 0.02, 0.03, 0.05)
        ),
        x_label="sigma",
        columns=("vote", "divergence"),
    )  # fmt: skip


PRESETS: dict[str, Callable[..., Preset]] = {
    "small-budget": small_budget,
    "large-budget": large_budget,
    "partitions": partitions,
    "annealing": annealing,
    "sparsity": sparsity,
    "structure": structure,
    "ensemble-size": ensemble_size,
    "mutation": mutation,
}


def of_methods(names: Sequence[str], model: str) -> Preset:
    """Methods with the options that they have by themselves, on one parent of 8 epochs."""
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"there are no methods {unknown}; there are {list(METHODS)}")
    return Preset(
        f"Methods as they are: {', '.join(names)}",
        "No table of a paper",
        model,
        adam(8),
        16,
        tuple(Experiment(name, METHODS[name]()) for name in names),
        columns=("vote", "divergence"),
    )


def tiny(preset: Preset) -> Preset:
    """The same preset, small enough for a test: one epoch of everything, the fewest members."""

    def shrink(row: Experiment) -> Experiment:
        return replace(
            row,
            method=shrunk(row.method),
            dropout=0.0,  # the tiny model takes none
            prefixes=(1, 2) if row.prefixes else (),
            published="",
        )

    return replace(
        preset,
        parent=replace(preset.parent, epochs=1),
        budget=1,
        experiments=tuple(map(shrink, preset.experiments)),
        dataset="digits",
        model="mlp-32-16",
    )


def shrunk(method: Method) -> Method:
    """The same method at its cheapest: whatever options it has of the kinds that cost."""
    names = {field.name for field in dataclasses.fields(method)}  # type: ignore[arg-type]
    sizes: Sequence[dict[str, int]] = [{}]
    if "ensemble_size" in names:
        most = method.ensemble_size
        sizes = [{"ensemble_size": size} for size in range(min(2, most), most + 1)]
    for epochs in (1, 2, 4, 8):  # some phases take one each
        for size in sizes:
            try:
                return replace(method, **_small(method, epochs), **size)  # type: ignore[type-var]
            except ValueError:  # parts come in sets
                continue
    return method


def _small(method: Method, epochs: int) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for field in dataclasses.fields(method):  # type: ignore[arg-type]
        option = getattr(method, field.name)
        if isinstance(option, Tuning):
            small[field.name] = replace(option, epochs=epochs)
        elif isinstance(option, Annealing) and option.start != "one-shot":
            small[field.name] = replace(option, annealing_epochs=epochs)
        elif isinstance(option, Search):
            small[field.name] = replace(option, population_size=4, ensemble_size=2)
    return small
