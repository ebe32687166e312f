"""The main job's options: validated before anything is computed."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from agents.parents import further_settings, parent_file
from agents.ppo import PPOSettings
from configs.moving import MovingArgs, MovingOptions
from configs.options import SAMPLERS
from configs.workers import EVERY_RUN, WorkerArgs, WorkerOptions
from envs.games import TEST_LEVELS, TRAIN_LEVELS, Levels, check_game
from evo_subnets.options import refuse_idle
from evo_subnets.search import Search
from evo_subnets.streams import check_seed

PAPER = {"population_size": 8, "ensemble_size": 8, "sampler": "singles", "density": 0.2}
PAPER_SIGMA = {
    "bigfish": 0.06, "bossfight": 0.05, "caveflyer": 0.07, "chaser": 0.01, "climber": 0.01,
    "coinrun": 0.06, "dodgeball": 0.05, "fruitbot": 0.04, "heist": 0.10, "jumper": 0.02,
    "leaper": 0.01, "maze": 0.04, "miner": 0.09, "ninja": 0.01, "plunder": 0.06,
    "starpilot": 0.01,
}  # fmt: skip
"""Whitaker 2023, section 4.3.4 and table 4.2: eight children that nobody selects."""
TARGET_KL, TOTAL_TIMESTEPS, CHECKPOINT_EVERY = 0.2, 10_000_000, 50_000


@dataclass(frozen=True)
class ProcgenArgs:
    """Mutates a PPO-trained Procgen agent into a population of children, keeps the best as an
    ensemble, and plays levels that nobody has seen: the parent, the best child, the ensemble.
    """

    env: str = "bigfish"
    """Procgen game."""
    parent: str = "auto"
    """'auto': parents/ENV if there is one, else as 'train'. 'train': PPO, in OUT/parent, going on
    where it stopped. Else the path of a policy.safetensors, of a stable-baselines3 zip (which is
    unpickled: use only your own), or of a state dictionary of train-procgen-pytorch,
    train-procgen-pfrl or CleanRL's ppo_procgen (which is not)."""
    paper: bool = False
    """The settings of Whitaker 2023, table 4.2, in place of a search: eight children with noise of
    their own, none selected, density 0.2 and the sigma that it prints for the game."""
    population_size: int = 16
    """Children."""
    sampler: Literal["quads", "singles"] = "quads"
    """'quads': children in fours that share a draw, two perturbing a fraction `density` of the
    weights, two the others by a sigma that moves the policy as far; population_size is a multiple
    of four. 'singles': each has its own draw
    and perturbs that fraction, as in the paper's Procgen experiment."""
    ensemble_size: int = 8
    """Children that are kept. Equal to the population size: the paper's unselected ensemble, where
    validation chooses the best child and the parent's temperature alone."""
    density: float = 0.2
    """Fraction of the weights that a mutation perturbs (its partner perturbs the others)."""
    sigma: float | None = None
    """Standard deviation of the noise, in the weights' unit. None: from the trust region."""
    target_kl: float | None = None
    """Mean KL divergence of a child from its parent, in nats, that the trust region aims at where
    no sigma is given. None: 0.2; with the 0.02 that images take, the returns of children cannot be
    told apart."""
    validation_episodes: int = 32
    """Episodes on training levels that a child's fitness is the mean return of."""
    held_out_episodes: int = 128
    """Episodes on training levels of their own that choose among what came of it: the best child,
    the ensemble, the mean of its weights, the evolved parent."""
    test_episodes: int = 256
    """Episodes on unseen levels for each row of the report."""
    deterministic: bool = False
    """Parent, children and ensemble take the most likely action instead of sampling (a temperature
    is of sampling alone: its row samples)."""
    validation_levels: tuple[int, int] = (TRAIN_LEVELS.start, TRAIN_LEVELS.count)
    """The first level, and how many there are, of those that children are judged on and that choose
    among what came of it: others than the parent's own (0 200) where it has seen all of them."""
    reevaluate: int | None = None
    """So many of the last generation's best children are judged again, on new episodes, before the
    ensemble is chosen among them by the mean of both. None: twice the ensemble's size with
    generations, else 0."""
    further_training: bool = False
    """A control: the parent, trained on with its own PPO for as many environment steps as the
    search has played (by the length of the parent's episodes). Hours on a CPU."""
    distill: bool = False
    """Teach one network of the parent's size to act as the ensemble does, on training levels; it
    goes to OUT/student.safetensors and has a row in the report. Minutes on a CPU."""
    mode: Literal["easy", "hard"] = "easy"
    """Procgen's distribution mode."""
    seed: int = 0
    """Seed of everything: levels, mutations, actions, training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run."""
    video: bool = False
    """Record the ensemble's play as OUT/ensemble.gif."""
    out: Path | None = None
    """Folder of the results, where a run that was stopped goes on; None:
    runs/procgen_ensemble/ENV."""
    overwrite: bool = False
    """Start afresh in a folder that holds another run."""
    evolution: MovingOptions = MovingArgs()
    workers: WorkerOptions = WorkerArgs()
    total_timesteps: int | None = None
    """Environment steps that a parent is trained for, if one is. None: 10,000,000."""
    checkpoint_every: int | None = None
    """Environment steps between two checkpoints of that training. None: 50,000."""
    ppo: PPOSettings = field(default_factory=PPOSettings)
    """PPO's hyper-parameters, if a parent is trained."""

    def __post_init__(self) -> None:
        check_game(self.env)
        if self.paper:
            self._take_the_papers()
        for name in ("validation_episodes", "held_out_episodes", "test_episodes", "total_timesteps",
                     "checkpoint_every"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        object.__setattr__(self, "seed", check_seed(self.seed, bits=31))
        _ = self.search  # refuses what it cannot draw
        _ = self.evolution.moving(self.target), self.again
        if self.target_kl is not None and not 0 < self.target_kl < float("inf"):
            raise ValueError(f"target_kl must be positive, got {self.target_kl}")
        if self.sigma is not None:
            refuse_idle(self, ("target_kl",), because=f"--sigma {self.sigma}")
        levels = self.levels
        if levels.start + levels.count > TEST_LEVELS.start:
            raise ValueError(
                f"validation_levels {levels.start} {levels.count} hold levels of the test, which "
                f"begin at {TEST_LEVELS.start}"
            )
        if self.further_training:
            if self.parent_file is None:
                raise ValueError("--further-training needs a --parent that is trained already")
            further_settings(self.parent_file)  # refuses what cannot go on
        if self.parent_file is not None and self._of_training:
            raise ValueError(
                f"{', '.join(self._of_training)} has no effect with {self.parent_file}, which is "
                "trained: leave it out, or use --parent train"
            )

    def _take_the_papers(self) -> None:
        """Its settings; a ValueError where others are given beside `paper`."""
        refuse_idle(self, ("target_kl",), because="--paper")
        usual = {each.name: each.default for each in fields(self)}
        for name, value in {**PAPER, "sigma": PAPER_SIGMA[self.env]}.items():
            given = getattr(self, name)
            if given not in (usual[name], value):
                raise ValueError(
                    f"--paper has {name} {value}, {given} was given: leave out one of them"
                )
            object.__setattr__(self, name, value)

    @property
    def parent_file(self) -> Path | None:
        """Where the parent lies; None: it is to be trained."""
        return parent_file(self.parent, self.env, mode=self.mode)

    @property
    def levels(self) -> Levels:
        """That children are judged on."""
        return Levels(*self.validation_levels)

    @property
    def search(self) -> Search:
        """What population is drawn."""
        return Search(
            self.population_size,
            self.ensemble_size,
            self.sigma,
            self.density,
            self.seed,
            SAMPLERS[self.sampler],
        )

    @property
    def again(self) -> int:
        """How many children are judged again."""
        return self.evolution.again(self.reevaluate, self.search)

    @property
    def target(self) -> float:
        """Of the trust region."""
        return self.target_kl or TARGET_KL

    @property
    def training(self) -> dict[str, Any]:
        """A parent's training, as `train_parent` takes it."""
        return {
            "total_timesteps": self.total_timesteps or TOTAL_TIMESTEPS,
            "checkpoint_every": self.checkpoint_every or CHECKPOINT_EVERY,
            "mode": self.mode,
            "seed": self.seed,
        }

    @property
    def asked(self) -> dict[str, Any]:
        """What the results depend on."""
        others = (*EVERY_RUN, "video", "checkpoint_every")
        return {key: value for key, value in asdict(self).items() if key not in others}

    @property
    def folder(self) -> Path:
        """Where results go."""
        return Path("runs/procgen_ensemble") / self.env if self.out is None else self.out

    @property
    def _of_training(self) -> list[str]:
        """The options of a training that are given."""
        own = [name for name in ("total_timesteps", "checkpoint_every") if getattr(self, name)]
        usual = PPOSettings()
        own += [
            f"ppo.{each.name}"
            for each in fields(PPOSettings)
            if getattr(self.ppo, each.name) != getattr(usual, each.name)
        ]
        return [f"--{name.replace('_', '-')}" for name in own]
