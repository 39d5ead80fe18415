"""For tests of the app: services on a tiny model or on scripted answers, waiting, snapshots.

A snapshot here is the text of the screen, line by line, in ``tests/tui/snapshots``, without
colours; ``pictures`` has those with them. ``AFM_SNAPSHOTS=write`` writes both anew.
"""

import asyncio
import difflib
import html
import os
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine, Run
from afm_mlx.generation import Metrics, Request, Snapshot
from afm_mlx.model import PRESETS
from afm_mlx.tui.app import AfmApp
from afm_mlx.tui.inbox import News, Source
from afm_mlx.tui.screen import SCREENS, AfmScreen
from afm_mlx.tui.services import Services
from afm_mlx.tui.settings import Settings
from tests.conftest import random_model, tiny_tokenizer

from textual.app import App, ComposeResult
from textual.message import Message
from textual.notifications import Notification, Notify
from textual.pilot import Pilot
from textual.widgets import Input, Static

PATIENCE = 30.0
"""Seconds that a busy machine gets."""
HANGS = 600.0
"""Seconds after which what should have ended never will."""
SIZES = ((120, 36), (80, 24), (60, 20))
"""Columns and rows that every screen must do well at."""
SNAPSHOTS = Path(__file__).parent / "snapshots"

Answers = str | Mapping[str, str] | Callable[[str], str]


class Wait:
    """So many seconds; many times as many where other programs leave the test no processor."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._began, self._worked = time.monotonic(), time.process_time()

    @property
    def over(self) -> bool:
        waited, worked = time.monotonic() - self._began, time.process_time() - self._worked
        return waited > self.patience and (worked > self.patience / 3 or waited > 600)


async def until(
    pilot: Pilot[Any], condition: Callable[[], object], patience: float = PATIENCE
) -> None:
    """Let the app go on until ``condition`` holds, at most ``patience`` seconds."""
    wait = Wait(patience)
    while not condition():
        assert not wait.over, f"the condition does not come true: {_seen(pilot.app)}"
        await pilot.pause(0.02)


def _seen(app: App[Any]) -> str:
    """What a person would report: the errors so far, and the screen."""
    problems = [str(problem) for problem in getattr(app, "problems", ())]
    return "\n".join([*problems, screen_text(app)])


async def take(source: Source, count: int, between: Callable[[int], None]) -> list[News]:
    """The first ``count`` news of a source; ``between`` is called after each."""
    found: list[News] = []
    news = source.follow()
    try:
        async with asyncio.timeout(HANGS):
            async for one in news:
                found.append(one)
                if len(found) == count:
                    return found
                between(len(found))
    finally:
        await news.aclose()
    raise AssertionError("the source ended")


def in_app(
    app: App[Any], test: Callable[[Pilot[Any]], Coroutine[Any, Any, None]], size: tuple[int, int]
) -> None:
    """Run ``test`` on a headless terminal of ``size``."""

    async def run() -> None:
        try:
            async with app.run_test(size=size, notifications=True) as pilot:
                await test(pilot)
        finally:
            if isinstance(app, AfmApp):  # else its threads and model stay until the end of all
                await app.services.close()

    asyncio.run(run())


class Noted(AfmApp):
    """The app, which keeps what it told: notifications go away after seconds.

    Attributes:
        told: all so far.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.told: list[Notification] = []

    def post_message(self, message: Message) -> bool:
        if isinstance(message, Notify):
            self.told.append(message.notification)
        return super().post_message(message)


def told(app: App[Any]) -> list[Notification]:
    """All notifications so far of an app of :func:`app_with`."""
    assert isinstance(app, Noted)
    return app.told


class Visitor:
    """Someone at the screen that the app shows."""

    patience = PATIENCE
    """Seconds that what is waited for gets."""

    screen: Any

    def __init__(self, pilot: Pilot[None]) -> None:
        assert isinstance(pilot.app, AfmApp)
        self.pilot, self.app, self.screen = pilot, pilot.app, pilot.app.screen

    @property
    def told(self) -> str:
        """All notifications so far."""
        return "\n".join(n.message for n in told(self.app))

    def fill(self, **fields: object) -> None:
        """Write into fields by their names."""
        for name, value in fields.items():
            self.screen.query_one(f"#{name}", Input).value = str(value)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def until(self, condition: Any) -> None:
        await until(self.pilot, condition, self.patience)


def tiny(seed: int = 0) -> Checkpoint:
    """A random model whose window takes every feature's prompt in bytes."""
    args = replace(PRESETS["tiny"], max_position_embeddings=8192)
    return Checkpoint("tiny", Path("tiny"), random_model(args, seed), tiny_tokenizer())


