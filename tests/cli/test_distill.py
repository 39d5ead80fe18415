"""``afm distill`` from its command line."""

import json
import subprocess
import sys
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.cli import main
from afm_mlx.model import PRESETS
from tests.conftest import random_model, tiny_tokenizer

import pytest


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    model = random_model(PRESETS["tiny"])
    checkpoint.save(folder / "teacher", model, tiny_tokenizer(), base="none")
    (folder / "text.txt").write_text("The sea is salty, and so are some lakes. " * 60)
    (folder / "recipe.toml").write_text(
        f'teacher = ["{folder / "teacher"}"]\ndata = ["{folder / "text.txt"}"]\nwindow = 32\n'
        "held_out = 2\n[training]\nsteps = 9\nevaluate_every = 2\n[prune]\ncalibration = 4\n"
    )
    return folder


def test_recipe_file_settings_and_options(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Later ways to give a setting win: file, key=value, option."""
    code = main(
        ["distill", "--config", str(place / "recipe.toml"), "steps=5", "ffn=0.25", "--steps", "2"]
        + ["--json", "--out", str(place / "out")]
    )
    lines = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    names = [x["event"] for x in lines]
    assert code == 0 and names.count("step") == 2
    assert lines[names.index("plan")]["after"]["intermediate_size"] == 128
    assert lines[names.index("plan")]["verdict"] == "fits"
    assert names[-1] == "finished" and Path(lines[-1]["report"]).exists()


def test_as_people_see_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["distill", f"--config={place / 'recipe.toml'}", "--out", str(place / "seen")]
    assert main([*config, "--steps", "2"]) == 0
    shown = capsys.readouterr().out
    for words in ("parameters", "memory:", "fits", "after step 2", "student, distilled", "report:"):
        assert words in shown
    assert main([*config, "--steps", "3"]) == 0
    assert "goes on after step 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["steps=abc"], "must be int"),
        (["stepz=1"], "did you mean steps"),
        (["--config"], "needs the name"),
        (["--config", "none.toml"], "check its name"),
        (["--teacher", "no such model"], "unknown model"),
        (["data=[\"none.txt\"]"], "none.txt"),
    ],
)  # fmt: skip
def test_bad_input(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    place: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    base = [] if "--teacher" in arguments else [f"--teacher={place / 'teacher'}"]
    given = [*base, *arguments] if arguments[0].startswith("-") else [*arguments, *base]
    assert main(["distill", *given]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_a_value_that_looks_like_a_setting(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    (place / "lang=en.txt").write_text((place / "text.txt").read_text())
    code = main(
        ["distill", "--config", "recipe.toml", "--plan", "--out", "looks", "--data", "lang=en.txt"]
    )
    assert code == 0 and "memory:" in capsys.readouterr().out


def test_module_and_command_teach(place: Path) -> None:
    for command in (["afm_mlx.distill"], ["afm_mlx", "distill"]):
        done = subprocess.run(
            [sys.executable, "-m", *command, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0 and "--target-params" in done.stdout
