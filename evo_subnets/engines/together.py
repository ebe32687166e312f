"""Networks of one architecture asked together on a GPU: in turn, as one by vmap, or replayed.

In turn, every layer of every network is a call from Python, and small layers end before the next
call comes. `Stacked` makes one call a layer for all networks, with their weights stacked.
`Replayed` records all calls once as a CUDA graph. Which is fastest depends on network, batch and
GPU: `Together` measures it.
"""

import copy
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

Backend = Literal["auto", "loop", "vmap", "graph"]
Way = Callable[..., Tensor]
"""Inputs of (batch, ...) to the outputs of all networks, (networks, batch, ...)."""

MEASURED_AT = 3
"""The call with inputs of one shape at which ways are compared: not for a last, smaller batch."""
SHAPES = 8
"""For how many shapes of inputs, at most: each recorded one keeps its memory."""
REPEATS = 5
TOLERANCE = 1e-2
"""Of the largest output. GPUs round a convolution's inputs to TF32 in some ways and not in others;
mistakes are far larger."""


class InTurn:
    """One network after the other."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = networks

    def __call__(self, *inputs: Tensor) -> Tensor:
        return torch.stack([network(*inputs) for network in self.networks])


class Stacked:
    """All networks as one: `torch.func.vmap` over weights that are stacked when they change."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = networks
        self.skeleton = copy.deepcopy(networks[0]).to("meta")
        self.seen: object = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        current = [(tensor.data_ptr(), tensor._version) for tensor in tensors_of(self.networks)]
        if current != self.seen:
            self.state = stack_module_state(list(self.networks))
            self.seen = current
        outputs: Tensor = vmap(partial(functional_call, self.skeleton), in_dims=((0, 0), None))(
            self.state, inputs
        )
        return outputs


class Replayed:
    """All networks in turn, recorded once as a CUDA graph for each shape of the inputs.

    The graph reads weights where they lie: new ones in the same place count, and networks that have
    moved are recorded again. `cuda`: the module with torch.cuda's functions.
    """

    def __init__(self, networks: Sequence[nn.Module], cuda: Any = torch.cuda) -> None:
        self.networks, self.cuda = networks, cuda
        self.recorded: dict[object, tuple[Any, list[Tensor], Tensor]] = {}
        self.places: list[int] = []

    def __call__(self, *inputs: Tensor) -> Tensor:
        places = [tensor.data_ptr() for tensor in tensors_of(self.networks)]
        if places != self.places:
            self.recorded, self.places = {}, places
        key = shapes_of(inputs)
        if key not in self.recorded:
            # tensors of inference mode could not be written to outside of it
            with torch.inference_mode(False), torch.no_grad():
                self.recorded[key] = self._record(inputs)
        graph, given, outputs = self.recorded[key]
        for own, tensor in zip(given, inputs, strict=True):
            own.copy_(tensor)
        graph.replay()
        return outputs.clone()

    def _record(self, inputs: Sequence[Tensor]) -> tuple[Any, list[Tensor], Tensor]:
        ask = InTurn(self.networks)
        given = [tensor.clone() for tensor in inputs]
        aside = self.cuda.Stream()  # libraries are set up outside of what is recorded
        aside.wait_stream(self.cuda.current_stream())
        with self.cuda.stream(aside):
            for _ in range(2):
                ask(*given)
        self.cuda.current_stream().wait_stream(aside)
        graph = self.cuda.CUDAGraph()
        with self.cuda.graph(graph):
            outputs = ask(*given)
        return graph, given, outputs


WAYS: dict[str, type[InTurn | Stacked | Replayed]] = {
    "loop": InTurn,
    "vmap": Stacked,
    "graph": Replayed,
}


class Together:
    """The outputs of all networks, in the way that is fastest for inputs of this shape.

    With "auto" networks go in turn until the third call with inputs of one shape; then every way
    that gives their outputs, but for rounding, is timed, and the fastest stays. Runs that must give
    the same last digits again name their backend. Without gradients and in eval mode only. A copy,
    also a pickled one, measures anew.
    """

    def __init__(self, networks: Sequence[nn.Module], backend: Backend = "auto") -> None:
        check_backend(backend)
        self.networks, self.backend = networks, backend
        self.calls: Counter[object] = Counter()
        self.chosen: dict[object, Way] = {}
        self.usual = WAYS["loop" if backend == "auto" else backend](networks)

    def __call__(self, *inputs: Tensor) -> Tensor:
        shapes = shapes_of(inputs)
        if self.backend == "auto" and shapes not in self.chosen and len(self.chosen) < SHAPES:
            self.calls[shapes] += 1
            if self.calls[shapes] == MEASURED_AT:
                self.chosen[shapes] = fastest(self._ways(), inputs)
        return self.chosen.get(shapes, self.usual)(*inputs)

    def _ways(self) -> list[Way]:
        """All of them, the usual one first; those that serve other shapes are not made twice."""
        serving = {type(way): way for way in (self.usual, *self.chosen.values())}
        return [serving.get(kind) or kind(self.networks) for kind in WAYS.values()]

    def __reduce__(self) -> tuple[Any, ...]:
        return Together, (self.networks, self.backend)


def check_backend(backend: str) -> None:
    """A ValueError for one that there is not."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {get_args(Backend)}, got {backend!r}")


def asks_together(backend: Backend, on_gpu: bool) -> bool:
    """Whether there is more to a backend, here, than one network after the other."""
    return on_gpu if backend == "auto" else backend != "loop"


def fastest(ways: Sequence[Way], inputs: Sequence[Tensor]) -> Way:
    """The fastest of the ways whose outputs are the first one's, but for rounding.

    One that fails is left out: vmap knows not every operation, and a graph needs memory.
    """
    expected = ways[0](*inputs)
    seconds = {0: _seconds(ways[0], inputs)}
    for index, way in enumerate(ways[1:], 1):
        try:
            far = (way(*inputs) - expected).abs().max()
            if far <= TOLERANCE * expected.abs().max():
                seconds[index] = _seconds(way, inputs)
            else:
                warnings.warn(f"{type(way).__name__} is wrong by {far}: not used", stacklevel=2)
        except Exception:  # whatever it is, the first way works
            continue
    return ways[min(seconds, key=seconds.__getitem__)]


def _seconds(way: Way, inputs: Sequence[Tensor]) -> float:
    """The median of some calls."""
    taken = []
    for _ in range(REPEATS):
        _wait(inputs[0])
        start = time.perf_counter()
        way(*inputs)
        _wait(inputs[0])
        taken.append(time.perf_counter() - start)
    return sorted(taken)[REPEATS // 2]


def _wait(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)


def tensors_of(networks: Iterable[nn.Module]) -> Iterable[Tensor]:
    """All parameters and buffers."""
    return chain.from_iterable((*each.parameters(), *each.buffers()) for each in networks)


def shapes_of(inputs: Sequence[Tensor]) -> object:
    """What inputs must have in common to go the same way."""
    return tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
