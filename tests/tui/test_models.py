"""The choice of a model: the picker, what it lists, and how far a download is."""

import asyncio
import time
from pathlib import Path
from typing import Any

from afm_mlx.engine import Engine
from afm_mlx.errors import ModelError
from afm_mlx.tui.models import ModelPicker, downloaded, fetch, listed
from afm_mlx.tui.services import Services
from tests.tui.support import (
    app_with,
    fake_services,
    in_app,
    screen_text,
    tiny,
    until,
)

import pytest
from textual.pilot import Pilot
from textual.widgets import Input


def test_without_a_model_the_picker_opens_with_the_remedy() -> None:
    services = Services(Engine.open("no-such-model"), open_engine=lambda source: Engine(tiny))
    app = app_with(services)

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: isinstance(app.screen, ModelPicker))
        await until(pilot, lambda: "unknown model" in screen_text(app))
        assert services.status.state == "failed"
        await pilot.press("escape")
        await pilot.press("f3")
        await until(pilot, lambda: app.current_mode == "adapters")
        assert "✗" in screen_text(app)

    in_app(app, test, (80, 24))
    services.engine.close()


def test_choosing_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_mlx.hub.installed", list)
    services = fake_services(folder=tmp_path)
    app = app_with(services)
    there = tmp_path / "there.gguf"
    there.write_bytes(b"")

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: services.status.state == "ready")
        first = services.engine
        await pilot.press("f6")
        await until(pilot, lambda: isinstance(app.focused, Input))
        field = app.screen.query_one(Input)
        field.value = "not a model"
        await pilot.press("enter")
        await until(pilot, lambda: "unknown model" in screen_text(app))
        assert services.engine is first
        field.value = str(there)
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(app.screen, ModelPicker))
        assert services.engine is not first
        assert services.settings.model == str(there)

    in_app(app, test, (80, 24))
    services.engine.close()


def test_models_that_were_written_here_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afm_mlx.hub.installed", list)
    assert listed(tmp_path) == []
    for name in ("small", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "small" / "config.json").write_text("{}", "utf-8")
    assert [(m.name, m.size) for m in listed(tmp_path)] == [(str(tmp_path / "small"), 2)]


def test_downloads_tell_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("afm_mlx.tui.models.LOOK", 0.01)
    blobs = cache / "models--a--b" / "blobs"
    assert downloaded("a/b") == 0
    said: list[str] = []

    def resolve(source: str | None) -> Path:
        blobs.mkdir(parents=True)
        (tmp_path / "x").write_bytes(b"x" * 3_000_000)
        (tmp_path / "x").rename(blobs / "x.incomplete")
        while not said:
            time.sleep(0.01)
        raise ModelError("no space: free some")

    monkeypatch.setattr("afm_mlx.hub.resolve", resolve)
    with pytest.raises(ModelError, match="no space"):
        asyncio.run(fetch("a/b", said.append))
    assert said[0].startswith("downloading: 3 MB so far")
