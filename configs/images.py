"""Options of the scripts for image classifiers, validated before anything is computed."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from configs.workers import EVERY_RUN, WorkerArgs, WorkerOptions
from evo_subnets import quads
from evo_subnets.methods import Annealing, Pruning
from evo_subnets.mutation import check_density
from evo_subnets.tuning import Constant, OneCycle, StepLinear, Tuning

PresetName = Literal[
    "small-budget", "large-budget", "partitions", "annealing", "sparsity", "structure",
    "ensemble-size", "mutation",
]  # fmt: skip


@dataclass(frozen=True)
class CompareArgs:
    """Compares methods at one training budget, as a table or picture of the papers does."""

    preset: PresetName
    """Which table or picture (see configs/experiments.py)."""
    model: str | None = None
    """Architecture; None: the preset's."""
    dataset: str | None = None
    """Data set, or imagefolder:PATH; None: the preset's, which is cifar10."""
    seeds: int = 1
    """Repetitions, each with its own parent."""
    first_seed: int = 0
    """The first of them."""
    only: tuple[str, ...] = ()
    """Labels of the experiments to run; none: all."""
    tiny: bool = False
    """A quick rehearsal: 300 images of digits, one epoch of everything."""
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
    workers: WorkerOptions = WorkerArgs()  # noqa: RUF009  # frozen

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.first_seed < 0:
            raise ValueError(f"seeds must be at least 1, got {self.seeds} from {self.first_seed}")


@dataclass(frozen=True)
class ImageArgs:
    """Trains a classifier, or loads one, makes an ensemble of it, and tests both."""

    method: Literal["noisy", "sparse", "stochastic", "independent", "bagging"] = "sparse"
    """noisy: mutations, the fittest kept, no training. sparse: pruned children, tuned. stochastic:
    children whose pruning is annealed. independent: one network with the whole budget. bagging:
    networks that share the budget."""
    model: str = "lenet-s"
    """Architecture: lenet-s, -m, -l, resnet-18, resnet-20 ... resnet-110, wrn-28-10, densenet-121,
    densenet-40, densenet-100, vgg-11 ... vgg-19, mlp, mlp-64-64."""
    dataset: str = "cifar10"
    """cifar10, cifar100, svhn, mnist, fashion-mnist, digits (needs no download) or
    imagefolder:PATH with PATH/train/CLASS and PATH/test/CLASS."""
    parent: Path | None = None
    """A parent that this script wrote (parent.safetensors); None: trains one, or goes on with the
    one in the output folder."""
    recipe: Literal["small", "large"] = "small"
    """small: Adam at 0.001 throughout, for some epochs. large: SGD, step-linear from 0.1 to 0.001
    for the parent, one-cycle for the children, for tens of epochs and more."""
    parent_epochs: int = 8
    """Training epochs of the parent."""
    child_epochs: int = 1
    """Tuning epochs of each child."""
    members: int = 8
    """Members of the ensemble."""
    batch_size: int = 128
    """Images a training step."""
    augment: bool = True
    """Crop and flip training images at random."""
    validation: Literal["train", "test"] = "train"
    """Where validation images come from: a tenth of the training set, or half of the test set, as
    in chapter 4. The other images of the test set are the test."""
    pruning: Pruning = Pruning()  # noqa: RUF009  # frozen
    """Which weights sparse and stochastic children keep."""
    annealing: Annealing = Annealing()  # noqa: RUF009
    """How stochastic children lose the others."""
    population_size: int = 16
    """Noisy children, a multiple of four, of which `members` are kept."""
    density: float = 0.5
    """Fraction of the weights that a noisy child's mutation perturbs."""
    sigma: float | None = None
    """Standard deviation of a mutation's noise; None: from the trust region."""
    target_kl: float = 0.02
    """KL divergence that the trust region aims at, in nats."""
    reestimate_norms: bool = False
    """Re-estimate the BatchNorm statistics of noisy children on training images."""
    racing: bool = False
    """Judge noisy children in blocks of validation images and drop those that are hardly among the
    best: several times fewer evaluations, in this process alone; one that was killed races anew."""
    corruptions: str | None = None
    """Test on corrupted images as well: 'generated' (18 kinds, five severities, made from the test
    images), or a folder with the files of CIFAR-10-C or CIFAR-100-C."""
    limit: int | None = None
    """Use at most so many training images."""
    root: Path | None = None
    """Where data sets are kept; None: ~/.cache/evo_subnets/data."""
    seed: int = 0
    """Seed of everything."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run."""
    out: Path | None = None
    """Folder of the results, where a run that was stopped goes on; None:
    runs/image_ensemble/METHOD-MODEL-DATASET."""
    overwrite: bool = False
    """Start afresh in a folder that holds another run."""
    workers: WorkerOptions = WorkerArgs()  # noqa: RUF009

    def __post_init__(self) -> None:
        for name in ("parent_epochs", "child_epochs", "members", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.method in ("sparse", "stochastic"):
            self.pruning.check_members(self.members)
        if self.method == "stochastic" and self.annealing.epochs > self.child_epochs:
            raise ValueError(
                f"annealing must end with tuning: --annealing.epochs {self.annealing.epochs:g} "
                f"exceeds --child-epochs {self.child_epochs}"
            )
        if self.method == "noisy":
            check_density(self.density)
            quads(self.population_size, 1.0, 0.5, self.seed)  # refuses what it cannot make
            if self.members > self.population_size:
                raise ValueError(
                    f"members must be at most population_size, got {self.members} of "
                    f"{self.population_size}"
                )
        if self.racing and (
            self.method != "noisy" or self.reestimate_norms or self.workers.workers
        ):
            raise ValueError(
                "racing is for --method noisy, in one process and with the parent's norms: leave "
                "out --racing, or --reestimate-norms and --workers"
            )
        if self.sigma is not None and not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma must be positive, got {self.sigma}")
        if not 0 < self.target_kl < float("inf"):
            raise ValueError(f"target_kl must be positive, got {self.target_kl}")

    @property
    def folder(self) -> Path:
        """Where results go."""
        dataset = Path(self.dataset.removeprefix("imagefolder:")).name
        return self.out or Path("runs/image_ensemble") / f"{self.method}-{self.model}-{dataset}"

    @property
    def asked(self) -> dict[str, Any]:
        """What the results depend on."""
        return {key: value for key, value in asdict(self).items() if key not in EVERY_RUN}

    def tuning(self, epochs: int, child: bool = False) -> Tuning:
        """The recipe for so many epochs of a parent or a child."""
        if self.recipe == "small":
            return Tuning(epochs, Constant(0.001), "adam", self.batch_size)
        schedule = OneCycle() if child else StepLinear()
        return Tuning(epochs, schedule, "sgd", self.batch_size)
