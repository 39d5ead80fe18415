"""``afm adapters build``, and commands that use what it makes, run as a person runs them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint, cli
from afm_mlx.adapters import formats, library
from afm_mlx.adapters.adapter import About
from afm_mlx.packages import build as making
from afm_mlx.packages import use
from tests.adapters import pupil
from tests.adapters.made import random_adapter
from tests.conftest import random_model, tiny_tokenizer
from tests.test_packages import WIDE, package

import pytest

ROW = {
    "id": "1",
    "app": "Mail",
    "urgent": True,
    "notifications": [{"title": "Ana", "body": "Call me"}],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model and two packages; data and caches go into the same folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kept"))
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        pupil.write(package(tmp_path, name, "priority").evaluation, [ROW])
    shipped = tmp_path / "packages"
    for module in (making, use):
        known = module.packages
        monkeypatch.setattr(module, "packages", lambda _=None, known=known: known(shipped))
    checkpoint.save(tmp_path / "model", random_model(WIDE), tiny_tokenizer(), base="tests")
    return tmp_path


def build(*arguments: str) -> int:
    return cli.main(["adapters", "build", "--base", "model", *arguments])


def lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_build_shows_what_it_does(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build() == 0
    shown = capsys.readouterr().out
    signature = checkpoint.load("model").signature[:8]
    for text in (
        "one, 1 of 2",
        "two, 2 of 2",
        "18 samples",
        "after step 6: held-out loss",
        "priority accuracy: ",
        "% before",
        f"one-{signature}",
    ):
        assert text in shown
    assert sorted(p.name for p in library.home().iterdir()) == [
        f"one-{signature}",
        f"two-{signature}",
    ]
    assert not (place / "adapters").exists()
    assert build() == 0
    assert "one is up to date" in capsys.readouterr().out

    package(place, "one", "priority", rate=1e-9)
    pupil.write(place / "packages" / "one" / "eval.jsonl", [ROW])
    assert build("--feature", "one") == 0
    shown = capsys.readouterr().out
    assert "no better than the one there, which stays" in shown and "two" not in shown
    assert build("--feature", "one", "--json") == 0
    (line,) = lines(capsys)
    assert line["event"] == "up-to-date" and not line["better"]


def test_json_says_all(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build("--feature", "two", "--json") == 0
    found = lines(capsys)
    names = [e["event"] for e in found]
    assert names[0] == "begun" and names[1] == "plan" and names[-1] == "built"
    assert names.count("step") == 6 and "answered" in names and "evaluation" in names
    assert {e["package"] for e in found} == {"two"}
    assert found[-1]["replaced"] and found[-1]["figures"].keys() >= {"priority accuracy"}
    assert Path(found[-1]["folder"]).parent == library.home()


def test_ctrl_c_says_how_to_go_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: Any, **named: Any) -> Iterator[Any]:
        yield making.Begun("one", 1, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(making, "build", interrupted)
    assert build() == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_an_unknown_package_is_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build("--feature", "poetry") == 2
    said = capsys.readouterr().err
    assert "there is no package 'poetry'" in said and said.count("\n") == 1


def test_commands_use_the_adapter_unless_told_otherwise(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "note.txt").write_text("i has two apple.", "utf-8")

    def tokens(*more: str) -> int:
        assert cli.main(["proofread", "note.txt", "--model", "model", "--json", *more]) == 0
        (line,) = lines(capsys)
        return int(line["metrics"]["prompt_tokens"])

    alone = tokens()
    about = About(feature="proofread", base_signature="another model")
    model = random_model(WIDE)
    formats.write(random_adapter(model, about=about), library.home() / "wrong")
    assert tokens() == alone
    about = About(feature="proofread", base_signature=checkpoint.load("model").signature)
    formats.write(random_adapter(model, about=about), library.home() / "mine")
    assert tokens() * 2 < alone  # it needs no examples
    assert tokens("--no-adapter") == alone
