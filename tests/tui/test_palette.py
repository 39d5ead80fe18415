"""The command palette: what it lists, and what its commands do."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from afm_mlx.adapters import formats
from afm_mlx.adapters.adapter import About
from afm_mlx.hub import Installed as Model
from afm_mlx.tui.palette import adapter_commands, model_commands, theme_commands
from afm_mlx.tui.screen import Command
from afm_mlx.tui.settings import AUTO
from afm_mlx.tui.shelf import Installed
from tests.adapters.made import random_adapter
from tests.tui.support import app_with, fake_services, in_app, tiny, until
from tests.tui.test_app import Screen

import pytest
from textual.command import CommandPalette
from textual.pilot import Pilot
from textual.widgets import Input, OptionList


def test_commands_call_with_what_they_name() -> None:
    calls: list[object] = []
    adapters = [Installed("mine", Path("/a/mine"), About("summary"))]
    models = [Model("m", "hub", 10**6, "/m")]
    found = [
        *adapter_commands(adapters, calls.append),
        *model_commands(models, calls.append, lambda: calls.append("picker")),
        *theme_commands(["nord", "dracula"], calls.append),
    ]
    for _, _, call in found:
        call()
    assert calls == [AUTO, None, "/a/mine", "m", "picker", "dracula", "nord"]
    assert [about for title, about, _ in found if "mine" in title] == ["For summary"]


async def choose(pilot: Pilot[Any], title: str) -> None:
    """Open the palette, type a title, and take it when it is the first that is found."""
    app = pilot.app
    await pilot.press("ctrl+p")
    await until(pilot, lambda: isinstance(app.screen, CommandPalette) and app.screen.query(Input))
    app.screen.query_one(Input).value = title
    await until(pilot, lambda: first_found(app.screen.query_one(OptionList)) == title)
    await pilot.press("enter")
    await until(pilot, lambda: not isinstance(app.screen, CommandPalette))


def first_found(found: OptionList) -> str:
    return str(found.get_option_at_index(0).prompt).partition("\n")[0] if found.options else ""


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_mlx.hub.installed", list)


def test_screens_themes_and_commands_of_screens() -> None:
    services = fake_services()
    app = app_with(services, quantize=Screen)

    async def test(pilot: Pilot[Any]) -> None:
        screen = app.screen
        assert isinstance(screen, Screen)
        await until(pilot, lambda: services.status.state == "ready")
        await choose(pilot, "Count")
        await until(pilot, lambda: screen.called == 1)
        await choose(pilot, "Go to: Distill")
        await until(pilot, lambda: app.current_mode == "distill")
        await choose(pilot, "Quantize: Count")  # of a screen that is not in front
        await until(pilot, lambda: screen.called == 2 and app.current_mode == "quantize")
        await choose(pilot, "Theme: gruvbox")
        await until(pilot, lambda: app.theme == "gruvbox")

    in_app(app, test, (80, 24))
    services.engine.close()


class Tools(Screen):
    """In the place of the writing tools."""

    def commands(self) -> Iterable[Command]:
        yield "Friendly", "Warm", self.count


def test_writing_tools_are_there_before_their_screen() -> None:
    services = fake_services()
    app = app_with(services, quantize=Screen, writing=Tools)

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: services.status.state == "ready")
        await choose(pilot, "Writing: Friendly")
        await until(pilot, lambda: app.current_mode == "writing")
        await until(pilot, lambda: isinstance(app.screen, Tools) and app.screen.called == 1)

    in_app(app, test, (80, 24))
    services.engine.close()


def test_adapters_are_swapped_if_they_can_be_used(tmp_path: Path) -> None:
    base = tiny()
    good = random_adapter(base.model, "good")
    formats.write(good, tmp_path / "adapters" / "good")
    formats.write(good, tmp_path / "adapters" / "[b] odd")  # read as markup, it had another name
    formats.write(good, tmp_path / "adapters" / "cut")
    weights = tmp_path / "adapters" / "cut" / formats.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:100])
    services = fake_services(folder=tmp_path)
    app = app_with(services)

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: services.status.state == "ready")
        await choose(pilot, "Adapter: [b] odd")
        await until(pilot, lambda: services.settings.adapter == str(services.home / "[b] odd"))
        await choose(pilot, "Adapter: good")
        await until(pilot, lambda: services.settings.adapter == str(services.home / "good"))
        await choose(pilot, "Adapter: cut")
        await until(pilot, lambda: app.problems and "damaged" in app.problems[0].line)
        assert services.settings.adapter == str(tmp_path / "adapters" / "good")

    in_app(app, test, (80, 24))
    services.engine.close()
