"""stable-baselines3's PPO, faster, and with the reference's value loss.

`docs/ppo.md` says what is done and what each part brings.
"""

from collections.abc import Sequence
from typing import Any, get_args

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import explained_variance
from torch import Tensor, nn

from agents.fast.gradients import STATISTICS, GradientsOf, LossSettings, ValueLoss, workers
from agents.fast.rollouts import DeviceRolloutBuffer
from agents.impala import compiled_blocks


class FastPPO(PPO):
    """A drop-in `stable_baselines3.PPO`: same constructor, `save`, `load`, logs and learning.

    On a CPU the gradient of a minibatch is the sum of its parts', which torch's number of threads
    compute side by side; on other devices a minibatch is one part, and nothing waits for the device
    within an epoch unless `target_kl` asks for it. The blocks of an `ImpalaCNN` are compiled.
    Policies with layers that look at the whole batch, or draw random numbers, are not cut in parts.

    `value_loss` is for agents with a `clip_range_vf`: "larger" (None) is the reference's, "clipped"
    is stable-baselines3's.
    """

    def __init__(self, *args: Any, value_loss: ValueLoss | None = None, **kwargs: Any) -> None:
        if value_loss not in (None, *get_args(ValueLoss)):
            raise ValueError(f"value_loss must be 'larger' or 'clipped', got {value_loss!r}")
        self.value_loss: ValueLoss = value_loss or "larger"
        super().__init__(*args, **kwargs)
        if value_loss is not None and self.clip_range_vf is None:
            raise ValueError(f"value_loss={value_loss!r} changes nothing without clip_range_vf")

    def _setup_model(self) -> None:
        space = self.observation_space
        pictures = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 3
        if self.rollout_buffer_class is None and pictures:
            self.rollout_buffer_class = DeviceRolloutBuffer
        super()._setup_model()

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """As in stable-baselines3."""
        with compiled_blocks(self.policy):
            return super().collect_rollouts(*args, **kwargs)

    def train(self) -> None:
        """One update from the rollout, as stable-baselines3's."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        settings = self._settings()
        epochs: list[list[Tensor]] = []
        with compiled_blocks(self.policy), workers(self.policy) as gradients:
            for _ in range(self.n_epochs):
                epochs.append([])
                go_on = self._epoch(settings, gradients, epochs[-1])
                self._n_updates += 1
                if not go_on:
                    break
        self._log(settings, epochs)

    def _settings(self) -> LossSettings:
        progress = self._current_progress_remaining
        return LossSettings(
            self.clip_range(progress),  # type: ignore[operator]
            None if self.clip_range_vf is None else self.clip_range_vf(progress),  # type: ignore[operator]
            self.value_loss,
            self.ent_coef,
            self.vf_coef,
            isinstance(self.action_space, gymnasium.spaces.Discrete),
        )

    def _epoch(self, settings: LossSettings, gradients: GradientsOf, seen: list[Tensor]) -> bool:
        """Whether to go on; `seen` gets each minibatch's statistics."""
        parameters = [weight for weight in self.policy.parameters() if weight.requires_grad]
        for minibatch in self.rollout_buffer.get(self.batch_size):
            advantages = minibatch.advantages
            if self.normalize_advantage and len(advantages) > 1:
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            found, statistics = gradients(minibatch._replace(advantages=advantages), settings)
            seen.append(statistics)
            if self.target_kl is not None:
                divergence = statistics[STATISTICS.index("approx_kl")].item()
                if divergence > 1.5 * self.target_kl:
                    if self.verbose >= 1:
                        print(f"Early stopping due to reaching max kl: {divergence:.2f}")
                    return False
            for weight, gradient in zip(parameters, found, strict=True):
                weight.grad = gradient
            nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
        return True

    def _log(self, settings: LossSettings, epochs: Sequence[Sequence[Tensor]]) -> None:
        each = [torch.stack(list(epoch)).cpu().double() for epoch in epochs]
        mean = dict(zip(STATISTICS, torch.cat(each).mean(0).tolist(), strict=True))
        last = dict(zip(STATISTICS, each[-1][-1].tolist(), strict=True))
        record, buffer = self.logger.record, self.rollout_buffer
        record("train/entropy_loss", mean["entropy"])
        record("train/policy_gradient_loss", mean["policy"])
        record("train/value_loss", mean["value"])
        record("train/approx_kl", each[-1].mean(0)[STATISTICS.index("approx_kl")].item())
        record("train/clip_fraction", mean["clip_fraction"])
        record("train/loss", settings.total(last["policy"], last["value"], entropy=last["entropy"]))
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        record("train/explained_variance", explained)
        if hasattr(self.policy, "log_std"):
            record("train/std", self.policy.log_std.exp().mean().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/clip_range", settings.clip_range)
        if settings.value_clip_range is not None:
            record("train/clip_range_vf", settings.value_clip_range)
