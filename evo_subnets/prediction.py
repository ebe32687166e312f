"""What networks say of data, and the statistics of their norms."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evo_subnets import engines
from evo_subnets.actions import Gaussian
from evo_subnets.ensemble import Ensemble
from evo_subnets.inputs import ask, device_of, joined, moved, same_modes
from evo_subnets.outputs import CLASSES, Distribution, Outputs, read
from evo_subnets.task import Metric, as_data, samples_in
from evo_subnets.tuning import own_randomness

CPU_BATCH, BATCH = 100, 500
"""Samples in a forward pass without gradients. A CPU's cache holds small batches: 500 pictures at
a time take LeNet-L 1.4 times as long (`benchmarks/population.py`). Linear layers are the faster for
large ones: an MLP of 1024 takes 1.5 times as long with 100."""
KEPT_BYTES = 2**28
"""Validation inputs that are kept from child to child, at most."""


@torch.no_grad()
def predict(
    module: nn.Module,
    data: Any,
    *,
    outputs: Outputs | None = None,
    batch_size: int | None = None,
    side_by_side: bool = False,
) -> Tensor:
    """(samples, ...) float32 outputs of `module` in eval mode, without augmentation.

    `outputs`: their kind, which says where they are in what the module returns; None: any kind, see
    `outputs.read`. `batch_size=None`: what is fast for the module where it is, or the loader's own.

    `side_by_side`: on a CPU a module with convolutions has a thread to a batch, and copies with the
    same weights. It must have no hooks, draw no random numbers and keep nothing in a forward pass;
    of torch's own layers and of `models` that is known, and they are asked so anyway.
    """
    inputs = inputs_for(module, data, batch_size=batch_size)
    return predict_inputs(module, inputs, outputs=outputs, side_by_side=side_by_side)


@torch.no_grad()
def predict_inputs(
    module: nn.Module,
    inputs: Iterable[Any],
    *,
    outputs: Outputs | None = None,
    side_by_side: bool = False,
) -> Tensor:
    """`predict` for inputs that are in batches, on the module's device."""
    if isinstance(module, Ensemble):
        outputs = None  # it has read its members' itself
    with same_modes(module):
        module.eval()
        return _asked([module], inputs, outputs=outputs, promised=side_by_side)[0]


def inputs_for(module: nn.Module, data: Any, *, batch_size: int | None = None) -> Iterator[Any]:
    """The inputs in batches, and in a layout in which `module` is fast."""
    for inputs, _ in batches_for(module, data, batch_size=batch_size):
        yield inputs


def batches_for(
    module: nn.Module, data: Any, *, batch_size: int | None = None
) -> Iterator[tuple[Any, Any]]:
    """(inputs, targets) in batches, on the module's device and in a layout in which it is fast."""
    found, device = as_data(data), device_of(module)
    convolutions = engines.has_convolutions(module)
    size = batch_size
    if size is None and found.input_bytes is not None:
        size = CPU_BATCH if convolutions and device.type == "cpu" else BATCH
    for batch in found.in_order(size):
        inputs, targets = moved(batch, device)
        if isinstance(inputs, Tensor) and not convolutions:
            inputs = inputs.contiguous()  # as flattening needs it
        yield inputs, targets


@torch.no_grad()
def predict_members(
    ensemble: Ensemble, data: Any, *, batch_size: int | None = None, side_by_side: bool = False
) -> Tensor:
    """(members, samples, outputs) of an ensemble: every metric can be computed from them.

    `side_by_side`: as for `predict`.
    """
    inputs = inputs_for(ensemble, data, batch_size=batch_size)
    return _asked(list(ensemble.members), inputs, outputs=ensemble.outputs, promised=side_by_side)


def _asked(
    members: list[nn.Module], inputs: Iterable[Any], *, outputs: Outputs | None, promised: bool
) -> Tensor:
    """(members, samples, ...) float32."""
    tensor = read if outputs is None else outputs.tensor

    def answer(member: nn.Module, some: Any) -> Tensor:
        return tensor(ask(member, some))

    batches = iter(inputs)
    first = next(batches, None)
    if first is None:
        raise ValueError("there is nothing to predict: the data has no batches")
    together = itertools.chain([first], batches)
    found = None
    if isinstance(first, Tensor):  # engines know one tensor
        found = engines.ask_batches(members, together, answer=answer, promised=promised)
    if found is None:
        found = [torch.stack([answer(member, some) for member in members]) for some in together]
    return joined(found, axis=1).float()


@torch.no_grad()
def reestimate_norms(module: nn.Module, data: Any, *, batch_size: int | None = None) -> None:
    """Sets BatchNorm's running statistics to the means over `data`, for the weights as they are.

    For weights that training has not seen: after noise, pruning or averaging (Izmailov et al.
    2018). A network without BatchNorm is left alone. Batches of one sample are left out.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    if not norms:
        return
    found, device, asked = as_data(data), device_of(module), 0
    size = BATCH if batch_size is None and found.input_bytes is not None else batch_size
    momenta = [layer.momentum for layer in norms]
    with own_randomness(0, device), same_modes(module):  # dropout draws meanwhile
        module.train()
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over batches
        try:
            for batch in found.in_order(size):
                inputs, targets = moved(batch, device)
                if samples_in(targets) > 1:
                    ask(module, inputs)
                    asked += 1
        finally:
            for layer, momentum in zip(norms, momenta, strict=True):
                layer.momentum = momentum
    if not asked:
        raise ValueError("statistics of norms need batches of two samples or more")


@dataclass(frozen=True)
class Validation:
    """A fitness: what `metric` says of a model's outputs on data, by default what their kind says:
    of classes the accuracy.

    `norm_data`: BatchNorm statistics are re-estimated on it before. The inputs of data in memory
    are made once for all children, but where they do not fit into `KEPT_BYTES`.
    """

    data: Any
    metric: Metric | None = None
    norm_data: Any = None
    outputs: Outputs = CLASSES
    side_by_side: bool = False
    """See `predict`."""

    def __call__(self, model: nn.Module) -> float:
        if self.norm_data is not None:
            reestimate_norms(model, self.norm_data)
        targets: list[Tensor] = []

        def inputs() -> Iterator[Any]:
            for some, wanted in self._batches(model):
                targets.append(wanted)
                yield some

        kind = model.outputs if isinstance(model, Ensemble) else self.outputs
        if (
            isinstance(kind, Distribution | Gaussian)
            and isinstance(model, Ensemble)
            and self.metric is None
        ):
            members, promised = list(model.members), self.side_by_side
            each = _asked(members, inputs(), outputs=kind, promised=promised)
            return kind.mixture_metric(each, model.weights, targets=joined(targets))
        found = predict_inputs(model, inputs(), outputs=kind, side_by_side=self.side_by_side)
        metric = kind.metric if self.metric is None else self.metric
        return float(metric(found, joined(targets)))

    def _batches(self, model: nn.Module) -> Iterable[tuple[Any, Any]]:
        size = as_data(self.data).input_bytes
        if size is None or size > KEPT_BYTES:
            return batches_for(model, self.data)
        layout = engines.has_convolutions(model), device_of(model)
        if layout not in self._kept:
            self._kept[layout] = list(batches_for(model, self.data))
        return self._kept[layout]

    @cached_property
    def _kept(self) -> dict[Any, list[tuple[Any, Any]]]:
        return {}

    def __reduce__(self) -> tuple[Any, ...]:  # what is kept does not travel
        given = (self.data, self.metric, self.norm_data, self.outputs, self.side_by_side)
        return Validation, given
