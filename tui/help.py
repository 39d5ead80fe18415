"""All keys of all screens, taken from the bindings themselves."""

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from afm_mlx.tui.dialog import Dialog

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.dom import DOMNode
from textual.widgets import Static

Section = tuple[str, list[tuple[str, str]]]
"""A title, then keys and what they do."""


def rows(
    sources: Iterable[type[DOMNode]], display: Callable[[Binding], str]
) -> Iterator[tuple[str, str]]:
    """Keys and what they do; all keys of one action in one row."""
    found: dict[str, tuple[list[str], str]] = {}
    for source in sources:
        for binding in Binding.make_bindings(vars(source).get("BINDINGS", ())):
            if binding.system:
                continue
            keys, _ = found.setdefault(binding.action, ([], binding.tooltip or binding.description))
            keys.append(display(binding))
    for keys, about in found.values():
        yield " ".join(dict.fromkeys(keys)), about


class Keys(Dialog[None]):
    """The keys, section by section."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f7", "close", "Close", id="keys.close", tooltip="Close this view"),
    ]
    DEFAULT_CSS = """
    Keys { align: center middle; }
    Keys > VerticalScroll {
        width: 76; max-width: 100%; height: 90%;
        padding: 0 1; border: round $primary; background: $surface;
    }
    """

    def __init__(self, sections: Iterable[Section]) -> None:
        super().__init__()
        self.sections = list(sections)

    def compose(self) -> ComposeResult:
        with VerticalScroll() as view:
            view.border_title = "Keys"
            view.border_subtitle = "esc Close"
            yield Static(Group(*self._parts()))

    def _parts(self) -> Iterator[Text | Table]:
        for title, keys in self.sections:
            yield Text(title, style="bold underline")
            table = Table.grid(padding=(0, 2))
            table.add_column(min_width=12)
            table.add_column(overflow="fold")
            for key, about in keys:
                table.add_row(Text(key, style="bold"), Text(about))
            yield table
            yield Text()

    def action_close(self) -> None:
        self.dismiss()
