"""Procgen parents: as files, and where they come from: the repository, a file, or PPO."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from agents.checkpoints import checkpoints, milestone_steps
from agents.impala import ImpalaCNN, impala_actor, use_compiled_blocks
from agents.importers import load_foreign
from agents.ppo import PPOSettings, train
from envs.games import Mode
from envs.procgen import ACTIONS
from evo_subnets import files
from evo_subnets.rl import Actor
from evo_subnets.runs import Run
from evo_subnets.streams import check_seed

SHIPPED = Path(__file__).parent.parent / "parents"
KIND = "evo_subnets.actor"
POLICY, CARD, MILESTONE = "policy.safetensors", "card.json", "milestone.safetensors"


def save_actor(path: str | Path, actor: Actor, *, about: dict[str, Any]) -> None:
    """Writes an Impala actor; `about` is kept with it (game, mode, steps, ...)."""
    if not isinstance(actor.features, ImpalaCNN):
        raise ValueError(f"only Impala actors are saved, got {type(actor.features).__name__}")
    network = {
        "widths": actor.features.widths,
        "features_dim": actor.features.features_dim,
        "frame_stack": actor.observation_shape[0] // 3,
        "actions": actor.actions,
    }
    files.save_tensors(
        path, actor.state_dict(), kind=KIND, description={"network": network, "about": about}
    )


def load_actor(path: str | Path) -> tuple[Actor, dict[str, Any]]:
    """The actor of a file that `save_actor` wrote, and what it says about itself."""
    tensors, description = files.load_tensors(path, KIND)
    try:
        network, about = description["network"], dict(description["about"])
        with torch.device("meta"):  # no memory for what does not fit the file, nothing drawn
            actor = impala_actor(
                tuple(network["widths"]),
                network["frame_stack"],
                actions=network["actions"],
                features_dim=network["features_dim"],
            )
    except (
        ArithmeticError,
        AssertionError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        line = " ".join(str(error).split())[:200]
        raise files.StorageError(f"{path}: describes no Impala actor: {line}") from None
    files.load_state(path, actor, tensors=tensors, assign=True)
    return actor, about


def parent_file(parent: str, game: str, *, mode: Mode = "easy") -> Path | None:
    """Where the parent that is asked for lies; None: it is to be trained.

    `parent`: "auto" (the repository's for this game, which is of easy mode; trained where there is
    none), "train", or a path.
    """
    if parent == "train":
        return None
    if parent != "auto":
        return Path(parent)
    shipped = SHIPPED / game / POLICY
    return shipped if mode == "easy" and shipped.exists() else None


def load_parent(path: Path, *, game: str, mode: Mode = "easy") -> Actor:
    """The parent of a `policy.safetensors`, of a stable-baselines3 zip (which is unpickled: only
    for files of one's own), or of another project's state dictionary, see `importers.LAYOUTS`.

    A ValueError where it is none for Procgen, or its file names another game or mode; a zip names
    neither, nor does a state dictionary. It uses the compiled blocks of Impala (see
    `impala.ImpalaCNN`), and so do its children.
    """
    about: dict[str, Any] = {}
    if path.suffix == ".zip":
        actor = load_zip(path)
    elif path.suffix == ".safetensors":
        actor, about = load_actor(path)
    else:
        actor = load_foreign(path)
    for option, found, asked in (
        ("env", about.get("game", game), game),
        ("mode", about.get("mode", mode), mode),
    ):
        if found != asked:
            raise ValueError(
                f"{path} is a parent of {option} {found}, this run asks for {asked}: "
                f"use --{option} {found}, or another --parent"
            )
    use_compiled_blocks(check_actor(actor, str(path)))
    return actor


def load_zip(path: Path) -> Actor:
    """The actor of a stable-baselines3 zip."""
    if not path.is_file():
        raise files.StorageError(f"{path}: there is no such file")
    try:
        return Actor.from_zip(path, algorithm="PPO", normalization=False)
    except ValueError as error:
        line = " ".join(str(error).removeprefix(f"{path}: ").split())[:200]
        raise files.StorageError(
            f"{path}: not a stable-baselines3 PPO agent that can be a parent: {line}"
        ) from None


def check_actor(actor: Actor, name: str) -> Actor:
    """The actor itself; a ValueError where it is not one for Procgen."""
    shape = actor.observation_shape
    fits = len(shape) == 3 and shape[0] % 3 == 0 and shape[1:] == (64, 64)
    if not fits or actor.actions != ACTIONS:
        raise ValueError(
            f"{name}: a Procgen parent sees (3 * frame_stack, 64, 64) and has {ACTIONS} actions, "
            f"this one sees {shape} and has {actor.actions}"
        )
    return actor


def train_parent(
    game: str,
    settings: PPOSettings,
    *,
    run: Run,
    total_timesteps: int,
    mode: Mode = "easy",
    seed: int = 0,
    device: str = "cpu",
    checkpoint_every: int = 50_000,
    warm_start: Path | None = None,
) -> tuple[Actor, dict[str, Any]]:
    """A trained parent and what its file says of it; a training that is found in the run's folder
    goes on, see `ppo.train`. The folder gets `policy.safetensors`.

    A ValueError where it holds a training of another game, mode, seed or other settings.
    """
    if run.folder is None:
        raise ValueError("a parent's training needs a folder for its checkpoints: Run(folder)")
    seed = check_seed(seed, bits=31)
    ppo = asdict(settings)
    if settings.adam == "torch":  # folders from before there was a choice go on
        del ppo["adam"]
    asked = {"game": game, "mode": mode, "seed": seed, "ppo": ppo}
    run.ask("parent", asked | ({"warm_start": warm_start} if warm_start else {}))
    agent = train(
        game,
        settings,
        total_timesteps=total_timesteps,
        out=run.folder,
        mode=mode,
        seed=seed,
        device=device,
        checkpoint_every=checkpoint_every,
        warm_start=warm_start,
    )
    actor = Actor.from_agent(agent)
    about = {"game": game, "mode": mode, "seed": seed, "steps": agent.num_timesteps}
    save_actor(run.folder / POLICY, actor, about=about)
    use_compiled_blocks(actor)
    return actor, about


def further_settings(file: Path) -> PPOSettings:
    """The settings that a parent's PPO goes on with, as its card says.

    A ValueError where its folder lacks what the training needs.
    """
    for name in (CARD, MILESTONE):
        if not (file.parent / name).is_file():
            raise ValueError(
                f"further training of {file} needs its {name} beside it: there is none; leave out "
                "--further-training"
            )
    try:
        found = files.read_json(file.parent / CARD)["ppo"]
        return PPOSettings(**{**found, "widths": tuple(found["widths"])})
    except (KeyError, TypeError) as error:
        raise files.StorageError(f"{file.parent / CARD} names no PPO settings: {error}") from None


def train_further(file: Path, *, steps: int, run: Run, **training: Any) -> Actor:
    """A control: the parent of a file after so many more steps of its own PPO.

    training: `game`, `mode`, `seed` and `device`, as for `train_parent`.
    """
    settings, milestone = further_settings(file), file.parent / MILESTONE
    before = milestone_steps(milestone)
    return train_parent(
        settings=settings, run=run, total_timesteps=before + steps, warm_start=milestone, **training
    )[0]


def training_outputs(folder: Path) -> list[str]:
    """The names of what a training has left in a folder."""
    return ["curve.csv", POLICY, CARD, *(path.name for path in checkpoints(folder))]
