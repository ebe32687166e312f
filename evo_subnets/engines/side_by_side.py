"""Forward passes side by side on the threads of a CPU, instead of one after the other.

A thread to a member of an ensemble, or to a batch, instead of all threads to each: nothing is
shared out and waited for at every layer. Pictures go through in slices that stay in the cache, and
in the channels-last layout, which is made once for all members.
"""

import copy
import os
from collections.abc import Iterable, Sequence
from queue import SimpleQueue

import torch
from torch import Tensor, nn

from evo_subnets.engines.fast_convolutions import FastConvolutions
from evo_subnets.engines.threads import share_out

Inputs = tuple[Tensor, ...]

# Networks of linear layers alone are better off in turn, where both threads share a large product.
SLICE = 32
"""Rows that go through a member together (`benchmarks/inference.py`). Two threads with 64 rows of
the Impala network's first layer hold more than a cache of 32 MB."""
LEAST_WORK = 2_000_000
"""Weights times rows of all members with convolutions, to be worth handing to threads."""
LEAST_WEIGHTS = 16_000_000
"""Weights of all members without convolutions: they do not stay in the cache."""
FEW_ROWS = 4
"""Without convolutions, the most rows: reading the weights is all the work."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PROCESS = os.getpid()


def has_convolutions(module: nn.Module) -> bool:
    """Whether any layer is a convolution: small batches stay in the cache then."""
    return any(isinstance(layer, CONVOLUTIONS) for layer in module.modules())


def rows_that_pay(members: Sequence[nn.Module]) -> range:
    """For how many rows of input the members are faster side by side."""
    weights = sum(weight.numel() for member in members for weight in member.parameters())
    if any(map(has_convolutions, members)):
        return range(-(-LEAST_WORK // max(1, weights)), 2**62)
    return range(1, FEW_ROWS + 1) if weights >= LEAST_WEIGHTS else range(0)


def may_go(members: Sequence[nn.Module], inputs: Inputs) -> bool:
    """Whether the members can go side by side and give what they give in turn.

    On a CPU with more than one torch thread, without gradients, autocast, tracing, hooks and modes
    of torch, in eval mode, with a share of the members for each thread, and not in a forked
    process, which has none of its parent's threads.
    """
    threads = torch.get_num_threads()
    if len(members) % threads and len(members) < 4 * threads:
        return False
    return _threads_help() and _ordinary(inputs) and resting(members)


def _threads_help() -> bool:
    if os.getpid() != _PROCESS or torch.get_num_threads() == 1:
        return False
    return nothing_watches()


def nothing_watches(device: str = "cpu") -> bool:
    """Whether no gradients, autocast, compiler, tracing or mode of torch is on.

    Torch keeps most of these for each thread, so that another thread would not see them.
    """
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled(device)
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


def resting(members: Sequence[nn.Module]) -> bool:
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


def side_by_side(members: Sequence[nn.Module], inputs: Inputs) -> Tensor:
    """(members, batch, ...): each member's output. Rows of the inputs must not mix in a member."""
    parts = [torch.split(_channels_last(tensor), SLICE) for tensor in inputs]
    slices = list(zip(*parts, strict=True))
    outputs: list[Tensor | None] = [None] * len(members)
    inference = torch.is_inference_mode_enabled()

    def answer(index: int) -> None:
        with torch.inference_mode() if inference else torch.no_grad(), FastConvolutions():
            outputs[index] = torch.cat([members[index](*piece) for piece in slices])

    share_out(answer, range(len(members)), torch.get_num_threads())
    return torch.stack([output for output in outputs if output is not None])


@torch.no_grad()
def forward_passes(module: nn.Module, batches: Iterable[Tensor]) -> list[Tensor]:
    """The module's output for each batch, without gradients.

    A network with convolutions, in eval mode and on a CPU, has a thread to a batch, and
    `FastConvolutions`. Its forward pass must not draw random numbers: threads would share them.
    """
    if not has_convolutions(module) or any(
        each.device.type != "cpu" for each in module.parameters()
    ):
        return [module(inputs) for inputs in batches]
    if not (_threads_help() and resting([module])):
        with FastConvolutions():
            return [module(inputs) for inputs in batches]
    threads = torch.get_num_threads()
    twins: SimpleQueue[nn.Module] = SimpleQueue()
    for _ in range(threads):
        twins.put(_twin(module))
    outputs: dict[int, Tensor] = {}

    @torch.no_grad()
    def answer(numbered: tuple[int, Tensor]) -> None:
        number, inputs = numbered
        twin = twins.get()
        with FastConvolutions():
            outputs[number] = twin(inputs)
        twins.put(twin)

    share_out(answer, enumerate(batches), threads)
    return [outputs[number] for number in sorted(outputs)]


def _twin(module: nn.Module) -> nn.Module:
    """A module with the same tensors, whose attributes another thread does not see."""
    twin = copy.copy(module)
    twin._modules = {
        name: None if child is None else _twin(child) for name, child in module._modules.items()
    }
    return twin


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.ndim != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
