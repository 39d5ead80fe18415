"""The screen of notifications: where they come from, and what keeps them from coming."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from afm_mlx.errors import InputError
from afm_mlx.tui.inbox.dbus import BusSource
from afm_mlx.tui.inbox.demo import DemoSource
from afm_mlx.tui.inbox.file import FileSource
from afm_mlx.tui.inbox.macos import FULL_DISK_ACCESS, MacSource
from afm_mlx.tui.notifications.sources import (
    OFFERS,
    SourcePicker,
    changes,
    offered,
    source_of,
)
from afm_mlx.tui.screen import Question
from afm_mlx.tui.settings import Settings
from tests.tui.inbox_screen import (
    append,
    engine,
    inbox,
    problems,
    reading,
    screen,
    script,
    settled,
    show,
    text,
)
from tests.tui.pictures import THEMES
from tests.tui.support import (
    SIZES,
    fake_services,
    snapshot,
    until,
)

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static


def test_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(OFFERS["demo"], source=DemoSource(seconds=0))
    monkeypatch.setitem(cast(dict[str, Any], OFFERS), "demo", quick)

    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot, 10)
        assert all(found.summaries.of(stack) for stack in found.box.stacks)
        assert "demo: 10 stacks" in text(pilot)

    show(fake_services(script({"": "All is well"}, urgent="[Home]")), test)


def test_another_source(tmp_path: Path) -> None:
    other = inbox(tmp_path, {"app": "Other", "body": "from another file"}, name="other.jsonl")

    async def test(pilot: Pilot[None]) -> None:
        found = screen(pilot)
        await until(pilot, lambda: engine(pilot).prompts)
        await pilot.press("s")
        await until(pilot, lambda: isinstance(pilot.app.screen, SourcePicker))
        await pilot.press("tab")
        pilot.app.screen.query_one(Input).value = str(other)
        await pilot.press("enter")
        await until(pilot, lambda: [stack.app for stack in found.box.stacks] == ["Other"])
        engine(pilot).go_on.set()
        await settled(pilot, 1)
        assert "other.jsonl: 1 stack" in text(pilot) and "Mail" not in text(pilot)
        assert found.services.settings.inbox == str(other)
        # what was being summarised was broken off
        assert len({p[p.rfind("\n[") :] for p in engine(pilot).prompts}) == 2

    show(reading(inbox(tmp_path), held=True), test)


def test_a_source_of_this_machine_is_asked_for(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot)
        for answer in ("n", "y"):
            found.choose("macos")
            await until(pilot, lambda: isinstance(pilot.app.screen, Question))
            assert "Full Disk Access" in cast(Question, pilot.app.screen).question
            await pilot.press(answer)
            await until(pilot, lambda: not isinstance(pilot.app.screen, Question))
            await pilot.pause()
            if answer == "n":
                assert isinstance(found.source, FileSource)
        await until(pilot, lambda: isinstance(found.source, MacSource))
        await until(pilot, lambda: problems(pilot))
        assert problems(pilot) == ["only macOS has a Notification Center: choose another source"]
        await until(pilot, lambda: "No notifications yet" in text(pilot))

    show(reading(inbox(tmp_path)), test)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_how_to_grant_access_stays_on_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], theme: str
) -> None:
    def refused(_: object) -> Path:
        raise InputError(FULL_DISK_ACCESS)

    source = MacSource((tmp_path / "db",))
    mine = replace(OFFERS["macos"], source=source)
    monkeypatch.setitem(cast(dict[str, Any], OFFERS), "macos", mine)
    monkeypatch.setattr("afm_mlx.tui.inbox.macos.find", refused)
    settings = Settings(recent={"inbox": "macos"}, theme=theme)

    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: problems(pilot))
        pilot.app.clear_notifications()
        await snapshot(pilot, "notifications-refused")
        shown = " ".join(" ".join(row.split("│")[0] for row in text(pilot).splitlines()).split())
        assert "System Settings, Privacy & Security, Full Disk Access, switch on" in shown

    show(fake_services(settings=settings), test, size)


def test_without_a_session_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)

    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: problems(pilot))
        pilot.app.clear_notifications()
        await until(pilot, lambda: "✗ there is no session bus here" in text(pilot))
        assert "✗ nothing more arrives" in text(pilot)
        screen(pilot).follow(DemoSource())
        await until(pilot, lambda: screen(pilot).box.stacks)
        assert "✗" not in text(pilot)

    show(fake_services(settings=Settings(recent={"inbox": "dbus"})), test)


@pytest.mark.parametrize(("platform", "own"), [("darwin", "macos"), ("linux", "dbus")])
def test_only_what_this_platform_has_is_offered(
    monkeypatch: pytest.MonkeyPatch, platform: str, own: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    assert list(offered()) == ["demo", own]


def test_the_source_that_settings_name() -> None:
    assert source_of(Settings()) == DemoSource()
    assert source_of(Settings(inbox="/x/y.json")) == FileSource(Path("/x/y.json"))
    chosen = Settings(inbox="/x", recent={"other": "kept"})
    chosen = replace(chosen, **changes(chosen, "dbus"))
    assert source_of(chosen) == BusSource() and chosen.recent["other"] == "kept"
    chosen = replace(chosen, **changes(chosen, "/x/z.json"))
    assert source_of(chosen) == FileSource(Path("/x/z.json")) and "inbox" not in chosen.recent
    assert source_of(Settings(recent={"inbox": "of a later version"})) == DemoSource()


def test_a_file_with_broken_lines(tmp_path: Path) -> None:
    path = inbox(tmp_path)
    append(path, {"app": "Mail"})
    with path.open("a") as file:
        file.write("{broken\n")

    async def test(pilot: Pilot[None]) -> None:
        # The message goes away after seconds, which a busy machine may need to summarise all.
        await until(pilot, lambda: "left out what cannot be read" in text(pilot))
        found = await settled(pilot)
        reason = "2 skipped (line 6: the JSON lacks the text 'body': add it)"
        legend = found.query_one("#legend", Static)
        await until(pilot, lambda: reason in str(legend.content))

    show(reading(path), test)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: problems(pilot))
        assert "give a JSON or JSONL file" in problems(pilot)[0]
        await until(pilot, lambda: "No notifications yet: s chooses another source" in text(pilot))
        for key in ("down", "up", "end", "pagedown", "space", "o", "c", "x", "ctrl+r", "enter"):
            await pilot.press(key)

    show(reading(tmp_path / "none.jsonl"), test)
