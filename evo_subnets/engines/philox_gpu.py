"""`philox.cu`, compiled on first need by NVRTC for the GPU at hand, kept for later processes.

NVRTC comes with torch's CUDA builds; no toolkit is needed. A compiled kernel serves only after it
has given the bits of plain torch for a trial on its device. Where it does not, or where there is no
NVRTC, plain torch draws, which gives the same bits and is slow.
"""

import ctypes
import hashlib
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from evo_subnets.draws import Change, Draw, draw_plainly
from evo_subnets.engines import compiler
from evo_subnets.engines.philox import Key, Recipe
from evo_subnets.streams import LANES, LEVELS, TILE, Interval

SOURCE = Path(__file__).with_name("philox.cu")
FLAGS = ["--fmad=false", "--std=c++17"]
SIBLINGS, THREADS = 4, 256
"""Children of a launch, and threads of a block."""


class Arguments(ctypes.Structure):
    """What philox.cu calls a Draw."""

    _fields_ = (
        ("parent", ctypes.c_void_p),
        ("outs", ctypes.c_void_p * SIBLINGS),
        ("recipes", Recipe * SIBLINGS),
        ("start", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("key", Key),
        ("siblings", ctypes.c_uint64),
    )


Launch = Callable[[Arguments, int], None]
"""Runs the kernel in so many blocks of THREADS threads."""


def available(device: torch.device, elements: int) -> bool:
    """Whether the compiled kernel draws on this device, few elements or many."""
    return launcher(device) is not None


def perturb(draws: Iterable[Draw]) -> None:
    """Carries the draws out, on torch's current stream of each one's device."""
    for draw in draws:
        launch = launcher(draw.parent.device)
        assert launch is not None
        perturb_by(launch, draw)


def perturb_by(launch: Launch, draw: Draw) -> None:
    """Carries the draw out; each launch writes at most SIBLINGS children."""
    threads = -(-draw.parent.numel() // TILE) * LANES
    for first in range(0, len(draw.outs), SIBLINGS):
        outs = draw.outs[first : first + SIBLINGS]
        arguments = Arguments(
            draw.parent.data_ptr(),
            (ctypes.c_void_p * SIBLINGS)(*(out.data_ptr() for out in outs)),
            (Recipe * SIBLINGS)(*map(Recipe.of, draw.changes[first : first + SIBLINGS])),
            draw.start,
            draw.parent.numel(),
            Key.of(draw),
            len(outs),
        )
        if threads:
            launch(arguments, -(-threads // THREADS))


@cache
def launcher(device: torch.device) -> Launch | None:
    """The compiled kernel of a device; None, with a warning, where plain torch has to serve."""
    if torch.version.cuda is None:  # another maker's GPU
        return None
    try:
        launch = _load(device)
        check_bits(launch, device)
        return launch
    except (OSError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        warnings.warn(
            f"no compiled draws on {device}: children are built by plain torch, with the same "
            f"bits, far more slowly ({reason})",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def check_bits(launch: Launch, device: torch.device) -> None:
    """A RuntimeError where the kernel's bits are not those of plain torch."""
    count = 40 * TILE + 7
    parent = torch.linspace(-1, 1, count, device=device)
    changes = [
        Change(Interval(0, LEVELS // 2), 0.1),
        Change(Interval(LEVELS - 5, LEVELS // 3), -3.0),
    ]
    found, expected = ([torch.zeros_like(parent) for _ in changes] for _ in range(2))
    perturb_by(launch, Draw("trial", parent, found, 2**62 + 1, changes, 2**33))
    draw_plainly([Draw("trial", parent, expected, 2**62 + 1, changes, 2**33)])
    for one, other in zip(found, expected, strict=True):
        if not torch.equal(one, other):
            raise RuntimeError("the compiled kernel gave other bits than plain torch in its trial")


def _load(device: torch.device) -> Launch:
    """The kernel on its device, through the CUDA driver."""
    driver = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: Any) -> None:
        if code := getattr(driver, name)(*arguments):
            raise RuntimeError(f"{name} failed with CUDA error {code}")

    binary = cubin(torch.cuda.get_device_capability(device))
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(handle), device.index)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)  # the one that torch uses

    def launch(arguments: Arguments, blocks: int) -> None:
        with torch.cuda.device(device):
            call("cuCtxSetCurrent", context)  # a new thread of Python's has none yet
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            values = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
            size = map(ctypes.c_uint, (blocks, 1, 1, THREADS, 1, 1, 0))
            call("cuLaunchKernel", function, *size, stream, values, None)

    with torch.cuda.device(device):
        call("cuCtxSetCurrent", context)
        call("cuModuleLoadData", ctypes.byref(module), binary)
        call("cuModuleGetFunction", ctypes.byref(function), module, b"evo_perturb")
    return launch


def cubin(capability: tuple[int, int]) -> bytes:
    """The kernel's machine code for GPUs of this compute capability, from disk where it is there.

    An OSError where there is no NVRTC, or where it refuses.
    """
    major, minor = capability
    options = [*FLAGS, f"--gpu-architecture=sm_{major}{minor}"]
    nvrtc = library()
    version = [ctypes.c_int(), ctypes.c_int()]
    nvrtc.nvrtcVersion(*map(ctypes.byref, version))
    known = " ".join([*options, *(str(each.value) for each in version)]).encode()
    digest = hashlib.sha256(SOURCE.read_bytes() + known).hexdigest()[:16]
    path = compiler.cache_folder() / f"kernel-sm{major}{minor}-{digest}.cubin"
    if not path.exists():
        compiler.keep(path, _compiled(nvrtc, options))
    return path.read_bytes()


def library() -> ctypes.CDLL:
    """NVRTC as torch brings it; an OSError where there is none."""
    major = (torch.version.cuda or "").split(".")[0]
    name = f"libnvrtc.so.{major}"
    beside_torch = Path(torch.__file__).parents[1].glob(f"nvidia/*/lib/{name}")
    for each in [name, *map(str, sorted(beside_torch))]:
        try:
            return ctypes.CDLL(each)
        except OSError as error:
            last = error
    raise last


def _compiled(nvrtc: ctypes.CDLL, options: list[str]) -> bytes:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def call(name: str, *arguments: Any) -> None:
        if code := getattr(nvrtc, name)(*arguments):
            raise OSError(f"{name} failed with NVRTC error {code}")

    def text(what: str) -> bytes:
        call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        found = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{what}", program, found)
        return found.raw

    source = SOURCE.read_bytes()
    call("nvrtcCreateProgram", ctypes.byref(program), source, b"philox.cu", 0, None, None)
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), given):
            raise OSError(text("ProgramLog").rstrip(b"\0").decode(errors="replace"))
        return text("CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
