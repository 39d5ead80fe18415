"""The screen of notifications, with scripted answers."""

import asyncio
import json
import unicodedata
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from afm_mlx.adapters import formats
from afm_mlx.adapters.adapter import About
from afm_mlx.errors import InputError
from afm_mlx.features import NOTIFICATION_SUMMARY, PRIORITY, Answer, Notification, Progress
from afm_mlx.generation import Metrics
from afm_mlx.tui.inbox import Arrived, News, Stack
from afm_mlx.tui.inbox.dbus import BusSource
from afm_mlx.tui.inbox.demo import DemoSource
from afm_mlx.tui.inbox.file import FileSource
from afm_mlx.tui.inbox.macos import FULL_DISK_ACCESS, MacSource
from afm_mlx.tui.notifications.listing import InboxList
from afm_mlx.tui.notifications.screen import SLICE, NotificationsScreen
from afm_mlx.tui.notifications.sources import (
    OFFERS,
    SourcePicker,
    changes,
    offered,
    source_of,
)
from afm_mlx.tui.notifications.summaries import AHEAD
from afm_mlx.tui.screen import Question
from afm_mlx.tui.services import Services
from afm_mlx.tui.settings import AUTO, Settings
from tests.adapters import pupil
from tests.adapters.made import random_adapter
from tests.tui.pictures import THEMES, picture
from tests.tui.support import (
    SIZES,
    ScriptedEngine,
    app_with,
    fake_services,
    in_app,
    screen_text,
    snapshot,
    tiny,
    until,
)
from tests.tui.test_palette import choose as take_command

import pytest
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import Input, Static

NOW = datetime(2025, 3, 30, 9, 41, tzinfo=UTC)

INBOX = (
    {"app": "Messages", "group": "Allotment", "title": "Rashid", "body": "Saw on Saturday 10:00?",
     "minutes_ago": 75},
    {"app": "Messages", "group": "Allotment", "title": "Ottoline", "body": "Sunday 10:00 instead",
     "minutes_ago": 7},
    {"app": "Mail", "title": "Lindqvist Letting", "body": "Please sign the lease by 17:00 today",
     "minutes_ago": 30},
    {"app": "רכבת", "title": "רציף 3", "body": "הרכבת של 18:20 מאחרת ב-15 דקות", "minutes_ago": 65},
    {"app": "Shop", "title": "Shop", "body": "[bold]50 %[/bold] off [link=x]everything[/link]",
     "minutes_ago": 1500},
)  # fmt: skip
LINES = {
    "[Messages] Allotment": "Ottoline moved the saw to Sunday 10:00",
    "[Mail]": "Sign the lease by 17:00 today",
    "[רכבת]": "הרכבת מאחרת",
    "[Shop]": "Zelda invites you on Monday",
}

Test = Callable[[Pilot[None]], Coroutine[Any, Any, None]]


def script(lines: Mapping[str, str] = LINES, urgent: str = "[Mail]") -> Callable[[str], str]:
    """Answers by the stack that a prompt ends with."""

    def answer(prompt: str) -> str:
        stack = prompt[prompt.rfind("\n[") + 1 :]
        if "Is this urgent?" in prompt:
            return "yes" if stack.startswith(urgent) else "no"
        return next((said for start, said in lines.items() if stack.startswith(start)), "")

    return answer


class Fixed(NotificationsScreen):
    """The screen on a certain morning."""

    @staticmethod
    def clock() -> datetime:
        return NOW


