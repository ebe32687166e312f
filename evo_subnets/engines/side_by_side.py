"""Forward passes side by side on the threads of a CPU, instead of one after the other.

A thread to a member of an ensemble, or to a batch, instead of all threads to each: nothing is
shared out and waited for at every layer. Pictures go through in slices that stay in the cache, and
in the channels-last layout, which is made once for all members.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from evo_subnets.engines import has_convolutions, plainly, watched
from evo_subnets.engines.rows import keeps_and_draws_nothing, may_be_asked, seen_to_change
from evo_subnets.engines.threads import share_out
from evo_subnets.engines.twins import twin, with_fast_convolutions

Inputs = tuple[Tensor, ...]

# Networks of linear layers alone are better off in turn, where both threads share a large product.
SLICE = 32
"""Rows that go through a member together (`benchmarks/inference.py`). Two threads with 64 rows of
the Impala network's first layer hold more than a cache of 32 MB."""
LEAST_WORK = 2_000_000
"""Weights times rows of all members with convolutions, to be worth handing to threads."""
LEAST_WEIGHTS = 16_000_000
"""Weights of all members without convolutions: they do not stay in the cache."""
TWINS_FROM = 16
"""Rows from which members get faster convolutions: a twin takes 0.1 to 1.2 ms to make."""
FEW_ROWS = 4
"""Without convolutions, the most rows: reading the weights is all the work."""
_PROCESS = os.getpid()
_pays: WeakKeyDictionary[nn.Module, range] = WeakKeyDictionary()


def ask_members(members: nn.ModuleList, inputs: Inputs) -> Tensor | None:
    """(members, batch, ...): each member's output; None where they are to be asked in turn."""
    if not may_go(members, inputs):
        return None
    if members not in _pays:
        _pays[members] = rows_that_pay(members)
    if len(inputs[0]) not in _pays[members]:
        return None
    fit: list[bool] = []

    def judge(member: nn.Module) -> None:
        fit.append(all(fit) and may_be_asked(member, inputs, rows=SLICE))

    share_out(judge, members, threads=1)  # some are tried out, where they will be asked
    try:
        return _members(members, inputs) if all(fit) else None
    except (RuntimeError, TypeError):  # `view` of a channels-last picture, perhaps
        return None


def rows_that_pay(members: nn.ModuleList) -> range:
    """For how many rows of input the members are faster side by side."""
    weights = sum(weight.numel() for weight in members.parameters())
    if has_convolutions(members):
        return range(-(-LEAST_WORK // max(1, weights)), 2**62)
    return range(1, FEW_ROWS + 1) if weights >= LEAST_WEIGHTS else range(0)


def may_go(members: nn.ModuleList, inputs: Inputs) -> bool:
    """Whether there are threads for the members, tensors that can be cut in slices, and nothing
    that other threads would not see: gradients, autocast, tracing."""
    threads = torch.get_num_threads()
    if len(members) % threads and len(members) < 4 * threads:
        return False
    if torch.is_grad_enabled() or watched() or not _threads_help():
        return False
    return _ordinary(inputs)


def _threads_help() -> bool:
    """Not in a forked process either, which has none of its parent's threads."""
    return os.getpid() == _PROCESS and torch.get_num_threads() > 1


def _ordinary(inputs: Inputs) -> bool:
    """Whether these are tensors in the CPU's memory, with as many rows each, and at least one."""
    plain = all(
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.ndim > 0
        for tensor in inputs
    )
    lengths = {len(tensor) for tensor in inputs} if plain else {0}
    return len(lengths) == 1 and 0 not in lengths


def _members(members: nn.ModuleList, inputs: Inputs) -> Tensor:
    parts = [torch.split(_channels_last(tensor), SLICE) for tensor in inputs]
    slices = list(zip(*parts, strict=True))
    outputs: list[Tensor | None] = [None] * len(members)
    inference = torch.is_inference_mode_enabled()

    def answer(index: int) -> None:
        member = members[index]
        if len(inputs[0]) >= TWINS_FROM:
            member = with_fast_convolutions(member) or member
        with torch.inference_mode() if inference else torch.no_grad():
            outputs[index] = torch.cat([member(*piece) for piece in slices])

    share_out(answer, range(len(members)), threads=torch.get_num_threads())
    return torch.stack([output for output in outputs if output is not None])


@torch.no_grad()
def ask_batches(
    members: Sequence[nn.Module],
    batches: Iterable[Tensor],
    *,
    answer: Callable[[nn.Module, Any], Tensor] = plainly,
    promised: bool,
) -> list[Tensor] | None:
    """(members, batch, ...) of each batch; None where members are to be asked in turn.

    So they are without convolutions, and where one cannot be copied. With one torch thread their
    convolutions alone are others.
    """
    together = nn.ModuleList(members)
    elsewhere = any(each.device.type != "cpu" for each in together.parameters())
    if elsewhere or not has_convolutions(together) or watched():
        return None
    if any(seen_to_change(list(member.modules())) for member in members):
        return None
    known = all(map(keeps_and_draws_nothing, members))
    if not (known or promised):
        return None
    threads = torch.get_num_threads() if _threads_help() else 1
    twins: SimpleQueue[nn.ModuleList] = SimpleQueue()
    for _ in range(threads):
        made = twin(together)
        if not isinstance(made, nn.ModuleList):
            return None
        twins.put(made)
    if not known:
        first, batches = _first(batches)
        one = (first[:1],)
        if not all(may_be_asked(member, one, rows=1, may_keep=True) for member in members):
            return [torch.stack([answer(member, some) for member in members]) for some in batches]
    outputs: dict[int, Tensor] = {}

    @torch.no_grad()
    def work(numbered: tuple[int, Tensor]) -> None:
        number, inputs = numbered
        free = twins.get()
        outputs[number] = torch.stack([answer(member, inputs) for member in free])
        twins.put(free)

    if threads == 1:
        for numbered in enumerate(batches):
            work(numbered)
    else:
        share_out(work, enumerate(batches), threads=threads)
    return [outputs[number] for number in sorted(outputs)]


def _first(batches: Iterable[Tensor]) -> tuple[Tensor, Iterable[Tensor]]:
    """The first batch, and all of them."""
    coming = iter(batches)
    first = next(coming)
    return first, chain([first], coming)


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.ndim != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
