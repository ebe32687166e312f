"""Where a Procgen parent comes from: the repository, a file, or PPO."""

from dataclasses import asdict
from pathlib import Path

from stable_baselines3 import PPO

from agents.checkpoints import checkpoints
from agents.impala import use_compiled_blocks
from agents.policies import Actor, load_actor, save_actor
from agents.ppo import PPOSettings, train
from envs.procgen import Mode
from evo_subnets import files
from evo_subnets.runs.former import Journal

SHIPPED = Path(__file__).parent.parent / "parents"


def find_parent(
    parent: str,
    game: str,
    out: Path,
    settings: PPOSettings,
    total_timesteps: int,
    mode: Mode = "easy",
    seed: int = 0,
    device: str = "cpu",
    checkpoint_every: int = 50_000,
) -> tuple[Actor, str]:
    """The parent and a line that says where it comes from.

    `parent`: "auto", "train" or the path of a `policy.safetensors` or of a stable-baselines3 zip
    (which is unpickled: only for files of one's own). Training goes to `out`, with a checkpoint
    every `checkpoint_every` environment steps. It uses the compiled blocks of Impala (see
    `impala.ImpalaCNN`), and so do its children.
    """
    shipped = SHIPPED / game / "policy.safetensors"
    if parent == "auto" and mode == "easy" and shipped.exists():
        parent = str(shipped)
    if parent not in ("auto", "train"):
        path = Path(parent)
        actor = load_zip(path) if path.suffix == ".zip" else load_actor(path)[0]
        use_compiled_blocks(check_actor(actor, parent))
        return actor.to(device), f"parent: {parent}"
    open_training(out, game, settings, mode, seed)
    agent = train(
        game,
        settings,
        total_timesteps,
        out,
        mode=mode,
        seed=seed,
        device=device,
        checkpoint_every=checkpoint_every,
    )
    actor = Actor.from_agent(agent)
    about = {"game": game, "mode": mode, "seed": seed, "steps": agent.num_timesteps}
    save_actor(out / "policy.safetensors", actor, about)
    use_compiled_blocks(actor)
    return actor.to(device), f"parent: PPO, {agent.num_timesteps:,} steps"


def load_zip(path: Path) -> Actor:
    """The actor of a stable-baselines3 zip."""
    if not path.is_file():
        raise files.StorageError(f"{path}: there is no such file")
    try:
        return Actor.from_agent(PPO.load(path, device="cpu"))
    except Exception as error:  # a zip can be damaged in many ways; all mean the same to the user
        line = " ".join(str(error).split())[:200]
        raise files.StorageError(
            f"{path}: not a stable-baselines3 PPO agent that can be a parent: {line}"
        ) from None


def check_actor(actor: Actor, name: str) -> Actor:
    """The actor itself; a ValueError where it is not one for Procgen."""
    shape = actor.observation_shape
    fits = len(shape) == 3 and shape[0] % 3 == 0 and shape[1:] == (64, 64)
    if not fits or actor.actions != 15:
        raise ValueError(
            f"{name}: a Procgen parent sees (3 * frame_stack, 64, 64) and has 15 actions, this one "
            f"sees {shape} and has {actor.actions}"
        )
    return actor


def open_training(
    out: Path,
    game: str,
    settings: PPOSettings,
    mode: Mode,
    seed: int,
    overwrite: bool = False,
) -> None:
    """Refuses to go on in a folder with another run; `overwrite` removes that."""
    asked = {"game": game, "mode": mode, "seed": seed, **asdict(settings)}
    written = ("curve.csv", "policy.safetensors", "card.json")
    Journal(out, asked, overwrite, [*written, *(path.name for path in checkpoints(out))])