def inbox(folder: Path, *items: Mapping[str, Any], name: str = "inbox.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(item) + "\n" for item in items or INBOX), "utf-8")
    return path


def append(path: Path, *items: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)


def show(services: Services, test: Test, size: tuple[int, int] = (120, 36)) -> None:
    in_app(app_with(services, notifications=Fixed), test, size)


def reading(path: Path, answers: Any = None, held: bool = False, **settings: Any) -> Services:
    """Services with a file as the inbox; answers do not begin while they are held."""
    known = Settings(inbox=str(path), **settings)
    services = fake_services(answers or script(), known, path.parent)
    if held:
        cast(ScriptedEngine, services.engine).go_on.clear()
    return services


def screen(pilot: Pilot[None]) -> NotificationsScreen:
    found = pilot.app.screen_stack[0]
    assert isinstance(found, NotificationsScreen)
    return found


def engine(pilot: Pilot[None]) -> ScriptedEngine:
    return cast(ScriptedEngine, screen(pilot).services.engine)


def text(pilot: Pilot[None]) -> str:
    return screen_text(pilot.app)


def problems(pilot: Pilot[None]) -> list[str]:
    """Lines that a person was told."""
    return [problem.line for problem in screen(pilot).afm.problems]


def prompts(pilot: Pilot[None], start: str) -> list[str]:
    """Prompts for summaries of stacks that begin like this; one that was sampled again, since it
    had faults, counts once."""
    asked = [p for p, _ in groupby(engine(pilot).prompts) if "Is this urgent?" not in p]
    return [p for p in asked if p[p.rfind("\n[") + 1 :].startswith(start)]


def asked(pilot: Pilot[None]) -> list[str | None]:
    """Adapters of the requests for summaries."""
    return [request.adapter for request in engine(pilot).requests if not request.choices]


def gated(
    services: Services, monkeypatch: pytest.MonkeyPatch, begin: str, whole: str
) -> asyncio.Event:
    """Have summaries begin, and end when the gate that is given is set."""
    gate = asyncio.Event()

    async def run(feature: Any, value: Any, **_: Any) -> AsyncIterator[Any]:
        if feature is PRIORITY:
            yield Answer(feature.name, False, "no", (), 1, Metrics())
            return
        yield Progress(begin)
        await gate.wait()
        yield Answer(feature.name, whole, whole, (), 1, Metrics())

    monkeypatch.setattr(services, "run", run)
    return gate


async def settled(pilot: Pilot[None], stacks: int = 4) -> NotificationsScreen:
    """Wait until all is summarised."""
    found = screen(pilot)
    await until(pilot, lambda: len(found.box.stacks) == stacks)
    await until(pilot, lambda: found.summaries.next() is None and not found.working)
    await pilot.pause()
    return found


async def choose(pilot: Pilot[None], app: str) -> Stack:
    """Move the cursor to the stack of an app."""
    found = screen(pilot)
    await pilot.press("home")
    for _ in found.box.stacks:
        stack = found.chosen
        assert stack is not None
        if stack.app == app:
            await pilot.pause()
            return stack
        await pilot.press("down")
    raise AssertionError(f"there is no {app}")


# ---- the inbox


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


def test_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(OFFERS["demo"], source=DemoSource(seconds=0))
    monkeypatch.setitem(cast(dict[str, Any], OFFERS), "demo", quick)

    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot, 10)
        assert all(found.summaries.of(stack) for stack in found.box.stacks)
        assert "demo: 10 stacks" in text(pilot)

    show(fake_services(script({"": "All is well"}, urgent="[Home]")), test)


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


def test_no_line_of_an_older_state(tmp_path: Path) -> None:
    path = inbox(tmp_path, INBOX[2])
    newer = {"app": "Mail", "title": "Lindqvist Letting", "body": "Signed, thank you"}
    answers = script({"[Mail]\n- Lindqvist Letting: Please sign the lease by 17:00 today\n- L":
                      "The newer line", "[Mail]": "Please sign the older line"})  # fmt: skip

    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot, 1)
        assert "✦ Please sign the older line" in text(pilot)
        engine(pilot).go_on.clear()
        append(path, newer)
        await until(pilot, lambda: len(screen(pilot).box) == 2)
        await pilot.pause()
        assert "older line" not in text(pilot) and "Signed, thank you" in text(pilot)
        engine(pilot).go_on.set()
        await settled(pilot, 1)
        assert "✦ The newer line" in text(pilot)

    show(reading(path, answers), test)


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


# ---- what came too late


def reopened(pilot: Pilot[None]) -> Services:
    """Another model from now on, that says nothing yet."""
    services = screen(pilot).services
    services.engine = ScriptedEngine(script({"": "By the new model"}))
    services.engine.go_on.clear()
    services.change(model="another")
    return services


def test_no_line_by_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = reading(inbox(tmp_path))
    old = services.engine

    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        assert "✦ Sign the lease" in text(pilot) and "! urgent" in text(pilot)
        reopened(pilot)
        await pilot.pause()
        assert "✦ Sign the lease" not in text(pilot) and "! urgent" not in text(pilot)
        engine(pilot).go_on.set()
        await settled(pilot)
        assert "✦ By the new model" in text(pilot)

    show(services, test)
    old.close()


