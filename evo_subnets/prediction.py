"""What networks say of data, and the statistics of their norms."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from evo_subnets import engines
from evo_subnets.answers import Read, checked, tensor_in
from evo_subnets.ensemble import Ensemble
from evo_subnets.inputs import (
    ask,
    device_of,
    flattens,
    moved,
    rows,
    same_modes,
    samples_in,
    wants_rows,
)
from evo_subnets.outputs import Classes, Outputs
from evo_subnets.task import Metric, as_data
from evo_subnets.tuning import own_randomness, takes_one
from evo_subnets.values import Distribution

CPU_BATCH, BATCH = 100, 500
"""Samples in a forward pass without gradients. A CPU's cache holds small batches: 500 pictures at
a time take LeNet-L 1.4 times as long (`benchmarks/population.py`). Linear layers are the faster for
large ones: an MLP of 1024 takes 1.5 times as long with 100."""
CLASSES = Classes()
KEPT_BYTES = 2**28
"""Validation inputs that are kept from child to child, at most."""


@torch.no_grad()
def predict(
    module: nn.Module,
    data: Any,
    *,
    batch_size: int | None = None,
    side_by_side: bool = False,
    outputs: Outputs = CLASSES,
) -> Tensor:
    """(samples, ...) float32 outputs of `module` in eval mode, without augmentation.

    `outputs` says by its `read` which tensor of what the module returns is meant; usual ones are
    found (see `answers.tensor_in`), and what they mean is left open.
    `batch_size=None`: what is fast for the module where it is, or the loader's own. `side_by_side`:
    on a CPU a module with convolutions has a thread to a batch, and copies with the same weights.
    It must have no hooks, draw no random numbers and keep nothing in a forward pass; of torch's own
    layers and of `models` that is known, and they are asked so anyway.
    """
    inputs = inputs_for(module, data, batch_size=batch_size)
    return predict_inputs(module, inputs, side_by_side=side_by_side, outputs=outputs)


@torch.no_grad()
def predict_inputs(
    module: nn.Module,
    inputs: Iterable[Any],
    *,
    side_by_side: bool = False,
    outputs: Outputs = CLASSES,
) -> Tensor:
    """`predict` for inputs that are in batches, on the module's device."""
    read = checked(outputs.read)
    if isinstance(module, Ensemble):
        read = tensor_in  # it has read its members' outputs itself
    with same_modes(module):
        return _asked([module.eval()], inputs, promised=side_by_side, read=read)[0]


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
    in_rows: bool | None = None
    for batch in found.in_order(size):
        inputs, targets = moved(batch, device)
        if isinstance(inputs, Tensor):
            if in_rows is None:
                in_rows = convolutions and wants_rows(module, inputs)
            if in_rows:
                inputs = rows(inputs)
            elif not convolutions:
                inputs = inputs.contiguous()  # as flattening needs it
        yield inputs, targets


@torch.no_grad()
def predict_members(
    ensemble: Ensemble, data: Any, *, batch_size: int | None = None, side_by_side: bool = False
) -> Tensor:
    """(members, samples, ...) of an ensemble: every metric can be computed from them.

    `side_by_side`: as for `predict`.
    """
    inputs = inputs_for(ensemble, data, batch_size=batch_size)
    read = checked(ensemble.outputs.read)
    return _asked(list(ensemble.members), inputs, promised=side_by_side, read=read)


def _asked(
    members: list[nn.Module], inputs: Iterable[Any], *, promised: bool, read: Read
) -> Tensor:
    """(members, samples, ...) float32."""
    batches = iter(inputs)
    first = next(batches, None)
    if first is None:
        raise ValueError("there is nothing to predict: the data has no batches")
    together = itertools.chain([first], batches)
    found = None
    if isinstance(first, Tensor):  # engines know one tensor
        found = engines.ask_batches(members, together, promised=promised, read=read)
    if found is None:
        found = [torch.stack([read(ask(member, some)) for member in members]) for some in together]
    return joined(found, axis=1).float()


