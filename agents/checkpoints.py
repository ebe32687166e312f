"""A PPO run between an update and the next rollout, in a file: it goes on to the same bits.

Nothing is unpickled: tensors are safetensors, the rest is JSON.
"""

import random
import re
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, VecTransposeImage
from torch import Tensor

from agents.impala import ImpalaCNN
from envs.adapters import ProcgenVecEnv
from envs.procgen import ProcgenSimulator
from envs.states import SlotState, checksum
from evo_subnets import files
from evo_subnets.files.checkpoints import optimizer_tensors, restore_optimizer

KIND = "evo_subnets.ppo_checkpoint"
MILESTONE = "evo_subnets.ppo_milestone"
SAME_FEATURES = ("policy.pi_features_extractor.", "policy.vf_features_extractor.")
COUNTERS = ("num_timesteps", "_n_updates", "_episode_num")


def checkpoints(out: Path) -> list[Path]:
    """The files `checkpoint-STEPS.safetensors` in `out`, in the order of their steps."""
    steps = {
        int(found[1]): path
        for path in out.glob("checkpoint-*")
        if (found := re.fullmatch(r"checkpoint-(\d+)\.safetensors", path.name))
    }
    return [steps[key] for key in sorted(steps)]


def newest_checkpoint(out: Path) -> Path | None:
    """The checkpoint with the most steps, None if `out` has none.

    A ValueError where `out` has checkpoints of the older format, folders with pickles, and no
    others.
    """
    found = checkpoints(out)
    if found:
        return found[-1]
    if any(re.fullmatch(r"checkpoint-\d+", path.name) for path in out.glob("checkpoint-*")):
        raise ValueError(
            f"{out} holds checkpoints of an older format alone, which cannot be gone on from: "
            "use another folder, or remove them to train from the start"
        )
    return None


def remove_half_written(out: Path) -> None:
    """Removes the temporary files of a process that was killed while it wrote a checkpoint."""
    for path in out.glob(".checkpoint-*"):
        if re.fullmatch(r"\.checkpoint-\d+\.safetensors\.[0-9a-f]+", path.name):
            path.unlink()


def save_checkpoint(model: PPO, out: Path, *, keep: int = 2) -> None:
    """Writes `checkpoint-STEPS.safetensors` into `out`, and keeps only the newest ones.

    The rollout buffer is not kept: the time is between an update and the next rollout.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    path = out / f"checkpoint-{model.num_timesteps}.safetensors"
    tensors = _learner(model) | _environments(model) | _torch_generators(model)
    description = {
        "run": _run(model),
        "counters": {name: getattr(model, name) for name in COUNTERS},
        "generators": {"numpy": _numpy_generator(), "python": random.getstate()},
    }
    files.save_tensors(path, tensors, kind=KIND, description=description)
    for old in checkpoints(out)[:-keep]:
        old.unlink()


def load_checkpoint(model: PPO, path: Path) -> None:
    """Puts a new agent, its environments and the global generators where `save_checkpoint` was.

    Hyper-parameters stay the agent's own. A StorageError where the file is damaged, a ValueError
    where it is of a run with another game, network, seed or number of environments.
    """
    try:
        loaded, description = files.load_tensors(path, KIND)
    except files.StorageError as error:
        raise files.StorageError(
            f"{error}; remove this file to go on from the checkpoint before it"
        ) from None
    _check_run(path, description["run"], _run(model))
    tensors = {name: tensor.clone() for name, tensor in loaded.items()}  # they lay in the file
    for name in COUNTERS:
        setattr(model, name, description["counters"][name])
    files.load_state(path, model.policy, tensors=_part(tensors, "policy."))
    restore_optimizer(model.policy.optimizer, _part(tensors, "optimizer."))
    _restore_environments(model, tensors)
    _restore_generators(model, tensors, description["generators"])


def save_milestone(checkpoint: Path, path: Path) -> int:
    """Writes what is worth keeping of a checkpoint where another run may begin: policy, critic and
    the normaliser's statistics, a sixth of its size; its steps come back.

    Weights are in half precision, so a run that begins there does not have the bits of the first.
    """
    tensors, description = files.load_tensors(checkpoint, KIND)
    kept = {
        name: tensor.half() if name.startswith("policy.") else tensor
        for name, tensor in tensors.items()
        if name.startswith("policy.") or name == "normalizer.statistics"
        if not name.startswith(SAME_FEATURES)  # what actor and critic share has three names
    }
    steps = int(description["counters"]["num_timesteps"])
    about = {"run": description["run"], "steps": steps}
    files.save_tensors(path, kept, kind=MILESTONE, description=about)
    return steps


def milestone_steps(path: Path) -> int:
    """The environment steps that a milestone's agent was trained for."""
    return int(files.load_tensors(path, MILESTONE)[1]["steps"])


def load_milestone(model: PPO, path: Path) -> None:
    """Gives a new agent the policy, the critic, the normaliser and the steps of a milestone.

    A StorageError where the file is damaged, a ValueError where it is of another game, mode or
    network.
    """
    tensors, description = files.load_tensors(path, MILESTONE)
    own = _run(model)
    same = ("game", "mode", "frame_stack", "widths")
    _check_run(path, description["run"], {name: own[name] for name in same})
    weights = {name: tensor.float() for name, tensor in _part(tensors, "policy.").items()}
    for name in model.policy.state_dict():
        _, shared, layer = name.partition("_features_extractor.")
        if shared:
            weights[name] = weights[f"features_extractor.{layer}"]
    files.load_state(path, model.policy, tensors=weights)
    statistics = _layers(model)[0].ret_rms
    statistics.mean, statistics.var, count = tensors["normalizer.statistics"].numpy().copy()
    statistics.count = float(count)
    model.num_timesteps = int(description["steps"])


