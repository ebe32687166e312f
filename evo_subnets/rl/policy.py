"""Modules that act like an agent."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evo_subnets.ensemble import Ensemble
from evo_subnets.inputs import moved
from evo_subnets.outputs import CLASSES, Classes, Outputs, Values, already_read
from evo_subnets.rl.actor import Space
from evo_subnets.streams import check_seed, double_device, in_double

BATCH_SIZE = 64
"""Observations in one forward pass: on a CPU larger batches leave the cache and gain nothing."""

Observations = npt.NDArray[Any] | Tensor


class EnsemblePolicy:
    """A model that gives logits or log-probabilities (an `Actor`, an `Ensemble` of them), as an
    agent: `predict` is stable-baselines3's, so its `evaluate_policy` and recorders take it.

    `outputs`: the kind of what the model gives, an ensemble's own by default. Of `Values`, which
    are the means of continuous actions, the actions are the outputs themselves; other kinds than
    these and `Classes` are refused.

    `observation_space`: the network's; None is the model's own, or that of its first member.
    Acting by sampling uses the policy's own generator; `temperature` divides the logits first.
    """

    def __init__(
        self,
        model: nn.Module,
        observation_space: Space | None = None,
        *,
        outputs: Outputs | None = None,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive, got {temperature}")
        kind = getattr(model, "outputs", CLASSES) if outputs is None else outputs
        if not isinstance(kind, Classes | Values):
            raise ValueError(
                f"an agent acts by classes (numbered actions) or by values (continuous ones), this "
                f"model gives {kind}"
            )
        if isinstance(kind, Values) and temperature != 1:
            raise ValueError("a temperature is of numbered actions: leave it out with Values()")
        self.outputs: Outputs = kind
        space = space_of(model) if observation_space is None else observation_space
        if space is None or space.shape is None:
            raise ValueError(
                f"a {type(model).__name__} does not say what it observes: "
                "give observation_space, of one shape"
            )
        self.model = model.to(device).eval()
        self.observation_space, self.temperature = space, temperature
        self.network_shape: tuple[int, ...] = space.shape
        self.device = torch.device(device)
        self._generator = np.random.default_rng(check_seed(seed))

    def observations(self, observations: Observations) -> Tensor:
        """(batch, *network shape), from one of the environment's layouts for images."""
        tensor: Tensor = moved(_tensor(observations), self.device)
        shape = self.network_shape
        if tensor.ndim == 4 and tensor.shape[1:] != shape:
            tensor = tensor.permute(0, 3, 1, 2)
        if tensor.shape[1:] != shape:
            raise ValueError(
                f"expected observations of shape (batch, *{shape}), "
                f"got {tuple(np.shape(observations))}"
            )
        return tensor

    @torch.inference_mode()
    def log_probabilities(self, observations: Observations) -> Tensor:
        """(batch, actions) log-probabilities of the actions."""
        if not isinstance(self.outputs, Classes):
            raise ValueError(f"{self.outputs} has no numbered actions, and so no probabilities")
        return (self._answers(observations) / self.temperature).log_softmax(dim=-1)

    def _answers(self, observations: Observations) -> Tensor:
        batches = torch.split(self.observations(observations), BATCH_SIZE)
        kind = already_read(self.outputs) if isinstance(self.model, Ensemble) else self.outputs
        return torch.cat([kind.tensor(self.model(batch)) for batch in batches])

    @torch.inference_mode()
    def choose(self, observations: Observations, uniforms: Tensor | None) -> Tensor:
        """(batch,) actions, on the policy's device: the most likely ones, or those that `uniforms`,
        float64 in [0, 1) and on its `double_device`, choose; -1 where the model gives NaN, or no
        action a probability. Continuous ones are (batch, ...) values, not finite where the model's
        are not.

        Two policies with the same uniforms choose as alike as their probabilities are.
        """
        if uniforms is None and self.temperature != 1:
            raise ValueError(
                f"temperature {self.temperature:g} changes no most likely action: "
                "use deterministic=False, or leave the temperature out"
            )
        if isinstance(self.outputs, Values):
            return self._answers(observations)
        log_probabilities = self.log_probabilities(observations)
        if uniforms is None:
            actions = log_probabilities.argmax(dim=-1)
        else:
            cumulative = in_double(log_probabilities.exp()).cumsum(dim=-1)
            drawn = uniforms[:, None] * cumulative[:, -1:]  # the sum may miss 1 by a rounding
            actions = (drawn >= cumulative).sum(dim=1).to(log_probabilities.device)
        # one NaN in a softmax makes the whole row NaN
        return actions.masked_fill(log_probabilities[:, 0].isnan(), -1)

    def act(
        self, observations: Observations, uniforms: npt.NDArray[np.float64] | None
    ) -> npt.NDArray[Any]:
        """What `choose` chooses, as an array; a ValueError where the model gives no action."""
        place = double_device(self.device)
        there = None if uniforms is None else torch.as_tensor(uniforms, device=place)
        return check_chosen(self.choose(observations, there).cpu().numpy())

    def predict(
        self,
        observation: npt.NDArray[Any],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], None]:
        """Actions for one observation or a batch, and no state, as stable-baselines3's agents.

        The signature is theirs. A policy without memory has no use for `episode_start`, which
        stable-baselines3 always gives; a `state` is refused, and so are gymnasium's pairs of an
        observation and its info.
        """
        if state is not None:
            raise ValueError("this policy has no memory: state must be None")
        observation = _array(observation)
        single = observation.ndim == len(self.network_shape)
        batch = observation[None] if single else observation
        uniforms = None if deterministic else self._generator.random(len(batch))
        actions = self.act(batch, uniforms)
        return (actions[0] if single else actions), None


def check_chosen(actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The actions that `choose` gave; a ValueError where there are none for an observation."""
    missing = ~np.isfinite(actions) if actions.dtype.kind == "f" else actions < 0
    if missing.any():
        rows = int(missing.reshape(len(actions), -1).any(axis=1).sum())
        raise ValueError(
            f"the model's outputs give no action for {rows} of {len(actions)} observations, as "
            "they are NaN or infinite: look at its weights and at the observations"
        )
    return actions


def _array(observations: Any) -> npt.NDArray[Any]:
    """Observations as one array of numbers; a ValueError where they are none."""
    given = type(observations).__name__
    if isinstance(observations, tuple) and any(isinstance(part, dict) for part in observations):
        raise ValueError(
            "expected observations, got a tuple of one and its info: gymnasium's environments "
            "return both, `observation, info = env.reset()`, and predict takes the first"
        )
    if isinstance(observations, Tensor):
        observations = observations.detach().cpu()
    try:
        array = np.asarray(observations)
    except ValueError:  # parts of several shapes
        raise ValueError(f"expected observations as one array, got a {given}") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"expected observations as one array of numbers, got a {given} of {array.dtype}"
        )
    return array


def _tensor(observations: Observations) -> Tensor:
    """Observations as they are, copied only where torch takes no such array."""
    if isinstance(observations, Tensor):
        return observations
    array = _array(observations)
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    mirrored = any(stride < 0 for stride in array.strides)
    if mirrored or not array.flags.writeable or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(array)


def space_of(model: nn.Module) -> Space | None:
    """What a model says that it observes: an `Actor`, or an ensemble of them. None: nothing."""
    one = model.members[0] if isinstance(model, Ensemble) else model
    space: Space | None = getattr(one, "observation_space", None)
    return space
