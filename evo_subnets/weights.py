"""Which of a module's parameters are weights: the one place where that is decided.

By the kind of layer, not by the number of dimensions. Weights are those of linear layers,
convolutions, recurrent layers, embeddings, attention and bilinear forms, parametrized or not. Norms
and scales have none, whatever their shape, nor have embeddings of positions. Of layers that are not
torch's own, parameters of two or more dimensions are weights, but for those

- of a class that is called a norm, a scale or a position embedding (`RMSNorm`, `LayerScale`),
- that are called a position, token, scale, gain, bias or the like (`cls_token`, `pos_embedding`),
- with one dimension that is longer than 1, as a scale of channels has, unless it is a matrix that
  is called a weight,
- whose first dimension is 1, as of a parameter that goes with every sample, unless it is called a
  weight or a kernel.

Frozen parameters are left alone, unless all of a module's are. Tied ones count once. `include=`, in
a `Search` and wherever children are made, names others.
"""

import re
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from evo_subnets.files import parameters_of, plain_names

TABLES = (nn.Embedding, nn.EmbeddingBag)
LAYERS = (
    nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, *TABLES,
)  # fmt: skip
POSITION = (
    r"(^|_)(pos(ition(s|al)?)?|wpe)(_|$)|(^|_|rel)pos(ition(al)?)?_?(emb|enc)|_bias(es)?(_|$)"
)
POSITIONS = re.compile(POSITION, re.IGNORECASE)
NO_WEIGHT = re.compile(
    rf"{POSITION}|(^|_)((class_?|cls_?|mask_?|dist_?)?tokens?|scales?|gammas?|betas?|gains?|bias(es)?"
    r"|shifts?|temperatures?|tau|g)(_?\d*)$|(^|_)bias(es)?_|^(layer|logit)_?scale",
    re.IGNORECASE,
)
NO_LAYER = re.compile(r"([nN]orm|[sS]cale)\d?d?$|Pos(ition(al)?)?_?(Emb|Enc)|Position(al)?$")
CALLED_WEIGHT = re.compile(r"weight|kernel|^w\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where a parameter lies; a tied one lies in several places."""

    name: str
    """The parameter's, without wrappers; of a tied one the first."""
    path: str
    """Of the layer, without wrappers."""
    layer: nn.Module
    attribute: str
    """What the layer calls it; of a parametrized tensor that tensor's name."""
    parameter: nn.Parameter

    @property
    def is_weight(self) -> bool:
        """Whether a layer of this kind multiplies by it."""
        shape, layer = self.parameter.shape, self.layer
        if len(shape) < 2 or not self.parameter.is_floating_point():
            return False
        own = self.path.rpartition(".")[2]
        called = own if self.attribute.isdigit() else self.attribute  # a ParameterList's by its own
        kind = getattr(layer, "original_name", type(layer).__name__)  # TorchScript's has another
        if isinstance(layer, LAYERS) and "weight" in called:
            if isinstance(layer, TABLES) and (POSITIONS.search(own) or NO_LAYER.search(kind)):
                return False
            return not called.endswith("_g")
        if NO_LAYER.search(kind) or NO_WEIGHT.search(called):
            return False
        if sum(size > 1 for size in shape) < 2:
            return len(shape) == 2 and bool(CALLED_WEIGHT.search(called))
        return shape[0] > 1 or bool(CALLED_WEIGHT.search(called))


def places(module: nn.Module) -> list[Place]:
    """Every parameter in every layer that has it."""
    names = {id(parameter): name for name, parameter in parameters_of(module).items()}
    layers = dict(module.named_modules())
    plain = plain_names(module, [f"{path}.x" if path else "x" for path in layers])
    found = []
    for (path, layer), plain_path in zip(layers.items(), plain, strict=True):
        own = plain_path.removesuffix("x").removesuffix(".")
        tensor, largest = "", 0
        if isinstance(layer, ParametrizationList):  # layer.parametrizations.weight
            around, _, tensor = path.rpartition(".")
            layer = layers[around.removesuffix("parametrizations").removesuffix(".")]
            own = own.removesuffix(f"parametrizations.{tensor}").removesuffix(".")
            largest = max(
                (each.numel() for each in layers[path].parameters(recurse=False)), default=0
            )
        for attribute, parameter in layers[path]._parameters.items():
            if parameter is not None:
                called = tensor or attribute
                if parameter.numel() < largest:  # the length of weight norm
                    called += "_g"
                found.append(Place(names[id(parameter)], own, layer, called, parameter))
    return found


def weight_names(module: nn.Module) -> list[str]:
    """The names of what is mutated and pruned by default, in the order of `named_parameters`."""
    all_places = places(module)
    trained = any(place.parameter.requires_grad for place in all_places)
    found = {
        place.name
        for place in all_places
        if place.is_weight and (place.parameter.requires_grad or not trained)
    }
    return [name for name in parameters_of(module) if name in found]


def padding_rows(module: nn.Module) -> dict[str, int]:
    """The row of each embedding, by its weight's name, that stands for nothing."""
    return {
        place.name: place.layer.padding_idx
        for place in places(module)
        if isinstance(place.layer, TABLES)
        and place.layer.padding_idx is not None
        and "weight" in place.attribute
    }
