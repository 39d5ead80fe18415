"""The screen of notifications with scripted answers: its rows, keys, sizes and looks."""

import asyncio
import unicodedata
from pathlib import Path

from afm_mlx.features import Notification
from afm_mlx.tui.inbox import Arrived, News
from afm_mlx.tui.notifications.listing import InboxList
from afm_mlx.tui.notifications.screen import SLICE, NotificationsScreen
from afm_mlx.tui.notifications.sources import (
    SourcePicker,
)
from afm_mlx.tui.notifications.summaries import AHEAD
from tests.tui.inbox_screen import (
    INBOX,
    append,
    choose,
    engine,
    gated,
    inbox,
    problems,
    prompts,
    reading,
    screen,
    script,
    settled,
    show,
    text,
)
from tests.tui.pictures import THEMES, picture
from tests.tui.support import (
    SIZES,
    snapshot,
    until,
)
from tests.tui.test_palette import choose as take_command

import pytest
from textual.binding import Binding
from textual.pilot import Pilot


def test_the_inbox_is_summarised(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        shown = text(pilot)
        assert "✦ Ottoline moved the saw to Sunday 10:00" in shown
        assert "✦ הרכבת מאחרת" in shown and "may contain errors" in shown
        rows = shown.splitlines()
        (mail,) = (row for row in rows if "Mail (1)" in row)
        assert "! urgent" in mail and "09:11" in mail
        assert sum("! urgent" in row for row in rows) == 1
        heads = [row[2:] for row in rows if row[2:].startswith(("Messages", "Mail", "Shop"))]
        assert [head.split()[0] for head in heads] == ["Messages", "Mail", "Shop"]  # newest on top

    show(reading(inbox(tmp_path)), test)


def test_what_arrives_later_is_summarised(tmp_path: Path) -> None:
    path = inbox(tmp_path)

    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        append(path, {"app": "Mail", "title": "Lindqvist Letting", "body": "Signed, thank you"})
        await until(pilot, lambda: len(prompts(pilot, "[Mail]")) == 2)
        await settled(pilot)
        assert "Signed, thank you" in prompts(pilot, "[Mail]")[1]
        assert len(prompts(pilot, "[Shop]")) == 1
        assert screen(pilot).box.stacks[0].app == "Mail"

    show(reading(path), test)


def test_the_line_is_written_in_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = reading(inbox(tmp_path, INBOX[1]))
    gate = gated(services, monkeypatch, "Ottoline moved", "Ottoline moved it")

    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "✦ Ottoline moved▌" in text(pilot))
        assert not gate.is_set() and "^r Summarize  esc Stop" in text(pilot)
        gate.set()
        await settled(pilot, 1)
        assert "✦ Ottoline moved it" in text(pilot) and "▌" not in text(pilot)
        assert "esc Stop" not in text(pilot)

    show(services, test)


def test_nothing_waits_for_a_summary(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "… Ottoline: Sunday 10:00 instead" in text(pilot))
        await pilot.press("space", "down", "enter")
        await until(pilot, lambda: "Rashid: Saw on Saturday 10:00?" in text(pilot))
        assert not screen(pilot).summaries.of(screen(pilot).box.stacks[0])
        engine(pilot).go_on.set()
        await settled(pilot)

    show(reading(inbox(tmp_path), held=True), test)


def test_escape_stops_and_summarize_goes_on(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        found = screen(pilot)
        await until(pilot, lambda: engine(pilot).prompts)
        await pilot.press("escape")
        await until(pilot, lambda: not found.working)
        assert found.summaries.stopped
        await until(pilot, lambda: "stopped, ^r goes on" in text(pilot))
        await until(pilot, lambda: "… Ottoline" not in text(pilot))  # no longer waiting
        append(Path(found.services.settings.inbox), {"app": "New", "body": "one more"})
        await until(pilot, lambda: len(found.box.stacks) == 5)
        assert not found.working
        engine(pilot).go_on.set()
        await pilot.press("ctrl+r")
        await settled(pilot, 5)
        assert "✦ Sign the lease by 17:00 today" in text(pilot)

    show(reading(inbox(tmp_path), held=True), test)


def test_commands_of_the_palette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afm_mlx.hub.installed", list)

    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: screen(pilot).box.stacks)
        found = {title: call for title, about, call in screen(pilot).commands() if about}
        found["Originals or summaries"]()
        assert screen(pilot).originals
        # the app named [/] kept the palette from opening
        await take_command(pilot, "Switch summaries off: [/]")
        assert screen(pilot).services.settings.switched_off == ("[/]",)

    show(reading(inbox(tmp_path, {"app": "[/]", "body": "hello"})), test)


def test_every_key_says_what_it_does() -> None:
    sources = (NotificationsScreen, InboxList, SourcePicker)
    keys = [key for source in sources for key in Binding.make_bindings(source.BINDINGS)]
    assert all(key.id and key.tooltip for key in keys)
    # the footer shows these and the palette
    assert sum(key.show for key in Binding.make_bindings(NotificationsScreen.BINDINGS)) <= 5


