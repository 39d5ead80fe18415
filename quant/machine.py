"""What the machine at hand can do: memory bandwidth, arithmetic, and a meter for energy.

The two ceilings are those of the roofline model (Williams et al., CACM 2009): no operation is
quicker than its bytes over the bandwidth, nor than its arithmetic over the speed.
"""

import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

STREAMED = 2**28
"""Bytes read to measure the bandwidth, more than any cache holds."""
POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the processor's energy counters (RAPL)."""
_ENOUGH = 0.01  # seconds; a product that takes less is measured at twice the size
_SMALLEST, _LARGEST = 1024, 8192  # rows of the square matrices


@dataclass(frozen=True)
class Machine:
    """Ceilings of a device.

    Attributes:
        dtype: type of the numbers that ``speed`` is for.
        bandwidth: bytes a second from memory.
        speed: floating-point operations a second.
    """

    device: str
    dtype: str
    bandwidth: float
    speed: float

    def __post_init__(self) -> None:
        if self.bandwidth <= 0 or self.speed <= 0:
            raise ValueError("bandwidth and speed are above 0")

    def least_seconds(self, moved: float, flops: float) -> float:
        """The least time for so many bytes and operations."""
        return max(moved / self.bandwidth, flops / self.speed)


def survey(dtype: mx.Dtype = mx.float32, streamed: int = STREAMED) -> Machine:
    """Measure the default device; about a second.

    The bandwidth is the better of a copy and a matrix times a vector: on the CPU MLX copies with
    one thread, but its BLAS may use several.
    """
    columns = 4096
    matrix = mx.ones((max(streamed // 4 // columns, 1), columns))
    vector = mx.ones((1, columns))
    mx.eval(matrix, vector)
    copied = 2 * matrix.nbytes / _best(lambda: -matrix)
    multiplied = matrix.nbytes / _best(lambda: vector @ matrix.T)
    rows = _SMALLEST
    while True:
        square = mx.random.normal((rows, rows), key=mx.random.key(0)).astype(dtype)
        mx.eval(square)
        seconds = _best(partial(mx.matmul, square, square))
        if seconds > _ENOUGH or rows >= _LARGEST:
            break
        rows *= 2
    mx.clear_cache()
    return Machine(
        name(), str(dtype).rpartition(".")[2], max(copied, multiplied), 2 * rows**3 / seconds
    )


def name() -> str:
    """The default device in words."""
    info = mx.device_info()
    found = info.get("device_name", info.get("architecture", ""))
    return f"{mx.default_device().type.name} {found}".strip()


def _best(compute: Callable[[], mx.array], repeats: int = 8) -> float:
    best = math.inf
    for _ in range(repeats):  # the first one warms up
        started = time.perf_counter()
        mx.eval(compute())
        best = min(best, time.perf_counter() - started)
    return best


# ---- energy


@dataclass(frozen=True)
class Energy:
    """Coefficients of the energy model, for a chip of 45 nm at 0.9 V (Horowitz, "Computing's
    energy problem", ISSCC 2014).

    Newer memory and chips take several times less of both, and leakage and control are left
    out: believe which of two plans takes more, and the ratio, but not the joules.
    """

    byte: float = 160.0
    """Picojoules for a byte from memory: 1.3 to 2.6 nJ for 64 bits of DRAM."""
    flop: float = 0.75
    """Picojoules for an operation: a multiplication of 1.1 and an addition of 0.4 in 16 bits
    (3.7 and 0.9 in 32)."""

    def joules(self, moved: float, flops: float) -> float:
        """Modelled energy of so many bytes and operations."""
        return 1e-12 * (moved * self.byte + flops * self.flop)


class Meter(Protocol):
    """Counts the joules between two moments; other programs' count too."""

    def start(self) -> None: ...

    def stop(self) -> float: ...


def meter() -> Meter | None:
    """The machine's own meter, if there is one that may be read.

    On a Mac the package ``zeus-apple-silicon``, where it is installed; on Linux RAPL, which knows
    processor and memory, so only where MLX computes on the CPU.
    """
    if mx.metal.is_available():
        return ZeusMeter.find()
    return RaplMeter.find(POWERCAP) if mx.default_device() == mx.cpu else None


class RaplMeter:
    """Energy counters of the processor's packages and their memory, in microjoules."""

    def __init__(self, zones: list[Path]) -> None:
        self.zones = zones
        self.before: list[int] = []

    @classmethod
    def find(cls, root: Path) -> "RaplMeter | None":
        """``None`` where there are no counters, or only root may read them."""
        zones = []
        try:
            for zone in sorted(root.glob("intel-rapl:*")):
                kind = (zone / "name").read_text().strip()
                if kind.startswith("package") or kind == "dram":  # others are parts of these
                    _microjoules(zone)
                    zones.append(zone)
        except (OSError, ValueError):
            return None
        return cls(zones) if zones else None

    def start(self) -> None:
        self.before = [_microjoules(zone) for zone in self.zones]

    def stop(self) -> float:
        total = 0
        for zone, before in zip(self.zones, self.before, strict=True):
            now = _microjoules(zone)
            if now < before:  # the counter began anew
                now += _microjoules(zone, "max_energy_range_uj")
            total += now - before
        return total * 1e-6


def _microjoules(zone: Path, file: str = "energy_uj") -> int:
    return int((zone / file).read_text())


class ZeusMeter:
    """Energy of an Apple chip, through ``zeus-apple-silicon``."""

    def __init__(self, monitor: Any) -> None:
        self.monitor = monitor

    @classmethod
    def find(cls) -> "ZeusMeter | None":
        """``None`` where the package is not installed, or does not know the chip."""
        try:
            return cls(importlib.import_module("zeus_apple_silicon").AppleEnergyMonitor())
        except (ImportError, RuntimeError):
            return None

    def start(self) -> None:
        self.monitor.begin_window("afm")

    def stop(self) -> float:
        used = self.monitor.end_window("afm")  # parts that a chip does not report are None
        parts = (used.cpu_total_mj, used.gpu_mj, used.gpu_sram_mj, used.dram_mj, used.ane_mj)
        return sum(part or 0 for part in parts) * 1e-3
