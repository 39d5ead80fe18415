"""``afm quantize`` and ``afm doctor --kernels``, run as a person runs them."""

import json
from collections.abc import Sequence
from pathlib import Path

from afm_mlx import checkpoint, cli
from afm_mlx.cli import doctor
from afm_mlx.quant import kernels
from afm_mlx.quant.kernels import Check
from tests.conftest import tiny_checkpoint

import pytest

TEXT = "the boat leaves at nine and the band plays until the lamps go out . " * 60


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Arguments for a tiny model, little text, and folders of its own."""
    tiny = tiny_checkpoint()
    checkpoint.save(tmp_path / "model", tiny.model, tiny.tokenizer, base="tests")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    values = {
        "model": tmp_path / "model",
        "out": tmp_path / "small",
        "cache": tmp_path / "cache",
        "data": tmp_path / "text.txt",
        "tokens": 256,
        "window": 64,
    }
    return [f for name, value in values.items() for f in (f"--{name}", str(value))]


def afm(arguments: Sequence[str]) -> int:
    return cli.main(["quantize", *arguments])


def test_plan_table_and_folder(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert afm([*given, "--target", "3.3"]) == 0
    shown = capsys.readouterr().out
    assert "bits in linear layers" in shown and "gate_proj" in shown and "afm chat" in shown
    assert (tmp_path / "small" / "plan.toml").exists()


def test_json_and_recovery(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = ["--tables", "2", "--adapter", "2", "--rank", "4"]
    assert afm([*given, "--apple", "--target", "3.3", "--json", *stages]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = [e["event"] for e in events]
    assert names[0] == "loaded" and {"plan", "written", "step", "evaluation"} <= set(names)
    plan = next(e for e in events if e["event"] == "plan")
    assert set(plan["bits"].values()) <= {2, 4} and plan["account"]["linear"] <= 3.3
    done = [e for e in events if e["event"] == "recovered"]
    assert [e["stage"] for e in done] == ["tables", "adapter"]
    assert (tmp_path / "small" / "recovery" / "adapters.safetensors").exists()
    assert (tmp_path / "small" / "plan.toml").exists()


def test_go_on_trains_what_is_there(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert afm([*given, "--target", "3.3"]) == 0
    before = (tmp_path / "small" / "plan.toml").read_bytes()
    capsys.readouterr()
    assert afm([*given, "--go-on", "--tables", "2", "--json"]) == 0
    names = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert "recovered" in names and "written" not in names
    assert (tmp_path / "small" / "plan.toml").read_bytes() == before


def test_plan_only_writes_no_model(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert afm([*given, "--plan-only"]) == 0
    assert "bits in linear layers" in capsys.readouterr().out
    assert not (tmp_path / "small").exists()


def test_without_calibration_there_is_a_loud_warning(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert afm([*given, "--uncalibrated"]) == 0
    assert "WARNING" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "1.2"], "cannot be reached"),
        (["--target", "0"], "target is a number of bits"),
        (["--choices", "5"], "not 5"),
        (["--form", "affine", "--group-size", "48"], "32, 64 or 128"),
        (["--group-size", "6"], "multiple of 4"),
        (["--plan", "nowhere.toml"], "is no plan"),
        (["--model", "nowhere"], "nowhere"),
        (["--tokens", "8"], "hold no window"),
    ],
)
def test_bad_input_is_one_line(
    given: list[str],
    more: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert afm([*given, *more]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "small").exists()


def test_doctor_reports_a_wrong_kernel(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Check("matmul", 3, 1, "float16", 1e-4, True, "")
    bad = Check("dequantize", 2, 0, "float16", 0.5, False, "wrong by 0.5")
    monkeypatch.setattr(kernels, "self_test", lambda: [good, bad])
    assert cli.main(["doctor", "--kernels"]) == 1
    shown = capsys.readouterr().out
    assert "matmul, 3 bits" in shown and "wrong by 0.5: please report it" in shown
    monkeypatch.setattr(kernels, "self_test", lambda: [good])
    assert all(check.remedy is None for check in doctor.kernel_checks())
    assert cli.main(["doctor", "--kernels"]) == 0
