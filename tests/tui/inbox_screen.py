"""For tests of the screen of notifications: an inbox, scripted answers, and waiting for them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, cast

from afm_mlx.features import PRIORITY, Answer, Progress
from afm_mlx.generation import Metrics
from afm_mlx.tui.inbox import Stack
from afm_mlx.tui.notifications.screen import NotificationsScreen
from afm_mlx.tui.services import Services
from afm_mlx.tui.settings import Settings
from tests.tui.support import (
    ScriptedEngine,
    app_with,
    fake_services,
    in_app,
    screen_text,
    until,
)

import pytest
from textual.pilot import Pilot

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
