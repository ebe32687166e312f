"""What a network returned, as the one tensor that counts, and what can be compared with what."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Read = Callable[[Any], Tensor]
"""What a module returns, to the tensor that counts."""
USUAL = ("logits", "out")
"""Names of a main output: of `transformers` and googlenet, of torchvision's segmentation."""


def tensor_in(returned: Any) -> Tensor:
    """The tensor in what a module returned: itself; what is named logits or out, in a mapping, a
    named tuple or one of `transformers`' outputs; else the first of a tuple or a list.

    The others, as states of a recurrent layer and auxiliary outputs of googlenet and inception in
    training, are left out. A ValueError says how to name one where there is none of these.
    """
    if isinstance(returned, Tensor):
        return returned
    named = isinstance(returned, Mapping)
    found = [
        value
        for name in USUAL
        if (value := returned.get(name) if named else getattr(returned, name, None)) is not None
    ]
    if not found and isinstance(returned, tuple | list) and returned:
        found = [returned[0]]
    if len(found) == 1 and isinstance(found[0], Tensor):
        return found[0]
    what = f"a {type(returned).__name__}"
    if named:
        what += f" of {', '.join(map(str, returned)) or 'nothing'}"
    elif isinstance(returned, tuple | list):
        what += f" of {', '.join(type(each).__name__ for each in returned) or 'nothing'}"
    raise ValueError(
        f"a network returned {what}, where a tensor was expected, or one that is named "
        f"{' or '.join(USUAL)}: say which it is, as outputs=Classes(read=lambda out: "
        'out["scores"]), or Binary, Values, Distribution'
    )


def checked(read: Read) -> Read:
    """The same, with a ValueError where it gives no tensor."""
    if read is tensor_in:
        return read

    def found(returned: Any) -> Tensor:
        tensor: Any = read(returned)
        if not isinstance(tensor, Tensor):
            raise ValueError(f"read must give a tensor, got a {type(tensor).__name__}")
        return tensor

    return found


def check_numbers(outputs: Tensor, kind: Any) -> None:
    """A ValueError unless these are real numbers, a row for each sample."""
    name = type(kind).__name__
    if not outputs.is_floating_point():
        raise ValueError(
            f"outputs of {name} are floating-point numbers, got {outputs.dtype}: let the network "
            "give its numbers before it chooses or rounds"
        )
    if not outputs.ndim:
        raise ValueError(
            f"outputs of {name} have a row for each sample, got a single number: is it the loss?"
        )


def check_alike(parent: Tensor, child: Tensor) -> None:
    """A ValueError unless these are outputs for the same samples."""
    if parent.shape != child.shape:
        raise ValueError(
            "expected outputs of parent and child for the same samples, got shapes "
            f"{tuple(parent.shape)} and {tuple(child.shape)}"
        )


def aligned(targets: Tensor, shape: Sequence[int]) -> Tensor:
    """Targets in the shape of the outputs, which may have axes of one more or less, so that (n,)
    and (n, 1) are not broadcast to (n, n); a ValueError where they are others."""
    if not isinstance(targets, Tensor):
        raise ValueError(f"targets are a tensor, got a {type(targets).__name__}: give a loss")
    if without_ones(targets.shape) != without_ones(shape):
        raise ValueError(
            f"outputs of shape {tuple(shape)} go with targets of that shape, got "
            f"{tuple(targets.shape)}"
        )
    return targets.reshape(tuple(shape))


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """The samples, and the axes that hold more than one."""
    return (*shape[:1], *(size for size in shape[1:] if size != 1))


def by_member(weights: Tensor, members: Tensor) -> Tensor:
    """(members,) weights, to be multiplied with (members, ...)."""
    return weights.to(members.dtype).view(-1, *[1] * (members.ndim - 1))


def weighted(members: Tensor, shares: Tensor) -> Tensor:
    """The sum over members; one of weight zero counts for nothing, also where it is not finite."""
    return (members * shares).masked_fill(shares == 0, 0.0).sum(dim=0)


def log_mean(logs: Tensor, shares: Tensor) -> Tensor:
    """The logarithm of the members' mean probability, of logarithms."""
    return (logs + shares.log()).masked_fill(shares == 0, -torch.inf).logsumexp(dim=0)


def cross_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p log(p / q), which is 0 where p is."""
    return (log_p.exp() * (log_p - log_q)).masked_fill(log_p == -torch.inf, 0.0)


def mean_of(terms: Tensor) -> float:
    """Not negative, though rounding may have made it so; NaN stays NaN."""
    return terms.mean().clamp(min=0.0).item()
