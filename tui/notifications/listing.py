"""The list of stacks: only the lines on screen are drawn, so ten thousand cost as little as ten."""

import itertools
import textwrap
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import ClassVar

from afm_mlx.tui.inbox import Key, Stack
from afm_mlx.tui.notifications.rows import NOTHING, Look, fitted, height, line
from afm_mlx.tui.notifications.summaries import Summary

from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

Shown = Callable[[Stack], tuple[Summary | None, Look]]
"""The summary of a stack, and how to show it."""


class InboxList(ScrollView, can_focus=True):
    """Stacks with a cursor, which stays on its stack when others come.

    Attributes:
        chosen: the stack that the cursor is on.
        expanded: those whose originals are shown.
        following: the cursor is on the newest stack until a person touched the list.
        problem: why there are no stacks, if something is in the way.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", False, id="inbox.up", tooltip="The stack above"),
        Binding("down,j", "move(1)", "Down", False, id="inbox.down", tooltip="The stack below"),
        Binding(
            "home,g",
            "end(-1)",
            "First",
            False,
            id="inbox.first",
            tooltip="Stay on the newest stack",
        ),
        Binding("end,G", "end(1)", "Last", False, id="inbox.last", tooltip="The oldest stack"),
        Binding(
            "pageup", "page(-1)", "Page up", False, id="inbox.page_up", tooltip="A page upwards"
        ),
        Binding(
            "pagedown", "page(1)", "Page down", False, id="inbox.page_down", tooltip="A page down"
        ),
        Binding(
            "enter", "open", "Open", False, id="inbox.open", tooltip="Show the stack's messages"
        ),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"inbox--chosen", "inbox--urgent"}
    DEFAULT_CSS = """
    InboxList { height: 1fr; scrollbar-size-vertical: 1; }
    InboxList > .inbox--chosen { background: $panel; }
    InboxList:focus > .inbox--chosen { background: $primary-muted; color: $foreground; }
    InboxList > .inbox--urgent { color: $text-warning; text-style: bold; }
    """

    class Chosen(Message):
        """The cursor is on another stack."""

    class Scrolled(Message):
        """Other stacks may be on screen."""

    class Opened(Message):
        """A person wants to see the messages of the chosen stack."""

    def __init__(self, shown: Shown, id: str | None = None) -> None:
        super().__init__(id=id)
        self._shown = shown
        self._stacks: Sequence[Stack] = ()
        self._places: dict[Key, int] = {}
        self._starts: list[int] = []
        self.chosen: Key | None = None
        self.following = True
        self.expanded: set[Key] = set()
        self.problem = ""

    @property
    def accent(self) -> Style:
        """Of what is urgent."""
        return self.get_component_rich_style("inbox--urgent", partial=True)

    def begin(self) -> None:
        """Forget where the cursor was, what was expanded, and what was wrong."""
        self.following, self.problem = True, ""
        self.expanded.clear()

    def set_stacks(self, stacks: Sequence[Stack]) -> None:
        """Show these, in this order."""
        place, line = self._place(), self._line()
        self._stacks = list(stacks)
        self._places = {stack.key: n for n, stack in enumerate(self._stacks)}
        heights = [height(stack, stack.key in self.expanded) for stack in self._stacks]
        self._starts = [0, *itertools.accumulate(heights)]
        self.virtual_size = Size(0, self._starts[-1])
        if not self._stacks:
            self.chosen, self.following = None, True
            self.post_message(self.Chosen())
        elif self.following:
            self._choose(0)
        elif self.chosen not in self._places:  # it is gone: the one in its place
            self._choose(place)
        elif self.scroll_offset.y:  # the cursor stays where a person looks
            moved = self.scroll_offset.y + self._line() - line
            self.scroll_to(y=moved, animate=False, force=True, immediate=True)
        self.refresh()

    def toggle(self) -> None:
        """Show or hide the originals of the chosen stack."""
        self.following = False
        if self.chosen is not None:
            self.expanded ^= {self.chosen}
            self.set_stacks(self._stacks)
            self._scroll_to_chosen()

    def refresh_stack(self, key: Key) -> None:
        """Draw a stack anew."""
        place = self._places.get(key)
        if place is not None:
            top = self._starts[place] - self.scroll_offset.y
            lines = self._starts[place + 1] - self._starts[place]
            self.refresh(Region(0, top, self.scrollable_content_region.width, lines))

    def visible_keys(self) -> list[Key]:
        """The stacks of which a line is on screen, from top to bottom."""
        if not self._stacks or not self.scrollable_content_region:
            return []
        top = self.scroll_offset.y
        first = bisect_right(self._starts, top) - 1
        last = bisect_right(self._starts, top + self.scrollable_content_region.height - 1)
        return [stack.key for stack in self._stacks[first:last]]

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        number = y + self.scroll_offset.y
        place = bisect_right(self._starts, number) - 1
        style = self.rich_style
        if not 0 <= place < len(self._stacks):
            text = fitted(Text() if self._stacks else self._nothing(number, width), width)
        elif not (stack := self._stacks[place]):  # it went since they were set
            text = fitted(Text(), width)
        else:
            summary, look = self._shown(stack)
            text = line(stack, summary, look, number - self._starts[place], width)
            if look.chosen:
                style += self.get_component_rich_style("inbox--chosen")
        return Strip(text.render(self.app.console), width).apply_style(style)

    def _nothing(self, number: int, width: int) -> Text:
        """A line of what stands in the place of stacks."""
        said = [f"✗ {self.problem}", NOTHING] if self.problem else [NOTHING]
        lines = [row for text in said for row in textwrap.wrap(text, max(width - 1, 1))]
        return Text(f" {lines[number]}" if number < len(lines) else "")

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Scrolled())

    def on_resize(self) -> None:
        self.post_message(self.Scrolled())

    def on_click(self, event: Click) -> None:
        place = bisect_right(self._starts, event.y + self.scroll_offset.y) - 1
        if 0 <= place < len(self._stacks):
            before, self.following = self.chosen, False
            self._choose(place)
            if event.chain == 2 and self.chosen == before:
                self.post_message(self.Opened())

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self.following = False
        self._choose(self._place() + by)

    def action_end(self, way: int) -> None:
        """Move the cursor to the newest or oldest stack."""
        self.following = way < 0
        self._choose(0 if way < 0 else len(self._stacks) - 1)

    def action_page(self, way: int) -> None:
        """Move the cursor by what fits on the screen."""
        line = (
            self._starts[self._place()] + way * max(self.scrollable_content_region.height, 2)
            if self._stacks
            else 0
        )
        self._choose(bisect_right(self._starts, line) - 1)

    def action_open(self) -> None:
        """Show the messages of the chosen stack."""
        self.following = False
        self.post_message(self.Opened())

    def _line(self) -> int:
        """Where the chosen stack begins."""
        return self._starts[self._place()] if self._starts else 0

    def _place(self) -> int:
        return self._places.get(self.chosen, 0) if self.chosen is not None else 0

    def _choose(self, place: int) -> None:
        if not self._stacks:
            return
        before, self.chosen = self.chosen, self._stacks[self._clamped(place)].key
        if before is not None:
            self.refresh_stack(before)
        self.refresh_stack(self.chosen)
        self._scroll_to_chosen()
        if self.chosen != before:
            self.post_message(self.Chosen())

    def _clamped(self, place: int) -> int:
        return max(0, min(place, len(self._stacks) - 1))

    def _scroll_to_chosen(self) -> None:
        place = self._place()
        top, lines = self._starts[place], self._starts[place + 1] - self._starts[place]
        region = Region(0, top, 1, min(lines, max(self.scrollable_content_region.height, 1)))
        self.scroll_to_region(region, animate=False, force=True)
