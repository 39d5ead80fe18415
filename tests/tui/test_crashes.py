"""What ended the app once: answers that come twice, small windows, files that cannot be read."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from afm_mlx.quant.profile import Profile
from afm_mlx.tui.app import AfmApp, screen_class
from afm_mlx.tui.dialog import Dialog, Palette
from afm_mlx.tui.models import ModelPicker
from afm_mlx.tui.quantize.dialogs import Ask
from afm_mlx.tui.quantize.screen import QuantizeScreen
from afm_mlx.tui.quantize.table import Operations
from afm_mlx.tui.writing.files import FileDialog
from tests.tui.support import fake_services, in_app, screen_text, until
from tests.tui.test_palette import first_found

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input, OptionList


@pytest.fixture(autouse=True)
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_mlx.hub.installed", list)


def in_real_app(
    test: Callable[[Pilot[Any], AfmApp], Awaitable[None]],
    mode: str = "writing",
    size: tuple[int, int] = (100, 30),
    folder: Path | None = None,
) -> None:
    """Run ``test`` in the app with its own screens, once the model is there."""
    services = fake_services(folder=folder)
    app = AfmApp(services, screen_class, mode)

    async def run(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: app.current_mode == mode and services.status.state == "ready")
        await until(pilot, lambda: app.screen.is_mounted)
        await pilot.pause()
        await test(pilot, app)

    try:
        in_app(app, run, size)
    finally:
        services.engine.close()


def at_once(app: AfmApp, *keys: str) -> None:
    """Press keys so quickly that the app has not answered one when the next comes."""
    for key in keys:
        app.post_message(events.Key(key, key if len(key) == 1 else None))


def double_click(app: AfmApp, selector: str) -> None:
    """Click twice so quickly that the second click finds what the first one found."""
    widget = app.screen.query(selector).first()
    x, y = widget.region.x + 2, widget.region.y
    for _ in range(2):
        for kind in (events.MouseDown, events.MouseUp):
            app.post_message(kind(widget, x, y, 0, 0, 1, False, False, False, x, y))


# ---- answers that come twice


@pytest.mark.parametrize(
    ("mode", "keys"),
    [
        ("quantize", ("o", "x")),
        ("adapters", ("ctrl+o", "x")),
        ("notifications", ("s",)),
    ],
)
def test_two_quick_answers_close_one_dialog(mode: str, keys: tuple[str, ...]) -> None:
    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        await pilot.press(*keys)
        await until(pilot, lambda: isinstance(app.screen, Dialog) and app.screen.is_mounted)
        at_once(app, "enter", "enter")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        await pilot.pause(0.1)
        assert app.screen is app._made[mode]

    in_real_app(test, mode)


def test_a_double_click_chooses_once() -> None:
    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        await pilot.press("s")
        await until(pilot, lambda: isinstance(app.screen, Dialog) and app.screen.is_mounted)
        await until(pilot, lambda: app.screen.query_one(OptionList).region.height > 0)
        double_click(app, "OptionList")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        await pilot.pause(0.1)
        assert app.screen is app._made["notifications"]

    in_real_app(test, "notifications")


def test_the_palette_does_once_what_is_chosen() -> None:
    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, Palette) and app.screen.query(Input))
        app.screen.query_one(Input).value = "Keys"
        await until(pilot, lambda: first_found(app.screen.query_one(OptionList)) == "Keys")
        at_once(app, "enter", "enter", "enter")
        await until(pilot, lambda: not isinstance(app.screen, Palette))
        await pilot.pause(0.1)
        assert [type(screen).__name__ for screen in app.screen_stack[1:]] == ["Keys"]

    in_real_app(test)


def test_a_dialog_that_closes_takes_along_what_lies_over_it() -> None:
    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        for dialog in (ModelPicker(app.services), FileDialog("Open", "", _use)):
            app.push_screen(dialog)
            await until(pilot, lambda: dialog.is_mounted)  # noqa: B023
            await pilot.press("ctrl+p")
            await until(pilot, lambda: isinstance(app.screen, Palette) and app.screen.query(Input))
            dialog.dismiss()
            await pilot.press("escape", "escape")
            await pilot.pause(0.1)
            assert len(app.screen_stack) == 1 and not app.problems

    in_real_app(test)


async def _use(path: Path) -> bool:
    return True


# ---- small windows


@pytest.mark.parametrize("columns", range(36, 49, 2))
def test_writing_is_drawn_in_few_columns(columns: int) -> None:
    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        for width in (columns, columns + 1):
            await pilot.resize_terminal(width, 20)
            await pilot.pause(0.05)
            assert "Proofread" in screen_text(app)

    in_real_app(test, size=(60, 20))


def test_writing_begins_in_few_columns() -> None:
    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        assert "Proofread" in screen_text(app)

    in_real_app(test, size=(41, 20))


# ---- files that cannot be read


def written_model(folder: Path) -> None:
    model = fake_services(folder=folder).models / "mine"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").symlink_to(folder / "nowhere")


def test_models_with_a_link_that_leads_nowhere_are_listed(tmp_path: Path) -> None:
    written_model(tmp_path)

    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        await pilot.press("f6")
        await until(pilot, lambda: isinstance(app.screen, ModelPicker) and app.screen.models)
        await pilot.press("escape", "ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, Palette) and app.screen.query(Input))
        app.screen.query_one(Input).value = "mine"
        shown = "Model: " + str(app.services.models / "mine")
        await until(pilot, lambda: first_found(app.screen.query_one(OptionList)) == shown)

    in_real_app(test, folder=tmp_path)


def test_a_folder_of_models_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("afm_mlx.hub.installed", refused)

    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        await pilot.press("f6")
        await until(pilot, lambda: "Permission denied" in screen_text(app))
        await pilot.press("escape", "ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, Palette) and app.screen.query(Input))
        app.screen.query_one(Input).value = "Quit"
        await until(pilot, lambda: first_found(app.screen.query_one(OptionList)) == "Quit")

    in_real_app(test)


# ---- bits


def test_there_is_no_filter_without_a_profile() -> None:
    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        await pilot.press("slash", "s")
        assert not app.screen.query_one("#filter").display
        assert not isinstance(app.focused, Input)

    in_real_app(test, "quantize")


def test_a_filter_that_no_row_matches_is_left(found: Profile) -> None:
    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        screen = app.screen
        assert isinstance(screen, QuantizeScreen)
        table, filter = screen.query_one(Operations), screen.query_one("#filter", Input)
        screen.wanted = "zzz"  # of a profile that was shown before
        await screen.take(found)
        assert not table.shown
        screen.action_sort()
        screen.wanted = ""
        await pilot.press("slash", *"zzz")
        await until(pilot, lambda: screen.wanted == "zzz" and not table.shown)
        await pilot.press("escape")
        await until(pilot, lambda: len(table.shown) == len(found.operations))
        assert not filter.display and app.focused is table

    in_real_app(test, "quantize")


@pytest.mark.parametrize("typed", ["nan", "inf", "-inf"])
def test_a_budget_is_a_number(found: Profile, typed: str) -> None:
    async def test(pilot: Pilot[Any], app: AfmApp) -> None:
        screen = app.screen
        assert isinstance(screen, QuantizeScreen)
        await screen.take(found)
        before = screen.desk
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, Ask) and app.screen.query(Input))
        app.screen.query_one(Input).value = typed
        await pilot.press("enter")
        await until(pilot, lambda: app.problems)
        assert app.problems[0].line == f"{typed!r} is no number of bits: give one such as 3.5"
        assert screen.desk is before

    in_real_app(test, "quantize")