@pytest.mark.parametrize("change", ["model", "adapter", "app", "stack", "screen"])
def test_what_is_being_written_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = inbox(tmp_path, INBOX[2])
    services = reading(path)
    opened = [services.engine]
    gate = gated(services, monkeypatch, "Half an old", "Half an old line")

    async def test(pilot: Pilot[None]) -> None:
        found = screen(pilot)
        await until(pilot, lambda: "✦ Half an old▌" in text(pilot))
        match change:
            case "model":
                opened.append(reopened(pilot).engine)
            case "adapter":
                services.choose(None, NOTIFICATION_SUMMARY.name)
            case "app":
                found.switch("Mail")
            case "screen":
                await pilot.press("f2")
                append(path, {"app": "Mail", "body": "Signed"})
            case "stack":
                append(path, {"app": "Mail", "body": "Signed"})
        gated(services, monkeypatch, "A new", "A new line")
        if change in ("stack", "screen"):
            await until(pilot, lambda: len(found.box) == 2)
        gate.set()
        if change == "screen":
            await until(pilot, lambda: found.summaries.of(found.box.stacks[0]))
            await pilot.press("f1")
        if change == "app":
            await until(pilot, lambda: not found.working)
        else:
            await until(pilot, lambda: "✦ A new▌" in text(pilot))
        await pilot.pause()
        assert "Half an old" not in text(pilot)

    show(services, test)
    for each in opened:
        each.close()


def test_leaving_in_the_middle(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        found = screen(pilot)
        await until(pilot, lambda: engine(pilot).prompts)
        await found.leave()
        await until(pilot, lambda: not found.working)
        assert not any(found.summaries.of(stack) for stack in found.box.stacks)
        assert not problems(pilot)

    show(reading(inbox(tmp_path), held=True), test)


@pytest.mark.parametrize("change", ["model", "app", "stack", "stop"])
def test_a_comparison_that_came_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = inbox(tmp_path, INBOX[2])
    services = reading(path)
    opened = [services.engine]

    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot, 1)
        gate = gated(services, monkeypatch, "Half an old", "Half an old line")
        await pilot.press("c")
        await until(pilot, lambda: "Half an old" in text(pilot))
        gated(services, monkeypatch, "A new", "A new line")
        match change:
            case "model":
                opened.append(reopened(pilot).engine)
            case "app":
                await pilot.press("x")
            case "stack":
                append(path, {"app": "Mail", "body": "Signed"})
                await until(pilot, lambda: len(found.box) == 2)
            case "stop":
                await pilot.press("escape")
        gate.set()
        await until(pilot, lambda: not found._runs("compare"))
        await pilot.pause()
        said = {
            "app": "Summaries of Mail are off: x switches them on.",
            "stack": "More has arrived since this stack was compared",
        }.get(change, "c summarizes the chosen stack")
        compared = found.query_one(".base", Static)
        assert said in str(compared.content) and "Half an old" not in text(pilot)
        if change == "app":  # nor when it is on again
            await pilot.press("x")
            await pilot.pause()
            assert "c summarizes the chosen stack" in str(compared.content)

    show(services, test)
    for each in opened:
        each.close()


# ---- looking closer


