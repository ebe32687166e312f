"""Last layers of agents, as modules whose outputs are of a kind that is known."""

import math

import torch
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from torch import Tensor, nn


class Normals(nn.Module):
    """(batch, features) to (batch, 2, values) means and logarithms of standard deviations, which
    are a layer's too, within `bounds`, or the same for all observations."""

    def __init__(
        self,
        means: nn.Module,
        deviations: nn.Module | nn.Parameter,
        *,
        bounds: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        super().__init__()
        self.means, self.deviations, self.bounds = means, deviations, bounds

    def forward(self, features: Tensor) -> Tensor:
        means = self.means(features)
        found = self.deviations
        scales = found(features).clamp(*self.bounds) if isinstance(found, nn.Module) else found
        return torch.stack((means, scales.expand_as(means)), dim=1)


class StateNoise(nn.Module):
    """(batch, features) to (batch, values): logarithms of the standard deviations that noise on
    the last layer's weights gives (gSDE, Raffin et al. 2021), drawn anew for every action."""

    def __init__(self, scales: nn.Parameter, noise: StateDependentNoiseDistribution) -> None:
        super().__init__()
        self.scales, self.epsilon = scales, noise.epsilon
        # without the noise that it has drawn
        self.noise = StateDependentNoiseDistribution(
            noise.action_dim, full_std=noise.full_std, use_expln=noise.use_expln
        )
        self.noise.epsilon, self.noise.latent_sde_dim = noise.epsilon, noise.latent_sde_dim

    def forward(self, features: Tensor) -> Tensor:
        variances = features.square() @ self.noise.get_std(self.scales).square()
        return (variances + self.epsilon).log() / 2


class YesNo(nn.Module):
    """(batch, features) to (batch, 2 * choices): the logits of a no, which are zero, and of a
    yes."""

    def __init__(self, yes: nn.Module) -> None:
        super().__init__()
        self.yes = yes

    def forward(self, features: Tensor) -> Tensor:
        yes: Tensor = self.yes(features)
        return torch.stack((torch.zeros_like(yes), yes), dim=-1).flatten(1)
