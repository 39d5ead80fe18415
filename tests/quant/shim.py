"""Kernels of ``mx.fast`` on a machine without a GPU: their source as C++, compiled with clang.

``mx.fast.metal_kernel`` writes the whole source while a function is exported, Metal or not; that
of ``mx.fast.cuda_kernel`` is put together here as MLX 0.32 does. ``shim.h`` gives both what they
call. A kernel becomes a program of its own, so that one that goes astray ends in an exit code.
"""

import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx.quant.kernel_source import Language

import mlx.core as mx
import numpy as np
import pytest

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-w", f"-I{HERE}")
SANITIZE = ("-fsanitize=undefined", "-fsanitize-trap=undefined", "-nostdlib++")
EXITS = {3: "threads wait for different things", 4: "the shim was called wrongly"}
CUDA_TYPES = {
    mx.float16: "__half",
    mx.bfloat16: "__nv_bfloat16",
    mx.float32: "float",
    mx.uint32: "uint32_t",
}
_METAL_KERNEL: Any = mx.fast.metal_kernel


class KernelFault(Exception):
    """A kernel does not compile, or goes astray."""


def clang() -> str:
    """The command of a clang that knows both 16-bit types; skips, or fails where CI is set."""
    if sys.platform != "linux":
        pytest.skip("the shim needs Linux")
    for name in (f"clang++-{version}" for version in range(24, 18, -1)):
        if found := shutil.which(name):
            return found
    missing = "no clang from 19 on: `apt install clang-19`"
    if os.environ.get("CI"):  # there its absence is a broken install
        pytest.fail(missing)
    pytest.skip(missing)


@dataclass(frozen=True)
class Source:
    """A kernel as MLX hands it to a compiler, and what its parameters are.

    Attributes:
        parameters: type and name of each.
        call: what C++ passes for each, given ``void **b``.
    """

    text: str
    name: str
    parameters: tuple[tuple[str, str], ...]
    call: tuple[str, ...]


def capture_metal(kernel: Any, inputs: Sequence[mx.array], **launch: Any) -> Source:
    """The Metal source that MLX makes of a call; nothing runs."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as printed, tempfile.NamedTemporaryFile() as exported:
        kept = os.dup(1)
        os.dup2(printed.fileno(), 1)  # MLX prints from C++
        try:
            mx.export_function(
                exported.name,
                lambda *arrays: kernel(inputs=list(arrays), verbose=True, **launch),
                *inputs,
            )
        finally:
            os.dup2(kept, 1)
            os.close(kept)
        printed.seek(0)
        text = printed.read().decode().partition("```\n")[2].rpartition("\n```")[0]
    found = re.search(r"\[\[kernel\]\] void (\w+)\(\n(.*?)\) \{\n", text, re.DOTALL)
    assert found, f"no kernel in what MLX printed: {text!r}"
    parameters, call = [], []
    for line in found[2].split(",\n"):
        kind, name, attribute = re.fullmatch(r"\s*(.*\W)(\w+) \[\[(.*)\]\]", line).groups()  # type: ignore[union-attr]
        parameters.append((kind.strip(), name))
        number = re.fullmatch(r"buffer\((\d+)\)", attribute)
        call.append(f"({kind.strip()})b[{number[1]}]" if number else f"here->{attribute}")
    return Source(text, found[1], tuple(parameters), tuple(call))


def assemble_cuda(
    name: str,
    input_names: Sequence[str],
    inputs: Sequence[mx.array],
    output_dtype: mx.Dtype,
    source: str,
    header: str,
) -> Source:
    """The CUDA source of a kernel with one output, less MLX's includes."""
    parameters = []
    for label, array in zip(input_names, inputs, strict=True):
        parameters.append((f"const {CUDA_TYPES[array.dtype]}*", label))
        if f"{label}_shape" in source:
            parameters.append(("const __grid_constant__ Shape", f"{label}_shape"))
    parameters.append((f"{CUDA_TYPES[output_dtype]}*", "y"))
    signature = ",\n".join(f"    {kind} {label}" for kind, label in parameters)
    text = (
        f"{header}namespace mlx::core::cu {{\n\n__global__ void custom_kernel_{name}(\n"
        f"{signature}) {{\n{source}\n}}\n\n}} // namespace mlx::core::cu\n"
    )
    call = [
        f"({kind})b[{i}]" if kind.endswith("*") else f"*(const Shape *)b[{i}]"
        for i, (kind, _) in enumerate(parameters)
    ]
    return Source(text, f"mlx::core::cu::custom_kernel_{name}", tuple(parameters), tuple(call))


