"""The pane that trains: fields and what is to be done, then curves, samples and the end."""

import asyncio
from dataclasses import replace

from afm_mlx.adapters.train import Planned
from afm_mlx.distill.markdown import duration, number
from afm_mlx.engine import Run
from afm_mlx.features import FEATURES
from afm_mlx.tui.adapters.order import FIELDS, defaults, order, plan_lines
from afm_mlx.tui.adapters.training import (
    Order,
    Seen,
    Watched,
    checking,
    first_prompt,
    often,
    training,
)
from afm_mlx.tui.panes import Field, Soon, values
from afm_mlx.tui.plain import visible
from afm_mlx.tui.plot import Plot, Series
from afm_mlx.tui.services import Services

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import Button, Label, Select, Static

WAITING = "queued: the engine does something else, or loads the model"


class Trainer(Vertical):
    """Trains on the engine's thread; other requests wait meanwhile.

    Attributes:
        running: whether a run is at work.
        checking: whether samples are being read.
    """

    DEFAULT_CSS = """
    Trainer { padding: 0 1; }
    Trainer .row { height: 1; }
    Trainer .row > Label { width: 12; color: $text-muted; }
    Trainer .row > Select { width: 1fr; }
    Trainer .buttons { height: 1; margin: 1 0; }
    Trainer .buttons > Button { margin-right: 1; }
    Trainer #plan { height: auto; }
    Trainer #watch { display: none; height: 1fr; }
    Trainer.-watch #watch { display: block; }
    Trainer.-watch #form { display: none; }
    Trainer #progress { height: auto; }
    Trainer Plot { height: 2fr; min-height: 5; }
    Trainer #samples { height: 1fr; min-height: 3; border-top: solid $panel; }
    Trainer #samples > Static { height: auto; }
    """

    running: reactive[bool] = reactive(False, bindings=True)
    checking: reactive[bool] = reactive(False, bindings=True)

    class Ended(Message):
        """A run is over; ``adapter`` is the name of the one that it wrote, if it did."""

        def __init__(self, adapter: str) -> None:
            super().__init__()
            self.adapter = adapter

    class Wanted(Message):
        """A button was pressed: ``check``, ``train``."""

        def __init__(self, action: str) -> None:
            super().__init__()
            self.action = action

    def __init__(self, services: Services) -> None:
        super().__init__()
        self.services = services
        self.watched, self._called = Watched(), ""
        self._show_soon = Soon(self, self._show)
        self._checked: tuple[Order, Planned] | None = None
        self._run: Run[Seen] | None = None

    def compose(self) -> ComposeResult:
        usual = defaults()
        with VerticalScroll(id="form"):
            yield Field("samples", "data", "", "chat.jsonl", "JSONL, JSON or text files")
            yield Field("name", "name", "", "letters, digits, - and _")
            with Horizontal(classes="row"):
                yield Label("feature", markup=False)
                yield Select(
                    ((Text(name), name) for name in FEATURES), prompt="any", id="for", compact=True
                )
            yield Field("rank", "rank", usual["rank"], tip="Numbers in it; 16 is Apple's")
            yield Field("epochs", "epochs", usual["epochs"], tip="Times through the samples")
            yield Field("rate", "rate", usual["rate"], tip="Highest learning rate")
            yield Field(
                "prompt", "prompt", "", "the first one of the samples", "Answered on the way"
            )
            with Horizontal(classes="buttons"):
                yield Button("Check", id="go-check", compact=True, tooltip="Only read them")
                yield Button("Train", id="go-train", compact=True, variant="primary")
            yield Static(id="plan", markup=False)
        with Vertical(id="watch"):
            yield Static(id="progress", markup=False)
            yield Plot("step", "loss", id="curves")
            with VerticalScroll(id="samples"):
                yield Static(id="said", markup=False)

    # ---- before

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Wanted(str(event.button.id).removeprefix("go-")))

    def order(self) -> Order:
        """The run that the fields ask for.

        Raises:
            InputError: a field is empty or holds what it cannot.
        """
        chosen = self.query_one("#for", Select).value
        return order(
            values(self, FIELDS), chosen if isinstance(chosen, str) else "", self.services.home
        )

    async def check(self, again: bool = True) -> Planned:
        """Read the samples, also those that were read before if ``again``, and show the plan.

        Raises:
            AFMError: the samples or the fields cannot be used.
        """
        self.remove_class("-watch")
        wanted = self.order()
        if not again and self._checked is not None and self._checked[0] == wanted:
            return self._checked[1]
        self._say("#plan", WAITING if self.services.status.busy else "reading the samples …")
        planned: Planned | None = None
        run = self.services.engine.stream(checking(wanted))
        self.checking = True
        try:
            with self.services.busy("reading samples"):
                async for event in run:
                    planned = event if isinstance(event, Planned) else planned
        finally:
            run.cancel()
            self.checking = False
            self._say("#plan", "")
        assert planned is not None  # a run that plans nothing raises
        self._checked = wanted, planned
        self._say("#plan", "\n".join(plan_lines(planned, self.services.status.model)))
        self.query_one("#plan").scroll_visible()
        return planned

    # ---- the run

    async def train(self) -> None:
        """Train until the end, or until :meth:`stop`.

        Raises:
            AFMError: it cannot be trained or written.
        """
        await self.check(again=False)
        assert self._checked is not None  # or the check had raised
        wanted, planned = self._checked  # the fields may have changed meanwhile
        prompt = wanted.prompt or await asyncio.to_thread(first_prompt, wanted.data)
        wanted = replace(wanted, options=often(wanted.options, planned), prompt=prompt)
        self.watched, self.running = Watched(), True
        self._checked = None  # the next one goes on where this one ends
        self._called = wanted.options.name
        self.add_class("-watch")
        self._show()
        written = ""
        try:
            with self.services.busy("training"):
                self._run = self.services.engine.stream(training(wanted))
                async for event in self._run:
                    self.watched.see(event)
                    self._show_soon()
            written = self._called if self.watched.finished else ""
        finally:
            self.running, self._run = False, None
            self._show()
            self.post_message(self.Ended(written))

    def stop(self) -> None:
        """End the run after the step at work; the best save becomes the adapter."""
        if self._run is not None and not self._run.cancelled:
            self._run.cancel()
            self._show()

    def back(self) -> None:
        """Show the fields again."""
        self.remove_class("-watch")

    def _show(self) -> None:
        if not self.is_attached:  # the app ends
            return
        stopping = self._run is not None and self._run.cancelled
        lines = progress_lines(self._called, self.watched, self.running, stopping)
        self._say("#progress", "\n".join(lines))
        self.query_one(Plot).show(
            [
                Series("train", tuple(self.watched.losses)),
                Series("held-out", tuple(self.watched.held_out)),
            ]
        )
        said = [f"after step {s.step}: {s.text.strip()}" for s in reversed(self.watched.samples)]
        self._say("#said", "\n".join(said))

    def _say(self, where: str, text: str) -> None:
        self.query_one(where, Static).update(Text(visible(text)))


