"""What of a stable-baselines3 agent acts: the parts of an `Actor`, and whether they are all."""

import sys
from collections.abc import Sequence
from typing import Any

from stable_baselines3 import DQN
from stable_baselines3.common import distributions
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3
from torch import nn

from evo_subnets.actions import ActionValues, Categoricals, Deterministic, Gaussian
from evo_subnets.outputs import CLASSES, Outputs
from evo_subnets.rl.acting import check_actions
from evo_subnets.rl.heads import Normals, StateNoise, YesNo

SUPPORTED = (
    "PPO, A2C, DQN, SAC, TD3 and DDPG of stable-baselines3, or TRPO, TQC and MaskablePPO of "
    "sb3-contrib"
)
EXPLORATION = 0.05
"""Of a DQN that was trained to explore never, or always."""

_PREDICTS = ("predict", "_predict", "forward", "obs_to_tensor", "unscale_action",
             "set_training_mode", "train")  # fmt: skip
_NETWORK = ("forward", "_predict", "extract_features")
_DRAWS = ("proba_distribution", "get_actions", "sample", "mode")
ACTING: dict[type, tuple[str, ...]] = {
    DQN: ("predict",),
    BaseAlgorithm: ("predict",),
    ActorCriticPolicy: (
        *_PREDICTS, "get_distribution", "_get_action_dist_from_latent", "extract_features",
    ),
    DQNPolicy: _PREDICTS,
    sac.SACPolicy: _PREDICTS,
    td3.TD3Policy: _PREDICTS,
    QNetwork: _NETWORK,
    sac.Actor: (*_NETWORK, "get_action_dist_params"),
    td3.Actor: _NETWORK,
    MlpExtractor: ("forward", "forward_actor"),
    distributions.SquashedDiagGaussianDistribution: _DRAWS,
    distributions.DiagGaussianDistribution: _DRAWS,
    distributions.CategoricalDistribution: _DRAWS,
    distributions.MultiCategoricalDistribution: _DRAWS,
    distributions.BernoulliDistribution: _DRAWS,
    distributions.StateDependentNoiseDistribution: (*_DRAWS, "get_std", "get_noise"),
}  # fmt: skip
"""stable-baselines3's methods between an observation and an action, which an `Actor` leaves out:
those of the first class that fits."""


def parts_of(agent: BaseAlgorithm) -> dict[str, Any]:
    """What `Actor` is made of; a ValueError where an agent of another kind acts, or one that acts
    by methods of its own (a temperature, a memory): an actor is the network alone."""
    policy, acting = agent.policy, {**_contributed(), **ACTING}
    if hasattr(policy, "lstm_actor"):
        raise ValueError(
            f"a parent must have no memory, this agent's {type(policy).__name__} is recurrent"
        )
    masks, tqc = _of_contrib("common.maskable.policies"), _of_contrib("tqc.policies")
    masked = masks is not None and isinstance(policy, masks.MaskableActorCriticPolicy)
    if masked or isinstance(policy, ActorCriticPolicy):
        checked, found = _actor_critic(policy)
        found["masked"] = masked
    elif isinstance(policy, sac.SACPolicy) or (tqc and isinstance(policy, tqc.TQCPolicy)):
        checked, found = _squashing(policy.actor)
    elif isinstance(policy, td3.TD3Policy):
        actor = policy.actor
        checked = [actor]
        found = {"features": actor.features_extractor, "body": nn.Identity(), "head": actor.mu,
                 "outputs": Deterministic(_noise_of(agent)), "squashed": True}  # fmt: skip
    elif isinstance(policy, DQNPolicy):
        net = policy.q_net
        rate = getattr(agent, "exploration_final_eps", EXPLORATION)
        checked = [net]
        found = {"features": net.features_extractor, "body": nn.Identity(), "head": net.q_net,
                 "outputs": ActionValues(rate if 0 < rate < 1 else EXPLORATION)}  # fmt: skip
    else:
        raise ValueError(
            f"a parent is an agent of {SUPPORTED}, this one is a {type(agent).__name__} with a "
            f"{type(policy).__name__}"
        )
    check_actions(agent.action_space, "this agent has")
    for part in (agent, policy, *checked):
        _refuse_own_methods(part, acting)
    return {
        **found,
        "observation_space": policy.observation_space,
        "action_space": policy.action_space,
        "normalize_images": policy.normalize_images,
    }


