"""The options of the job for any stable-baselines3 agent in any gymnasium environment."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from configs.moving import MovingArgs, MovingOptions
from configs.options import SAMPLERS
from configs.workers import EVERY_RUN, WorkerArgs, WorkerOptions
from evo_subnets.options import refuse_idle
from evo_subnets.search import Search
from evo_subnets.streams import check_seed

TARGET_KL, TOTAL_TIMESTEPS = 0.2, 20_000
OF_AGENT = ("algorithm", "normalization", "frame_stack")
FEW = {
    "population_size": 4, "ensemble_size": 2, "validation_episodes": 4, "held_out_episodes": 4,
    "test_episodes": 4, "num_envs": 2,
}  # fmt: skip


@dataclass(frozen=True)
class AgentArgs:
    """Mutates an agent of stable-baselines3 into a population of children, keeps the best as an
    ensemble, and plays episodes that nobody was chosen by: parent, best child, ensemble.
    """

    agent: Path | None = None
    """A stable-baselines3 or sb3-contrib zip (which is unpickled: use only your own). None: a small
    PPO is trained on ENV first."""
    env: str = "CartPole-v1"
    """Any registered gymnasium environment whose actions and observations such agents take;
    MODULE:ID imports a module first."""
    algorithm: str | None = None
    """The class of the agent, for example PPO; None: what the zip says."""
    normalization: str | None = None
    """The file of its VecNormalize's statistics, of which the numbers alone are read; 'none': it
    has none. None: a vecnormalize.pkl beside the zip, if there is one."""
    frame_stack: int | None = None
    """Frames that it sees together. None: 1."""
    total_timesteps: int | None = None
    """Environment steps that a parent is trained for, if one is. None: 20,000."""
    population_size: int = 16
    """Children."""
    sampler: Literal["quads", "singles"] = "quads"
    """'quads': children in fours that share a draw; population_size is a multiple of four.
    'singles': each has its own draw."""
    ensemble_size: int = 8
    """Children that are kept."""
    density: float = 0.5
    """Fraction of the weights that a mutation perturbs (of quads, its partner perturbs the others).
    """
    sigma: float | None = None
    """Standard deviation of the noise, in the weights' unit. None: from the trust region."""
    target_kl: float | None = None
    """Mean KL divergence of a child's actions from its parent's, in nats, that the trust region
    aims at where no sigma is given. None: 0.2."""
    validation_episodes: int = 32
    """Episodes that a child's fitness is the mean return of: the same for all of a generation."""
    held_out_episodes: int = 128
    """Episodes of their own that choose among what came of it."""
    test_episodes: int = 256
    """Episodes for each row of the report, the same for all and none of those before."""
    num_envs: int = 8
    """Environments that play next to each other."""
    reevaluate: int | None = None
    """So many of the last generation's best children are judged again, on new episodes, before the
    ensemble is chosen among them by the mean of both. None: twice the ensemble's size with
    generations, else 0."""
    further_training: bool = False
    """A control: the parent, a PPO or A2C, trained on for as many environment steps as the search
    has played (by the length of the parent's episodes)."""
    deterministic: bool = False
    """Parent, children and ensemble act without chance instead of sampling."""
    seed: int = 0
    """Seed of everything: episodes, mutations, actions, training."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run."""
    tiny: bool = False
    """Four children, two members, four episodes of each kind at most: to see that it runs."""
    out: Path | None = None
    """Folder of the results, where a run that was stopped goes on; None: runs/agent_ensemble/ENV.
    """
    overwrite: bool = False
    """Start afresh in a folder that holds another run."""
    evolution: MovingOptions = MovingArgs()
    workers: WorkerOptions = WorkerArgs()

    def __post_init__(self) -> None:
        for name, most in FEW.items() if self.tiny else ():
            object.__setattr__(self, name, min(getattr(self, name), most))
        for name in (*FEW, "total_timesteps", "frame_stack"):
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
        if self.agent is None:
            refuse_idle(self, OF_AGENT, because="a parent that is trained here (no --agent)")
        else:
            refuse_idle(self, ("total_timesteps",), because=f"--agent {self.agent}")
        check_environment(self.env)

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
    def of_agent(self) -> dict[str, Any]:
        """How the agent is read, as `Actor.from_zip` takes it."""
        known = None if self.normalization is None else Path(self.normalization)
        return {
            "algorithm": self.algorithm,
            "normalization": False if self.normalization == "none" else known,
            "frame_stack": self.frame_stack or 1,
        }

    @property
    def asked(self) -> dict[str, Any]:
        """What the results depend on."""
        found = {key: value for key, value in asdict(self).items() if key not in EVERY_RUN}
        return {**found, "agent": None if self.agent is None else str(self.agent)}

    @property
    def folder(self) -> Path:
        """Where results go."""
        name = self.env.replace("/", "-").replace(":", "-")
        return Path("runs/agent_ensemble") / name if self.out is None else self.out


def check_environment(name: str) -> None:
    """A ValueError where there is none of this name, or no agent could act in it."""
    import gymnasium

    from evo_subnets.rl.acting import check_actions
    from evo_subnets.rl.actor import shapes_of

    try:
        env = gymnasium.make(name)
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"gymnasium makes no environment {name!r}: {error}") from None
    action_space, observation_space = env.action_space, env.observation_space
    env.close()
    check_actions(action_space, f"{name} has")
    shapes_of(observation_space)
