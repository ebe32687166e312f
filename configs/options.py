"""How the library's own option types are written on a command line."""

from typing import Any

import tyro

from configs.moving import StepArgs
from evo_subnets import quads, singles
from evo_subnets.schedules import (
    Constant,
    Cosine,
    OneCycle,
    Restarts,
    Schedule,
    StepLinear,
    Steps,
    Triangles,
)
from evo_subnets.search import Sampler
from evo_subnets.subnetworks import Include
from evo_subnets.walk import Moving

SAMPLERS: dict[str, Sampler] = {"quads": quads, "singles": singles}
SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step-linear": StepLinear,
    "one-cycle": OneCycle,
    "cosine": Cosine,
    "steps": Steps,
    "restarts": Restarts,
    "triangles": Triangles,
}
REGISTRY = tyro.constructors.ConstructorRegistry()
"""For `with REGISTRY: tyro.cli(...)`."""

Spec = tyro.constructors.PrimitiveConstructorSpec[Any]


@REGISTRY.primitive_rule
def _rule(info: tyro.constructors.PrimitiveTypeInfo) -> Spec | None:
    if info.type is Sampler:
        return Spec(
            nargs=1,
            metavar="{" + ",".join(SAMPLERS) + "}",
            instance_from_str=lambda words: SAMPLERS[words[0]],
            is_instance=callable,
            str_from_instance=lambda sampler: [sampler.__name__],
            choices=tuple(SAMPLERS),
        )
    if info.type is Schedule:
        return Spec(
            nargs=1,
            metavar="NAME[:NUMBERS]",
            instance_from_str=lambda words: schedule(words[0]),
            is_instance=callable,
            str_from_instance=lambda found: [written(found)],
        )
    if info.type == Include:
        return Spec(
            nargs="*",
            metavar="[NAME ...]",
            instance_from_str=lambda words: tuple(words) or None,
            is_instance=lambda found: True,
            str_from_instance=lambda found: [] if found is None else list(map(str, found)),
        )
    return None


@REGISTRY.struct_rule
def _moving(
    info: tyro.constructors.StructTypeInfo,
) -> tyro.constructors.StructConstructorSpec | None:
    if info.type is not Moving:
        return None
    asked = tyro.constructors.StructFieldSpec("asked", StepArgs, StepArgs())
    return tyro.constructors.StructConstructorSpec(lambda asked: asked.step(), (asked,))


def schedule(text: str) -> Schedule:
    """The schedule of a NAME or NAME:NUMBER,NUMBER,...; the numbers are its fields, in order, and
    those of a field of several stand between slashes: steps:0.1/0.01/0.001,0.5/0.75."""
    name, _, numbers = text.partition(":")
    if name not in SCHEDULES:
        raise ValueError(f"expected a schedule of {', '.join(SCHEDULES)}, got {text!r}")
    kind = SCHEDULES[name]

    def value(field: str) -> float | tuple[float, ...]:
        several = tuple(map(float, field.split("/")))
        return several if kind is Steps else several[0] if len(several) == 1 else float(field)

    try:
        return kind(*map(value, numbers.split(",") if numbers else ()))
    except (TypeError, ValueError):
        raise ValueError(f"expected numbers for the fields of {name}, got {text!r}") from None


def written(found: Schedule) -> str:
    """The inverse of `schedule`."""
    names = {kind: name for name, kind in SCHEDULES.items()}
    fields = (value if isinstance(value, tuple) else (value,) for value in vars(found).values())
    numbers = ",".join("/".join(f"{each:g}" for each in field) for field in fields)
    return f"{names[type(found)]}:{numbers}"
