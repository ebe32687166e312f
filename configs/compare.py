"""Options of `compare_methods.py`, validated before anything is computed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from configs.experiments import PRESETS, Preset, of_methods, tiny
from configs.images import check_data, plain
from configs.workers import WorkerArgs, WorkerOptions
from evo_subnets.data import Dataset, Images, load
from evo_subnets.models import check_name
from evo_subnets.streams import check_seed

PresetName = Literal[
    "small-budget", "large-budget", "partitions", "annealing", "sparsity", "structure",
    "ensemble-size", "mutation",
]  # fmt: skip


@dataclass(frozen=True)
class CompareArgs:
    """Compares methods at one training budget, as a table or picture of the papers does."""

    preset: PresetName | None = None
    """Which table or picture (see configs/experiments.py)."""
    methods: tuple[str, ...] = ()
    """Instead of a preset: names of methods, with the options that they have by themselves."""
    model: str | None = None
    """Architecture; None: the preset's, or lenet-s."""
    dataset: str | None = None
    """Data set, or imagefolder:PATH; None: the preset's, which is cifar10."""
    seeds: int = 1
    """Repetitions, each with its own parent."""
    first_seed: int = 0
    """The first of them."""
    only: tuple[str, ...] = ()
    """Labels of the preset's experiments to run; none: all."""
    tiny: bool = False
    """A quick rehearsal: 300 images of digits, a small perceptron, one epoch of everything."""
    limit: int | None = None
    """Use at most so many training images."""
    corruptions: str | None = None
    """Test on corrupted images as well: 'generated', or a folder with the files of CIFAR-10-C or
    CIFAR-100-C."""
    root: Path | None = None
    """Where data sets are kept; None: ~/.cache/evo_subnets/data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run."""
    out: Path | None = None
    """Folder of the results, where a run that was stopped goes on; None:
    runs/compare_methods/PRESET-MODEL."""
    overwrite: bool = False
    """Start afresh in a folder that holds a run."""
    workers: WorkerOptions = WorkerArgs()

    def __post_init__(self) -> None:
        if (self.preset is None) == (not self.methods):
            raise ValueError("give --preset or --methods: a table of the papers, or methods")
        if self.methods and self.only:
            raise ValueError("only has no effect with methods: name those that are wanted")
        object.__setattr__(self, "first_seed", check_seed(self.first_seed))
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if self.tiny:
            for name in ("model", "dataset", "limit"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect with tiny, which has its own")
        table = self.table
        for experiment in table.experiments:
            check_name(table.model, dropout=experiment.dropout)
        check_data(table.dataset, corruptions=self.corruptions, limit=self.limit)

    @property
    def table(self) -> Preset:
        """What is compared."""
        if self.preset is None:
            preset = of_methods(self.methods, self.model or "lenet-s")
        else:
            preset = PRESETS[self.preset](*([self.model] if self.model else []))
        if self.dataset:
            preset = replace(preset, dataset=self.dataset)
        if self.tiny:
            preset = tiny(preset)
        labels = list(dict.fromkeys(row.label for row in preset.experiments))
        unknown = [label for label in self.only if label not in labels]
        if unknown:
            raise ValueError(f"there are no experiments {unknown}; there are {labels}")
        rows = tuple(row for row in preset.experiments if not self.only or row.label in self.only)
        return replace(preset, experiments=rows)

    @property
    def folder(self) -> Path:
        """Where results go."""
        name = self.preset or "-".join(self.methods)
        return self.out or Path("runs/compare_methods") / f"{name}-{self.table.model}"

    @property
    def asked(self) -> dict[str, Any]:
        """What every line depends on; lines can be added by more seeds and experiments."""
        table = self.table
        return {
            "model": table.model,
            "dataset": table.dataset,
            "augment": table.augment,
            "limit": 300 if self.tiny else self.limit,
            "corruptions": self.corruptions,
            "parent": repr(table.parent),
            "budget": table.budget,
        }

    def loaded(self, device: str) -> Dataset:
        """The data set, on the device; where nothing is selected all of the test set is test."""
        table = self.table
        limit = 300 if self.tiny else self.limit
        found = load(table.dataset, self.root, validation=table.validation, limit=limit).to(device)
        if not table.augment:
            found = plain(found)
        if table.validation == "test" and not any(row.method.selects for row in table.experiments):
            parts = found.validation, found.test
            pixels = torch.cat([part.pixels for part in parts])
            labels = torch.cat([part.labels for part in parts])
            found = replace(found, test=Images(pixels, labels, found.augmentation))
        return found
