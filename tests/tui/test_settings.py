"""Settings: written and read, unknown keys, damaged files, folders of the platforms."""

import json
import sys
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.tui import settings
from afm_mlx.tui.settings import AUTO, Settings

import pytest

CHOSEN = Settings(
    theme="nord",
    model="quantized",
    adapter=None,
    adapters={"summary": AUTO, "proofread": "/own/one"},
    switched_off=("Mail",),
    inbox="/own/inbox.jsonl",
    recent={"profile": "profile.json"},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "settings.json"
    settings.write(CHOSEN, file)
    assert settings.read(file) == (CHOSEN, "")


def test_nothing_there_is_no_problem(tmp_path: Path) -> None:
    assert settings.read(tmp_path / "settings.json") == (Settings(), "")


def test_keys_of_other_versions_are_kept(tmp_path: Path) -> None:
    """An older version that saved would have thrown a newer one's settings away."""
    file = tmp_path / "settings.json"
    file.write_text('{"theme": "nord", "later": {"a": [1]}}', "utf-8")
    found, _ = settings.read(file)
    settings.write(found, file)
    assert json.loads(file.read_text("utf-8"))["later"] == {"a": [1]}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"theme": 3}',
        '{"adapter": 1}',
        '{"adapters": []}',
        '{"adapters": {"summary": 2}}',
        '{"switched_off": "Mail"}',
        '{"switched_off": [1]}',
        '{"recent": {"profile": null}}',
        "[" * 100_000,
        "\udcff",
    ],
)
def test_damaged_files_are_set_aside(text: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    found, notice = settings.read(file)
    assert found == Settings()
    assert "settings.damaged.json" in notice
    assert (tmp_path / "settings.damaged.json").is_file() and not file.exists()


def test_choices_of_a_feature_go_before_those_of_all() -> None:
    assert CHOSEN.choice("summary") == AUTO
    assert CHOSEN.choice("rewrite") is None
    assert Settings().choice("rewrite") == AUTO


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(InputError, match="could not be written"):
        settings.write(Settings(), tmp_path / "file" / "settings.json")


@pytest.mark.parametrize(
    ("platform", "given", "expected"),
    [
        ("linux", None, ".config/afm-mlx/settings.json"),
        ("linux", "x", "x/afm-mlx/settings.json"),
        ("darwin", None, "Library/Application Support/afm-mlx/settings.json"),
    ],
)
def test_folders_of_the_platforms(
    platform: str, given: Any, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME")
    if given:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / given))
    assert settings.path() == tmp_path / expected
