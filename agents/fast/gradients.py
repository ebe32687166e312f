"""The gradient of a PPO minibatch as the sum of its parts', which several threads compute."""

import copy
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from torch import Tensor, nn

from evo_subnets import engines

PART = 64
"""Observations whose gradient a thread takes at once. Two threads with parts of 32, 64 and 128 were
1.36, 1.61 and 1.46 times as fast as stable-baselines3 (`benchmarks/ppo.py`, 16-32-32): small parts
have more steps between the compiled blocks, large ones leave the cache."""

ValueLoss = Literal["larger", "clipped"]
"""The squared error of a value whose change is clipped: the larger of the clipped and the unclipped
one (the reference), or the clipped one (stable-baselines3), which does not pull back a value that
ran away."""

WHOLE = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.Dropout, nn.Dropout1d,
         nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)  # fmt: skip
"""Layers that look at the whole minibatch, or draw random numbers."""

STATISTICS = ("policy", "value", "entropy", "clip_fraction", "approx_kl")
Gradients = list[Tensor | None]


@dataclass(frozen=True)
class LossSettings:
    """What the loss of an update depends on, besides the minibatch."""

    clip_range: float
    value_clip_range: float | None
    value_loss: ValueLoss
    entropy_coefficient: float
    value_coefficient: float
    discrete: bool

    def total(self, policy: Any, value: Any, entropy: Any) -> Any:
        """The loss that is descended."""
        return policy + self.entropy_coefficient * entropy + self.value_coefficient * value


GradientsOf = Callable[[RolloutBufferSamples, LossSettings], tuple[Gradients, Tensor]]
"""From a minibatch to its gradients and its statistics."""


@contextmanager
def workers(policy: ActorCriticPolicy) -> Iterator[GradientsOf]:
    """A function that computes a minibatch's gradients with torch's number of threads."""
    in_parts = policy.device.type == "cpu" and not any(
        isinstance(module, WHOLE) for module in policy.modules()
    )
    threads = torch.get_num_threads() if in_parts else 1
    policies = [_for_a_thread(policy) for _ in range(threads)]
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


def _for_a_thread(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """The same policy for one thread, with faster convolutions where there are such.

    A forward pass writes into its distribution object.
    """
    distribution = copy.copy(policy.action_dist)
    if policy.device.type == "cpu":
        instead = [(policy.optimizer, policy.optimizer), (policy.action_dist, distribution)]
        faster = engines.with_fast_convolutions(policy, instead)
        if isinstance(faster, ActorCriticPolicy):
            return faster
    own = copy.copy(policy)
    own.action_dist = distribution
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
    value_loss = _value_errors(values.flatten(), rows, settings).sum() / count
    entropy_loss = (log_probability if entropy is None else -entropy).sum() / count
    loss = settings.total(policy_loss, value_loss, entropy_loss)
    parameters = [weight for weight in policy.parameters() if weight.requires_grad]
    gradients: Gradients = list(torch.autograd.grad(loss, parameters, allow_unused=True))
    with torch.no_grad():
        clip_fraction = ((ratio - 1).abs() > clip).float().sum() / count
        divergence = (ratio - 1 - log_ratio).sum() / count
        losses = (policy_loss, value_loss, entropy_loss, clip_fraction, divergence)
        return gradients, torch.stack(losses)


def _value_errors(values: Tensor, rows: RolloutBufferSamples, settings: LossSettings) -> Tensor:
    errors = (rows.returns - values).square()
    limit = settings.value_clip_range
    if limit is None:
        return errors
    clipped = rows.old_values + (values - rows.old_values).clamp(-limit, limit)
    clipped_errors = (rows.returns - clipped).square()
    return torch.max(errors, clipped_errors) if settings.value_loss == "larger" else clipped_errors


def _sum(terms: Iterable[tuple[Gradients, Tensor]]) -> tuple[Gradients, Tensor]:
    """Gradients and statistics added up, in the first term's tensors."""
    iterator = iter(terms)
    totals, statistics = next(iterator)
    for gradients, more in iterator:
        statistics += more
        for total, each in zip(totals, gradients, strict=True):
            if total is not None and each is not None:
                total += each
    return totals, statistics
