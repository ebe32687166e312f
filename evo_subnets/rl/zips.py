"""Agents in stable-baselines3's zip files, and what lies beside them."""

import importlib
import json
import random
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from evo_subnets import files

BY_POLICY = {
    "stable_baselines3.dqn.policies": "DQN",
    "stable_baselines3.sac.policies": "SAC",
    "stable_baselines3.td3.policies": "TD3",
    "sb3_contrib.common.maskable.policies": "MaskablePPO",
    "sb3_contrib.common.recurrent.policies": "RecurrentPPO",
    "sb3_contrib.tqc.policies": "TQC",
    "sb3_contrib.qrdqn.policies": "QRDQN",
    "sb3_contrib.ars.policies": "ARS",
    "sb3_contrib.crossq.policies": "CrossQ",
}
"""Where a policy's class is to the algorithm; the others' tell them by their options."""
BY_OPTION = {"clip_range": "PPO", "cg_max_steps": "TRPO", "gae_lambda": "A2C"}
STATISTICS = ("vecnormalize.pkl", "vec_normalize.pkl")
NORMALIZES = re.compile(r"\bnormalize\b['\"]?(?::|\s*\n\s*-)[ \t]*(?P<value>[^\n]*)")
"""In the options that rl-zoo keeps beside an agent."""


def read_agent(path: str | Path, *, algorithm: str | None = None) -> BaseAlgorithm:
    """The agent of a zip, on the CPU; it is unpickled: only for files of one's own.

    `algorithm`: its class's name in stable-baselines3 or sb3-contrib; None: what the file says. The
    global generators stay where they are.
    """
    path = Path(path)
    name = algorithm_of(path) if algorithm is None else algorithm
    kind = _class_of(name)
    options: dict[str, Any] = {"buffer_size": 1} if issubclass(kind, OffPolicyAlgorithm) else {}
    try:
        with generators_kept():
            return kind.load(path, device="cpu", **options)
    except Exception as error:  # a zip can be damaged in many ways; all mean the same to the user
        line = " ".join(str(error).split())[:200]
        raise files.StorageError(
            f"{path}: no agent of stable-baselines3's {name} can be read: "
            f"{line or type(error).__name__}"
        ) from None


def algorithm_of(path: Path) -> str:
    """The name of the class that a zip is of."""
    data = _data_of(path)
    policy = data.get("policy_class")
    module = policy.get("__module__", "") if isinstance(policy, dict) else ""
    found = BY_POLICY.get(module) or next((BY_OPTION[key] for key in BY_OPTION if key in data), "")
    known = module in BY_POLICY or module == "stable_baselines3.common.policies"
    if not found or not known:
        raise ValueError(
            f"{path} does not say of which algorithm it is (its policy is of {module or 'no class'}"
            "): name it, for example PPO"
        )
    return found


def statistics_beside(path: str | Path) -> Path | None:
    """The file of a `VecNormalize` that belongs to a zip: beside it, or in a folder beside it, as
    rl-zoo and stable-baselines3's callback put them; None where there is none.

    A ValueError where there are several, or where rl-zoo's options beside say that there was one.
    """
    path = Path(path)
    folders = [path.parent, *sorted(each for each in path.parent.glob("*") if each.is_dir())]
    of_step = re.sub(r"_(\d+)_steps$", r"_vecnormalize_\1_steps.pkl", path.stem)
    found = [folder / name for folder in folders for name in STATISTICS]
    found = [path.with_name(of_step), path.parent / path.stem / STATISTICS[0], *found]
    found = list(dict.fromkeys(each for each in found if each.is_file()))
    if found and (found[0].name == of_step or found[0].parent.name == path.stem):
        return found[0]
    if len(found) > 1:
        raise ValueError(
            f"{path}: which statistics are its own, {', '.join(map(str, found))}? Name them "
            "(normalization)"
        )
    if not found:
        _check_options(path, folders)
    return found[0] if found else None


def _check_options(path: Path, folders: list[Path]) -> None:
    """A ValueError where options beside a zip say that observations were normalised."""
    for options in (folder / "config.yml" for folder in folders):
        told = NORMALIZES.search(options.read_text()) if options.is_file() else None
        value = told["value"].strip().lower() if told else "false"
        off = re.search(r"norm_obs\W+false", value) or value in ("false", "")
        if not off:
            raise ValueError(
                f"{path} was trained on normalised observations, as {options} says, and the "
                "statistics of its VecNormalize are missing: put its vecnormalize.pkl beside it, "
                "or name it (normalization)"
            )


@contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the global generators back: stable-baselines3 seeds them when it makes an agent."""
    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


def _data_of(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise files.StorageError(f"{path}: there is no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            found = json.loads(archive.read("data"))
        if not isinstance(found, dict):
            raise ValueError("its data are no options")
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        line = " ".join(str(error).split())[:200]
        raise files.StorageError(f"{path}: not a zip of stable-baselines3: {line}") from None
    return found


def _class_of(name: str) -> type[BaseAlgorithm]:
    for package in ("stable_baselines3", "sb3_contrib"):
        try:
            found = getattr(importlib.import_module(package), name, None)
        except ModuleNotFoundError:
            raise ValueError(
                f"there is no algorithm {name} in stable-baselines3; those of sb3-contrib need "
                "pip install sb3-contrib"
            ) from None
        if isinstance(found, type) and issubclass(found, BaseAlgorithm):
            return found
    raise ValueError(f"there is no algorithm {name} in stable-baselines3 and sb3-contrib")
