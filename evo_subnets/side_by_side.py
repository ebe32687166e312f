"""An ensemble's members side by side on the threads of a CPU, instead of one after the other.

A thread to a member instead of all threads to each: nothing is shared out and waited for at every
layer. Pictures go through in slices that stay in the cache, and in the channels-last layout, which
is made once for all members.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Future, wait

import torch
from torch import Tensor, nn

from evo_subnets.threads import single_threads

Inputs = tuple[Tensor, ...]
Trials = dict[object, range]
"""By the inputs' kind: for how many rows the members go side by side."""

# Measured on two cores, eight members each (times as fast as the loop): LeNet-S with one row 1.4,
# ResNet-20 1.4 with one row and 1.7 with 64, VGG-11 1.5. Networks of linear layers alone are better
# off in turn, where both threads share a large product: two layers of 1,024 with one row 1.4, with
# 64 1.1, with 1,024 0.7 to 1.0; two of 256 and 128 0.9, 0.7 with 16 rows; of 64 and 64 0.5.
SLICE = 32
"""Rows that go through a member together. LeNet-L with 256 rows gains 1.4 times in slices of 8, 1.8
of 16, 2.2 of 32, 64 and 128. Two threads with 64 rows of the Impala network's first layer hold more
than a cache of 32 MB."""
LEAST_WORK = 2_000_000
"""Weights times rows of all members with convolutions, to be worth handing to threads."""
LEAST_WEIGHTS = 16_000_000
"""Weights of all members without convolutions: they do not stay in the cache."""
FEW_ROWS = 4
"""Without convolutions, the most rows: reading the weights is all the work."""
NEVER = range(0)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PROCESS = os.getpid()


def member_outputs(members: Sequence[nn.Module], inputs: Inputs, trials: Trials) -> Tensor:
    """(members, batch, ...): each member's output, on threads where that is allowed and faster.

    Side by side only on a CPU, with more than one torch thread, without gradients, autocast,
    tracing, hooks and modes of torch, for modules in eval mode, and not in a forked process. The
    first inputs of every shape and type are a trial: a small part of them goes both ways. Where the
    outputs differ by more than rounding, as for modules that mix the rows of a batch, or where
    modules keep something of what they saw, the members go in turn ever after. `trials` keeps the
    outcome.
    """
    if torch.compiler.is_compiling():
        return _in_turn(members, inputs)
    threads = torch.get_num_threads()
    if threads == 1 or os.getpid() != _PROCESS or not _nothing_watches() or not _ordinary(inputs):
        return _in_turn(members, inputs)
    rows = len(inputs[0])
    kind = (rows > SLICE, *((tensor.shape[1:], tensor.dtype) for tensor in inputs))
    if kind in trials and rows not in trials[kind]:
        return _in_turn(members, inputs)
    tasks = len(members) * -(-rows // SLICE)
    if (tasks % threads and tasks < 4 * threads) or not _resting(members):
        return _in_turn(members, inputs)
    if kind not in trials:
        trials[kind] = _trial(members, inputs, threads)
        if rows not in trials[kind]:
            return _in_turn(members, inputs)
    try:
        return _side_by_side(members, inputs, threads)
    except Exception:  # if something is wrong with the inputs, the loop says it best
        trials[kind] = NEVER
        return _in_turn(members, inputs)


def _in_turn(members: Sequence[nn.Module], inputs: Inputs) -> Tensor:
    return torch.stack([member(*inputs) for member in members])


def _nothing_watches() -> bool:
    """Whether nothing is on that torch keeps for each thread, so that another would not see it."""
    return not (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


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


def _trial(members: Sequence[nn.Module], inputs: Inputs, threads: int) -> range:
    """For how many rows these members go side by side."""
    part = tuple(tensor[: SLICE + 1] for tensor in inputs)
    before = _kept(members)
    try:
        same = _agree(_side_by_side(members, part, threads), _in_turn(members, part))
    except Exception:
        return NEVER
    after = _kept(members)
    if not same or len(before) != len(after) or any(map(_differ, before, after)):
        return NEVER
    return _worth_it(members)


def _worth_it(members: Sequence[nn.Module]) -> range:
    weights = sum(weight.numel() for member in members for weight in member.parameters())
    if any(isinstance(layer, CONVOLUTIONS) for member in members for layer in member.modules()):
        return range(-(-LEAST_WORK // max(1, weights)), 2**62)
    return range(1, FEW_ROWS + 1) if weights >= LEAST_WEIGHTS else NEVER


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
        futures = [single_threads(threads).submit(work) for _ in range(threads)]
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
