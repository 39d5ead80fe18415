"""The writing tools: a text, what a tool makes of it, and the steps between them (F2).

A run has a number: what an older one still sends after a newer one began is dropped.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal

from afm_mlx.errors import InputError
from afm_mlx.tui.screen import Command
from afm_mlx.tui.writing.controls import ToolRow
from afm_mlx.tui.writing.desk import Desk
from afm_mlx.tui.writing.history import History
from afm_mlx.tui.writing.layout import Layout, View, layout
from afm_mlx.tui.writing.result import ResultPane
from afm_mlx.tui.writing.sheet import Editor
from afm_mlx.tui.writing.textscreen import TextScreen
from afm_mlx.tui.writing.tools import TOOLS, Tool
from afm_mlx.tui.writing.work import Job, Result, Written, do

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.dom import DOMNode
from textual.events import Resize
from textual.message import Message
from textual.widgets import Input, Tab, Tabs

GRID = 44
"""Columns from which on the tools stand in two rows; below, Textual cannot draw the narrowest."""

Pane = Literal["text", "result"]


class WritingScreen(TextScreen):
    """Two panes, below 100 columns two tabs; below them the tools and a line for a change.

    Attributes:
        history: of the text and the result.
        running: the job that a model works on now.
        unfinished: a job that was stopped or failed; what is shown of it cannot be taken.
        view: how the result is shown.
    """

    KEYS: ClassVar[tuple[type[DOMNode], ...]] = (TextScreen, ResultPane, ToolRow)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+t", "tools", "Tools", show=False, id="writing.tools", tooltip="Choose a tool"
        ),
        Binding(
            "ctrl+s", "accept", "Accept", id="writing.accept",
            tooltip="Put the result into the text",
        ),
        Binding(
            "ctrl+o", "view('original')", "Original", id="writing.original",
            tooltip="Show the original in the place of the result, and back",
        ),
        Binding("ctrl+r", "again", "Again", id="writing.again", tooltip="Another answer"),
        Binding("escape", "stop", "Stop", id="writing.stop", tooltip="Stop writing"),
        Binding(
            "ctrl+b", "view('changes')", "Changes", show=False, id="writing.changes",
            tooltip="Show the words that differ from the original, and back",
        ),
        Binding(
            "ctrl+g", "describe", "Describe", show=False, id="writing.describe",
            tooltip="Describe a change, then press Enter",
        ),
        Binding(
            "ctrl+n", "other_pane", "Other pane", show=False, id="writing.pane",
            tooltip="Go to the other pane",
        ),
        Binding(
            "ctrl+z,super+z", "undo", "Undo", show=False, id="writing.undo",
            tooltip="Undo the last step, or typing",
        ),
        Binding(
            "ctrl+y,super+y", "redo", "Redo", show=False, id="writing.redo",
            tooltip="Take the last undone step again",
        ),
    ]  # fmt: skip
    DEFAULT_CSS = """
    WritingScreen #panes { height: 1fr; }
    WritingScreen #panes > * { width: 1fr; height: 1fr; }
    WritingScreen Tabs { display: none; }
    WritingScreen.-narrow Tabs { display: block; }
    WritingScreen.-low Tabs { display: none; }
    WritingScreen.-narrow #panes.-text ResultPane { display: none; }
    WritingScreen.-narrow #panes.-result Editor { display: none; }
    WritingScreen.-narrow ToolRow {
        layout: grid; grid-size: 5 2; grid-rows: 1; grid-columns: 11 12 1fr 14 1fr; height: 2;
    }
    WritingScreen.-narrow ToolRow Label { display: none; }
    WritingScreen.-narrow ToolRow Button { width: 100%; }
    WritingScreen.-low ToolRow, WritingScreen.-thin ToolRow {
        layout: horizontal; height: 1; align-horizontal: left;
    }
    WritingScreen.-low ToolRow Button, WritingScreen.-thin ToolRow Button { width: auto; }
    WritingScreen.-low #remarks { max-height: 2; }
    WritingScreen #change { padding: 0 1; }
    """

    class Came(Message):
        """What run ``number`` wrote or found."""

        def __init__(self, number: int, event: Written | Result) -> None:
            super().__init__()
            self.number, self.event = number, event

    class Failed(Message):
        """Run ``number`` ended without a result."""

        def __init__(self, number: int, error: Exception) -> None:
            super().__init__()
            self.number, self.error = number, error

    class LaidOut(Message):
        """How ``desk`` is shown."""

        def __init__(self, desk: Desk, view: View, layout: Layout) -> None:
            super().__init__()
            self.desk, self.view, self.layout = desk, view, layout

    def __init__(self) -> None:
        super().__init__()
        self.history = History(Desk())
        self.running: Job | None = None
        self.unfinished: Job | None = None
        self.view: View = "result"
        self._number = 0

    def compose_body(self) -> ComposeResult:
        yield Tabs(Tab("Text", id="tab-text"), Tab("Result", id="tab-result"))
        with Horizontal(id="panes", classes="-text"):
            yield Editor(placeholder="Type or paste a text, or open one with Ctrl+L")
            yield ResultPane(id="result")
        yield ToolRow()
        yield Input(id="change", select_on_focus=False, compact=True)

    def on_resize(self, event: Resize) -> None:
        self.set_class(event.size.width < GRID, "-thin")

    def on_mount(self) -> None:
        self.query_one(Tabs).can_focus = False  # Ctrl+N goes to the other pane
        self.describe_text()
        self._draw()
        self.editor.focus()

    @property
    def desk(self) -> Desk:
        """The text and the result, as of the last step."""
        return self.history.present

    @property
    def pane(self) -> ResultPane:
        return self.query_one(ResultPane)

    # ---- steps

    def settle(self) -> None:
        """Make a step of what was typed since the last one."""
        self.step("typing", replace(self.desk, text=self.editor.text))

    def step(self, label: str, desk: Desk) -> None:
        """Go on to another state of the desk."""
        self.history = self.history.step(label, desk)
        self.editor.become(desk.text)

    def attempt(self, label: str, change: Callable[[], Desk]) -> None:
        """Make a step, or say why it cannot be made."""
        self.settle()
        try:
            if self.unfinished is not None:
                raise InputError("the answer is not whole: write it again with Ctrl+R")
            self.step(label, change())
        except InputError as error:
            self.report(error)
        else:
            self._show("result")

    def action_undo(self) -> None:
        self.settle()
        self._go(self.history.undo(), f"Undone: {self.history.undoes}")

    def action_redo(self) -> None:
        self.settle()
        self._go(self.history.redo(), f"Done again: {self.history.redoes}")

    def _go(self, history: History[Desk], said: str) -> None:
        if history is self.history:
            self.notify("There is no step to go to", timeout=2)
            return
        self.history = history
        self.editor.become(self.desk.text)
        self._show("result")
        self.notify(said, timeout=2, markup=False)

    def text_opened(self) -> None:
        self._end()
        self.history = History(Desk(self.editor.text))
        self._show("result")
        self._show_pane("text")

    # ---- runs

    def start(self, job: Job) -> None:
        """Have a job done; one that is under way ends."""
        self._number += 1
        self.running, self.unfinished, self.view = job, None, "result"
        self.pane.begin(job.tool.label)
        self._show_pane("result")
        self.pane.focus_shown()
        self.refresh_bindings()
        self._run(self._number, job)

    @work(group="answer", exclusive=True)
    async def _run(self, number: int, job: Job) -> None:
        try:
            async with aclosing(do(self.services, job)) as events:
                async for event in events:
                    self.post_message(self.Came(number, event))
        except Exception as error:  # whatever it is, this run is over
            self.post_message(self.Failed(number, error))

    def _end(self) -> None:
        """No run is under way any more; what its worker still sends is dropped."""
        self._number += 1
        self.running = None
        self.workers.cancel_group(self, "answer")
        self.refresh_bindings()

    def on_writing_screen_came(self, message: Came) -> None:
        if message.number != self._number:
            return
        event = message.event
        if isinstance(event, Written):
            self.pane.write(event)
            return
        self._end()
        self.settle()
        self.step(event.job.tool.label, replace(self.desk, result=event))
        self._show("result")

    def on_writing_screen_failed(self, message: Failed) -> None:
        if message.number != self._number:
            return
        self.unfinished = self.running
        self._end()
        self.pane.end("no answer")
        self.report(message.error)

    def action_stop(self) -> None:
        self.unfinished = self.running
        self._end()
        self.pane.end("stopped, Ctrl+R writes it again")

    def action_again(self) -> None:
        """Another answer, or the one that was stopped."""
        self.settle()
        job = self.unfinished
        if job is None and self.desk.result is not None:
            job = self.desk.result.job
            job = replace(job, attempt=job.attempt + 1)
        if job is not None:
            self.start(self.desk.again(job, *self.editor.span))

    @on(ToolRow.Chosen)
    def use_tool(self, message: ToolRow.Chosen) -> None:
        self.use(message.tool)

    def use(self, tool: Tool) -> None:
        """Use a tool on what is selected, or on all of the text."""
        self.settle()
        self.start(Job.on(tool, self.desk.text, *self.editor.span))

    @on(Input.Submitted, "#change")
    def change(self, event: Input.Submitted) -> None:
        instruction = event.value.strip()
        if not instruction:
            return
        self.settle()
        event.input.clear()
        self.start(self.desk.follow_up(instruction, *self.editor.span))

    # ---- decisions

    def action_accept(self) -> None:
        self.attempt("accepting the result", lambda: self.desk.accept())

    @on(ResultPane.Decided)
    def decide(self, message: ResultPane.Decided) -> None:
        label = "keeping" if message.decision == "kept" else "undoing"
        what = "all corrections" if message.every else "a correction"
        change = partial(Desk.decide, decision=message.decision, every=message.every)
        self.attempt(f"{label} {what}", lambda: change(self.desk))

    @on(ResultPane.Looked)
    def look(self, message: ResultPane.Looked) -> None:
        result = self.desk.result
        if result is not None and result.review is not None:
            moved = replace(result, review=result.review.go(message.by))
            # Looking is no step.
            self.history = replace(self.history, present=replace(self.desk, result=moved))
            self._draw()

    @on(ResultPane.SentenceKept)
    def keep_sentence(self) -> None:
        self.attempt("keeping a sentence", lambda: self.desk.keep_original())

    @on(ResultPane.Replied)
    def reply(self, message: ResultPane.Replied) -> None:
        self.attempt("taking a reply", lambda: self.desk.reply(message.number))

    # ---- what is shown

    def action_view(self, view: View) -> None:
        self._show("result" if self.view == view else view)

    def _show(self, view: View) -> None:
        self.view, self.unfinished = view, None
        self._draw()
        self.refresh_bindings()

    def _draw(self) -> None:
        self._lay_out(self.desk, self.view)
        told = self.desk.result is not None and not self.desk.result.replies
        self.query_one("#change", Input).placeholder = (
            "Describe the next change, to the result" if told else "Describe your change"
        )

    @work(group="view", exclusive=True)
    async def _lay_out(self, desk: Desk, view: View) -> None:
        laid_out = await asyncio.to_thread(layout, desk, view)
        self.post_message(self.LaidOut(desk, view, laid_out))

    def on_writing_screen_laid_out(self, message: LaidOut) -> None:
        now = message.desk is self.desk and message.view == self.view
        if now and self.running is None and self.unfinished is None:
            self.pane.show(message.layout)

    def action_select_all(self) -> None:
        self._show_pane("text")
        self.editor.focus()
        self.editor.select_all()

    def action_tools(self) -> None:
        self.query_one(ToolRow).focus_first()

    def action_describe(self) -> None:
        self.query_one("#change", Input).focus()

    def action_other_pane(self) -> None:
        to_text = self.pane.has_focus_within
        self._show_pane("text" if to_text else "result")
        (self.editor.focus if to_text else self.pane.focus_shown)()

    @on(Tabs.TabActivated)
    def tab_activated(self, event: Tabs.TabActivated) -> None:
        if event.tab.id == event.tabs.active:  # or it was another one meanwhile
            self._show_pane("text" if event.tab.id == "tab-text" else "result")

    def _show_pane(self, pane: Pane) -> None:
        """Where only one is seen, see this one."""
        panes = self.query_one("#panes")
        panes.set_class(pane == "text", "-text")
        panes.set_class(pane == "result", "-result")
        self.query_one(Tabs).active = f"tab-{pane}"

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self.running is not None
        if action in ("accept", "view", "again") and self.running is not None:
            return False
        if action in ("view", "again"):
            return self.desk.result is not None or self.unfinished is not None
        return True

    def text_to_copy(self) -> str:
        result = self.desk.result
        return result.text if result is not None and not result.taken else self.editor.text

    async def leave(self) -> None:
        self._end()

    def commands(self) -> Iterable[Command]:
        for tool in TOOLS:
            yield tool.label, tool.about, partial(self.use, tool)
        yield "Describe a change", "Say in your words what to change", self.action_describe
        yield "Accept", "Put the result into the text", partial(self.run_action, "accept")
        yield "Original", "Show the original, and back", partial(self.action_view, "original")
        yield (
            "Changes",
            "Show the words that differ, and back",
            partial(self.action_view, "changes"),
        )
        yield "Again", "Another answer", self.action_again
        yield "Undo", "Undo the last step", self.action_undo
        yield "Redo", "Take the last undone step again", self.action_redo
        yield "Copy", "Copy the result, or the text if there is none", self.action_copy_text
        yield "Select all", "Select all of the text", self.action_select_all
        yield "Open", "Open a text file", self.action_open
        yield "Save", "Save the text to its file", self.action_save
        yield "Save as", "Save the text to another file", self.action_save_as
