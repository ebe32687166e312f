"""Modules that act like an agent."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from evo_subnets.actions import Categoricals, Deterministic
from evo_subnets.ensemble import Ensemble
from evo_subnets.inputs import batches_of, moved
from evo_subnets.kinds import kind_of
from evo_subnets.outputs import Classes, Outputs, Values, already_read
from evo_subnets.rl.acting import ACTS, Space, by_chance, in_space, likely, numbers_of, sampled
from evo_subnets.rl.actor import shapes_of
from evo_subnets.rl.normalization import ONE
from evo_subnets.streams import check_seed, double_device

BATCH_SIZE = 64
"""Observations in one forward pass: on a CPU larger batches leave the cache and gain nothing."""

Observations = npt.NDArray[Any] | Tensor | Mapping[str, npt.NDArray[Any] | Tensor]
Masks = npt.NDArray[np.bool_] | Tensor | None


class EnsemblePolicy:
    """A model (an `Actor`, an `Ensemble` of them, a module of one's own) as an agent: `predict` is
    stable-baselines3's, so its `evaluate_policy` and recorders take it.

    `outputs`: the kind of what the model gives, its own by default. By chance an ensemble acts as
    the mixture of its members' policies; else by what is most likely of the mixture (of several
    choices, of each), or by the mean of what the members do where actions are real values.

    `observation_space`, `action_space`: None are the model's own, or those of its first member.
    Real-valued actions are clipped to the action space, or, where the model squashes them, spread
    to it; without one they are given as they are. Sampling uses the policy's own generator;
    `temperature` divides the logits of numbered actions first.
    """

    def __init__(
        self,
        model: nn.Module,
        observation_space: Space | None = None,
        *,
        action_space: Space | None = None,
        outputs: Outputs | None = None,
        temperature: float = 1.0,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.outputs: Outputs = kind_of(model, outputs)
        if not isinstance(self.outputs, ACTS):
            raise ValueError(
                f"an agent acts by {', '.join(each.__name__ for each in ACTS)}, this model gives "
                f"{self.outputs}"
            )
        if not isinstance(self.outputs, Classes | Categoricals) and temperature != 1:
            raise ValueError(
                "a temperature is of numbered actions: leave it out with "
                f"{type(self.outputs).__name__}()"
            )
        own, one = space_of(model), one_of(model)
        space = own if observation_space is None else observation_space
        if space is None:
            raise ValueError(
                f"a {type(model).__name__} does not say what it observes: "
                "give observation_space, of one shape"
            )
        self.shapes = shapes_of(space)
        self.action_space: Space | None = action_space or getattr(one, "action_space", None)
        squashed = [getattr(each, "squashed", False) for each in (one, self.outputs)]
        self.squashed = any(squashed)
        self.masked = bool(getattr(one, "masked", False))
        self.numbers = numbers_of(self.outputs, self.action_space)
        self.model = model.to(device).eval()
        self.observation_space, self.temperature = space, temperature
        self.device = torch.device(device)
        self._generator = np.random.default_rng(check_seed(seed))

    def observations(self, observations: Observations, action_masks: Masks = None) -> Any:
        """(batch, *network shape), from one of the environment's layouts for images; of several
        parts, or with `action_masks`, a dictionary of such. It is what the model takes."""
        if not self.masked and list(self.shapes) == [ONE]:
            if action_masks is not None:
                raise ValueError("this policy masks no actions: leave action_masks out")
            return self._fitted(observations, self.shapes[ONE])
        several = list(self.shapes) != [ONE]
        given = observations if several else {ONE: observations}
        if not isinstance(given, Mapping) or set(given) != set(self.shapes):
            came = list(given) if isinstance(given, Mapping) else f"a {type(given).__name__}"
            raise ValueError(f"expected observations of {list(self.shapes)}, got {came}")
        found = {name: self._fitted(given[name], shape) for name, shape in self.shapes.items()}
        if self.masked and action_masks is not None:
            masks = torch.as_tensor(np.asarray(action_masks), device=self.device).bool()
            found["action_masks"] = masks.reshape(len(next(iter(found.values()))), -1)
        elif action_masks is not None:
            raise ValueError("this policy masks no actions: leave action_masks out")
        return found

    def _fitted(self, observations: Any, shape: tuple[int, ...]) -> Tensor:
        tensor: Tensor = moved(_tensor(observations), self.device)
        if tensor.ndim == 4 and tensor.shape[1:] != shape:
            tensor = tensor.permute(0, 3, 1, 2)
        if tensor.shape[1:] != shape:
            raise ValueError(
                f"expected observations of shape (batch, {', '.join(map(str, shape))}), "
                f"got {tuple(np.shape(observations))}"
            )
        return tensor

    @torch.inference_mode()
    def log_probabilities(self, observations: Observations, action_masks: Masks = None) -> Tensor:
        """(batch, actions) log-probabilities of the actions."""
        if not isinstance(self.outputs, Classes):
            raise ValueError(f"{self.outputs} has no numbered actions, and so no probabilities")
        answers = self._answers(self.observations(observations, action_masks))
        return (answers / self.temperature).log_softmax(dim=-1)

    def _answers(self, inputs: Any) -> Tensor:
        """What the model gives."""
        kind = already_read(self.outputs) if isinstance(self.model, Ensemble) else self.outputs
        return torch.cat([kind.tensor(_asked(self.model, batch)) for batch in _batches(inputs)])

    def _members(self, inputs: Any) -> tuple[Tensor, Tensor]:
        """(members, batch, ...) of an ensemble, or of the model alone, and their weights."""
        if not isinstance(self.model, Ensemble):
            return self._answers(inputs)[None], torch.ones(1, device=self.device)
        asked = self.model.member_outputs
        found = [
            asked(**batch) if isinstance(batch, dict) else asked(batch)
            for batch in _batches(inputs)
        ]
        return torch.cat(found, dim=1), self.model.weights

    @torch.inference_mode()
    def choose(
        self,
        observations: Observations,
        uniforms: Tensor | None,
        *,
        action_masks: Masks = None,
    ) -> Tensor:
        """Actions, on the policy's device: (batch,) numbered ones, (batch, choices) of several, or
        (batch, ...) real values before they are brought into the action space. The most likely
        ones, or those that `uniforms` choose: (batch, *numbers), float64 in [0, 1) and on its
        `double_device`; -1 where the model gives NaN, or no action a probability, and real values
        that are not finite where the model's are not.

        Two policies with the same uniforms choose as alike as their probabilities are.
        """
        if uniforms is None and self.temperature != 1:
            raise ValueError(
                f"temperature {self.temperature:g} changes no most likely action: "
                "use deterministic=False, or leave the temperature out"
            )
        kind = self.outputs
        if isinstance(kind, Classes):
            logs = self.log_probabilities(observations, action_masks)
            return likely(kind, logs) if uniforms is None else by_chance(logs, uniforms)
        inputs = self.observations(observations, action_masks)
        if isinstance(kind, Values | Deterministic):
            return self._answers(inputs)
        members, weights = self._members(inputs)
        how = self.model.combine if isinstance(self.model, Ensemble) else "mean"
        if uniforms is None:
            return likely(kind, kind.combined(members, weights, how=how))
        return sampled(
            kind,
            members,
            weights=weights,
            uniforms=uniforms,
            how=how,
            temperature=self.temperature,
        )

    def act(
        self,
        observations: Observations,
        uniforms: npt.NDArray[np.float64] | None,
        *,
        action_masks: Masks = None,
    ) -> npt.NDArray[Any]:
        """What `choose` chooses, as the environment takes it; a ValueError where the model gives
        no action."""
        place = double_device(self.device)
        there = None if uniforms is None else torch.as_tensor(uniforms, device=place)
        chosen = self.choose(observations, there, action_masks=action_masks)
        actions = check_chosen(chosen.cpu().numpy())
        return in_space(actions, self.action_space, squashed=self.squashed)

    def draw(self, generator: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
        """Uniform numbers for so many actions."""
        return generator.random((count, *self.numbers))

    def predict(
        self,
        observation: Observations,
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[np.bool_] | None = None,
        deterministic: bool = False,
        action_masks: Masks = None,
    ) -> tuple[npt.NDArray[Any], None]:
        """Actions for one observation or a batch, and no state, as stable-baselines3's agents.

        The signature is theirs. A policy without memory has no use for `episode_start`, which
        stable-baselines3 always gives; a `state` is refused, and so are gymnasium's pairs of an
        observation and its info.
        """
        if state is not None:
            raise ValueError("this policy has no memory: state must be None")
        name, shape = next(iter(self.shapes.items()))
        if isinstance(observation, Mapping) and list(self.shapes) != [ONE]:
            batch: Any = {each: _array(value) for each, value in observation.items()}
            single = np.ndim(batch.get(name, 0)) == len(shape)
            batch = {each: value[None] for each, value in batch.items()} if single else batch
            count = len(batch.get(name, [0]))
        else:
            array = _array(observation)
            single = array.ndim == len(shape)
            batch = array[None] if single else array
            count = len(batch)
        uniforms = None if deterministic else self.draw(self._generator, count)
        actions = self.act(batch, uniforms, action_masks=action_masks)
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
    space: Space | None = getattr(one_of(model), "observation_space", None)
    return space


def one_of(model: nn.Module) -> nn.Module:
    """The model itself, or an ensemble's first member."""
    if not isinstance(model, Ensemble):
        return model
    return model.members[0] if model.parent is None else model.parent


def _batches(inputs: Any) -> Any:
    return torch.split(inputs, BATCH_SIZE) if isinstance(inputs, Tensor) else batches_of(
        inputs, BATCH_SIZE
    )  # fmt: skip


def _asked(model: nn.Module, batch: Any) -> Any:
    return model(**batch) if isinstance(batch, dict) else model(batch)
