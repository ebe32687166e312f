"""From outputs of a known kind to actions of a known space."""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evo_subnets.actions import ActionValues, Categoricals, Deterministic, Gaussian
from evo_subnets.outputs import CLASSES, Classes, Combine, Outputs, Values
from evo_subnets.streams import in_double

Space = gymnasium.spaces.Space[Any]
LEAST, MOST = 2.0**-54, 1 - 2.0**-53
"""Of a uniform number that is made a normal one: zero and one are infinitely far out."""


def check_actions(space: Space, whose: str) -> None:
    """A ValueError where there is no kind of outputs for actions of this space."""
    kinds, fits = gymnasium.spaces, False
    if isinstance(space, kinds.Discrete):
        fits = bool(space.start == 0)
    elif isinstance(space, kinds.MultiDiscrete):
        fits = space.nvec.ndim == 1 and not np.any(getattr(space, "start", 0))
    elif isinstance(space, kinds.MultiBinary):
        fits = len(space.shape) == 1
    elif isinstance(space, kinds.Box):
        fits = space.dtype.kind == "f"
    if not fits:
        raise ValueError(
            "a parent's actions are Discrete or MultiDiscrete (numbered from zero), MultiBinary "
            f"(in one row) or Box (of real values), {whose} {space}"
        )


def kind_for(space: Space) -> Outputs:
    """What a network that does not say so gives in an environment with such actions."""
    if isinstance(space, gymnasium.spaces.Box):
        return Values()
    return CLASSES if isinstance(space, gymnasium.spaces.Discrete) else Categoricals(_sizes(space))


def is_of(kind: Outputs, space: Space) -> bool:
    """Whether a policy of such outputs acts in such a space."""
    if isinstance(kind, Categoricals):
        return kind.sizes == _sizes(space)
    continuous = isinstance(kind, Gaussian | Values | Deterministic)
    return isinstance(space, gymnasium.spaces.Box if continuous else gymnasium.spaces.Discrete)


def numbers_of(kind: Outputs, space: Space | None) -> tuple[int, ...]:
    """The shape of the uniform numbers that one sampled action takes; () is a single one.

    Of mixtures the first one chooses a member, or nothing where there is one alone: so policies
    with the same numbers draw the same noise.
    """
    if isinstance(kind, Categoricals):
        return (1 + len(kind.sizes),)
    if isinstance(kind, ActionValues):
        return (2,)
    if isinstance(kind, Gaussian):
        if space is None or space.shape is None:
            raise ValueError(
                "a policy of normal values samples as many numbers as its actions have: give "
                "action_space"
            )
        return (1 + int(np.prod(space.shape)),)
    return ()


def likely(kind: Outputs, combined: Tensor) -> Tensor:
    """The actions without chance, of combined outputs: (batch, choices) of several choices, (batch,
    ...) real values, (batch,) else; -1, and NaN of real values, where outputs are NaN."""
    if isinstance(kind, Categoricals):
        parts = [_known(part.argmax(dim=1), part) for part in kind.split(combined)]
        return torch.stack(parts, dim=1)
    if isinstance(kind, Gaussian | Values | Deterministic):
        return combined
    return _known(combined.argmax(dim=-1), combined)