def joined(parts: list[Tensor], *, axis: int = 0) -> Tensor:
    """Batches as one tensor; a ValueError where their samples are of different shapes."""
    shapes = {part.shape[axis + 1 :] for part in parts}
    if len(shapes) > 1 or parts[0].ndim <= axis:
        found = " and ".join(str(tuple(shape)) for shape in sorted(shapes)[:2])
        raise ValueError(
            f"samples of different batches have outputs or targets of different shapes, {found}: "
            "pad them to one, or judge batch by batch in a fitness of your own"
            if len(shapes) > 1
            else "outputs and targets have a row for each sample, got a single number a batch"
        )
    return torch.cat(parts, dim=axis)


@torch.no_grad()
def reestimate_norms(module: nn.Module, data: Any, *, batch_size: int | None = None) -> None:
    """Sets BatchNorm's running statistics to the means over `data`, for the weights as they are.

    For weights that training has not seen: after noise, pruning or averaging (Izmailov et al.
    2018). A network without BatchNorm is left alone. A batch of one sample counts where the network
    can be trained on one.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    if not norms:
        return
    found, device = as_data(data), device_of(module)
    size = BATCH if batch_size is None and found.input_bytes is not None else batch_size
    momenta = [layer.momentum for layer in norms]
    # dropout draws while the statistics are taken
    with own_randomness(0, device), same_modes(module):
        module.train()
        try:
            for layer in norms:
                layer.reset_running_stats()
                layer.momentum = None  # the mean over batches
            in_rows: bool | None = None
            for batch in found.in_order(size):
                inputs = moved(batch[0], device)
                if isinstance(inputs, Tensor):
                    in_rows = wants_rows(module, inputs) if in_rows is None else in_rows
                    inputs = rows(inputs) if in_rows else inputs
                if samples_in(inputs) > 1 or takes_one(module, inputs):
                    ask(module, inputs)
        finally:
            for layer, momentum in zip(norms, momenta, strict=True):
                layer.momentum = momentum


@dataclass(frozen=True)
class Validation:
    """A fitness: what `metric` says of a model's outputs on data.

    `outputs`: what they mean. `metric=None` is that of their kind: the accuracy of classes, the
    negative mean squared error of values, the log-likelihood of a distribution, which of an
    ensemble is that of the mixture. An ensemble's own kind counts for it. `norm_data`: BatchNorm
    statistics are re-estimated on it before. The inputs of data in memory are made once for all
    children, but where they do not fit into `KEPT_BYTES`.
    """

    data: Any
    metric: Metric | None = None
    norm_data: Any = None
    side_by_side: bool = False
    """See `predict`."""
    outputs: Outputs = CLASSES

    def __call__(self, model: nn.Module) -> float:
        if self.norm_data is not None:
            reestimate_norms(model, self.norm_data)
        try:
            return self._judged(model)
        except RuntimeError as error:
            if not flattens(error) or not self._kept:
                raise
            self._kept.clear()  # they were made for a network that takes channels side by side
            return self._judged(model)

    def _judged(self, model: nn.Module) -> float:
        targets: list[Tensor] = []

        def inputs() -> Iterator[Any]:
            for some, wanted in self._batches(model):
                targets.append(wanted)
                yield some

        kind = model.outputs if isinstance(model, Ensemble) else self.outputs
        if self.metric is None and isinstance(model, Ensemble) and isinstance(kind, Distribution):
            read = checked(kind.read)
            said = _asked(list(model.members), inputs(), promised=self.side_by_side, read=read)
            return kind.mixture(said, model.weights).log_prob(joined(targets)).mean().item()
        said = predict_inputs(model, inputs(), side_by_side=self.side_by_side, outputs=kind)
        return float((self.metric or kind.metric)(said, joined(targets)))

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
        given = (getattr(self, field.name) for field in fields(self))
        return Validation, tuple(given)
