"""Modules that share weights with another one, and have attributes and faster layers of their own.

A forward pass may leave things in a module's attributes: twins of it can run on several threads.
"""

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import nn

from evo_subnets.engines.fast_convolutions import fast, may_pay


def twin(module: nn.Module) -> nn.Module | None:
    """A module with the same parameters and buffers, for a thread of its own; None where the module
    cannot be copied.

    Torch's own layers keep nothing in a forward pass and are shared, but for convolutions that
    `may_pay`, which are faster ones.
    """
    instead = [(layer, layer) for layer in module.modules() if _keeps_nothing(layer)]
    return _copied(module, instead)


def with_fast_convolutions(
    module: nn.Module, instead: Sequence[tuple[Any, Any]] = ()
) -> nn.Module | None:
    """A module with the same parameters, buffers, and modules without convolutions that `may_pay`;
    those are faster ones. None where there are none, and where the module cannot be copied.

    `instead`: objects among its attributes, and what it has for them; of others it has copies.
    """
    if not any(map(may_pay, module.modules())):
        return None
    without = [each for each in module.modules() if not any(map(may_pay, each.modules()))]
    return _copied(module, [*((each, each) for each in without), *instead])


def _copied(module: nn.Module, instead: Sequence[tuple[Any, Any]]) -> nn.Module | None:
    tensors = chain(module.parameters(), module.buffers())
    known = {id(tensor): tensor for tensor in tensors} | {id(old): new for old, new in instead}
    for layer in module.modules():
        if may_pay(layer):
            assert isinstance(layer, nn.Conv2d)
            known[id(layer)] = fast(layer)
    try:
        return copy.deepcopy(module, known)
    except Exception:  # of the module's own, or of what it holds: a lock, a file
        return None


def _keeps_nothing(layer: nn.Module) -> bool:
    torchs = type(layer).__module__.startswith("torch.nn.modules.")
    return torchs and next(layer.children(), None) is None