def sampled(
    kind: Outputs,
    members: Tensor,
    *,
    weights: Tensor,
    uniforms: Tensor,
    how: Combine = "mean",
    temperature: float = 1.0,
) -> Tensor:
    """Actions by chance, of (members, batch, ...) outputs: those of the members' mixture, of which
    the first of a row's numbers chooses one; as `likely` gives them.

    Logits and votes that are combined are the policy themselves. Values of actions are combined,
    and any action at all is taken where the first number says so.
    """
    if isinstance(kind, ActionValues):
        best = likely(kind, kind.combined(members, weights, how=how))
        count = members.shape[-1]
        any_at_all = (uniforms[:, 1] * count).long().clamp(max=count - 1).to(best.device)
        explores = (uniforms[:, 0] < kind.exploration).to(best.device)
        return torch.where(explores & (best >= 0), any_at_all, best)
    broken = members[weights > 0].flatten(2).isnan().any(dim=2).any(dim=0)
    if how == "mean":
        outputs = _picked(members, weights, uniforms=uniforms[:, 0])
    else:
        outputs = kind.combined(members, weights, how=how)
    if isinstance(kind, Gaussian):
        means, scales = outputs.unbind(dim=1)
        normal = torch.special.ndtri(uniforms[:, 1:].clamp(LEAST, MOST)).to(means.dtype)
        values = means + scales.exp() * normal.to(means.device)
        values = values.tanh() if kind.squashed else values
        found: Tensor = values.masked_fill(broken[:, None], torch.nan)
        return found
    assert isinstance(kind, Categoricals)
    chosen = [
        by_chance((part / temperature).log_softmax(dim=1), uniforms[:, 1 + number])
        for number, part in enumerate(kind.split(outputs))
    ]
    return torch.stack(chosen, dim=1).masked_fill(broken[:, None], -1)


def by_chance(log_probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """(batch,) numbered actions of the inverse distribution function; -1 where there is none."""
    cumulative = in_double(log_probabilities.exp()).cumsum(dim=-1)
    drawn = uniforms[:, None] * cumulative[:, -1:]  # the sum may miss 1 by a rounding
    actions = (drawn >= cumulative).sum(dim=1).to(log_probabilities.device)
    return _known(actions, log_probabilities)


def in_space(actions: npt.NDArray[Any], space: Space | None, *, squashed: bool) -> npt.NDArray[Any]:
    """Chosen actions as an environment takes them: real values clipped to its bounds, or, of
    squashed ones, -1 and 1 spread to them (both as stable-baselines3 does)."""
    if space is None or isinstance(space, gymnasium.spaces.Discrete):
        return actions
    shaped = actions.reshape(len(actions), *(space.shape or ()))
    if not isinstance(space, gymnasium.spaces.Box):
        return shaped.astype(space.dtype)
    spread: npt.NDArray[Any] = space.low + (0.5 * (shaped + 1.0) * (space.high - space.low))
    clipped: npt.NDArray[Any] = np.clip(shaped, space.low, space.high)
    return spread if squashed else clipped


def _sizes(space: Space) -> tuple[int, ...]:
    """Of the choices of a space of several; none of another."""
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return tuple(int(size) for size in space.nvec)
    return (
        (2,) * int(np.prod(space.shape)) if isinstance(space, gymnasium.spaces.MultiBinary) else ()
    )


def _known(actions: Tensor, outputs: Tensor) -> Tensor:
    """-1 where outputs are NaN, or nowhere possible."""
    return actions.masked_fill(outputs.isnan().any(dim=-1), -1)


def _picked(members: Tensor, weights: Tensor, *, uniforms: Tensor) -> Tensor:
    """(batch, ...): the outputs of the member that a row's number chooses."""
    if len(members) == 1:
        return members[0]
    shares = in_double(weights).cumsum(dim=0)
    index = (uniforms[:, None] * shares[-1] >= shares).sum(dim=1)
    rows = torch.arange(len(uniforms), device=members.device)
    return members[index.to(members.device), rows]


def check_fits(kind: Outputs, own: Space | None, *, space: Space) -> None:
    """A ValueError where a model's actions are not an environment's."""
    if own is not None and own != space:
        raise ValueError(
            f"this agent acts in {own}, the environment takes {space}: give its own environment"
        )
    if not is_of(kind, space):
        raise ValueError(
            f"a model whose outputs are {type(kind).__name__} does not act in {space}: say what "
            f"they are (outputs=, as {type(kind_for(space)).__name__})"
        )


ACTS = (Classes, Values, Categoricals, Gaussian, ActionValues, Deterministic)
"""The kinds of outputs that a policy can have."""
