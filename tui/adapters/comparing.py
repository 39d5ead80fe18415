"""The pane that shows what two adapters, or the model alone, make of one text."""

from typing import Any

from afm_mlx.features import FEATURES, Answer, Feature, Progress
from afm_mlx.tui.adapters.listing import BARE, PACKAGES, Shelf
from afm_mlx.tui.adapters.values import HINTS, value_for
from afm_mlx.tui.plain import visible
from afm_mlx.tui.services import Services
from afm_mlx.tui.settings import AUTO, Choice
from afm_mlx.tui.writing.sheet import Sheet

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import Button, Label, Select, Static

SIDES = ("left", "right")
BARE_VALUE = "(bare)"
"""The model without an adapter, among the values of a selection."""


class Comparing(Vertical):
    """Two answers to one text, side by side."""

    DEFAULT_CSS = """
    Comparing { padding: 0 1; }
    Comparing .row { height: 1; }
    Comparing .row > Label { width: 12; color: $text-muted; }
    Comparing .row > Select { width: 1fr; }
    Comparing TextArea { height: 1fr; min-height: 3; max-height: 8; margin: 1 0; }
    Comparing .answers { height: 2fr; }
    Comparing .answers > VerticalScroll { width: 1fr; height: 1fr; }
    Comparing .answers > #right-side { border-left: solid $panel; padding-left: 1; }
    Comparing Static { height: auto; }
    """

    running: reactive[bool] = reactive(False, bindings=True)

    class Wanted(Message):
        """The button was pressed."""

    def __init__(self, services: Services) -> None:
        super().__init__()
        self.services = services
        self._offered: list[tuple[str, str]] = []

    def compose(self) -> ComposeResult:
        with Horizontal(classes="row"):
            yield Label("feature", markup=False)
            yield Select(
                ((Text(feature.title), name) for name, feature in FEATURES.items()),
                allow_blank=False,
                value="summary",
                id="asked",
                compact=True,
            )
            yield Button("Compare", id="go", compact=True, variant="primary")
        with Horizontal(classes="row"):
            yield Label("adapters", markup=False)
            for side in SIDES:
                yield Select(((Text(BARE), BARE_VALUE),), allow_blank=False, id=side, compact=True)
        yield Sheet(id="text", compact=True)
        with Horizontal(classes="answers"):
            for side in SIDES:
                with VerticalScroll(id=f"{side}-side"):
                    yield Static(id=f"{side}-answer", markup=False)

    @property
    def feature(self) -> Feature[Any]:
        """What is asked of both."""
        return FEATURES[str(self.query_one("#asked", Select).value)]

    def offer(self, found: Shelf) -> None:
        """Let these be chosen; what is chosen stays if it is among them."""
        own = [(a.name, str(a.folder)) for a in found.adapters if found.fits(a) != "no"]
        self._offered = [(PACKAGES, AUTO), (BARE, BARE_VALUE), *own]
        known = [value for _, value in self._offered]
        for side in SIDES:
            select = self.query_one(f"#{side}", Select)
            before = select.value
            select.set_options((Text(name), value) for name, value in self._offered)
            select.value = before if before in known else BARE_VALUE

    def choose(self, side: str, choice: Choice) -> None:
        """Have a side answer with an adapter, if it is one that can be chosen."""
        value = BARE_VALUE if choice is None else choice
        if value in [known for _, known in self._offered]:
            self.query_one(f"#{side}", Select).value = value

    def on_select_changed(self, event: Select.Changed) -> None:
        event.stop()
        self.query_one(Sheet).placeholder = HINTS[self.feature.input]

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Wanted())

    async def compare(self) -> None:
        """Ask both, one after the other.

        Raises:
            AFMError: the text or an adapter cannot be used.
        """
        feature = self.feature
        value = value_for(feature, self.query_one(Sheet).text)
        chosen = {side: str(self.query_one(f"#{side}", Select).value) for side in SIDES}
        names = {known: name for name, known in self._offered}
        waiting = "queued" if self.services.status.busy else "…"
        for side in SIDES:
            self._say(side, names[chosen[side]], waiting)
        self.running = True
        try:
            for side, known in chosen.items():
                choice = None if known == BARE_VALUE else known
                if known == AUTO:
                    choice = await self.services.package_adapter(feature.name)
                async for event in self.services.run(feature, value, adapter=choice):
                    self._say(side, names[known], *answer_lines(event))
        finally:
            self.running = False

    def _say(self, side: str, name: str, *lines: str) -> None:
        text = Text(visible(name) + "\n", style="bold")
        text.append(visible("\n".join(lines)), style="none")
        self.query_one(f"#{side}-answer", Static).update(text)


def answer_lines(event: Progress | Answer) -> list[str]:
    """An answer, what is to be said of it, and what it cost."""
    if isinstance(event, Progress):
        return [event.text]
    cost = event.metrics
    invented = ", ".join(dict.fromkeys(claim.text for claim in event.claims))
    return [
        event.text,
        *(f"! {note}" for note in event.notes),
        *([f"✗ not in the text: {invented}"] if invented else []),
        f"first token {cost.time_to_first_token * 1e3:.0f} ms · {cost.tokens_per_second:.0f} tok/s"
        f" · {cost.generated_tokens} tok",
    ]