def test_text_that_is_no_plain_text(tmp_path: Path) -> None:
    nasty = {"app": "A\x1b[2Jpp", "group": "\u202egroup", "title": "\x1b]52;c;aGk=\x07[b]",
             "body": "👩‍👩‍👧 שלום [@click=app.quit]x[/] \x9b31m \ud83d"}  # fmt: skip

    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot, 1)
        await pilot.press("space", "o")
        shown = text(pilot)
        assert shown.count("[b]: 👩‍👩‍👧 שלום [@click=app.quit]x[/]") == 2  # in the row, expanded
        assert not [c for c in shown if unicodedata.category(c) == "Cc" and c != "\n"]
        assert not set(shown) & {"\u202e", "\ud83d"}
        await pilot.click(InboxList, offset=(40, 1))
        assert pilot.app.is_running and not problems(pilot)

    show(reading(inbox(tmp_path, nasty), script({"": "\x1b[31m[b]red[/b]"})), test)


def test_much_that_arrives_at_once_leaves_room_for_keys(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot, 1)
        many = [Arrived(f"A{n}", None, Notification("", "x"), "1") for n in range(5 * SLICE)]
        taking = asyncio.create_task(found._take(News(tuple(many), fresh=True)))
        seen = set()
        while not taking.done():
            await asyncio.sleep(0)
            seen.add(len(found.box))
        assert len(seen) >= 5 and len(found.box) == 5 * SLICE
        assert found.box.get(("Mail", None)) is None

    show(reading(inbox(tmp_path, INBOX[2])), test)


def test_ten_thousand_notifications(tmp_path: Path) -> None:
    many = [{"app": f"App {n:04}", "body": f"text {n}", "minutes_ago": n} for n in range(5000)]
    many += [{"app": "Chat", "body": f"line {n}", "minutes_ago": 6000 - n} for n in range(5000)]

    async def test(pilot: Pilot[None]) -> None:
        found = screen(pilot)
        await until(pilot, lambda: len(found.box) == 10_000)
        await until(pilot, lambda: "App 0000 (1)" in text(pilot))
        listing = found.query_one(InboxList)
        top = listing.visible_keys()
        assert 5 < len(top) < 20 and top[0] == ("App 0000", None)
        await pilot.press("end")
        assert found.chosen is not None and "App 4999" in text(pilot)
        await pilot.press("pageup")
        shown = listing.visible_keys()
        assert found.chosen is not None and found.chosen.key in shown and len(shown) < 20
        # what arrives on top moves nothing where a person looks
        append(Path(found.services.settings.inbox), {"app": "New", "body": "on top"})
        await until(pilot, lambda: len(found.box) == 10_001)
        await pilot.pause()
        assert listing.visible_keys() == shown and found.box.stacks[0].app == "New"
        engine(pilot).go_on.set()
        # the one that was begun, then those on screen
        await until(pilot, lambda: len(prompts(pilot, "")) >= 4)
        asked = [p[p.rfind("\n[") + 2 :].split("]")[0] for p in prompts(pilot, "")[1:4]]
        assert set(asked) <= {app for app, _ in shown}
        # all that is not seen stays without
        await until(pilot, lambda: found.summaries.next() is None and not found.working)
        assert len(prompts(pilot, "")) <= 1 + len(shown) + AHEAD
        listing.scroll_to(y=4000, animate=False)  # as a wheel does: the cursor stays
        await until(pilot, lambda: listing.visible_keys()[-1] > ("App 1900", None))
        last = found.box.get(listing.visible_keys()[-1])
        assert last is not None
        await until(pilot, lambda: found.summaries.of(last))
        await pilot.press("escape", "home")
        assert found.chosen is not None and found.chosen.app == "New"

    show(reading(inbox(tmp_path, *many), held=True), test)


def test_a_small_terminal(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot)
        assert "Messages · Allotment (2)" in text(pilot)
        await pilot.press("down", "enter")
        assert "✦ Sign the lease by 17:00 today" in text(pilot)
        assert "Mail (1)" not in text(pilot)  # a tab of its own
        await pilot.press("escape")
        assert "Mail (1)  ! urgent" in text(pilot) and found.query_one(InboxList).has_focus
        assert max(len(row) for row in text(pilot).splitlines()) <= 40

    show(reading(inbox(tmp_path)), test, (40, 12))


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES)
def test_looks(tmp_path: Path, theme: str, size: tuple[int, int]) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await choose(pilot, "Shop")
        await pilot.press("space")
        await pilot.pause()
        assert pilot.app.theme == theme
        await picture(pilot, "notifications")
        await pilot.press("enter")
        await snapshot(pilot, "notifications-messages")

    show(reading(inbox(tmp_path), theme=theme), test, size)
