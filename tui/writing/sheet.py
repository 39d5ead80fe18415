"""Text areas of the writing screen: one to write in, one to read from, both for long texts.

What a text holds is shown and never obeyed: control characters, which a terminal would act on,
are shown as pictures of themselves.
"""

import os
from typing import ClassVar

from afm_mlx.tui.plain import visible
from afm_mlx.tui.writing.textfile import plain_ends
from afm_mlx.tui.writing.worddiff import Marked

from rich.text import Text
from textual.actions import SkipAction
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

LONGEST = 20_000
"""Characters of a line that are wrapped: Textual wraps a line anew for each of its rows on the
screen, and a key would take seconds. Longer ones are scrolled sideways."""


class Sheet(TextArea):
    """A text of which only the part that changes is drawn anew.

    Where it has nothing of its own to undo, the screen undoes.
    """

    BINDINGS: ClassVar[list[BindingType]] = [  # in the place of two of a TextArea's
        Binding("f6", "app.models", show=False, id="sheet.models", tooltip="Choose a model"),
        Binding("f7", "app.keys", show=False, id="sheet.keys", tooltip="All keys"),
    ]

    class Copy(Message):
        """A person wants ``text`` in the clipboard."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def get_line(self, line_index: int) -> Text:
        return Text(visible(self.document.get_line(line_index)), end="", no_wrap=True)

    def on_text_area_changed(self) -> None:
        wrap = all(len(line) <= LONGEST for line in self.document.lines)
        if wrap != self.soft_wrap:
            self.soft_wrap = wrap

    def become(self, text: str) -> None:
        """Show another text; what both have at their ends stays as it is, and so does the view.

        There is nothing to undo afterwards.
        """
        before, text = self.text, plain_ends(text)
        if text != before:
            head = len(os.path.commonprefix([before, text]))
            rest = [before[head:][::-1], text[head:][::-1]]
            tail = len(os.path.commonprefix(rest))
            end = self.location(len(before) - tail)
            self.replace(text[head : len(text) - tail], self.location(head), end)
        self.history.clear()

    def location(self, index: int) -> tuple[int, int]:
        """Line and column of a character."""
        for row, line in enumerate(self.document.lines):
            if index <= len(line):
                return row, index
            index -= len(line) + 1
        return self.document.end

    def index(self, location: tuple[int, int]) -> int:
        """Number of the character at a line and column."""
        row, column = location
        return sum(len(line) + 1 for line in self.document.lines[:row]) + column

    def action_copy(self) -> None:
        """Copy what is selected; without a selection the screen copies the result."""
        if not self.selected_text:
            raise SkipAction()
        self.post_message(self.Copy(self.selected_text))

    def action_undo(self) -> None:
        before = self.text
        super().action_undo()
        if self.text == before:
            raise SkipAction()

    def action_redo(self) -> None:
        before = self.text
        super().action_redo()
        if self.text == before:
            raise SkipAction()


class Editor(Sheet):
    """The text to work on; steps of the screen are undone where nothing was typed since."""

    DEFAULT_CSS = """
    Editor { border: round $primary; padding: 0; }
    Editor:focus { border: heavy $accent; }
    """

    class NothingToPaste(Message):
        """The app's own clipboard is empty."""

    @property
    def span(self) -> tuple[int, int]:
        """First and last character of the selection; the same if there is none."""
        start, end = sorted(self.selection)
        return self.index(start), self.index(end)

    def action_paste(self) -> None:
        if self.app.clipboard:
            super().action_paste()
        else:
            self.post_message(self.NothingToPaste())


class Reader(Sheet):
    """A text to read, as it comes or with marks; additions and deletions have signs in it."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"reader--added", "reader--removed"}
    DEFAULT_CSS = """
    Reader { border: none; padding: 0; }
    Reader:focus { border: none; }
    Reader .reader--added { color: $text-success; text-style: underline; }
    Reader .reader--removed { color: $text-error; text-style: strike; }
    """

    def __init__(self, id: str | None = None) -> None:
        super().__init__(
            read_only=True, id=id, highlight_cursor_line=False, placeholder="Nothing yet"
        )
        self._marked = Marked("", {})
        self._piece: tuple[int, int] | None = None
        self._begin = (0, 0)
        self._streamed = ""

    def get_line(self, line_index: int) -> Text:
        line = super().get_line(line_index)
        for start, end, sign in self._marked.marks.get(line_index, ()):
            line.stylize(self.get_component_rich_style(f"reader--{sign}", partial=True), start, end)
        return line

    def show(self, shown: Marked) -> None:
        """Show a text with its marks, where it is looked at."""
        self._marked, self._piece = shown, None
        self.become(shown.text)
        self.notify_style_update()  # marks may differ where the text does not
        if shown.at is not None:
            self.move_cursor(shown.at, center=True)

    def begin(self) -> None:
        """Empty the sheet for what is going to be written."""
        self.show(Marked("", {}, (0, 0)))

    def stream(self, piece: tuple[int, int], text: str) -> None:
        """Show ``text`` as what is written of ``piece`` so far, after the pieces before it."""
        follow = self.is_vertical_scroll_end
        if piece != self._piece:
            if self._piece is not None and self.document.get_line(self.document.line_count - 1):
                self.insert("\n", self.document.end)
            self._piece, self._begin, self._streamed = piece, self.document.end, ""
        if text.startswith(self._streamed):
            self.insert(text[len(self._streamed) :], self.document.end)
        else:  # another attempt
            self.replace(text, self._begin, self.document.end)
        self._streamed = text
        self.history.clear()
        if follow:
            self.scroll_end(animate=False)
