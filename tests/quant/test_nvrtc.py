"""The CUDA form of the kernels through NVIDIA's compiler, which needs no GPU.

``utils.cuh`` is what the kernels use of MLX's: with the real one, and the C++ library that it
includes, each takes 4 to 9 seconds in place of half a one.
"""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from afm_mlx.quant import kernels
from afm_mlx.quant.planes import PLANES, pack
from tests.quant.shim import KernelFault, assemble_cuda

import mlx.core as mx
import numpy as np
import pytest

pytestmark = pytest.mark.slow

HEADER = b"mlx/backend/cuda/device/utils.cuh"
UTILS = b"""
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef unsigned uint32_t;
namespace mlx::core::cu {
struct Shape {
    int sizes[10];
    __device__ int operator[](int i) const { return sizes[i]; }
};
}
"""
# What no loop that is not written out can have: its arrays lie in memory.
IN_REGISTERS = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"


@pytest.fixture(scope="session")
def toolkit() -> Path:
    """The folder that NVIDIA's wheels fill."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec and spec.submodule_search_locations) or ():
        for found in Path(place).glob("cu*/include/cuda_bf16.h"):
            if list(found.parents[1].glob("lib/libnvrtc.so.*")):
                return found.parents[1]
    missing = "no NVRTC: `uv sync --group kernels`"
    if os.environ.get("CI") and sys.platform == "linux":  # there its absence is a broken install
        pytest.fail(missing)
    pytest.skip(missing)


def compile_cuda(toolkit: Path, source: str, architecture: str) -> str:
    """What the compiler says of ``source``; raises :class:`KernelFault` if it takes it not."""
    (library,) = toolkit.glob("lib/libnvrtc.so.*")
    nvrtc = ctypes.CDLL(str(library))
    program = ctypes.c_void_p()
    text = f'#include "{HEADER.decode()}"\n{source}'.encode()
    headers, names = (ctypes.c_char_p * 1)(UTILS), (ctypes.c_char_p * 1)(HEADER)
    assert not nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), text, b"kernel.cu", 1, headers, names
    )
    options = [
        f"--gpu-architecture={architecture}",
        f"--include-path={toolkit / 'include'}",
        "--ptxas-options=-v",
    ]
    encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    failed = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise KernelFault(log.value.decode())
    return log.value.decode()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, toolkit: Path) -> Iterator[Callable[..., list[str]]]:
    """Have kernels compiled in place of run; returns the list that the logs go to."""

    def put(architecture: str, mutate: Callable[[str], str] = str) -> list[str]:
        logs: list[str] = []

        def make(
            name: str, input_names: Sequence[str], source: str, header: str, **_: Any
        ) -> Callable[..., list[mx.array]]:
            def call(
                inputs: Sequence[mx.array],
                output_shapes: Sequence[tuple[int, ...]],
                output_dtypes: Sequence[mx.Dtype],
                **_: Any,
            ) -> list[mx.array]:
                whole = assemble_cuda(
                    name, input_names, inputs, output_dtypes[0], mutate(source), header
                )
                logs.append(compile_cuda(toolkit, whole.text, architecture))
                return [mx.zeros(output_shapes[0], output_dtypes[0])]

            return call

        monkeypatch.setattr(kernels, "backend", lambda: "cuda")
        monkeypatch.setattr(mx.fast, "cuda_kernel", make)
        kernels._kernel.cache_clear()
        return logs

    yield put
    kernels._kernel.cache_clear()


def weights(bits: int, lut_dtype: mx.Dtype) -> tuple[list[mx.array], mx.array]:
    planes = [mx.array(plane) for plane in pack(np.zeros((16, 32), np.uint8), bits)]
    return planes, mx.zeros((1, 1 << bits), lut_dtype)


@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize(
    ("m", "dtype", "lut_dtype", "architecture"),
    [
        (1, mx.bfloat16, mx.float16, "sm_75"),  # the oldest that CUDA 13 knows
        (4, mx.float32, mx.float32, "sm_90"),
        (8, mx.float16, mx.float16, "sm_90"),
    ],
)
def test_matmul(
    install: Callable[..., list[str]],
    bits: int,
    m: int,
    dtype: mx.Dtype,
    lut_dtype: mx.Dtype,
    architecture: str,
) -> None:
    logs = install(architecture)
    kernels.matmul(mx.zeros((m, 32), dtype), *weights(bits, lut_dtype), bits)
    (log,) = logs
    assert IN_REGISTERS in log and "warning" not in log


@pytest.mark.parametrize("bits", PLANES)
def test_dequantize(install: Callable[..., list[str]], bits: int) -> None:
    logs = install("sm_80")
    kernels.dequantize(*weights(bits, mx.float16), bits, dtype=mx.bfloat16)
    (log,) = logs
    assert IN_REGISTERS in log and "warning" not in log


def test_what_a_broken_kernel_gives(install: Callable[..., list[str]]) -> None:
    """Else a compiler that is called wrongly would pass for right kernels."""
    x = mx.zeros((4, 32), mx.float16)
    install("sm_90", lambda source: source.replace("__syncthreads()", "__syncthread()"))
    with pytest.raises(KernelFault, match='"__syncthread" is undefined'):
        kernels.matmul(x, *weights(4, mx.float16), 4)
    logs = install("sm_90", lambda source: source.replace('"unroll"', '"unroll 1"'))
    kernels.matmul(x, *weights(4, mx.float16), 4)
    assert IN_REGISTERS not in logs[0]
