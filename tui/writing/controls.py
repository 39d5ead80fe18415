"""The row of tools and the line for a described change."""

from typing import ClassVar

from afm_mlx.tui.writing.tools import TOOLS, Tool

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import HorizontalScroll
from textual.message import Message
from textual.widgets import Button, Label


class ToolRow(HorizontalScroll, can_focus=False):
    """The tools, one button each; arrows go from one to the next."""

    DEFAULT_CSS = """
    ToolRow { height: 1; scrollbar-size: 0 0; align-horizontal: center; }
    ToolRow Button { min-width: 0; padding: 0; }
    ToolRow Label { color: $text-muted; padding-left: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "right,down", "step(1)", "Next tool", show=False, id="tools.next", tooltip="Next tool"
        ),
        Binding(
            "left,up", "step(-1)", "Tool before", show=False, id="tools.back", tooltip="Tool before"
        ),
    ]

    class Chosen(Message):
        """A tool is to be used."""

        def __init__(self, tool: Tool) -> None:
            super().__init__()
            self.tool = tool

    def compose(self) -> ComposeResult:
        yield Label("^t")  # its key; the footer has no room for it
        for tool in TOOLS:
            yield Button(Text(tool.label), id=tool.name, compact=True, tooltip=tool.about)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.post_message(self.Chosen(next(t for t in TOOLS if t.name == event.button.id)))

    def action_step(self, by: int) -> None:
        buttons = list(self.query(Button))
        at = next((i for i, b in enumerate(buttons) if b.has_focus), 0)
        buttons[(at + by) % len(buttons)].focus()

    def focus_first(self) -> None:
        """Give the focus to the first tool."""
        self.query(Button).first().focus()
