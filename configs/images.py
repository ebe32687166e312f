"""Options of `image_ensemble.py`: a subcommand for each method, with the method's own options."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro

from configs.options import REGISTRY
from configs.workers import WorkerArgs, WorkerOptions
from evo_subnets.data import NAMES, Dataset, load
from evo_subnets.data.corruptions import cifar_c_names
from evo_subnets.methods import METHODS, Method
from evo_subnets.metrics.robustness import GENERATED
from evo_subnets.models import check_name
from evo_subnets.options import described, refuse_idle
from evo_subnets.schedules import Constant
from evo_subnets.tuning import Tuning

ADAM = Constant(0.001)
"""The papers' small budgets."""


@dataclass(frozen=True)
class DataArgs:
    """What networks are trained and tested on, and where results go."""

    model: str = "lenet-s"
    """Architecture: lenet-s, -m, -l, resnet-18, resnet-20 ... resnet-110, wrn-28-10, densenet-121,
    densenet-40, densenet-100, vgg-11 ... vgg-19, mlp, mlp-64-64."""
    dataset: str = "cifar10"
    """cifar10, cifar100, svhn, mnist, fashion-mnist, digits (needs no download) or
    imagefolder:PATH with PATH/train/CLASS and PATH/test/CLASS."""
    augment: bool = True
    """Crop and flip training images at random."""
    validation: Literal["train", "test"] = "train"
    """Where validation images come from: a tenth of the training set, or half of the test set, as
    in chapter 4. The other images of the test set are the test."""
    corruptions: str | None = None
    """Test on corrupted images as well: 'generated' (18 kinds, five severities, made from the test
    images), or a folder with the files of CIFAR-10-C or CIFAR-100-C."""
    limit: int | None = None
    """Use at most so many training images."""
    root: Path | None = None
    """Where data sets are kept; None: ~/.cache/evo_subnets/data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run."""
    out: Path | None = None
    """Folder of the results, where a run that was stopped goes on; None:
    runs/image_ensemble/METHOD-MODEL-DATASET."""
    overwrite: bool = False
    """Start afresh in a folder that holds another run."""
    workers: WorkerOptions = WorkerArgs()

    def __post_init__(self) -> None:
        check_name(self.model)
        check_data(self.dataset, corruptions=self.corruptions, limit=self.limit)

    def loaded(self, device: str, seed: int = 0) -> Dataset:
        """The data set, on the device."""
        found = load(
            self.dataset, self.root, validation=self.validation, seed=seed, limit=self.limit
        ).to(device)  # fmt: skip
        return found if self.augment else plain(found)


@dataclass(frozen=True)
class BuilderArgs(DataArgs):
    """Of a method that trains networks from scratch."""

    method: Any = None
    """The method, of each subcommand another."""

    @property
    def asked(self) -> dict[str, Any]:
        """What the results depend on."""
        others = ("out", "overwrite", "workers", "root")
        found: dict[str, Any] = described(self)
        return {key: value for key, value in found.items() if key not in (*others, "type")}

    @property
    def folder(self) -> Path:
        """Where results go."""
        dataset = Path(self.dataset.removeprefix("imagefolder:")).name
        name = type(self.method).__name__.lower()
        if self.out is not None:
            return self.out
        return Path("runs/image_ensemble") / f"{name}-{self.model}-{dataset}"


@dataclass(frozen=True)
class ParentArgs(BuilderArgs):
    """Of a method that makes children of a parent."""

    parent: Path | None = None
    """A parent that this script wrote (parent.safetensors); None: trains one, or goes on with the
    one in the output folder."""
    parent_tuning: Tuning = Tuning(8, ADAM, "adam")
    """Of the parent, where one is trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parent is not None:
            refuse_idle(self, ("parent_tuning",), because="a parent that is given")
            if not self.parent.is_file():
                raise ValueError(f"{self.parent}: there is no such file; --parent names a parent")


def parsed() -> BuilderArgs | ParentArgs:
    """What the command line says: a subcommand for each of METHODS, with its own options alone."""
    kinds: list[Any] = []
    for name, method in METHODS.items():
        base = ParentArgs if method.starts_from == "parent" else BuilderArgs
        flat: Any = Annotated[method, tyro.conf.OmitArgPrefixes]
        field = ("method", flat, dataclasses.field(default=method()))
        made = dataclasses.make_dataclass(base.__name__, [field], bases=(base,), frozen=True)
        about = (method.__doc__ or "").split("\n\n")[0]
        kinds.append(Annotated[made, tyro.conf.subcommand(name, description=about)])
    every: Any = Union[tuple(kinds)]  # noqa: UP007  # made at run time
    with REGISTRY:
        found: BuilderArgs | ParentArgs = tyro.cli(every)
    return found


def method_name(method: Method) -> str:
    """The method's name in METHODS."""
    return next(name for name, kind in METHODS.items() if kind is type(method))


def plain(dataset: Dataset) -> Dataset:
    """The same data set, neither cropped nor flipped."""
    return dataset.augmented(
        dataclasses.replace(dataset.augmentation, padding=0, flip=False)
    )  # fmt: skip


def check_data(dataset: str, *, corruptions: str | None, limit: int | None) -> None:
    """A ValueError for what can be seen to be wrong before anything is loaded."""
    folder = dataset.removeprefix("imagefolder:")
    if folder != dataset:
        if not Path(folder).expanduser().is_dir():
            raise ValueError(f"there is no folder {folder}; imagefolder:PATH names one")
    elif dataset not in NAMES:
        raise ValueError(f"there is no data set {dataset!r}; there are {', '.join(NAMES)}")
    if corruptions is not None and corruptions != GENERATED:
        cifar_c_names(Path(corruptions))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 image, got {limit}")