def _noise_of(agent: Any) -> float:
    """The deviation of the noise that smooths what an agent learns from; TD3's usual one of DDPG,
    which has none."""
    smooths = getattr(agent, "target_noise_clip", 0) and getattr(agent, "target_policy_noise", 0)
    return float(smooths or Deterministic().noise)


def _actor_critic(policy: Any) -> tuple[Sequence[object], dict[str, Any]]:
    extractor, noise = policy.mlp_extractor, policy.action_dist
    if not isinstance(extractor, MlpExtractor):
        raise ValueError(
            "a parent must be an agent with stable-baselines3's own policy, this one has a "
            f"{type(extractor).__name__} in its {type(policy).__name__}"
        )
    head, outputs = _head(policy.action_net, noise, getattr(policy, "log_std", None))
    found = {"features": policy.pi_features_extractor, "body": extractor.policy_net,
             "head": head, "outputs": outputs}  # fmt: skip
    return (extractor, noise), found


def _squashing(actor: Any) -> tuple[Sequence[object], dict[str, Any]]:
    """Of SAC and of what is made like it."""
    noise = actor.action_dist
    head, outputs = _head(actor.mu, noise, actor.log_std)
    found = {"features": actor.features_extractor, "body": actor.latent_pi, "head": head,
             "outputs": outputs}  # fmt: skip
    return (actor, noise), found


def _head(net: nn.Module, noise: Any, scales: Any) -> tuple[nn.Module, Outputs]:
    """The layer that `noise` takes its parameters from, and the kind of what it gives."""
    if isinstance(noise, distributions.StateDependentNoiseDistribution):
        squashed = noise.bijector is not None
        return Normals(net, StateNoise(scales, noise)), Gaussian(squashed)
    if isinstance(noise, distributions.SquashedDiagGaussianDistribution):
        bounds = float(sac.LOG_STD_MIN), float(sac.LOG_STD_MAX)
        return Normals(net, scales, bounds=bounds), Gaussian(squashed=True)
    if isinstance(noise, distributions.DiagGaussianDistribution):
        return Normals(net, scales), Gaussian()
    if isinstance(noise, distributions.BernoulliDistribution):
        return YesNo(net), Categoricals((2,) * int(noise.action_dims))
    sizes = getattr(noise, "action_dims", None)  # of several choices, also in sb3-contrib
    return net, CLASSES if sizes is None else Categoricals(tuple(sizes))


def _of_contrib(name: str) -> Any:
    """A module of sb3-contrib; None where it is not loaded, and so no agent can be of it."""
    return sys.modules.get(f"sb3_contrib.{name}")


def _contributed() -> dict[type, tuple[str, ...]]:
    """`ACTING` of sb3-contrib."""
    found: dict[type, tuple[str, ...]] = {}
    if tqc := _of_contrib("tqc.policies"):
        found |= {tqc.TQCPolicy: _PREDICTS, tqc.Actor: (*_NETWORK, "get_action_dist_params")}
    if masks := _of_contrib("common.maskable.policies"):
        made, ppo = _of_contrib("common.maskable.distributions"), _of_contrib("ppo_mask.ppo_mask")
        of_policy = (*_PREDICTS, "get_distribution", "_get_action_dist_from_latent",
                     "extract_features")  # fmt: skip
        found |= {ppo.MaskablePPO: ("predict",)} if ppo else {}
        found |= {masks.MaskableActorCriticPolicy: of_policy}
        draws = (*_DRAWS, "apply_masking")
        for each in ("Categorical", "Bernoulli", "MultiCategorical"):
            found[getattr(made, f"Maskable{each}Distribution")] = draws
    return found


def _refuse_own_methods(part: object, acting: dict[type, tuple[str, ...]]) -> None:
    """A ValueError where a part of an agent acts by other methods than stable-baselines3's."""
    theirs = next((each for each in acting if isinstance(part, each)), None)
    if theirs is None:
        raise ValueError(f"this agent's actions come from a {type(part).__name__}, not known here")
    own = [name for name in acting[theirs]
           if name in vars(part) or getattr(type(part), name, None) is not getattr(theirs, name)
           ]  # fmt: skip
    if own:
        raise ValueError(
            f"an actor is the network alone and would leave out {', '.join(own)} of this agent's "
            f"{type(part).__name__}, which are not those of stable-baselines3's {theirs.__name__}: "
            "put what they do into its modules, or make an Actor of modules of your own"
        )
