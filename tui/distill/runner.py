"""The pane of the run: what is to be done, how far it is, and how it is paused and stopped."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from afm_mlx.distill.results import Metrics
from afm_mlx.tui.distill.process import COMMAND, FIELDS, Order, Process, usual
from afm_mlx.tui.distill.watching import (
    STAGES,
    Folder,
    Watched,
    figures,
    follow,
    look_into,
    plan_lines,
    score_lines,
)
from afm_mlx.tui.panes import Field, Soon, values
from afm_mlx.tui.plain import visible

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import Button, Static

State = Literal["", "planning", "running", "pausing", "paused", "stopping", "ending", "watching"]
SAID = {
    "": "",
    "planning": "reading teacher and data for a plan …",
    "running": "▶ running; the app may be used meanwhile",
    "pausing": "▶ pausing at the next save; once more pauses at once",
    "paused": "‖ paused: start goes on after the last save, stop writes the best student",
    "stopping": "▶ stopping",
    "ending": "▶ writing the student of the best save, and the report",
    "watching": "◉ following a run that was started elsewhere",
}
"""What each state is called on the screen."""
WORKS = ("planning", "running", "pausing", "stopping", "ending")
"""States in which a process is at work."""


class Runner(VerticalScroll):
    """Starts, pauses and stops a run, or follows one of elsewhere.

    Attributes:
        state: of the run.
        command: what is run, before its arguments.
    """

    DEFAULT_CSS = """
    Runner { padding: 0 1; }
    Runner .buttons { height: 1; margin: 1 0; }
    Runner .buttons > Button { margin-right: 1; min-width: 8; }
    Runner > Static { height: auto; }
    """

    state: reactive[State] = reactive[State]("", bindings=True)

    class Moved(Message):
        """The metrics have changed; ``folder`` is what is known of the run beside them."""

        def __init__(self, metrics: Metrics, folder: Folder) -> None:
            super().__init__()
            self.metrics, self.folder = metrics, folder

    class Emptied(Message):
        """What was shown of a run is not of the one that is shown from now on."""

    class Wanted(Message):
        """A button was pressed: ``plan``, ``start``, ``watch``."""

        def __init__(self, action: str) -> None:
            super().__init__()
            self.action = action

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        super().__init__()
        self.command = command
        self.watched, self.folder = Watched(), Folder(Path())
        self._show_soon = Soon(self, self._show)
        self._process: Process | None = None
        self._metrics: Metrics | None = None
        self._order = Order()  # of the run that was started last

    def compose(self) -> ComposeResult:
        known = usual()
        yield Field("teacher", "teacher", "", "the embedded model", "Folder, .gguf, Hub")
        yield Field("data", "data", "", "the text that comes along", "JSONL, text, folders")
        yield Field("steps", "steps", "", known["steps"], "Optimizer steps in all")
        yield Field("recipe", "recipe", "", "none", "A TOML file with settings")
        yield Field("folder", "out", "", known["out"], "Of the run, new or begun")
        yield Field("more", "more", "", "ffn=0.25 window=128", "Any other settings")
        with Horizontal(classes="buttons"):
            yield Button("Plan", id="go-plan", compact=True)
            yield Button("Start", id="go-start", compact=True, variant="primary")
            yield Button("Watch", id="go-watch", compact=True, tooltip="Follow the folder's run")
        yield Static(id="said", markup=False)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Wanted(str(event.button.id).removeprefix("go-")))

    def watch_state(self) -> None:
        if self.is_mounted:
            self._show()

    @property
    def order(self) -> Order:
        """What the fields ask for."""
        return Order(**values(self, FIELDS))

    @property
    def works(self) -> bool:
        """Whether a process is at work."""
        return self.state in WORKS

    def is_now(self, *states: State) -> bool:
        """Whether the run is in one of these states."""
        return self.state in states

    # ---- a run of our own

    async def plan(self) -> None:
        """Show what a run would do.

        Raises:
            InputError: the run refuses its settings.
        """
        order, before = self.order, self.state
        arguments = [*order.arguments(), "--plan"]
        if before == "watching" and order.folder != self.folder.path:
            before = ""  # the other run is followed no longer
        self._turn_to(order.folder)
        self.watched, self.state = Watched(saved=self.watched.saved), "planning"
        try:
            async for event in self._events(arguments):
                self.watched.see(event)
        finally:
            self.state = before

    async def start(self) -> None:
        """Run until the end, a pause or a stop; goes on with what is in the folder.

        Raises:
            InputError: the run ended with an error.
        """
        order = self.order
        arguments = order.arguments()
        goes_on = self.is_now("paused") and order.folder == self._order.folder
        self.watched = Watched(saved=self.watched.saved if goes_on else 0)
        self._turn_to(order.folder)
        self._order = order
        self.folder, self.state = Folder(order.folder), "running"
        self.query_one("#said").scroll_visible()
        end: State = ""
        try:
            async for event in self._events(arguments):
                self.watched.see(event)
                if event.get("event") == "saved" and self.is_now("pausing"):
                    self.interrupt()
                self._show_soon()
            if self.is_now("stopping") and not self.watched.finished:
                await self._end(order)
            elif self._process is not None and self._process.interrupted:
                end = "paused"
        finally:
            self.state = end

    async def stop(self) -> None:
        """Of a run that is paused: have the student of its best save written.

        Raises:
            InputError: the run ended with an error.
        """
        try:
            await self._end(self._order)
        finally:
            self.state = ""

    async def _end(self, order: Order) -> None:
        if not self.watched.saved:
            self.watched.ended = "nothing was saved yet: the same settings begin again"
            return
        self.state = "ending"
        async for event in self._events(order.arguments(self.watched.saved)):
            self.watched.see(event)
            self._show_soon()

    async def _events(self, arguments: Sequence[str]) -> AsyncGenerator[dict[str, Any], None]:
        self._process = Process(arguments, self.command)
        async with aclosing(self._process.events()) as events:
            async for event in events:
                yield event

    def pause(self) -> None:
        """Interrupt the run at its next save, or at once if it is told again or saves nothing."""
        if self.is_now("pausing") or self.watched.stage != "training":
            self.interrupt()
        self.state = "pausing"

    def halt(self) -> None:
        """Interrupt the run for good: :meth:`start` has the best student written then."""
        self.state = "stopping"
        self.interrupt()

    def interrupt(self) -> None:
        """Have the process end soon."""
        if self._process is not None:
            self._process.interrupt()

    # ---- the files of any run

    async def watch_run(self, path: Path) -> None:
        """Follow a run that was started elsewhere, for ever; one that is paused here stays so.

        Raises:
            InputError: it is no folder of a run.
        """
        found = await asyncio.to_thread(look_into, path)
        paused = self.is_now("paused") and path == self._order.folder
        self._turn_to(path)
        self.watched, self.folder = Watched(saved=self.watched.saved if paused else 0), found
        self.state = "watching"
        try:
            await self.follow(path)
        finally:
            if self.is_now("watching"):
                self.state = "paused" if paused else ""

    async def follow(self, path: Path) -> None:
        """Follow the files in the folder of a run, for ever."""
        async for metrics in follow(path / "metrics.jsonl"):
            self._metrics, self.folder = metrics, await asyncio.to_thread(look_into, path)
            self.watched.steps = self.folder.steps
            self._show()
            self.post_message(self.Moved(metrics, self.folder))

    def _turn_to(self, path: Path) -> None:
        """Show nothing of the run in another folder."""
        if path != self.folder.path:
            if self._metrics is not None:
                self.post_message(self.Emptied())
            self.folder, self._metrics = Folder(path), None

    def _show(self) -> None:
        if not self.is_attached:  # the app ends
            return
        lines = [SAID[self.state]] if self.state else []
        lines += summary(self.watched, self._metrics, self.folder)
        self.query_one("#said", Static).update(Text(visible("\n".join(lines))))


def summary(watched: Watched, metrics: Metrics | None, folder: Folder) -> list[str]:
    """All that is known of a run, line by line."""
    lines = []
    if watched.stage:
        part = f" {watched.done} of {watched.total}" if watched.total else ""
        place = STAGES.index(watched.stage) if watched.stage in STAGES else -1
        signs = [f"✓ {s}" for s in STAGES[:place] if s in ("plan", "logits", "training")]
        end = "✓" if watched.finished else "…"
        lines.append(" ".join([*signs, f"{end} {watched.stage}{part}"]))
    if watched.plan and not watched.step:
        lines += plan_lines(watched.plan)
    known = {"teacher": folder.of_teacher, "student at the start": folder.of_start}
    scores = watched.scores or {who: s for who, s in known.items() if s}
    lines += score_lines(scores)
    lines += figures(metrics, folder.steps) if metrics is not None else []
    if watched.ended:
        lines.append(f"! {watched.ended}")
    if watched.finished:
        result = watched.finished.get("of_distilled") or {}
        lines += score_lines({"✓ student, distilled": result})
        lines.append(f"report: {watched.finished.get('report')}")
        lines.append(f"student: {watched.finished.get('path')}")
    return lines
