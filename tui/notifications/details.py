"""The chosen stack beside the list: its summary, what was checked in it, its notifications."""

from afm_mlx.tui.inbox import Stack
from afm_mlx.tui.notifications.compare import Comparison, sides
from afm_mlx.tui.notifications.rows import Look, detailed, heading, originals, switched_off
from afm_mlx.tui.notifications.summaries import Summary

from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

FLAG = Style(bold=True, underline=True)
"""Of words that the source does not bear out; they stand between brackets too."""
TO_COMPARE = "c summarizes the chosen stack without and with the adapter."
CHANGED = "More has arrived since this stack was compared: c compares again."


class Messages(VerticalScroll):
    """Summary, checks and originals of one stack."""

    DEFAULT_CSS = """
    Messages { padding: 0 1; scrollbar-size-vertical: 1; }
    Messages > Static { height: auto; }
    Messages > .originals { border-top: solid $panel; }
    Messages:focus > .originals { border-top: solid $primary; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._listed: tuple[object, ...] = ()

    def compose(self) -> ComposeResult:
        yield Static(classes="heading", markup=False)
        yield Static(classes="originals", markup=False)

    def show(self, stack: Stack, summary: Summary | None, look: Look) -> None:
        """Show a stack; its notifications are drawn only when they are others."""
        text = heading(stack, summary, look, FLAG)
        self.query_one(".heading", Static).update(text)
        listed = (stack.key, len(stack), detailed(stack), look.now.date())
        if listed != self._listed:
            same = self._listed[:1] == listed[:1]
            self._listed = listed
            self.query_one(".originals", Static).update(originals(stack, look.now))
            if not same:
                self.scroll_home(animate=False)

    def clear(self) -> None:
        """Show nothing."""
        self._listed = ()
        for static in self.query(Static):
            static.update(Text())


class Compare(VerticalScroll):
    """Two summaries of one stack side by side, below each other where it is narrow."""

    DEFAULT_CSS = """
    Compare { layout: horizontal; padding: 0 1; scrollbar-size-vertical: 1; }
    Compare > Static { width: 1fr; height: auto; margin-right: 1; }
    """

    def compose(self) -> ComposeResult:
        yield Static(TO_COMPARE, classes="base", markup=False)
        yield Static(classes="adapter", markup=False)

    def show(self, comparison: Comparison | None, stack: Stack | None, off: bool) -> None:
        """Show a comparison, if it is of the stack as it is now and its app is not ``off``."""
        left, right = Text(TO_COMPARE), Text()
        if stack is not None and off:
            left = Text(switched_off(stack.app))
        elif comparison is not None and stack is not None and comparison.key == stack.key:
            left = Text(CHANGED)
            if comparison.value == stack.value:
                left, right = sides(comparison, FLAG)
        self.query_one(".base", Static).update(left)
        self.query_one(".adapter", Static).update(right)