def test_expanding_and_originals(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await choose(pilot, "Messages")
        await pilot.press("space")
        assert "▾ Messages · Allotment (2)" in text(pilot)
        assert "      Rashid: Saw on Saturday 10:00?" in text(pilot)
        await pilot.press("space")
        assert "      Rashid: Saw on Saturday 10:00?" not in text(pilot)
        await pilot.press("o")
        shown = text(pilot)
        assert "› Ottoline: Sunday 10:00 instead" in shown
        assert "  ✦ Sign the lease" not in shown
        await pilot.press("o")
        assert "  ✦ Sign the lease" in text(pilot)
        await pilot.click(InboxList, offset=(8, 3))
        assert screen(pilot).chosen is screen(pilot).box.stacks[1]

    show(reading(inbox(tmp_path)), test)


def test_the_messages_and_what_was_checked(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await choose(pilot, "Messages")
        shown = text(pilot)
        assert "✓ names  ✓ times  ✓ numbers  ✓ negations" in shown
        assert "08:26  Rashid  Saw on Saturday 10:00?" in shown
        await choose(pilot, "Shop")  # the model invented both, so its words were not taken
        shown = text(pilot)
        assert "✦ not taken: ⟦Zelda⟧ invites you on ⟦Monday⟧" in shown
        assert "✗ names  ✗ times  ✓ numbers  ✓ negations" in shown
        assert "⚑ Zelda, Monday is not in the notifications" in shown
        assert "  › Shop: [bold]50 %[/bold] off [link=x]everything[/link]" in shown  # no markup

    show(reading(inbox(tmp_path)), test)


def test_escape_leaves_the_messages_first(tmp_path: Path) -> None:
    # on a narrow terminal there was no way back while the model wrote
    async def test(pilot: Pilot[None]) -> None:
        found = screen(pilot)
        await until(pilot, lambda: engine(pilot).prompts)
        await pilot.press("enter")
        assert "to be summarised" in text(pilot)
        await pilot.press("escape")
        assert found.query_one(InboxList).has_focus and found.working
        await pilot.press("escape")
        await until(pilot, lambda: not found.working)

    show(reading(inbox(tmp_path), held=True), test, (60, 20))


def test_again_gives_other_words(tmp_path: Path) -> None:
    # the model's likeliest answer was the same each time
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot, 1)
        for _ in range(2):
            await pilot.press("ctrl+r")
            await settled(pilot, 1)
        found = [r.options.sampling for r in engine(pilot).requests if not r.choices]
        assert [(mode.kind, mode.seed) for mode in found[1:]] == [("random", 1), ("random", 2)]

    show(reading(inbox(tmp_path, INBOX[2])), test)


def test_one_again_and_all_again(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await choose(pilot, "Mail")
        engine(pilot).answers = script({"": "Other words"})
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert [len(prompts(pilot, f"[{app}]")) for app in ("Mail", "Shop")] == [2, 1]
        assert "Ottoline moved the saw" in text(pilot) and "✦ Other words" in text(pilot)
        await pilot.press("ctrl+t")
        await settled(pilot)
        assert [len(prompts(pilot, f"[{app}]")) for app in ("Mail", "Shop")] == [3, 2]
        assert "Ottoline moved the saw" not in text(pilot)

    show(reading(inbox(tmp_path)), test)


def test_base_and_adapter_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pupil.base(tiny().model)
    monkeypatch.setattr("tests.tui.support.tiny", lambda: pupil.base(tiny().model))
    about = About(feature=NOTIFICATION_SUMMARY.name, base_signature=base.signature)
    adapter = random_adapter(base.model, "lines", about=about)
    formats.write(adapter, tmp_path / "adapters" / "lines")

    def answer(prompt: str) -> str:
        if "Is this urgent?" in prompt:
            return "no"
        return "Please sign the lease" if "Pirjo" in prompt else "Sign by 17:00"  # examples

    path = inbox(tmp_path, INBOX[2])

    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot, 1)
        assert "✦ Sign by 17:00" in text(pilot)
        await pilot.press("c")
        await until(pilot, lambda: found.comparison and found.comparison.by_adapter)
        await settled(pilot, 1)
        shown = text(pilot)
        assert "base, with examples" in shown and "◆ lines" in shown
        assert "✦ Please sign the lease" in shown and "prompt tokens" in shown
        assert asked(pilot)[-2:] == [None, str(tmp_path / "adapters" / "lines")]
        # what was compared is of the stack as it was
        append(path, {"app": "Mail", "body": "Signed, thank you"})
        await until(pilot, lambda: len(found.box) == 2)
        await settled(pilot, 1)
        assert "More has arrived since" in text(pilot)
        assert "Please sign the lease" not in text(pilot).split("│", 1)[1]
        # the model alone from now on; the adapter can be compared still
        await pilot.press("ctrl+a")
        await settled(pilot, 1)
        assert asked(pilot)[-1] is None
        await pilot.press("c")
        await until(pilot, lambda: asked(pilot)[-1] is not None)
        await until(pilot, lambda: found.comparison and found.comparison.by_adapter)
        await pilot.press("ctrl+a")
        await settled(pilot, 1)
        assert found.services.settings.choice(PRIORITY.name) == AUTO
        assert asked(pilot)[-1] is not None

    show(reading(path, answer), test)


def test_comparing_without_an_adapter(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await choose(pilot, "Mail")
        await pilot.press("c")
        await settled(pilot)
        assert "There is no adapter for this model" in text(pilot)
        assert "✦ Sign the lease by 17:00 today" in text(pilot)

    show(reading(inbox(tmp_path)), test, (60, 20))


# ---- choices


def test_an_app_that_is_switched_off(tmp_path: Path) -> None:
    path = inbox(tmp_path)

    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot)
        await choose(pilot, "Mail")
        await pilot.press("x")
        await until(pilot, lambda: (tmp_path / "settings.json").exists())
        assert found.services.settings.switched_off == ("Shop", "Mail")
        shown = text(pilot)
        assert "Mail (1)  off" in shown and "Sign the lease" not in shown
        assert "Summaries of Mail are off" in shown
        assert "Please sign the lease by 17:00 today" in shown  # its notifications stay
        append(path, {"app": "Mail", "body": "Signed, thank you"})
        await until(pilot, lambda: "Signed, thank you" in text(pilot))
        await settled(pilot)
        assert len(prompts(pilot, "[Mail]")) == 1 and not prompts(pilot, "[Shop]")
        for key in ("ctrl+r", "c"):
            await pilot.press(key)
            assert not found.working
        await until(pilot, lambda: len(pilot.app._notifications) == 2)
        await pilot.press("x")
        await settled(pilot)
        assert len(prompts(pilot, "[Mail]")) == 2
        await pilot.pause()

    show(reading(path, switched_off=("Shop",)), test)
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert kept["switched_off"] == ["Shop"]


def test_the_adapter_that_was_chosen_comes_back(tmp_path: Path) -> None:
    chosen = {NOTIFICATION_SUMMARY.name: "mine", "other": "kept"}

    async def test(pilot: Pilot[None]) -> None:
        services = screen(pilot).services
        await pilot.press("ctrl+a")
        assert [services.settings.choice(f.name) for f in (NOTIFICATION_SUMMARY, PRIORITY)] == [
            None,
            None,
        ]
        await until(pilot, lambda: "by the model alone now" in text(pilot))
        await pilot.press("ctrl+a")
        assert services.settings.choice(NOTIFICATION_SUMMARY.name) == "mine"
        assert services.settings.choice(PRIORITY.name) == AUTO
        assert services.settings.choice("other") == "kept"

    show(reading(inbox(tmp_path, INBOX[2]), adapters=chosen), test)


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
        found = await settled(pilot)
        reason = "2 skipped (line 6: the JSON lacks the text 'body': add it)"
        shown = found.query_one("#legend", Static).content
        assert reason in str(shown) and "left out what cannot be read" in text(pilot)

    show(reading(path), test)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: problems(pilot))
        assert "give a JSON or JSONL file" in problems(pilot)[0]
        await until(pilot, lambda: "No notifications yet: s chooses another source" in text(pilot))
        for key in ("down", "up", "end", "pagedown", "space", "o", "c", "x", "ctrl+r", "enter"):
            await pilot.press(key)

    show(reading(tmp_path / "none.jsonl"), test)