def progress_lines(name: str, watched: Watched, running: bool, stopping: bool) -> list[str]:
    """How far a run is, in words."""
    finished = watched.finished
    if finished is not None:
        loss = [figures.get("loss") for figures in (finished.before, finished.after)]
        gain = "" if None in loss else f": held-out loss {number(loss[0])}, now {number(loss[1])}"
        return [f"✓ {name} is written{gain}", _why(watched) + "ctrl+s swaps it in"]
    if not running:
        return [f"✗ {name} is not written", watched.ended or "the run ended with an error"]
    if not watched.steps:
        return [f"{name}: {WAITING}"]
    share = watched.step / watched.steps
    left = "" if watched.left is None else f" · {duration(watched.left)} left"
    speed = f" · {watched.tokens_per_second:.0f} tok/s" if watched.tokens_per_second else ""
    peak = f" · peak {watched.peak / 1e6:.0f} MB" if watched.peak else ""
    best = "" if watched.best is None else f"best {watched.best[1]:.3f} at step {watched.best[0]:g}"
    end = "stopping: the best is written" if stopping else "esc stops and keeps the best"
    filled = round(10 * share)
    bar = "█" * filled + "░" * (10 - filled)
    return [
        f"{name}: step {watched.step} of {watched.steps} {bar}{left}{speed}{peak}",
        " · ".join(filter(None, (best, end))),
    ]


def _why(watched: Watched) -> str:
    return f"stopped after step {watched.step}, {watched.ended}; " if watched.ended else ""
