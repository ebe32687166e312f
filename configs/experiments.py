"""Nine tables and figures of Whitaker 2023, chapters 4 to 6, as presets; each says what it lacks.

`docs/results.md` lists them beside those that are not there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from evo_subnets.methods import Annealing, Pruning
from evo_subnets.tuning import Constant, OneCycle, StepLinear, Tuning

Kind = Literal["independent", "bagging", "sparse", "stochastic", "noisy"]


@dataclass(frozen=True)
class Experiment:
    """One line of a table, or one point of a picture."""

    label: str
    """The method's name in the table, the curve's in the picture."""
    kind: Kind
    tuning: Tuning
    """Of the networks, or of the children."""
    members: int = 1
    pruning: Pruning = Pruning()  # noqa: RUF009  # frozen
    annealing: Annealing = Annealing()  # noqa: RUF009
    dropout: float = 0.0
    sigma: float | None = None
    density: float = 0.5
    elites: int = 8
    """Of the noisy method; `members` is its population."""
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
    experiments: tuple[Experiment, ...]
    dataset: str = "cifar10"
    augment: bool = True
    """Whether training images are cropped and flipped at random."""
    validation: Literal["train", "test"] = "test"
    x_label: str = ""
    """Of the picture; empty for a bar a method."""


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
        Experiment("independent", "independent", adam(16)),
        Experiment("dropout", "independent", adam(16), dropout=0.5),
        Experiment("bagging", "bagging", adam(2), 8),
        Experiment("random", "sparse", adam(1), 8, Pruning("random")),
        Experiment("halves", "sparse", adam(1), 8, Pruning("halves")),
    ]
    rows = [replace(row, published=text) for row, text in zip(experiments, printed, strict=True)]
    if not model.startswith("lenet"):  # the only ones that take dropout after every layer
        rows = [row for row in rows if row.label != "dropout"]
    return Preset(
        "Small training budget: 16 epochs, ensembles of 8",
        "Whitaker 2023, table 5.1",
        model,
        adam(8),
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
        (
            Experiment("independent", "independent", sgd(200), published=published[0]),
            Experiment("halves", "sparse", one_cycle(10), 6, published=published[1]),
            Experiment("annealed halves", "stochastic", one_cycle(10), 6, published=published[2]),
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
        tuple(
            Experiment(
                f"parts of 1/{k}", "sparse", one_cycle(10), 6,
                Pruning("parts", 1 - 1 / k, classifier=True), published=printed,
            )
            for k, printed in zip((2, 3, 6), published, strict=True)
        ),
    )  # fmt: skip


def annealing(
    model: str = "lenet-m", sparsities: tuple[float, ...] = (0.95, 0.98), epochs: int = 5
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
        tuple(
            Experiment(
                f"{way}, {rate}", "stochastic", tuning, 1, Pruning("random", sparsity), options,
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
        tuple(
            Experiment(model, "sparse", adam(3), 8, Pruning("random", s, scope="global"), x=s)
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
        tuple(
            Experiment(unit, "sparse", adam(3), 8, Pruning("random", s, unit), x=s)
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
        (Experiment(model, "sparse", adam(1), 128, Pruning("random"), prefixes=sizes),),
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
        tuple(
            Experiment(
                f"sparsity {s:g}", "noisy", sgd(1), 16, sigma=sigma, density=1 - s, elites=4,
                x=sigma,
            )
            for s in (0.0, 0.5, 0.9, 0.99)
            for sigma in (0.001, 0.003, 0.01, 0.02, 0.03, 0.05)
        ),
        x_label="sigma",
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


def tiny(preset: Preset) -> Preset:
    """The same preset, small enough for a test: one epoch of everything, two or four members."""

    def shrink(row: Experiment) -> Experiment:
        share = row.pruning.parts
        members = {"noisy": 4, "independent": 1}.get(
            row.kind, max(2, share) if row.members > 1 else 1
        )
        return replace(
            row,
            tuning=replace(row.tuning, epochs=1),
            annealing=replace(row.annealing, epochs=1),
            members=members,
            dropout=0.0,  # the tiny model takes none
            elites=2,
            prefixes=(1, 2) if row.prefixes else (),
            published="",
        )

    return replace(
        preset,
        parent=replace(preset.parent, epochs=1),
        experiments=tuple(map(shrink, preset.experiments)),
        dataset="digits",
        model="mlp-32-16",
    )
