"""The layers that produce a network's output, whichever was registered last."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from evo_subnets.copies import copied
from evo_subnets.files import parameters_of, unwrapped
from evo_subnets.inputs import Inputs, ask
from evo_subnets.structure.tracing import graph_of
from evo_subnets.subnetworks import Parameters
from evo_subnets.weights import LAYERS, places


def classifier(module: nn.Module, inputs: Inputs | None = None) -> list[str]:
    """The names of the weights behind which no other weight follows on the way to the output.

    One for most networks; a policy with a value beside its actions has two, a tied embedding is one
    of both ends. Found by torch.fx, and where it cannot follow the forward pass by asking the
    module for `inputs`, a batch of one sample. A ValueError where neither finds any.
    """
    module = unwrapped(module)
    weights = Weights.of(module)
    try:
        found = _traced(graph_of(module), weights)
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        if inputs is None:
            raise ValueError(
                f"the classifier cannot be found, as torch.fx cannot trace {type(module).__name__} "
                f"({line}): give a sample as inputs, or classifier=True, which prunes it as well"
            ) from None
        found = _asked(module, weights, inputs=inputs)
    if not found:
        raise ValueError(
            f"no layer of {type(module).__name__} with weights leads to its output, so that none "
            "is its classifier: classifier=True prunes all layers alike"
        )
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Weights:
    """The weights of a module by where they lie."""

    layers: dict[str, list[str]]
    """Names by the path of the layer."""
    bare: dict[str, str]
    """Names by the path of the tensor; tied ones have several paths."""

    @classmethod
    def of(cls, module: nn.Module) -> "Weights":
        """Those of a module."""
        ties, layers, bare = Parameters(module).ties, dict[str, list[str]](), {}
        for place in places(module):
            if place.is_weight:
                name = ties.get(place.name, place.name)
                layers.setdefault(place.path, []).append(name)
                bare[f"{place.path}.{place.attribute}".removeprefix(".")] = name
        return cls(layers, bare)

    def inside(self, path: str) -> list[str]:
        """Of a layer and of those in it, as attention has one."""
        within = [owner for owner in self.layers if f"{owner}.".startswith(f"{path}.")]
        return [name for owner in within for name in self.layers[owner]]


def _traced(graph: fx.Graph, weights: Weights) -> list[str]:
    """Back from the output, through everything that has no weights."""
    found: list[str] = []
    seen: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_module":
            own = weights.inside(str(node.target))
        else:
            behind = [str(_source(argument).target) for argument in node.all_input_nodes]
            own = [weights.bare[target] for target in behind if target in weights.bare]
        found += own
        waiting += [] if own else node.all_input_nodes
    return found


def _source(node: fx.Node) -> fx.Node:
    """What a view, as a transposed one, is of."""
    while node.op in ("call_function", "call_method") and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _asked(module: nn.Module, weights: Weights, *, inputs: Inputs) -> list[str]:
    """The layers that the output has a gradient of, where no layer passes one to what is before."""
    work = copied(module).eval()
    names = {id(parameter): name for name, parameter in parameters_of(work).items()}
    bare = [each.requires_grad_() for each in work.parameters() if each.is_floating_point()]
    said: list[tuple[str, Tensor]] = []

    def cut(path: str) -> Callable[..., Any]:
        def hook(layer: nn.Module, given: Any, output: Any) -> Any:
            return _mapped(output, leaf)

        def leaf(tensor: Tensor) -> Tensor:
            own = tensor.detach().requires_grad_()
            said.append((path, own))
            return own.clone()  # so that what follows may work in place

        return hook

    for path, layer in work.named_modules():
        has_own = path in weights.layers
        if has_own and (
            isinstance(layer, LAYERS) or set(weights.inside(path)) == set(weights.layers[path])
        ):
            layer.register_forward_hook(cut(path))
    with torch.enable_grad():
        outputs: list[Tensor] = []

        def kept(output: Tensor) -> Tensor:
            if output.requires_grad:
                outputs.append(output.sum())
            return output

        _mapped(ask(work, inputs), kept)
        if not outputs:
            return []
        total = torch.stack(outputs).sum()
    own = torch.autograd.grad(total, [*bare, *(tensor for _, tensor in said)], allow_unused=True)
    wanted = {names[id(each)] for each, grad in zip(bare, own, strict=False) if grad is not None}
    if functional := [name for name in weights.bare.values() if name in wanted]:
        return functional
    last = [
        path for (path, _), grad in zip(said, own[len(bare) :], strict=True) if grad is not None
    ]
    return [name for path in last for name in weights.inside(path)]


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with each floating-point tensor changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        return type(value)(_mapped(each, change) for each in value)
    if isinstance(value, Mapping):
        changed = {key: _mapped(each, change) for key, each in value.items()}
        return changed if type(value) is dict else value
    return value
