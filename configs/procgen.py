"""The main job's options: validated before anything is computed."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from agents.ppo import PPOSettings
from configs.workers import EVERY_RUN, WorkerArgs, WorkerOptions
from envs.procgen import check_game
from evo_subnets.evolution import Sampler
from evo_subnets.mutation import check_density, independent, quads


@dataclass(frozen=True)
class ProcgenArgs:
    """Mutates a PPO-trained Procgen agent into a population of children, keeps the best as an
    ensemble, and plays levels that nobody has seen: the parent, the best child, the ensemble.
    """

    env: str = "bigfish"
    """Procgen game."""
    parent: str = "auto"
    """'auto': parents/ENV if there is one, else as 'train'. 'train': PPO, in OUT/parent, going on
    where it stopped. Else the path of a policy.safetensors or of a stable-baselines3 zip (which
    is unpickled: use only your own)."""
    population_size: int = 16
    """Children."""
    siblings: Literal["quads", "none"] = "quads"
    """'quads': children in fours that share a draw, two perturbing a fraction `density` of the
    weights, two the others; population_size is a multiple of four. 'none': each has its own draw
    and perturbs that fraction, as in the paper's Procgen experiment."""
    ensemble_size: int = 8
    """Children that are kept. Equal to the population size: the paper's unselected ensemble."""
    density: float = 0.2
    """Fraction of the weights that a mutation perturbs (its partner perturbs the others)."""
    sigma: float | None = None
    """Standard deviation of the noise, in the weights' unit. None: from the trust region."""
    target_kl: float = 0.02
    """Mean KL divergence of a quad from the parent, in nats, that the trust region aims at."""
    validation_episodes: int = 32
    """Episodes on training levels that a child's fitness is the mean return of."""
    test_episodes: int = 256
    """Episodes on unseen levels for each row of the report."""
    deterministic: bool = False
    """Children and ensemble take the most likely action instead of sampling."""
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
    workers: WorkerOptions = WorkerArgs()
    total_timesteps: int = 10_000_000
    """Environment steps that a parent is trained for, if one is."""
    checkpoint_every: int = 50_000
    """Environment steps between two checkpoints of that training."""
    ppo: PPOSettings = field(default_factory=PPOSettings)
    """PPO's hyper-parameters, if a parent is trained."""

    def __post_init__(self) -> None:
        check_game(self.env)
        check_density(self.density)
        if self.siblings == "quads" and (self.population_size < 4 or self.population_size % 4):
            raise ValueError(
                "quads come in fours: population_size must be a multiple of 4, "
                f"got {self.population_size}"
            )
        if not 1 <= self.ensemble_size <= self.population_size:
            raise ValueError(
                f"ensemble_size must be in 1..{self.population_size} (population_size), "
                f"got {self.ensemble_size}"
            )
        counts = ("validation_episodes", "test_episodes", "total_timesteps", "checkpoint_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.sigma is not None and not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma must be positive, got {self.sigma}")
        if not 0 < self.target_kl < float("inf"):
            raise ValueError(f"target_kl must be positive, got {self.target_kl}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in 0..2**31 - 1, got {self.seed}")

    @property
    def sample(self) -> Sampler:
        """What draws the population."""
        return quads if self.siblings == "quads" else independent

    @property
    def asked(self) -> dict[str, Any]:
        """What the results depend on."""
        others = (*EVERY_RUN, "video", "checkpoint_every")
        return {key: value for key, value in asdict(self).items() if key not in others}

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.out or Path("runs/procgen_ensemble") / self.env
