"""What the machine can do, and its energy meters, with stand-ins for those of other machines."""

import sys
from pathlib import Path
from types import SimpleNamespace

from afm_mlx.quant import machine
from afm_mlx.quant.machine import RaplMeter, ZeusMeter

import mlx.core as mx
import pytest


def test_machine_is_measured() -> None:
    found = machine.survey(streamed=2**20)
    assert found.bandwidth > 0 and found.speed > 0
    assert found.device.startswith(mx.default_device().type.name) and found.dtype == "float32"


def zone(root: Path, folder: str, name: str, microjoules: int) -> Path:
    made = root / folder
    made.mkdir(parents=True)
    (made / "name").write_text(f"{name}\n")
    (made / "energy_uj").write_text(f"{microjoules}\n")
    (made / "max_energy_range_uj").write_text("1000000\n")
    return made / "energy_uj"


def test_rapl(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    inner = zone(tmp_path, "intel-rapl:0:0", "core", 5)  # part of package 0: not counted twice
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 7)
    meter = RaplMeter.find(tmp_path)
    assert meter is not None
    meter.start()
    first.write_text("100000")  # beyond its range it begins anew
    second.write_text("300000")
    inner.write_text("5000000")
    memory.write_text("500007")
    assert meter.stop() == pytest.approx(0.2 + 0.3 + 0.5)
    first.unlink()
    assert RaplMeter.find(tmp_path) is None  # as where only root may read
    assert RaplMeter.find(tmp_path / "none") is None


def test_zeus(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the package, which only Macs have."""
    used = SimpleNamespace(cpu_total_mj=500, gpu_mj=1500, gpu_sram_mj=None, dram_mj=2, ane_mj=0)
    monitor = SimpleNamespace(begin_window=lambda label: None, end_window=lambda label: used)
    package = SimpleNamespace(AppleEnergyMonitor=lambda: monitor)
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", package)
    meter = ZeusMeter.find()
    assert meter is not None
    meter.start()
    assert meter.stop() == pytest.approx(2.002)
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", None)
    assert ZeusMeter.find() is None
