"""``afm profile`` from its command line, on tiny folders; the machine's ceilings are given."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.cli import main
from afm_mlx.cli import profile as command
from afm_mlx.compress import Compression
from afm_mlx.model import PRESETS
from afm_mlx.quant import measure
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.quant.machine import Machine
from afm_mlx.quant.profile import read
from tests.conftest import random_model, tiny_tokenizer

import pytest

QUICK = ["--tokens", "16", "--repeats", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder and its saved profile."""
    folder = tmp_path_factory.mktemp("profile")
    args = replace(PRESETS["tiny"], num_hidden_layers=2, intermediate_size=192)
    checkpoint.save(folder / "model", random_model(args), tiny_tokenizer(), base="none")
    return folder


@pytest.fixture(autouse=True)
def abacus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "survey", lambda dtype: Machine("abacus", "float32", 1e10, 1e11))


def profile(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["profile", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["profile", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("afm: ") and error.count("\n") == 1
    return error


def test_measured_saved_and_opened(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, page = str(place / "p.json"), place / "p.html"
    shown = profile(
        capsys, "--model", str(place / "model"), *QUICK, "--save", saved, "--html", str(page)
    )
    assert "0.mlp.gate_proj" in shown or "more: --all" in shown
    assert "roofline 10.0 GB/s, 100 GFLOPS" in shown and "prefill of 16 tokens" in shown
    found = read(Path(saved))
    assert all(o.name in page.read_text() for o in found.operations)
    everything = profile(capsys, "--open-saved", saved, "--all")
    for o in found.operations:
        assert o.name.removeprefix("model.").removeprefix("layers.") in everything
    rows = everything.splitlines()
    times = [float(r.split()[-5]) for r in rows if "mlp" in r or "self_attn" in r]
    assert len(times) > 20 and times == sorted(times, reverse=True)
    report = json.loads(profile(capsys, "--open-saved", saved, "--json"))
    assert len(report["operations"]) == len(found.operations)
    assert report["totals"]["size"] == found.totals.size and report["machine"]["device"] == "abacus"


def test_what_if(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "text.txt").write_text("The sea is salty, and so are some lakes. " * 60)
    calibrated = CalibrationOptions(data=(str(place / "text.txt"),), tokens=256, window=64)
    monkeypatch.setattr(command, "Compression", partial(Compression, calibration=calibrated))
    arguments = ["--model", str(place / "model"), "--cache", str(place / "cache"), *QUICK]
    report = json.loads(profile(capsys, *arguments, "--what-if", "--json"))
    assert report["totals"]["cost"] == 0
    for row in report["operations"]:
        offered = [o["bits"] for o in row["options"]]
        assert offered == ([2, 3, 4] if row["kind"] == "linear" else [])
        if offered:
            assert row["sensitivity"] == row["options"][0]["cost"] > row["options"][2]["cost"] > 0


def test_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(place / "model")]
    assert "fewer --tokens" in refused(capsys, *model, "--tokens", "1024")
    assert "at least 1" in refused(capsys, *model, "--repeats", "0")
    assert "is a folder" in refused(capsys, *model, "--html", str(place))
    assert "is no folder" in refused(capsys, *model, "--save", str(place / "none" / "p.json"))
    assert "is no profile" in refused(capsys, "--open-saved", str(place / "model"))
    assert "is no profile" in refused(capsys, "--open-saved", str(place / "model" / "config.json"))
    refused(capsys, "--model", str(place / "none"))
