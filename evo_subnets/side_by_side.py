"""An ensemble's members side by side on the threads of a CPU, instead of one after the other.

A thread to a member instead of all threads to each: nothing is shared out and waited for at every
layer. Pictures go through in slices that stay in the cache, and in the channels-last layout, which
is made once for all members.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
Trials = dict[object, float]
"""By the inputs' kind: from how many rows on the members go side by side."""

SLICE = 32
"""Rows that go through a member together."""
LEAST_WORK = 2_000_000
"""Weights times rows of all members, below which handing work to threads costs more than it gains:
a tenth of a millisecond a call."""


def member_outputs(members: Sequence[nn.Module], inputs: Inputs, trials: Trials) -> Tensor:
    """(members, batch, ...): each member's output, on threads where that is allowed and faster.

    Side by side only on a CPU, with more than one torch thread, without gradients, autocast,
    tracing, hooks and modes of torch, and for modules in eval mode. The first inputs of every shape
    and type are a trial: a small part of them goes both ways. Where the outputs differ by more than
    rounding, as for modules that mix the rows of a batch, or where modules keep something of what
    they saw, the members go in turn ever after. `trials` keeps the outcome.
    """
    threads = torch.get_num_threads()
    rows = len(inputs[0]) if inputs and type(inputs[0]) is Tensor and inputs[0].ndim else 0
    if threads == 1 or not rows or not _nothing_watches() or not _ordinary(inputs, rows):
        return _in_turn(members, inputs)
    tasks = len(members) * -(-rows // SLICE)
    if (tasks % threads and tasks < 4 * threads) or not _resting(members):
        return _in_turn(members, inputs)
    kind = (rows > SLICE, *((tensor.shape[1:], tensor.dtype) for tensor in inputs))
    if kind not in trials:
        trials[kind] = _trial(members, inputs, threads)
    if rows < trials[kind]:
        return _in_turn(members, inputs)
    try:
        return _side_by_side(members, inputs, threads)
    except Exception:  # if something is wrong with the inputs, the loop says it best
        trials[kind] = float("inf")
        return _in_turn(members, inputs)


def _in_turn(members: Sequence[nn.Module], inputs: Inputs) -> Tensor:
    return torch.stack([member(*inputs) for member in members])


def _nothing_watches() -> bool:
    """Whether nothing is on that torch keeps for each thread, so that another would not see it."""
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
        or torch.compiler.is_compiling()
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _ordinary(inputs: Inputs, rows: int) -> bool:
    return all(
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.ndim > 0
        and len(tensor) == rows
        for tensor in inputs
    )


def _resting(members: Sequence[nn.Module]) -> bool:
    """Whether all modules are in eval mode and without hooks, which may care for the order."""
    left: list[nn.Module | None] = list(members)
    while left:  # a fifth of the time of Module.modules()
        module = left.pop()
        if module is None:
            continue
        if module.training or module._forward_hooks or module._forward_pre_hooks:
            return False
        left.extend(module._modules.values())
    return True


def _trial(members: Sequence[nn.Module], inputs: Inputs, threads: int) -> float:
    """From how many rows on these members go side by side; infinity if they must not."""
    part = tuple(tensor[: SLICE + 1] for tensor in inputs)
    before = _kept(members)
    try:
        same = _agree(_side_by_side(members, part, threads), _in_turn(members, part))
    except Exception:
        return float("inf")
    after = _kept(members)
    if not same or len(before) != len(after) or any(map(_differ, before, after)):
        return float("inf")
    weights = sum(weight.numel() for member in members for weight in member.parameters())
    return LEAST_WORK / max(1, weights)


def _kept(members: Sequence[nn.Module]) -> list[tuple[object, int]]:
    """All that the modules hold, with tensors' counts of changes in place."""
    modules = [module for member in members for module in member.modules()]
    values = [value for module in modules for value in vars(module).values()]
    values += [buffer for module in modules for buffer in module._buffers.values()]
    return [
        (value, value._version if isinstance(value, Tensor) and not value.is_inference() else 0)
        for value in values
    ]


def _differ(before: tuple[object, int], after: tuple[object, int]) -> bool:
    return before[0] is not after[0] or before[1] != after[1]


def _agree(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not found.is_floating_point():
        return torch.equal(found, expected)
    scale = expected[expected.isfinite()].abs().amax().item() if expected.isfinite().any() else 0.0
    tolerance = torch.finfo(found.dtype).eps ** 0.5
    return torch.allclose(found, expected, tolerance, tolerance * scale, equal_nan=True)


def _side_by_side(members: Sequence[nn.Module], inputs: Inputs, threads: int) -> Tensor:
    parts = [torch.split(_channels_last(tensor), SLICE) for tensor in inputs]
    slices = list(zip(*parts, strict=True))
    outputs: list[list[Tensor]] = [[torch.empty(0)] * len(slices) for _ in members]
    tasks = iter(
        [(member, piece) for member in range(len(members)) for piece in range(len(slices))]
    )
    inference = torch.is_inference_mode_enabled()

    def work() -> None:
        with torch.inference_mode() if inference else torch.no_grad():
            for member, piece in tasks:  # shared: a thread that is done takes the next
                outputs[member][piece] = members[member](*slices[piece])

    futures: list[Future[None]] = []
    try:
        futures = [_pool(threads).submit(work) for _ in range(threads)]
        wait(futures)
    finally:  # interrupted: no member runs on behind the caller's back
        for _ in tasks:
            pass
        wait(futures)
    for future in futures:
        future.result()
    if len(slices) == 1:
        return torch.stack([output for (output,) in outputs])
    return torch.stack([torch.cat(pieces) for pieces in outputs])


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.ndim != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that have one torch thread each, and stay for the next call."""
    with _lock:
        if threads not in _pools:
            _pools[threads] = _started(threads)
        return _pools[threads]


def _started(threads: int) -> ThreadPoolExecutor:
    before: list[int] = []
    _elsewhere(lambda: before.append(torch.get_num_threads()))
    pool = ThreadPoolExecutor(threads, "member", torch.set_num_threads, (1,))
    together = threading.Barrier(threads)
    list(pool.map(lambda _: together.wait(), range(threads)))  # all are there, not only one
    # A thread's own number also becomes that of threads to come: here they get the former one.
    _elsewhere(lambda: torch.set_num_threads(before[0]))
    return pool


def _elsewhere(job: Callable[[], None]) -> None:
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()


def _forget() -> None:
    """A forked process has none of its parent's threads."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
