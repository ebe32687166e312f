"""What an ensemble costs: parameters and floating-point operations, density-aware.

A multiply-add is two operations. Only the weights of linear and convolutional layers are counted,
not biases, norms, activations or pooling. These are the operations that sparse kernels would need:
a masked weight that is stored dense saves none of them in time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from evo_subnets import files
from evo_subnets.inputs import ask, batches_of, device_of, moved
from evo_subnets.subnetworks import parameters

FORWARD_AND_BACKWARD = 3
"""Training in units of inference: the outputs, the gradients of inputs, and those of weights."""


def count_parameters(module: nn.Module) -> int:
    """How many numbers are trained; a tensor that is used in two places counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def ensemble_parameters(module: nn.Module, densities: Sequence[float]) -> int:
    """How many parameters the members keep together, one density for each member.

    Each keeps its density's part of the weights (see `evo_subnets.weights`) and all other
    parameters. Six children of a WRN-28-10 of CIFAR-10 have 109.5, 73.0 and 36.6 million at
    densities of 1/2, 1/3 and 1/6. Whitaker 2023, table 5.3 prints 36.5 for the last, which is a
    sixth of the parent, norms included, six times (that would be 109.4 for the first).
    """
    _check_densities(dict(enumerate(densities)))
    params = parameters(module)
    pruned = sum(params[name].numel() for name in params.weights)
    kept = count_parameters(module) - pruned
    return round(pruned * sum(densities)) + kept * len(densities)


def multiply_adds(module: nn.Module, inputs: Any) -> dict[str, int]:
    """The multiply-adds of one sample, by the name of the weight; a weight used twice, both uses.

    Linear layers and convolutions (grouped, strided, dilated, transposed) are measured while the
    first of `inputs` (samples, ...) runs through the module, in eval mode and without gradients;
    its modes are put back. On the meta device this takes neither memory nor time. Layers that are
    not called as modules (attention's projections) are not seen. A convolution counts its padding.
    """
    sample, module = next(batches_of(inputs, 1)), files.unwrapped(module)
    names = {id(parameter): name for name, parameter in files.parameters_of(module).items()}
    found: dict[str, int] = {}

    def counter(path: str) -> Callable[..., None]:
        def count(
            layer: nn.Linear | _ConvNd,
            arguments: tuple[Any, ...],
            keywords: dict[str, Any],
            output: Tensor,
        ) -> None:
            weight = layer.weight
            values = output
            if isinstance(layer, _ConvTransposeNd):
                values = arguments[0] if arguments else keywords["input"]
            # a parametrised weight is computed, not a parameter: it goes by its layer
            name = names.get(id(weight), f"{path}.weight" if path else "weight")
            found[name] = found.get(name, 0) + values.numel() * weight.shape[1:].numel()

        return count

    modes = {layer: layer.training for layer in module.modules()}
    handles = [
        layer.register_forward_hook(counter(path), with_kwargs=True)
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd)
    ]
    try:
        module.eval()
        with torch.no_grad():
            ask(module, moved(sample, device_of(module)))
    finally:
        for handle in handles:
            handle.remove()
        for layer, training in modes.items():
            layer.training = training
    return found


def inference_flops(
    module: nn.Module, inputs: Any, *, densities: Mapping[str, float] | None = None
) -> int:
    """The operations of one sample: two a multiply-add, of which a weight's density is done.

    `densities` are fractions in [0, 1] by parameter name; those not named are dense. See
    `multiply_adds` for `inputs` and for what is counted.
    """
    densities = densities or {}
    _check_densities(densities)
    found = multiply_adds(module, inputs)
    unknown = sorted(set(densities) - set(found) - set(parameters(module)))
    if unknown:
        raise ValueError(f"densities name no parameters {unknown}; there are {list(found)}")
    return round(sum(2 * count * densities.get(name, 1.0) for name, count in found.items()))


def training_flops(
    module: nn.Module,
    inputs: Any,
    *,
    samples: int,
    epochs: float,
    densities: Mapping[str, float] | None = None,
) -> int:
    """The operations of training on `samples` samples for `epochs` epochs: three times inference.

    Forward, the gradients of inputs and the gradients of weights cost the same (Evci et al.
    2020). The gradients of weights are counted as sparse too: a method that looks at dense ones to
    grow connections adds those steps. Optimizer and norms are not counted.
    """
    if samples < 0 or not epochs >= 0:
        raise ValueError(
            f"samples and epochs cannot be negative, got samples={samples}, epochs={epochs}"
        )
    step = FORWARD_AND_BACKWARD * inference_flops(module, inputs, densities=densities)
    return round(step * samples * epochs)


def relative_budget(
    parent_epochs: float, members: int, *, member_epochs: float, density: float
) -> float:
    """Training operations relative to one dense network trained for as many epochs in all.

    A parent of 140 epochs and six children of density 1/2, 1/3 or 1/6 with 10 epochs each cost
    0.85, 0.80 or 0.75 of 200 epochs (Whitaker 2023, table 5.3). Holds where the density is the
    same in every layer.
    """
    _check_densities({"density": density})
    if not (parent_epochs >= 0 and members >= 0 and member_epochs >= 0):
        raise ValueError(
            "epochs and members cannot be negative, got "
            f"parent_epochs={parent_epochs}, members={members}, member_epochs={member_epochs}"
        )
    epochs = parent_epochs + members * member_epochs
    if epochs == 0:
        raise ValueError("a budget of no epochs has no relative cost: give some epochs")
    return (parent_epochs + members * member_epochs * density) / epochs


def _check_densities(densities: Mapping[Any, float]) -> None:
    wrong = {name: density for name, density in densities.items() if not 0 <= density <= 1}
    if wrong:
        raise ValueError(f"densities are fractions in [0, 1], got {wrong}")
