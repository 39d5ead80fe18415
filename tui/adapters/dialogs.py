"""Questions with a line or two to type in: where an adapter comes from, where it goes."""

from collections.abc import Sequence
from typing import ClassVar

from afm_mlx.tui.dialog import Dialog
from afm_mlx.tui.panes import Field, values

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Button, Input, Static

Line = tuple[str, str, str, str]
"""Of a question: its name, label, value, and a hint."""


class Lines(Dialog[dict[str, str] | None]):
    """Lines to type in, by their names; ``None`` if nothing is to be done."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="lines.close", tooltip="Leave all as it is"),
    ]
    DEFAULT_CSS = """
    Lines { align: center middle; }
    Lines > Vertical {
        width: 72; max-width: 100%; height: auto; max-height: 100%;
        padding: 0 1; border: round $primary; background: $surface;
    }
    Lines Horizontal.buttons { height: auto; align-horizontal: right; margin-top: 1; }
    Lines Button { margin-left: 1; }
    """

    def __init__(self, title: str, do: str, lines: Sequence[Line]) -> None:
        super().__init__()
        self.asked, self.do, self.lines = title, do, lines

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(self.asked), markup=False)
            for name, label, value, hint in self.lines:
                yield Field(label, f"ask-{name}", value, hint)
            with Horizontal(classes="buttons"):
                yield Button("Close (esc)", id="no", compact=True)
                yield Button(Text(f"{self.do} (enter)"), id="yes", compact=True, variant="primary")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._done()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        if event.button.id == "yes":
            self._done()
        else:
            self.dismiss(None)

    def action_close(self) -> None:
        """Leave all as it is."""
        self.dismiss(None)

    def _done(self) -> None:
        names = tuple(f"ask-{name}" for name, *_ in self.lines)
        found = values(self, names)
        self.dismiss({name.removeprefix("ask-"): text for name, text in found.items()})
