"""A multilayer perceptron."""

from collections.abc import Sequence

from torch import nn


class MLP(nn.Sequential):
    """(batch, ...) of `inputs` numbers each to (batch, classes) logits.

    The input is flattened; a linear layer and ReLU for every width in `hidden`, then a linear layer
    of `classes`. Weights start as PyTorch's layers do.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], *, classes: int) -> None:
        if min(inputs, classes, *hidden) < 1:
            raise ValueError(
                "the widths of a multilayer perceptron must be at least 1, got "
                f"inputs={inputs}, hidden={tuple(hidden)}, classes={classes}"
            )
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in zip([inputs, *hidden], hidden, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear([inputs, *hidden][-1], classes))