class ScriptedEngine(Engine):
    """An engine whose answers are given, word by word, on its own thread.

    Args:
        answers: one text for all requests, texts by a part of the prompt, or a function of it.

    Attributes:
        go_on: cleared, answers stop before their next word until it is set again.
        requests: all that were made.
        prompts: their texts.
    """

    def __init__(self, answers: Answers = "yes") -> None:
        super().__init__(tiny)
        self.answers = answers
        self.go_on = threading.Event()
        self.go_on.set()
        self.requests: list[Request] = []
        self.prompts: list[str] = []

    def generate(self, request: Request) -> Run[Snapshot]:
        self.requests.append(request)

        def job(base: Checkpoint, cancelled: Callable[[], bool]) -> Iterator[Snapshot]:
            prompt = base.tokenizer.decode(list(request.tokens))
            self.prompts.append(prompt)
            answer = answer_to(prompt, self.answers)
            parts = re.findall(r"\S*\s*", answer)
            metrics = Metrics(len(request.tokens), 0, len(parts), 0.0, 0.04, 0.1, 0, 10**8, 0.04)
            text = ""
            for part in parts:
                while not self.go_on.wait(0.01):
                    if cancelled():
                        break
                if cancelled():
                    yield Snapshot(text, metrics, "cancelled")
                    return
                text += part
                yield Snapshot(text, metrics)
            yield Snapshot(text, metrics, "stop")

        return self.stream(job)


def answer_to(prompt: str, answers: Answers) -> str:
    """The answer that a script has for a prompt; the last part of it that it knows counts."""
    if isinstance(answers, str):
        return answers
    if callable(answers):
        return answers(prompt)
    places = {prompt.rfind(part): answer for part, answer in answers.items() if part in prompt}
    return places[max(places)] if places else ""


def fake_services(
    answers: Answers | None = "yes",
    settings: Settings = Settings(),  # noqa: B008 - frozen
    folder: Path | None = None,
    open_engine: Callable[[str | None], Engine] | None = None,
) -> Services:
    """Services on scripted answers, or on the tiny model's own for ``None``.

    Args:
        folder: of settings and adapters; without it settings are not written and there are no
            adapters.
    """
    engine = Engine(tiny) if answers is None else ScriptedEngine(answers)
    nothing = Path(os.devnull) / "nothing"
    return Services(
        engine,
        settings,
        folder / "settings.json" if folder else None,
        home=folder / "adapters" if folder else nothing,
        shipped=nothing if folder is None else folder / "features",
        open_engine=open_engine or (lambda source: Engine(tiny)),
    )


class Blank(AfmScreen):
    """In the place of screens that a test does not look at."""

    def compose_body(self) -> ComposeResult:
        yield Static("blank")


def app_with(services: Services, **screens: type[AfmScreen]) -> AfmApp:
    """The app with the given screens by their modes; the first is shown, others are blank."""

    def known(mode: str) -> type[AfmScreen]:
        return screens.get(mode, Blank)

    assert screens.keys() <= SCREENS.keys()
    return Noted(services, known, next(iter(screens), AfmApp.DEFAULT_MODE))


# ---- snapshots

_TEXT = re.compile(r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>')
_COLUMN = 12.2  # of Rich's drawings
_TITLE = 'text-anchor="middle"'


def screen_text(app: App[Any]) -> str:
    """What the screen shows, one line a row, without the blanks at the ends."""
    return text_of(app.export_screenshot())


def text_of(svg: str) -> str:
    """The text in a drawing of the screen, one line a row, without the blanks at the ends."""
    rows: dict[float, str] = {}
    for match in _TEXT.finditer(svg):
        if _TITLE in match[0]:
            continue
        column, row, text = round(float(match[1]) / _COLUMN), float(match[2]), match[3]
        known = rows.get(row, "")
        rows[row] = known.ljust(column) + html.unescape(text).replace("\xa0", " ")
    return "\n".join(rows[row].rstrip() for row in sorted(rows)).rstrip() + "\n"


def check_snapshot(app: App[Any], name: str) -> None:
    """Compare what the screen shows with ``snapshots/NAME-COLUMNSxROWS.txt``."""
    file, shown = _file(app, name), screen_text(app)
    if os.environ.get("AFM_SNAPSHOTS") == "write":
        SNAPSHOTS.mkdir(exist_ok=True)
        file.write_text(shown, encoding="utf-8")
        return
    assert file.is_file(), f"{file.name} is missing: write it with AFM_SNAPSHOTS=write"
    wanted = file.read_text(encoding="utf-8")
    changes = "\n".join(difflib.unified_diff(wanted.splitlines(), shown.splitlines(), lineterm=""))
    assert shown == wanted, changes


async def snapshot(pilot: Pilot[Any], name: str) -> None:
    """:func:`check_snapshot`, once the screen is as it was, or has come to rest to be written."""
    app, file = pilot.app, _file(pilot.app, name)
    if os.environ.get("AFM_SNAPSHOTS") == "write":
        before, now = "", screen_text(app)
        while before != now:
            await pilot.pause(1.0)
            before, now = now, screen_text(app)
    elif file.is_file():
        wanted, wait = file.read_text(encoding="utf-8"), Wait()
        while screen_text(app) != wanted and not wait.over:
            await pilot.pause(0.05)
    check_snapshot(app, name)


def _file(app: App[Any], name: str) -> Path:
    return SNAPSHOTS / f"{name}-{app.size.width}x{app.size.height}.txt"