def _layers(model: PPO) -> tuple[VecNormalize, VecMonitor, ProcgenSimulator]:
    normalizer = model.get_vec_normalize_env()
    assert normalizer is not None
    monitor = normalizer.venv
    assert isinstance(monitor, VecMonitor)
    assert isinstance(monitor.venv, ProcgenVecEnv)
    return normalizer, monitor, monitor.venv.simulator


def _run(model: PPO) -> dict[str, Any]:
    """What a run cannot change and go on, as JSON has it."""
    simulator = _layers(model)[2]
    features = model.policy.features_extractor
    assert isinstance(features, ImpalaCNN)
    return {
        "game": simulator.game,
        "mode": simulator.mode,
        "levels": [simulator.levels.start, simulator.levels.count],
        "num_envs": simulator.num_envs,
        "frame_stack": simulator.frame_stack,
        "widths": list(features.widths),
        "seed": model.seed,
    }


def _check_run(path: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    differ = [
        f"{name} {found.get(name)} (now {value})"
        for name, value in asked.items()
        if found.get(name) != value
    ]
    if differ:
        raise ValueError(
            f"{path} is of a run with {', '.join(differ)}: use another folder, or the run's options"
        )


def _learner(model: PPO) -> dict[str, Tensor]:
    weights = model.policy.state_dict().items()
    moments = optimizer_tensors(model.policy.optimizer).items()
    return {f"policy.{name}": weight for name, weight in weights} | {
        f"optimizer.{name}": moment for name, moment in moments
    }


def _environments(model: PPO) -> dict[str, Tensor]:
    """The simulator's slots, and what the layers above it and the agent remember of them."""
    normalizer, monitor, simulator = _layers(model)
    statistics = normalizer.ret_rms
    episodes: list[dict[str, Any]] = list(model.ep_info_buffer or [])
    slots = simulator.get_state()
    simulators = {
        f"slots.simulator.{index}": torch.frombuffer(bytearray(slot.simulator), dtype=torch.uint8)
        for index, slot in enumerate(slots)
    }
    finished = {
        "finished.returns": torch.tensor([episode["r"] for episode in episodes]),
        "finished.lengths": torch.tensor([episode["l"] for episode in episodes], dtype=torch.int32),
    }
    arrays = {
        "slots.frames": np.stack([slot.frames for slot in slots]),
        "slots.elapsed": np.array([slot.elapsed for slot in slots]),
        "episodes.count": np.array(monitor.episode_count),
        "episodes.starts": model._last_episode_starts,
        "episodes.returns": monitor.episode_returns,
        "episodes.lengths": monitor.episode_lengths,
        "normalizer.returns": normalizer.returns,
        "normalizer.statistics": np.array([statistics.mean, statistics.var, statistics.count]),
    }
    return simulators | finished | {name: torch.from_numpy(array) for name, array in arrays.items()}


def _restore_environments(model: PPO, tensors: Mapping[str, Tensor]) -> None:
    normalizer, monitor, simulator = _layers(model)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    states = [arrays[f"slots.simulator.{index}"].tobytes() for index in range(simulator.num_envs)]
    elapsed = arrays["slots.elapsed"].tolist()
    sums = map(checksum, states)  # the file has one of its own
    slots = map(SlotState, states, arrays["slots.frames"], elapsed, sums)
    observations = simulator.set_state(list(slots))
    assert isinstance(model.env, VecTransposeImage)
    # the same view of the frames as in a run that goes on: its strides choose torch's kernels
    model._last_obs = model.env.transpose_observations(observations)
    model._last_episode_starts = arrays["episodes.starts"]
    monitor.episode_count = int(arrays["episodes.count"])
    monitor.episode_returns = arrays["episodes.returns"]
    monitor.episode_lengths = arrays["episodes.lengths"]
    finished = zip(arrays["finished.returns"], arrays["finished.lengths"], strict=True)
    model.ep_info_buffer = deque(
        [{"r": episode_return, "l": length} for episode_return, length in finished],
        maxlen=model._stats_window_size,
    )
    model.ep_success_buffer = deque(maxlen=model._stats_window_size)  # Procgen tells of none
    normalizer.returns = arrays["normalizer.returns"]
    mean, variance, count = arrays["normalizer.statistics"]
    statistics = normalizer.ret_rms
    statistics.mean, statistics.var, statistics.count = mean, variance, float(count)


def _torch_generators(model: PPO) -> dict[str, Tensor]:
    states = {"generators.cpu": torch.get_rng_state()}
    if model.device.type == "cuda":
        states["generators.cuda"] = torch.cuda.get_rng_state(model.device)
    return states


def _numpy_generator() -> dict[str, Any]:
    state = np.random.get_state(legacy=False)
    inner = state["state"]
    return {**state, "state": {**inner, "key": inner["key"].tolist()}}


def _restore_generators(
    model: PPO, tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    torch.set_rng_state(tensors["generators.cpu"])
    if model.device.type == "cuda" and "generators.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generators.cuda"], model.device)
    np.random.set_state(description["numpy"])
    version, words, gauss = description["python"]
    random.setstate((version, tuple(words), gauss))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
