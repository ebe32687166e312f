"""Names of parameters and buffers without what is wrapped around modules."""

from torch import Tensor, nn

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
COMPILED = "_orig_mod"
"""Where `torch.compile` keeps the module that it was given."""


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel, or itself."""
    while inside := _inside(module):
        module = module.get_submodule(inside)
    return module


def plain_names(module: nn.Module, names: list[str]) -> list[str]:
    """The names as if nothing in `module` were wrapped: `_orig_mod.0.weight` is `0.weight`."""
    if not any(f"{part}." in name for name in names for part in (COMPILED, "module")):
        return names
    paths = [(path, inside) for path, each in module.named_modules() if (inside := _inside(each))]
    for path, inside in reversed(paths):  # those inside others first
        start = f"{path}." if path else ""
        length = len(f"{start}{inside}.")
        names = [
            start + name[length:] if name.startswith(f"{start}{inside}.") else name
            for name in names
        ]
    return names


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """`module.state_dict()` by plain names."""
    state = module.state_dict()
    return dict(zip(plain_names(module, list(state)), state.values(), strict=True))


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """`module.named_parameters()` by plain names."""
    named = dict(module.named_parameters())
    return dict(zip(plain_names(module, list(named)), named.values(), strict=True))


def _inside(module: nn.Module) -> str | None:
    if COMPILED in module._modules:
        return COMPILED
    return "module" if isinstance(module, WRAPPERS) else None
