"""``afm doctor``: what this machine has, and what to do about what it lacks."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from afm_mlx import blas, hub
from afm_mlx.cli.commands import Doctor
from afm_mlx.cli.output import print_json, show_table
from afm_mlx.errors import ModelError
from afm_mlx.quant import kernels

import mlx.core as mx
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from rich.table import Table
from rich.text import Text

PACKAGES = ("afm-mlx", "mlx", "mlx-lm", "huggingface-hub", "numpy", "textual", "transformers")
LEAST_MEMORY = 2 * 2**30  # bytes; the embedded model peaks at about 0.6 GiB
LEAST_DISK = 5 * 10**9  # bytes; a 1.7 B model in bfloat16 is 3.4 GB
SLOW_BLAS = 20  # GFLOPS; the reference BLAS gives about 5, OpenBLAS over 100 on two cores


@dataclass(frozen=True)
class Check:
    """One thing looked at; ``remedy`` is set if there is a problem."""

    name: str
    finding: str
    remedy: str | None = None


def run(command: Doctor) -> int:
    checks = list(kernel_checks() if command.kernels else examine())
    if command.json:
        print_json([asdict(check) for check in checks])
    else:
        table = Table(box=None, show_header=False)
        for check in checks:
            mark = "[red]✗ problem[/red]" if check.remedy else "[green]✓ ok[/green]"
            text = check.finding + (f"\n→ {check.remedy}" if check.remedy else "")
            table.add_row(mark, check.name, Text(text))
        show_table(table)
    return int(any(check.remedy for check in checks))


def examine() -> Iterator[Check]:
    """All checks, one after the other."""
    yield Check("system", f"{platform.platform()}, Python {platform.python_version()}")
    yield Check("packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES))
    yield _device()
    yield _memory()
    yield from _cpu()
    yield _model()
    yield _cache()


def kernel_checks() -> Iterator[Check]:
    """Every kernel of palettised layers beside plain MLX."""
    found = kernels.self_test()
    if not found:
        yield Check("kernels", f"{mx.default_device()}: they run on GPUs only, none to compare")
    for check in found:
        rows = f"{check.rows} rows, " if check.kernel == "matmul" else ""
        name = f"{check.kernel}, {check.bits} bits"
        finding = f"{rows}{check.dtype}: error {check.error:.1e}"
        remedy = f"{check.message}: please report it; plain MLX is used in its place"
        yield Check(name, finding, None if check.ok else remedy)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _device() -> Check:
    device = mx.default_device()
    info = mx.device_info()
    name = info.get("device_name", info.get("architecture", ""))
    finding = f"{device} {name}".strip()
    if sys.platform == "darwin" and device == mx.cpu:
        return Check("device", finding, "MLX sees no Apple GPU: use an arm64 build of Python")
    if {_version("mlx-cpu"), _version("mlx-cuda-13")}.isdisjoint({"missing"}):
        return Check(
            "device",
            f"{finding}, but mlx-cpu and mlx-cuda-13 share files",
            "`uv pip uninstall mlx-cpu && uv pip install --reinstall mlx-cuda-13`",
        )
    return Check("device", finding)


def _memory() -> Check:
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    finding = f"{size / 2**30:.0f} GiB"
    if size < LEAST_MEMORY:
        return Check("memory", finding, "below 2 GiB even the embedded model may not fit")
    return Check("memory", finding)


def _cpu() -> Iterator[Check]:
    """What only matters where MLX computes on the CPU of a Linux machine."""
    if sys.platform != "linux":
        return
    compiler = shutil.which("g++")
    yield Check(
        "C++ compiler",
        compiler or "none",
        None if compiler else "MLX compiles CPU kernels with it: `apt install g++`",
    )
    if mx.default_device() != mx.cpu:
        return
    loaded, speed = blas.preload(), blas.measure_gflops()
    finding = f"{loaded.kind}, {speed:.0f} GFLOPS float32: {loaded.detail}"
    remedy = loaded.remedy
    if remedy is None and speed < SLOW_BLAS:
        remedy = "slow: other programs may use the CPU, or set AFM_BLAS=system or numpy"
    yield Check("BLAS", finding, remedy)


def _model() -> Check:
    try:
        path = hub.embedded()
    except ModelError as error:
        return Check("embedded model", "none", str(error))
    return Check("embedded model", f"{path.name}, {path.stat().st_size / 1e6:.0f} MB")


def _cache() -> Check:
    folder = Path(HF_HUB_CACHE)
    parent = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(parent).free
    finding = f"{folder}, {free / 1e9:.0f} GB free" + (", offline" if HF_HUB_OFFLINE else "")
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError:
        return Check("model cache", finding, "not writable: set HF_HOME to a folder that is")
    if free < LEAST_DISK:
        return Check("model cache", finding, "little space: remove models or set HF_HOME")
    return Check("model cache", finding)
