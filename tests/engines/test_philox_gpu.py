"""`philox.cu` run by a CPU, thread after thread, and what happens without a GPU or NVRTC."""

import ctypes
import subprocess
import warnings

import pytest
import torch
from networks import all_same_bits, noise

from evo_subnets import Mutation, materialize_siblings, mutation
from evo_subnets.draws import draw_plainly
from evo_subnets.engines import compiler, philox_gpu

EMULATION = """
#include <math.h>
#include <string.h>
#define __device__
#define __global__
typedef struct { unsigned x; } Index;
static Index blockIdx, blockDim, threadIdx;
static unsigned __float_as_uint(float value) { unsigned w; memcpy(&w, &value, 4); return w; }
static float __uint_as_float(unsigned word) { float v; memcpy(&v, &word, 4); return v; }
static unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
#include "%s"
void run(const Draw *draw, unsigned blocks, unsigned threads) {
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) evo_perturb(*draw);
}
"""


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """What philox_gpu calls a Launch, on this CPU."""
    folder = tmp_path_factory.mktemp("emulation")
    (folder / "emulation.c").write_text(EMULATION % philox_gpu.SOURCE)
    flags = ["-O2", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
    try:
        compiler.build([folder / "emulation.c"], flags, folder / "emulation.so")
    except FileNotFoundError:
        pytest.skip("there is no C compiler here")
    library = ctypes.CDLL(str(folder / "emulation.so"))

    def launched(arguments, blocks):
        library.run(ctypes.byref(arguments), ctypes.c_uint(blocks), ctypes.c_uint(256))

    return launched


@pytest.fixture
def emulated(launch, monkeypatch):
    """Makes the emulated GPU draw for CPU tensors; the list holds its launches' arguments."""
    launches = []

    def counted(arguments, blocks):
        launches.append((arguments, blocks))
        launch(arguments, blocks)

    def perturb(draws):
        for draw in draws:
            philox_gpu.perturb_by(counted, draw)

    monkeypatch.setattr(mutation, "fastest", lambda device, elements: perturb)
    return launches


def siblings(seed=2**62 + 3):
    """A quad, and siblings whose intervals are inner, wrap around, empty or everything."""
    child = Mutation(seed, 0.25, 0.0, 0.3)
    others = ((1e-3, 0.4, 0.6), (3.0, 0.9, 0.2), (1.0, 0.5, 0.5), (1.0, 0.0, 1.0))
    return [
        child,
        child.partner(),
        child.mirrored(),
        child.partner().mirrored(),
        *(Mutation(seed, *numbers) for numbers in others),
        Mutation(seed, -2.0, 1.0, 0.25),
    ]


@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (64, 1), (33, 65), (8, 3, 3, 3), (129, 257)])
def test_the_gpu_kernel_gives_the_bits_of_plain_torch(shape, emulated, monkeypatch):
    parent = {"a.weight": noise(*shape, seed=1), "b.weight": noise(*shape, seed=2)}
    found = materialize_siblings(parent, siblings())
    assert len(emulated) == 2 * 3  # nine siblings, four at a time
    monkeypatch.undo()
    monkeypatch.setenv("EVO_SUBNETS_ENGINES", "off")
    expected = materialize_siblings(parent, siblings())
    assert all(all_same_bits(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_layouts_too(dtype, emulated, monkeypatch):
    parent = {"w": noise(6, 5, 3, 3).to(dtype).to(memory_format=torch.channels_last)}
    found = materialize_siblings(parent, siblings())
    assert bool(emulated) == (dtype != torch.float64)  # wider than what the kernel takes
    monkeypatch.undo()
    monkeypatch.setenv("EVO_SUBNETS_ENGINES", "off")
    expected = materialize_siblings(parent, siblings())
    assert all(all_same_bits(a, b) for a, b in zip(found, expected, strict=True))


def test_a_thread_has_a_block_of_four_words(emulated):
    materialize_siblings({"w": noise(100, 100)}, siblings()[:4])
    ((arguments, blocks),) = emulated
    assert arguments.count == 10_000
    assert arguments.siblings == 4
    assert (blocks - 1) * philox_gpu.THREADS < -(-10_000 // 64) * 16 <= blocks * 256


def test_the_trial_passes_the_kernel_and_stops_another(launch):
    cpu = torch.device("cpu")
    philox_gpu.check_bits(launch, cpu)

    def one_bit_off(arguments, blocks):
        arguments.recipes[1].sigma *= 1 + 2**-23
        launch(arguments, blocks)

    with pytest.raises(RuntimeError, match="other bits than plain torch"):
        philox_gpu.check_bits(one_bit_off, cpu)
    with pytest.raises(RuntimeError, match="other bits than plain torch"):
        philox_gpu.check_bits(lambda arguments, blocks: None, cpu)


@pytest.fixture
def no_launcher_known():
    philox_gpu.launcher.cache_clear()
    yield
    philox_gpu.launcher.cache_clear()


def test_where_it_cannot_be_had_plain_torch_serves_with_one_warning(no_launcher_known, monkeypatch):
    monkeypatch.delenv("EVO_SUBNETS_ENGINES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "0.0")
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.warns(RuntimeWarning, match=r"no compiled draws on cuda:0: .* plain torch"):
        assert mutation.fastest(device, 10**9) is draw_plainly
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mutation.fastest(device, 10**9) is draw_plainly


def test_without_a_cuda_build_nothing_is_said(no_launcher_known, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not philox_gpu.available(torch.device("cuda", 0), 1)


def test_machine_code_is_kept_on_disk(monkeypatch, tmp_path):
    """By a stand-in for NVRTC: one compilation for an architecture and a version."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled = []

    class Nvrtc:
        def nvrtcVersion(self, major, minor):
            major._obj.value, minor._obj.value = 12, 8

    def compile_(nvrtc, options):
        compiled.append(options)
        return b"machine code"

    monkeypatch.setattr(philox_gpu, "library", Nvrtc)
    monkeypatch.setattr(philox_gpu, "_compiled", compile_)
    assert [philox_gpu.cubin((9, 0)) for _ in range(2)] == [b"machine code"] * 2
    assert compiled == [["--fmad=false", "--std=c++17", "--gpu-architecture=sm_90"]]
    philox_gpu.cubin((8, 0))
    assert len(compiled) == 2
    assert len(list(tmp_path.rglob("*.cubin"))) == 2


def test_contraction_would_change_bits(launch, tmp_path):
    """So the flag that forbids it is needed; on a processor with fused multiply-adds."""
    (tmp_path / "emulation.c").write_text(EMULATION % philox_gpu.SOURCE)
    flags = ["-O2", "-ffp-contract=fast", "-mfma", "-fno-math-errno"]
    try:
        compiler.build([tmp_path / "emulation.c"], flags, tmp_path / "emulation.so")
    except subprocess.CalledProcessError:
        pytest.skip("not an x86 processor")
    library = ctypes.CDLL(str(tmp_path / "emulation.so"))

    def launched(arguments, blocks):
        library.run(ctypes.byref(arguments), ctypes.c_uint(blocks), ctypes.c_uint(256))

    with pytest.raises(RuntimeError, match="other bits than plain torch"):
        philox_gpu.check_bits(launched, torch.device("cpu"))
