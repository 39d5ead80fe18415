"""Folders of settings, data and logs of its own for every test of the app, and all colours."""

from pathlib import Path

from tests.tui.profiles import bare as bare
from tests.tui.profiles import found as found

import pytest


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "STATE", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.delenv("NO_COLOR", raising=False)
