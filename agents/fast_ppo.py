"""stable-baselines3's PPO, faster: the same losses, gradients, minibatches, logs and files.

`docs/ppo.md` says what is done and what each part brings.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from torch import Tensor, nn

from agents.impala import ImpalaCNN
from agents.rollouts import DeviceRolloutBuffer

PART = 32
"""Observations whose gradient a thread takes at once: their activations stay in the cache."""

STATISTICS = ("policy", "value", "entropy", "clip_fraction", "approx_kl")
Gradients = list[Tensor | None]


class FastPPO(PPO):
    """A drop-in `stable_baselines3.PPO`: same constructor, `save`, `load`, logs and learning.

    On a CPU the gradient of a minibatch is the sum of its parts', which torch's number of threads
    compute side by side; on other devices a minibatch is one part, and nothing waits for the device
    within an epoch unless `target_kl` asks for it. The blocks of an `ImpalaCNN` are compiled.
    Policies with layers that look at the whole batch, or draw random numbers, are not cut in parts.
    """

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
        with compiled_blocks(self.policy), _workers(self.policy) as gradients:
            for _ in range(self.n_epochs):
                epochs.append([])
                go_on = self._epoch(settings, gradients, epochs[-1])
                self._n_updates += 1
                if not go_on:
                    break
        self._log(settings, epochs)

    def _settings(self) -> "LossSettings":
        progress = self._current_progress_remaining
        return LossSettings(
            self.clip_range(progress),  # type: ignore[operator]
            None if self.clip_range_vf is None else self.clip_range_vf(progress),  # type: ignore[operator]
            self.ent_coef,
            self.vf_coef,
            isinstance(self.action_space, gymnasium.spaces.Discrete),
        )

    def _epoch(
        self, settings: "LossSettings", gradients: "GradientsOf", seen: list[Tensor]
    ) -> bool:
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

    def _log(self, settings: "LossSettings", epochs: Sequence[Sequence[Tensor]]) -> None:
        each = [torch.stack(list(epoch)).double().cpu() for epoch in epochs]
        mean = dict(zip(STATISTICS, torch.cat(each).mean(0).tolist(), strict=True))
        last = dict(zip(STATISTICS, each[-1][-1].tolist(), strict=True))
        record, buffer = self.logger.record, self.rollout_buffer
        record("train/entropy_loss", mean["entropy"])
        record("train/policy_gradient_loss", mean["policy"])
        record("train/value_loss", mean["value"])
        record("train/approx_kl", each[-1].mean(0)[STATISTICS.index("approx_kl")].item())
        record("train/clip_fraction", mean["clip_fraction"])
        record("train/loss", settings.total(last["policy"], last["value"], last["entropy"]))
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        record("train/explained_variance", explained)
        if hasattr(self.policy, "log_std"):
            record("train/std", self.policy.log_std.exp().mean().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/clip_range", settings.clip_range)
        if settings.value_clip_range is not None:
            record("train/clip_range_vf", settings.value_clip_range)


@dataclass(frozen=True)
class LossSettings:
    """What the loss of an update depends on, besides the minibatch."""

    clip_range: float
    value_clip_range: float | None
    entropy_coefficient: float
    value_coefficient: float
    discrete: bool

    def total(self, policy: Any, value: Any, entropy: Any) -> Any:
        """The loss that is descended."""
        return policy + self.entropy_coefficient * entropy + self.value_coefficient * value


GradientsOf = Callable[[RolloutBufferSamples, LossSettings], tuple[Gradients, Tensor]]
"""From a minibatch to its gradients and its statistics."""


@contextmanager
def compiled_blocks(policy: nn.Module) -> Iterator[None]:
    """Lets the policy's Impala networks use their compiled blocks meanwhile."""
    networks = [module for module in policy.modules() if isinstance(module, ImpalaCNN)]
    before = [network.compiled for network in networks]
    try:
        for network in networks:
            network.compiled = True
        yield
    finally:
        for network, value in zip(networks, before, strict=True):
            network.compiled = value


