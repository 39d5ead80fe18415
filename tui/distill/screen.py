"""F5 Distill: a run started, followed, paused and stopped, and what its models say next."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar

from afm_mlx.errors import InputError
from afm_mlx.tui.distill.nexttokens import TEXT, Next, bars, likeliest
from afm_mlx.tui.distill.process import COMMAND
from afm_mlx.tui.distill.runner import Runner
from afm_mlx.tui.distill.watching import curves, look_into
from afm_mlx.tui.panes import Field, Panes, ended, values
from afm_mlx.tui.plain import visible
from afm_mlx.tui.plot import Plot, Series
from afm_mlx.tui.screen import AfmScreen, Command

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import Resize
from textual.widgets import Static
from textual.worker import WorkType

PLOTS = {"loss": "#loss", "KL": "#kl", "agreement %": "#agreement"}
FROM_FILES = (
    "A run says nothing of tokens: at a pause and at the end ctrl+b loads its models from the saved"
    " folders, one after the other, and asks both what comes next."
)


class Curves(Vertical):
    """Three plots, one below the other."""

    def compose(self) -> ComposeResult:
        yield Plot("step", "loss", id="loss")
        yield Plot("step", "KL", id="kl")
        yield Plot("step", "agreement %", id="agreement")


class Tokens(VerticalScroll):
    """What teacher and student say next."""

    DEFAULT_CSS = """
    Tokens { padding: 0 1; }
    Tokens > Static { height: auto; margin-top: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Sequence[tuple[str, Sequence[Next]]] = ()

    def compose(self) -> ComposeResult:
        yield Field("text", "text", TEXT, "what the models go on with")
        yield Static(Text(FROM_FILES), id="bars", markup=False)

    def on_resize(self, event: Resize) -> None:
        self.show(self.found)

    def show(self, found: Sequence[tuple[str, Sequence[Next]]], note: str = "") -> None:
        """Show these models' tokens, or how they are to be had."""
        self.found = found
        lines = bars(found, max(self.size.width - 2, 32)) if found else []
        text = "\n".join([*lines, "", note or FROM_FILES] if lines else [note or FROM_FILES])
        self.query_one("#bars", Static).update(Text(visible(text)))


class DistillScreen(AfmScreen):
    """A run, its curves, and the tokens of its models."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "start", "Start", id="distill.start", tooltip="Start it, or go on"),
        Binding(
            "ctrl+n", "plan", "Plan", id="distill.plan", tooltip="What it takes, and if it fits"
        ),
        Binding(
            "ctrl+t", "pause", "Pause", id="distill.pause", tooltip="Pause at the next save"
        ),
        Binding(
            "escape", "stop", "Stop", id="distill.stop", tooltip="Stop, and write the best student"
        ),
        Binding(
            "ctrl+o", "watch", "Watch", id="distill.watch", tooltip="Follow the run in the folder"
        ),
        Binding(
            "ctrl+b", "tokens", "Tokens", id="distill.tokens",
            tooltip="Likeliest next tokens of teacher and student",
        ),
        Binding(
            "ctrl+l", "log", "Log scale", id="distill.log",
            tooltip="Losses on a logarithmic scale, or a plain one",
        ),
    ]  # fmt: skip

    command: ClassVar[Sequence[str]] = COMMAND
    """What is run, before its arguments."""

    def compose_body(self) -> ComposeResult:
        yield Panes(
            ("run", "Run", Runner(self.command)),
            ("curves", "Curves", Curves()),
            ("tokens", "Tokens", Tokens()),
        )

    def commands(self) -> Iterable[Command]:
        return [
            ("Start the distillation", "Or go on after a pause", self.action_start),
            ("Plan the distillation", "What it takes, and whether it fits", self.action_plan),
            ("Pause the distillation", "At its next save", self.action_pause),
            ("Stop the distillation", "And write the best student", self.action_stop),
            ("Watch a run", "Follow the one in the folder", self.action_watch),
            ("Next tokens", "Of teacher and student", self.action_tokens),
        ]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if not self.is_mounted:
            return True
        state = self.runner.state
        if action == "pause":
            return state in ("running", "pausing")
        if action == "stop":
            return state in ("planning", "running", "pausing", "paused", "watching")
        if action in ("start", "plan", "watch", "tokens"):
            return not self.runner.works
        return True

    @property
    def runner(self) -> Runner:
        """The pane of the run."""
        return self.query_one(Runner)

    @property
    def tokens(self) -> Tokens:
        """The pane of the tokens."""
        return self.query_one(Tokens)

    def on_runner_wanted(self, event: Runner.Wanted) -> None:
        {"plan": self.action_plan, "start": self.action_start, "watch": self.action_watch}[
            event.action
        ]()

    def on_runner_moved(self, event: Runner.Moved) -> None:
        for name, lines in curves(event.metrics).items():
            shown = [Series(series, points) for series, points in lines.items()]
            self.query_one(PLOTS[name], Plot).show(shown)

    def on_runner_emptied(self) -> None:
        for plot in self.query(Plot):
            plot.show(())

    # ---- the run

    def action_start(self) -> None:
        """Start what the fields say, or go on after a pause."""
        if not self.runner.works:
            self._work(self.runner.start, "run")
            self._follow()

    def action_plan(self) -> None:
        """Show what a run takes."""
        if not self.runner.works:
            if self.runner.order.folder != self.runner.folder.path:
                self.workers.cancel_group(self, "follow")
            self._work(self.runner.plan, "run")

    def action_pause(self) -> None:
        """Pause at the next save; once more at once."""
        if self.runner.state in ("running", "pausing"):
            self.runner.pause()

    def action_stop(self) -> None:
        """Stop what runs, and have the best student written; or follow no longer."""
        match self.runner.state:
            case "running" | "pausing":
                self.runner.halt()
            case "paused":
                self._work(self.runner.stop, "run")
            case "planning":
                self.workers.cancel_group(self, "run")
            case "watching":
                self.workers.cancel_group(self, "follow")

    def action_watch(self) -> None:
        """Follow the run in the folder, whoever started it."""
        if not self.runner.works:
            self._work(partial(self.runner.watch_run, self.runner.order.folder), "follow")

    def _follow(self) -> None:
        self._work(partial(self.runner.follow, self.runner.order.folder), "follow")

    async def leave(self) -> None:
        """Interrupt a run; the same settings go on after its last save."""
        if self.runner.works:
            self.runner.state = "pausing"
            self.runner.interrupt()
            await ended(self, "run")

    # ---- curves and tokens

    def action_log(self) -> None:
        """Switch the scale of losses and divergences."""
        for name in ("loss", "KL"):
            plot = self.query_one(PLOTS[name], Plot)
            plot.logarithmic = not plot.logarithmic

    def action_tokens(self) -> None:
        """Ask teacher and student what comes next."""
        self.query_one(Panes).shown = "tokens"
        if not self.runner.works:
            self._work(self._tokens, "tokens")

    async def _tokens(self) -> None:
        text = values(self.tokens, ("text",))["text"]
        folder = await asyncio.to_thread(look_into, self.runner.order.folder)
        student = folder.student
        if student is None:
            raise InputError(f"{folder.path} has no student yet: wait until it is cut out")
        found: list[tuple[str, Sequence[Next]]] = []
        for name, source in (("teacher", folder.teacher), student):
            self.tokens.show(found, f"loading the {name} from {source or 'the embedded model'} …")
            found.append((name, await likeliest(source, text)))
        self.tokens.show(found, f"from the saved folders, after {text!r}")

    def _work(self, job: WorkType[None], group: str) -> None:
        self.run_worker(job, group=group, exclusive=True)
