"""The pane of the result: what is being written, and what came of it, with its decisions."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from afm_mlx.tui.plain import visible
from afm_mlx.tui.writing.layout import Layout
from afm_mlx.tui.writing.review import Decision
from afm_mlx.tui.writing.sheet import Reader
from afm_mlx.tui.writing.work import Written

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Button, ContentSwitcher, DataTable, OptionList, Static
from textual.widgets.option_list import Option

Shown = Literal["sheet", "table", "replies"]


class ResultPane(Vertical):
    """A sheet, a table or replies; below it remarks, and buttons for what is to be decided."""

    DEFAULT_CSS = """
    ResultPane { border: round $primary; }
    ResultPane:focus-within { border: heavy $accent; }
    ResultPane ContentSwitcher { height: 1fr; }
    ResultPane ContentSwitcher > * { height: 1fr; border: none; padding: 0; }
    ResultPane OptionList:focus { border: none; }
    ResultPane #remarks { height: auto; max-height: 5; }
    ResultPane #remarks Static { height: auto; }
    ResultPane Horizontal { height: 1; display: none; }
    ResultPane Horizontal.-shown { display: block; }
    ResultPane Button { min-width: 0; padding: 0; margin-right: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "y", "decide('kept')", "Keep", show=False, id="writing.keep",
            tooltip="Keep this correction",
        ),
        Binding(
            "n", "decide('undone')", "Undo", show=False, id="writing.drop",
            tooltip="Undo this correction",
        ),
        Binding(
            "a", "decide('kept', True)", "All", show=False, id="writing.all",
            tooltip="Keep all corrections",
        ),
        Binding(
            "x", "decide('undone', True)", "None", show=False, id="writing.none",
            tooltip="Undo all corrections",
        ),
        Binding(
            "space", "look(1)", "Next", show=False, id="writing.next",
            tooltip="Look at the next correction",
        ),
        Binding(
            "b", "look(-1)", "Back", show=False, id="writing.back",
            tooltip="Look at the correction before",
        ),
        Binding(
            "k", "keep_sentence", "Keep sentence", show=False, id="writing.sentence",
            tooltip="Put the original sentence back, with what was lost of it",
        ),
    ]  # fmt: skip

    class Decided(Message):
        """Keep or undo the current correction, or every one."""

        def __init__(self, decision: Decision, every: bool) -> None:
            super().__init__()
            self.decision, self.every = decision, every

    class Looked(Message):
        """Look at another correction."""

        def __init__(self, by: int) -> None:
            super().__init__()
            self.by = by

    class SentenceKept(Message):
        """Put the original sentence of what was lost back."""

    class Replied(Message):
        """A reply was chosen."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    def compose(self) -> ComposeResult:
        with ContentSwitcher(initial="sheet"):
            yield Reader(id="sheet")
            yield DataTable[Text](id="table", zebra_stripes=True, cursor_type="row")
            yield OptionList(id="replies", markup=False)
        with VerticalScroll(id="remarks", can_focus=False):
            yield Static(id="remark", markup=False)
        with Horizontal(id="decisions"):
            yield _button("Keep y", "decide('kept')")
            yield _button("Undo n", "decide('undone')")
            yield _button("All a", "decide('kept', True)")
            yield _button("None x", "decide('undone', True)")
        with Horizontal(id="losses"):
            yield _button("Keep the original sentence k", "keep_sentence")

    def on_mount(self) -> None:
        self.border_title = "Result"

    def begin(self, title: str) -> None:
        """Make room for what is going to be written."""
        self.border_title, self.border_subtitle = title, "waiting"
        self.query_one(Reader).begin()
        self._arrange("sheet", Layout(title))

    def write(self, written: Written) -> None:
        """Show what is written so far."""
        parts = f" part {written.part} of {written.parts}" if written.parts > 1 else ""
        self.border_subtitle = f"writing{parts}"
        self.query_one(Reader).stream(written.piece, written.text)

    def end(self, state: str) -> None:
        """Say how the writing ended; what is there stays."""
        self.border_subtitle = state

    def show(self, layout: Layout) -> None:
        """Show a result."""
        self.border_title, self.border_subtitle = layout.title, ""
        shown: Shown = "table" if layout.rows else "replies" if layout.replies else "sheet"
        if shown == "table":
            self._fill(layout.rows)
        elif shown == "replies":
            options = self.query_one(OptionList)
            options.set_options(Option(Text(visible(r))) for r in layout.replies)
            options.highlighted = 0
        else:
            self.query_one(Reader).show(layout.sheet)
        self._arrange(shown, layout)

    def _fill(self, rows: Sequence[Sequence[str]]) -> None:
        table = self.query_one(DataTable)
        table.clear(columns=True)
        for head in rows[0]:
            table.add_column(Text(visible(head)))
        for row in rows[1:]:
            table.add_row(*(Text(visible(cell)) for cell in row), height=None)

    def _arrange(self, shown: Shown, layout: Layout) -> None:
        focused = self.has_focus_within
        self.query_one(ContentSwitcher).current = shown
        self.query_one("#remark", Static).update(Text(visible("\n".join(layout.remarks))))
        self.query_one("#remarks").display = bool(layout.remarks)
        self.query_one("#decisions").set_class(layout.review, "-shown")
        self.query_one("#losses").set_class(layout.lost, "-shown")
        self.refresh_bindings()
        if focused and not self.query_one(f"#{shown}").has_focus_within:
            self.focus_shown()

    def focus_shown(self) -> None:
        """Give the focus to what is shown."""
        self.query_one(f"#{self.query_one(ContentSwitcher).current}").focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("decide", "look"):
            return self.query_one("#decisions").has_class("-shown")
        if action == "keep_sentence":
            return self.query_one("#losses").has_class("-shown")
        return True

    def action_decide(self, decision: Decision, every: bool = False) -> None:
        self.post_message(self.Decided(decision, every))

    def action_look(self, by: int) -> None:
        self.post_message(self.Looked(by))

    def action_keep_sentence(self) -> None:
        self.post_message(self.SentenceKept())

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Replied(event.option_index))


def _button(label: str, action: str) -> Button:
    button = Button(Text(label), compact=True, action=action)
    button.can_focus = False  # its key does the same, and the focus stays with the text
    return button