@contextmanager
def _workers(policy: ActorCriticPolicy) -> Iterator[GradientsOf]:
    """A function that computes a minibatch's gradients with torch's number of threads."""
    whole = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    in_parts = policy.device.type == "cpu" and not any(
        isinstance(module, whole) for module in policy.modules()
    )
    threads = torch.get_num_threads() if in_parts else 1
    policies = [_with_own_distribution(policy) for _ in range(threads)]
    if threads > 1:
        torch.set_num_threads(1)  # each thread computes alone
    try:
        with ThreadPoolExecutor(threads) as pool:

            def gradients(
                minibatch: RolloutBufferSamples, settings: LossSettings
            ) -> tuple[Gradients, Tensor]:
                count = len(minibatch.advantages)
                size = min(PART, -(-count // threads)) if in_parts else count
                cuts = [slice(start, start + size) for start in range(0, count, size)]

                def share(index: int) -> tuple[Gradients, Tensor]:
                    parts = (part(minibatch, cut) for cut in cuts[index::threads])
                    return _sum(gradient(policies[index], each, settings, count) for each in parts)

                shares = range(min(threads, len(cuts)))
                return _sum(pool.map(share, shares) if threads > 1 else map(share, shares))

            yield gradients
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def _with_own_distribution(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """The same policy for one thread: a forward pass writes into its distribution object."""
    own = copy.copy(policy)
    own.action_dist = copy.copy(policy.action_dist)
    return own


def part(minibatch: RolloutBufferSamples, cut: slice) -> RolloutBufferSamples:
    """Some rows of a minibatch."""
    return RolloutBufferSamples(
        *(
            {name: value[cut] for name, value in column.items()}
            if isinstance(column, dict)
            else column[cut]
            for column in minibatch
        )
    )


def gradient(
    policy: ActorCriticPolicy, rows: RolloutBufferSamples, settings: LossSettings, count: int
) -> tuple[Gradients, Tensor]:
    """What some rows of a minibatch of `count` add to its gradients and to its `STATISTICS`.

    Advantages are normalised already. Gradients are in the order of the policy's parameters that
    require them.
    """
    actions = rows.actions.long().flatten() if settings.discrete else rows.actions
    values, log_probability, entropy = policy.evaluate_actions(rows.observations, actions)
    log_ratio = log_probability - rows.old_log_prob
    ratio, clip = log_ratio.exp(), settings.clip_range
    surrogate = rows.advantages * ratio
    clipped = rows.advantages * ratio.clamp(1 - clip, 1 + clip)
    policy_loss = -torch.min(surrogate, clipped).sum() / count
    predicted = values.flatten()
    if settings.value_clip_range is not None:
        change = predicted - rows.old_values
        limit = settings.value_clip_range
        predicted = rows.old_values + change.clamp(-limit, limit)
    value_loss = (rows.returns - predicted).square().sum() / count
    entropy_loss = (log_probability if entropy is None else -entropy).sum() / count
    loss = settings.total(policy_loss, value_loss, entropy_loss)
    parameters = [weight for weight in policy.parameters() if weight.requires_grad]
    gradients: Gradients = list(torch.autograd.grad(loss, parameters, allow_unused=True))
    with torch.no_grad():
        clip_fraction = ((ratio - 1).abs() > clip).float().sum() / count
        divergence = (ratio - 1 - log_ratio).sum() / count
        losses = (policy_loss, value_loss, entropy_loss, clip_fraction, divergence)
        return gradients, torch.stack(losses)


def _sum(terms: Any) -> tuple[Gradients, Tensor]:
    """Gradients and statistics added up, in the first term's tensors."""
    iterator = iter(terms)
    totals, statistics = next(iterator)
    for gradients, more in iterator:
        statistics += more
        for total, each in zip(totals, gradients, strict=True):
            if total is not None:
                total += each
    return totals, statistics
