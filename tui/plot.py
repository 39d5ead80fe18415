"""A plot that is told its points again and again, and drawn ten times a second at most."""

from collections.abc import Sequence
from time import monotonic

from afm_mlx.tui.braille import Series, draw, picture

from rich.text import Text
from textual.reactive import reactive
from textual.timer import Timer
from textual.widget import Widget

__all__ = ["Plot", "Series", "draw"]

PAUSE = 0.1
"""Seconds between two drawings at least."""
STYLES = tuple(f"plot--{place}" for place in ("first", "second", "third", "fourth"))


class Plot(Widget):
    """Lines over an axis; what is what can be told by markers, without colours.

    Attributes:
        logarithmic: whether the scale upwards is logarithmic.
        drawings: how often it was drawn anew.
    """

    COMPONENT_CLASSES = set(STYLES)
    DEFAULT_CSS = """
    Plot { height: 1fr; min-height: 4; color: $foreground; }
    Plot > .plot--first { color: $text-primary; }
    Plot > .plot--second { color: $text-warning; }
    Plot > .plot--third { color: $text-success; }
    Plot > .plot--fourth { color: $text-error; }
    """

    logarithmic: reactive[bool] = reactive(False)

    def __init__(
        self, x: str = "", y: str = "", logarithmic: bool = False, id: str | None = None
    ) -> None:
        super().__init__(id=id)
        self.x, self.y = x, y
        self.series: Sequence[Series] = ()
        self.drawings = 0
        self.set_reactive(Plot.logarithmic, logarithmic)
        self._waiting: Timer | None = None
        self._last = 0.0

    def show(self, series: Sequence[Series]) -> None:
        """Draw these from now on, at once or when the pause is over."""
        self.series = series
        if self._waiting is None:
            rest = self._last + PAUSE - monotonic()
            self._waiting = self.set_timer(max(rest, 0.001), self._draw)

    def _draw(self) -> None:
        self._waiting, self._last = None, monotonic()
        self.drawings += 1
        self.refresh()

    def render(self) -> Text:
        width, height = self.size
        made = picture(self.series, width, height, self.logarithmic, self.x, self.y)
        shown = Text(no_wrap=True, end="")
        for row in range(height):
            for text, owner in made.runs(row):
                style = STYLES[owner % len(STYLES)]
                shown.append(text, self.get_component_rich_style(style) if owner >= 0 else "")
            shown.append("\n" if row < height - 1 else "")
        return shown
