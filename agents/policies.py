"""The acting part of an agent as a plain module, and modules that act like an agent."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from agents.impala import ImpalaCNN
from evo_subnets import files

KIND = "evo_subnets.actor"
BATCH_SIZE = 64
"""Observations in one forward pass: on a CPU larger batches leave the cache and gain nothing."""

Space = gymnasium.spaces.Space[Any]
Observations = npt.NDArray[Any] | Tensor


class Actor(nn.Module):
    """(batch, *observation shape) observations to (batch, actions) logits.

    The parent that subnetworks are taken from: an agent's policy network without its critic.
    `observation_space` is the network's own, with channels first for images.
    """

    def __init__(
        self,
        features: nn.Module,
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

        It shares the agent's parameters; it does not copy them.
        """
        policy = agent.policy
        if not isinstance(agent.action_space, gymnasium.spaces.Discrete):
            raise ValueError(
                f"a parent needs discrete actions, this agent has {agent.action_space}"
            )
        if not isinstance(policy, ActorCriticPolicy) or not isinstance(
            policy.mlp_extractor, MlpExtractor
        ):
            raise ValueError(
                "a parent must be an actor-critic agent (PPO, A2C) with stable-baselines3's own "
                f"policy, this one has a {type(policy).__name__}"
            )
        return cls(
            policy.pi_features_extractor,
            policy.mlp_extractor.policy_net,
            policy.action_net,
            policy.observation_space,
            policy.normalize_images,
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


def impala_actor(
    widths: tuple[int, ...], frame_stack: int, actions: int = 15, features_dim: int = 256
) -> Actor:
    """An untrained Procgen actor."""
    space = gymnasium.spaces.Box(0, 255, (3 * frame_stack, 64, 64), np.uint8)
    features = ImpalaCNN(space, features_dim, widths=widths)
    return Actor(features, nn.Identity(), nn.Linear(features_dim, actions), space)


def save_actor(path: str | Path, actor: Actor, about: dict[str, Any]) -> None:
    """Writes an Impala actor; `about` is kept with it (game, mode, steps, ...)."""
    if not isinstance(actor.features, ImpalaCNN):
        raise ValueError(f"only Impala actors are saved, got {type(actor.features).__name__}")
    network = {
        "widths": actor.features.widths,
        "features_dim": actor.features.features_dim,
        "frame_stack": actor.observation_shape[0] // 3,
        "actions": actor.actions,
    }
    files.save_tensors(path, actor.state_dict(), KIND, {"network": network, "about": about})


def load_actor(path: str | Path) -> tuple[Actor, dict[str, Any]]:
    """The actor of a file that `save_actor` wrote, and what it says about itself."""
    tensors, description = files.load_tensors(path, KIND)
    try:
        network, about = description["network"], dict(description["about"])
        with torch.device("meta"):  # no memory for what does not fit the file, nothing drawn
            actor = impala_actor(
                tuple(network["widths"]),
                network["frame_stack"],
                network["actions"],
                network["features_dim"],
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
    files.load_state(path, actor, tensors, assign=True)
    return actor, about


class EnsemblePolicy:
    """A model that gives logits or log-probabilities (an `Actor`, an `Ensemble` of them), as an
    agent: `predict` is stable-baselines3's, so its `evaluate_policy` and recorders take it.

    Acting by sampling uses the policy's own generator; `temperature` divides the logits first.
    """

    def __init__(
        self,
        model: nn.Module,
        observation_space: Space,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.model = model.to(device).eval()
        self.observation_space, self.temperature = observation_space, temperature
        self.device = torch.device(device)
        self._generator = np.random.default_rng(seed)

    def observations(self, observations: Observations) -> Tensor:
        """(batch, *network shape), from one of the environment's layouts for images."""
        tensor, shape = torch.as_tensor(observations, device=self.device), self.network_shape
        if tensor.ndim == 4 and tensor.shape[1:] != shape:
            tensor = tensor.permute(0, 3, 1, 2)
        if tensor.shape[1:] != shape:
            raise ValueError(
                f"expected observations of shape (batch, *{shape}), "
                f"got {tuple(np.shape(observations))}"
            )
        return tensor

    @property
    def network_shape(self) -> tuple[int, ...]:
        """Of one observation, as the model takes it."""
        shape = self.observation_space.shape
        assert shape is not None
        return shape

    @torch.inference_mode()
    def log_probabilities(self, observations: Observations) -> Tensor:
        """(batch, actions) log-probabilities of the actions."""
        batches = torch.split(self.observations(observations), BATCH_SIZE)
        outputs = torch.cat([self.model(batch) for batch in batches])
        return (outputs / self.temperature).log_softmax(dim=-1)

    @torch.inference_mode()
    def choose(self, observations: Observations, uniforms: Tensor | None) -> Tensor:
        """(batch,) actions, on the policy's device: the most likely ones, or those that `uniforms`,
        float64 in [0, 1) and there as well, choose.

        Two policies with the same uniforms choose as alike as their probabilities are.
        """
        log_probabilities = self.log_probabilities(observations)
        if uniforms is None:
            return log_probabilities.argmax(dim=-1)
        cumulative = log_probabilities.exp().double().cumsum(dim=-1)
        drawn = uniforms[:, None] * cumulative[:, -1:]  # the sum may miss 1 by a rounding
        return (drawn >= cumulative).sum(dim=1)

    def act(
        self, observations: Observations, uniforms: npt.NDArray[np.float64] | None
    ) -> npt.NDArray[np.int64]:
        """What `choose` chooses, as an array."""
        there = None if uniforms is None else torch.as_tensor(uniforms, device=self.device)
        return self.choose(observations, there).cpu().numpy()

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[np.int64], None]:
        """Actions for one observation or a batch, and no state, as stable-baselines3's agents."""
        shape = self.observation_space.shape
        observation = np.asarray(observation)
        single = shape is not None and observation.ndim == len(shape)
        batch = observation[None] if single else observation
        uniforms = None if deterministic else self._generator.random(len(batch))
        actions = self.act(batch, uniforms)
        return (actions[0] if single else actions), None