def test_a_summary_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = reading(inbox(tmp_path, INBOX[2]))

    async def run(feature: Any, value: Any, **_: Any) -> AsyncIterator[Any]:
        raise InputError("the adapter is damaged: train it again")
        yield

    monkeypatch.setattr(services, "run", run)

    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "✗ no summary: the adapter is damaged" in text(pilot))
        assert len(problems(pilot)) == 1

    show(services, test)


def test_a_line_stays_if_its_urgency_cannot_be_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = reading(inbox(tmp_path, INBOX[2]))
    real = services.run

    def run(feature: Any, value: Any, **more: Any) -> Any:
        if feature is PRIORITY:
            raise InputError("adapter is for another model: train it")
        return real(feature, value, **more)

    monkeypatch.setattr(services, "run", run)

    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot, 1)
        assert "✦ Sign the lease" in text(pilot) and "no summary" not in text(pilot)
        assert len(problems(pilot)) == 1

    show(services, test)


def test_other_words_are_wanted_while_urgency_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words came again."""
    services = reading(inbox(tmp_path, INBOX[2]))
    real, gate = services.run, asyncio.Event()

    async def run(feature: Any, value: Any, **more: Any) -> AsyncIterator[Any]:
        if feature is PRIORITY:
            await gate.wait()
        async for event in real(feature, value, **more):
            yield event

    monkeypatch.setattr(services, "run", run)

    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "✦ Sign the lease" in text(pilot))
        await pilot.press("ctrl+r")
        gate.set()
        await settled(pilot, 1)
        found = [r.options.sampling for r in engine(pilot).requests if not r.choices]
        assert [(mode.kind, mode.seed) for mode in found[1:]] == [("random", 1)]

    show(services, test)


# ---- keys


def test_every_key_says_what_it_does() -> None:
    sources = (NotificationsScreen, InboxList, SourcePicker)
    keys = [key for source in sources for key in Binding.make_bindings(source.BINDINGS)]
    assert all(key.id and key.tooltip for key in keys)
    # the footer shows these and the palette
    assert sum(key.show for key in Binding.make_bindings(NotificationsScreen.BINDINGS)) <= 5


# ---- sizes


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
