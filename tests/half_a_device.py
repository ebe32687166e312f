"""A device without float64 to test with: "mps", as Apple's are, worked out by the CPU.

Inside `apple()`, tensors on "mps" are tensors of the CPU in a wrapper that Python sees to be there.
As on that device, float64 is a TypeError, and tensors of two devices do not meet.
"""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

MPS = torch.device("mps", 0)
FACTORIES = ("_to_copy", "copy_", "lift_fresh", "set_data")
"""Operations that take tensors of two devices."""


class OnMps(torch.Tensor):
    """A tensor on `MPS`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype,
        )  # fmt: skip

    def __init__(self, held):
        if held.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
                "float64. Please use float32 instead."
            )
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _worked_out(function, args, kwargs or {})

    @property
    def device(self):
        return MPS

    def cpu(self):
        return self.held.clone()

    def to(self, *args, **options):
        copy = options.pop("copy", False)
        device, dtype, *_ = torch._C._nn._parse_to(*args, **options)
        if device is not None and device.type == "cpu":
            return self.held.to(dtype or self.dtype, copy=True)
        return super().to(dtype or self.dtype, copy=copy)

    def tolist(self):
        return self.held.tolist()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def data_ptr(self):
        return self.held.data_ptr()

    def numpy(self, **options):
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first")


class _Apple(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _worked_out(function, args, kwargs or {})


@contextmanager
def apple():
    """Inside, there is a device "mps"."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Apple():
            yield MPS
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _worked_out(function, args, kwargs):
    leaves = tree_leaves((args, kwargs))
    there = any(isinstance(each, OnMps) for each in leaves)
    wanted = kwargs.get("device")
    if not there and (wanted is None or torch.device(wanted).type != "mps"):
        return function(*args, **kwargs)
    name = function.overloadpacket.__name__
    here = [each for each in leaves if isinstance(each, torch.Tensor) and type(each) is not OnMps]
    if there and name not in FACTORIES and any(each.ndim for each in here):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, mps and cpu")
    result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if name == "copy_" and not isinstance(args[0], OnMps):
        return args[0]
    wrapped = tree_map(lambda each: OnMps(each) if isinstance(each, torch.Tensor) else each, result)
    return return_and_correct_aliasing(function, args, kwargs, wrapped)


def _held(value):
    if isinstance(value, OnMps):
        return value.held
    if isinstance(value, torch.device) and value.type == "mps":
        return torch.device("cpu")
    return value