@dataclass
class Shim:
    """Stands in for the GPU: its kernels are what ``mx.fast`` would make.

    Attributes:
        folder: where programs are kept; a source seen before is not compiled again.
        mutate: changes the source before it is compiled.
        shift: bytes that the vectors ``x`` lie before a multiple of 16.
    """

    language: Language
    folder: Path
    compiler: str
    mutate: Callable[[str], str] = lambda source: source
    shift: int = 0

    def kernel(
        self,
        name: str,
        input_names: Sequence[str],
        output_names: Sequence[str],
        source: str,
        header: str = "",
    ) -> Callable[..., list[mx.array]]:
        """As ``mx.fast.metal_kernel`` and ``mx.fast.cuda_kernel``."""
        mutant = self.mutate(source)
        metal = None
        if self.language == "metal":
            metal = _METAL_KERNEL(
                name=name,
                input_names=input_names,
                output_names=output_names,
                source=mutant,
                header=header,
            )

        def call(
            inputs: Sequence[mx.array],
            grid: tuple[int, int, int],
            threadgroup: tuple[int, int, int],
            output_shapes: Sequence[tuple[int, ...]],
            output_dtypes: Sequence[mx.Dtype],
        ) -> list[mx.array]:
            mx.eval(inputs)
            if metal is not None:
                whole = capture_metal(
                    metal,
                    inputs,
                    grid=grid,
                    threadgroup=threadgroup,
                    output_shapes=output_shapes,
                    output_dtypes=output_dtypes,
                )
            else:
                whole = assemble_cuda(name, input_names, inputs, output_dtypes[0], mutant, header)
            program = self.compiled(whole)
            named = {
                label: data
                for name, array in zip(input_names, inputs, strict=True)
                for label, data in ((name, _bytes(array)), (f"{name}_shape", _shape(array)))
            }
            named["x"] = named.get("x", b"") + bytes(self.shift)  # buffers end at a page
            buffers = [named[label] for _, label in whole.parameters if label in named]
            (shape,), (dtype,) = output_shapes, output_dtypes
            y = run(program, buffers, int(np.prod(shape)) * dtype.size, grid, threadgroup)
            return [_array(y, shape, dtype)]

        return call

    def compiled(self, source: Source) -> Path:
        """The program of ``source``, made if it is not there; raises :class:`KernelFault`."""
        calls = ", ".join(source.call)
        program = (
            f'#include "shim.h"\n{source.text}\n#ifndef TYPECHECK\n'
            f"int main() {{ return run([](void **b) {{ {source.name}({calls}); }}); }}\n#endif\n"
        )
        digest = hashlib.sha256((HERE / "shim.h").read_bytes() + program.encode()).hexdigest()[:16]
        target = self.folder / f"{self.language}-{digest}"
        if not target.exists():
            path = target.with_suffix(".cpp")
            path.write_text(program)
            if self.language == "metal":  # its address spaces
                _compile([self.compiler, *FLAGS, "-DTYPECHECK", "-fsyntax-only", str(path)])
            define = ["-DCUDA"] if self.language == "cuda" else []
            _compile([self.compiler, *FLAGS, *SANITIZE, *define, str(path), "-o", str(target)])
        return target


def run(
    program: Path,
    inputs: Sequence[bytes],
    output_size: int,
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
) -> bytes:
    """What a kernel writes into its output, the last buffer."""
    sizes = [v for data in inputs for v in (len(data), 0)] + [output_size, 1]
    head = struct.pack(f"{7 + len(sizes)}q", *grid, *threadgroup, len(inputs) + 1, *sizes)
    done = subprocess.run([program], input=head + b"".join(inputs), capture_output=True)
    if done.returncode:
        raise KernelFault(EXITS.get(done.returncode, f"ends with {done.returncode}"))
    return done.stdout


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise KernelFault(done.stderr)


def _bytes(array: mx.array) -> bytes:
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array).tobytes()


def _shape(array: mx.array) -> bytes:
    """As CUDA passes it; Metal reads from the same start."""
    return np.array([*array.shape, *[0] * (10 - array.ndim)], np.int32).tobytes()


def _array(data: bytes, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    if dtype == mx.bfloat16:
        return mx.array(np.frombuffer(data, np.uint16).reshape(shape)).view(mx.bfloat16)
    kind = np.float16 if dtype == mx.float16 else np.float32
    return mx.array(np.frombuffer(data, kind).reshape(shape))
