"""PPO on Procgen through stable-baselines3, set as in Whitaker 2023, table 4.2.

`docs/ppo.md` settles, one by one, where stable-baselines3 departs from the reference PPO.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import nn
from tqdm.auto import tqdm

from agents.checkpoints import (
    load_checkpoint,
    load_milestone,
    newest_checkpoint,
    remove_half_written,
    save_checkpoint,
)
from agents.fast.adam import TensorFlowAdam
from agents.fast.gradients import ValueLoss
from agents.fast.ppo import FastPPO
from agents.impala import PAPER_WIDTHS, ImpalaCNN
from envs.adapters import ProcgenVecEnv
from envs.games import TRAIN_LEVELS, Levels, Mode
from envs.procgen import ProcgenSimulator
from evo_subnets.engines import keep_freed_memory
from evo_subnets.files import write_atomically
from evo_subnets.streams import check_seed

ADAMS = {"torch": torch.optim.Adam, "tensorflow": TensorFlowAdam}
ADAM_EPSILON = 1e-5
"""The reference's, and stable-baselines3's."""
GAME_THREADS = 4
"""That play the games while the network is on another device."""


@dataclass(frozen=True)
class PPOSettings:
    """The defaults are those of Whitaker 2023, table 4.2."""

    num_envs: int = 64
    """Environments stepped together."""
    rollout_steps: int = 256
    """Steps of each environment between two updates."""
    minibatches: int = 8
    """Minibatches that a rollout is cut into."""
    epochs: int = 3
    """Passes over a rollout."""
    learning_rate: float = 5e-4
    """Adam's step size, constant."""
    adam: Literal["torch", "tensorflow"] = "torch"
    """Which epsilon Adam has: torch's, or TensorFlow's, which is the reference's and holds the
    first hundreds of steps back."""
    gamma: float = 0.999
    """Discount of the returns."""
    normalizer_gamma: float = 0.999
    """Discount of the returns whose spread the reward normaliser divides by; train-procgen has 0.99
    beside a `gamma` of 0.999."""
    gae_lambda: float = 0.95
    """Lambda of the generalised advantage estimate."""
    clip_range: float = 0.2
    """Clipping of the probability ratio and, as in the reference, of the value's change."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus."""
    value_coefficient: float = 0.25
    """Weight of the mean squared value error: the reference's 0.5 times its factor of one half."""
    value_loss: ValueLoss = "larger"
    """larger: of the clipped and the unclipped squared error, as in the reference. clipped: the
    clipped one alone, as in stable-baselines3."""
    max_gradient_norm: float = 0.5
    """Gradients are scaled down to this norm."""
    target_kl: float | None = 0.01
    """An update ends when the approximate KL passes 1.5 times this; None: never."""
    widths: tuple[int, ...] = PAPER_WIDTHS
    """Channels of the Impala blocks."""
    frame_stack: int = 2
    """Frames in an observation."""

    def __post_init__(self) -> None:
        if self.adam not in ADAMS:
            raise ValueError(f"adam must be one of {', '.join(ADAMS)}, got {self.adam!r}")
        for name in ("num_envs", "rollout_steps", "minibatches", "epochs", "frame_stack"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_range", "max_gradient_norm", "target_kl"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("entropy_coefficient", "value_coefficient"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("gamma", "normalizer_gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be positive numbers of channels, got {self.widths}")
        if self.num_envs * self.rollout_steps % self.minibatches:
            raise ValueError(
                f"a rollout of {self.num_envs} x {self.rollout_steps} steps cannot be cut into "
                f"{self.minibatches} equal minibatches"
            )


def make_training_env(
    game: str,
    settings: PPOSettings,
    *,
    levels: Levels = TRAIN_LEVELS,
    mode: Mode = "easy",
    seed: int = 0,
    num_threads: int = 0,
) -> VecNormalize:
    """The game with episode statistics of the raw rewards, and normalised rewards on top."""
    simulator = ProcgenSimulator(
        game,
        settings.num_envs,
        levels=levels,
        mode=mode,
        frame_stack=settings.frame_stack,
        seed=check_seed(seed),
        num_threads=num_threads,
    )
    monitored = VecMonitor(ProcgenVecEnv(simulator))
    return VecNormalize(
        monitored, norm_obs=False, norm_reward=True, gamma=settings.normalizer_gamma
    )


def hyper_parameters(settings: PPOSettings) -> dict[str, Any]:
    """The settings that may change between the parts of a run, in stable-baselines3's words."""
    return {
        "learning_rate": settings.learning_rate,
        "n_steps": settings.rollout_steps,
        "batch_size": settings.num_envs * settings.rollout_steps // settings.minibatches,
        "n_epochs": settings.epochs,
        "gamma": settings.gamma,
        "gae_lambda": settings.gae_lambda,
        "clip_range": settings.clip_range,
        "clip_range_vf": settings.clip_range,
        "ent_coef": settings.entropy_coefficient,
        "vf_coef": settings.value_coefficient,
        "max_grad_norm": settings.max_gradient_norm,
        "target_kl": settings.target_kl,
    }


def make_ppo(
    env: VecNormalize,
    settings: PPOSettings,
    *,
    seed: int,
    device: str = "auto",
    agent: type[PPO] = FastPPO,
    network: type[ImpalaCNN] = ImpalaCNN,
) -> PPO:
    """An untrained agent with the reference's initialisation.

    stable-baselines3's `ortho_init` would re-initialise the convolutions; the reference has
    Glorot's there (`ImpalaCNN`), and makes only the two heads orthogonal (gain 0.01 and 1).
    """
    seed = check_seed(seed, bits=31)
    own: dict[str, Any] = {}
    if issubclass(agent, FastPPO):
        own["value_loss"] = settings.value_loss
    elif settings.value_loss != "clipped":
        raise ValueError(
            f"{agent.__name__} has the clipped value loss alone: set value_loss='clipped', or take "
            "FastPPO"
        )
    model = agent(
        "CnnPolicy",
        env,
        **hyper_parameters(settings),
        **own,
        policy_kwargs={
            "features_extractor_class": network,
            "features_extractor_kwargs": {"widths": settings.widths},
            "net_arch": [],
            "ortho_init": False,
            "optimizer_class": ADAMS[settings.adam],
            "optimizer_kwargs": {"eps": ADAM_EPSILON},
        },
        seed=seed,
        device=device,
    )
    for head, gain in ((model.policy.action_net, 0.01), (model.policy.value_net, 1.0)):
        assert isinstance(head, nn.Linear)
        nn.init.orthogonal_(head.weight, gain)
        nn.init.zeros_(head.bias)
    return model


def train(
    game: str,
    settings: PPOSettings,
    *,
    total_timesteps: int,
    out: Path,
    levels: Levels = TRAIN_LEVELS,
    mode: Mode = "easy",
    seed: int = 0,
    device: str = "auto",
    checkpoint_every: int = 50_000,
    warm_start: Path | None = None,
) -> PPO:
    """The trained agent; a run that is found in `out` goes on from its newest checkpoint.

    It ends with the same bits as a run that was never stopped, on the same machine and with the
    same options; hyper-parameters may also be others now. A ValueError where the game, the levels,
    the network, the seed or the number of environments are others, or where it has gone on for
    longer than is asked for already.

    `warm_start`: a milestone (see `checkpoints.save_milestone`) where a run without checkpoints
    begins, with a new optimizer and new games.

    `out` gets `checkpoint-STEPS.safetensors` (the two newest, one at the end), `curve.csv` (steps,
    mean return of the last 100 episodes) and TensorBoard logs.
    """
    if total_timesteps < 1 or checkpoint_every < 1:
        raise ValueError(
            "total_timesteps and checkpoint_every must be at least 1, got "
            f"{total_timesteps} and {checkpoint_every}"
        )
    seed = check_seed(seed, bits=31)
    keep_freed_memory()
    out.mkdir(parents=True, exist_ok=True)
    remove_half_written(out)
    checkpoint = newest_checkpoint(out)
    free = 0 if get_device(device).type == "cpu" else GAME_THREADS  # else the network needs them
    env = make_training_env(game, settings, levels=levels, mode=mode, seed=seed, num_threads=free)
    try:
        model = make_ppo(env, settings, seed=seed, device=device)
        if checkpoint is not None:
            load_checkpoint(model, checkpoint)
        elif warm_start is not None:
            load_milestone(model, warm_start)
        if model.num_timesteps - total_timesteps >= settings.num_envs * settings.rollout_steps:
            raise ValueError(
                f"{out} holds a run of {model.num_timesteps:,} steps already: total_timesteps "
                f"{total_timesteps:,} would change nothing; ask for more, or use another folder"
            )
        _cut_curve(out / "curve.csv", model.num_timesteps)
        model.set_logger(Logger(str(out), [_events(out, model.num_timesteps)]))
        remaining = total_timesteps - model.num_timesteps
        if remaining > 0:
            done = model.num_timesteps
            with tqdm(total=total_timesteps, initial=done, unit="step", desc="PPO") as bar:
                progress = _Progress(bar, out, checkpoint_every)
                model.learn(remaining, progress, reset_num_timesteps=False)
            save_checkpoint(model, out)
        return model
    finally:
        env.close()


def _events(out: Path, steps: int) -> TensorBoardOutputFormat:
    """TensorBoard's events; those that an earlier run wrote after `steps` no longer count."""
    events = TensorBoardOutputFormat(str(out))
    writer = events.writer.file_writer
    assert writer is not None
    for mark in (
        {"file_version": "brain.Event:2"},
        {"session_log": SessionLog(status=SessionLog.START)},
    ):
        writer.add_event(Event(step=steps + 1, **mark))
    return events


def _cut_curve(curve: Path, steps: int) -> None:
    """Drops what was written after a checkpoint, which is to be done again."""
    if curve.exists():
        heading, *rows = curve.read_text().splitlines()
        kept = [row for row in rows if int(row.split(",")[0]) <= steps]
        write_atomically(curve, "".join(f"{row}\n" for row in (heading, *kept)).encode())


class _Progress(BaseCallback):
    """A progress bar, the training curve, and checkpoints between updates."""

    model: PPO

    def __init__(self, bar: "tqdm[NoReturn]", out: Path, checkpoint_every: int) -> None:
        super().__init__()
        self.bar, self.out, self.checkpoint_every = bar, out, checkpoint_every

    def _on_training_start(self) -> None:
        self.saved_at = self.model.num_timesteps

    def _on_rollout_start(self) -> None:  # the update is done: weights and optimizer agree
        self.bar.update(self.model.num_timesteps - self.bar.n)
        if self.model.num_timesteps - self.saved_at >= self.checkpoint_every:
            save_checkpoint(self.model, self.out)
            self.saved_at = self.model.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        episodes = list(self.model.ep_info_buffer or [])
        if episodes:
            mean_return = sum(episode["r"] for episode in episodes) / len(episodes)
            self.bar.set_postfix_str(f"return {mean_return:.2f}")
            row = f"{self.model.num_timesteps},{mean_return:.4f}\n"
            curve = self.out / "curve.csv"
            before = curve.read_text() if curve.exists() else "steps,mean_return\n"
            write_atomically(curve, (before + row).encode())

    def _on_training_end(self) -> None:
        self.bar.update(self.model.num_timesteps - self.bar.n)
