"""The acting part of an agent as a plain module: the parent that subnetworks are taken from."""

from typing import Any

import gymnasium
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

Space = gymnasium.spaces.Space[Any]

ACTING: dict[type, tuple[str, ...]] = {
    BaseAlgorithm: ("predict",),
    ActorCriticPolicy: (
        "predict", "_predict", "forward", "get_distribution", "_get_action_dist_from_latent",
        "extract_features", "obs_to_tensor", "set_training_mode", "train",
    ),
    MlpExtractor: ("forward", "forward_actor"),
    CategoricalDistribution: ("proba_distribution", "get_actions", "sample", "mode"),
}  # fmt: skip
"""stable-baselines3's methods between an observation and an action, which an `Actor` leaves out."""


class Actor(nn.Module):
    """(batch, *observation shape) observations to (batch, actions) logits.

    An agent's policy network without its critic: `features`, then `body`, then `head`, which gives
    the logits. `observation_space` is the network's own, with channels first for images.
    """

    def __init__(
        self,
        features: nn.Module,
        *,
        body: nn.Module,
        head: nn.Module,
        observation_space: Space,
        normalize_images: bool = True,
    ) -> None:
        super().__init__()
        self.features, self.body, self.head = features, body, head
        if observation_space.shape is None:
            raise ValueError(f"a parent needs observations of one shape, got {observation_space}")
        self.observation_space = observation_space
        self.observation_shape: tuple[int, ...] = observation_space.shape
        self.normalize_images = normalize_images
        self.eval()

    @classmethod
    def from_agent(cls, agent: BaseAlgorithm) -> "Actor":
        """The actor of any stable-baselines3 actor-critic agent with discrete actions.

        It shares the agent's parameters; it does not copy them. A ValueError refuses other agents,
        and those that act by methods of their own (a mask, a temperature, a memory): an actor is
        the network alone.
        """
        if not isinstance(agent, BaseAlgorithm):
            raise ValueError(
                f"expected an agent of stable-baselines3, got a {type(agent).__name__}"
            )
        policy = agent.policy
        check_actions(agent.action_space, "this agent has")
        if not isinstance(policy, ActorCriticPolicy) or not isinstance(
            policy.mlp_extractor, MlpExtractor
        ):
            raise ValueError(
                "a parent must be an actor-critic agent (PPO, A2C) with stable-baselines3's own "
                f"policy, this one has a {type(policy).__name__}"
            )
        if hasattr(policy, "lstm_actor"):  # sb3-contrib's, which would be left out of the network
            raise ValueError(
                f"a parent must have no memory, this agent's {type(policy).__name__} is recurrent"
            )
        parts = (agent, policy, policy.mlp_extractor, policy.action_dist)
        for part, theirs in zip(parts, ACTING, strict=True):
            _refuse_own_methods(part, theirs)
        return cls(
            policy.pi_features_extractor,
            body=policy.mlp_extractor.policy_net,
            head=policy.action_net,
            observation_space=policy.observation_space,
            normalize_images=policy.normalize_images,
        )

    @property
    def actions(self) -> int:
        """The number of actions."""
        assert isinstance(self.head, nn.Linear)
        return self.head.out_features

    def forward(self, observations: Tensor) -> Tensor:
        x = preprocess_obs(observations, self.observation_space, self.normalize_images)
        assert isinstance(x, Tensor)
        logits: Tensor = self.head(self.body(self.features(x)))
        return logits


def _refuse_own_methods(part: object, theirs: type) -> None:
    """A ValueError where a part of an agent acts by other methods than stable-baselines3's."""
    own = [name for name in ACTING[theirs]
           if name in vars(part) or getattr(type(part), name, None) is not getattr(theirs, name)
           ]  # fmt: skip
    if own:
        raise ValueError(
            f"an actor is the network alone and would leave out {', '.join(own)} of this agent's "
            f"{type(part).__name__}, which are not those of stable-baselines3's {theirs.__name__}: "
            "put what they do into its modules, or make an Actor of modules of your own"
        )


def check_actions(space: Space, whose: str) -> None:
    """A ValueError where actions are not numbered from zero: there is no softmax to average."""
    if not isinstance(space, gymnasium.spaces.Discrete) or space.start != 0:
        raise ValueError(
            f"a parent needs discrete actions that are numbered from zero, {whose} {space}"
        )
