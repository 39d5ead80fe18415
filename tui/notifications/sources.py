"""Which source a person chose, and the view to choose another.

A file is kept in the settings; the Notification Center and the desktop only if they were switched
on there. Without any of them it is the demo.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from afm_mlx.tui.dialog import Dialog
from afm_mlx.tui.inbox import Source
from afm_mlx.tui.inbox.dbus import BusSource
from afm_mlx.tui.inbox.demo import DemoSource
from afm_mlx.tui.inbox.file import FileSource
from afm_mlx.tui.inbox.macos import MacSource
from afm_mlx.tui.settings import Settings, expanded

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, Label, OptionList
from textual.widgets.option_list import Option

RECENT = "inbox"
"""Name of the source among what the screens worked with last."""


@dataclass(frozen=True)
class Offer:
    """A source to choose.

    Attributes:
        question: asked before it is switched on.
        platform: the only one that has it, as ``sys.platform`` says it.
    """

    source: Source
    about: str
    question: str = ""
    platform: str = ""


OFFERS: Mapping[str, Offer] = {
    "demo": Offer(DemoSource(), "an invented inbox"),
    "macos": Offer(
        MacSource(),
        "this Mac's notifications",
        "Read the notifications of this Mac? Its database is opened for reading only, and needs"
        " Full Disk Access for this terminal. Nothing leaves this machine.",
        "darwin",
    ),
    "dbus": Offer(
        BusSource(),
        "this Linux desktop's notifications, from now on",
        "Watch what is sent to the notification service of this desktop? Nothing is kept, and"
        " nothing leaves this machine.",
        "linux",
    ),
}
"""All but a file, by the names that the settings keep."""


def offered() -> dict[str, Offer]:
    """What there is on this platform, by name."""
    return {n: offer for n, offer in OFFERS.items() if offer.platform in ("", sys.platform)}


def source_of(settings: Settings) -> Source:
    """The source that a person chose last."""
    if settings.inbox:
        return FileSource(expanded(settings.inbox))
    return OFFERS.get(settings.recent.get(RECENT, ""), OFFERS["demo"]).source


def changes(settings: Settings, choice: str) -> dict[str, Any]:
    """How settings change when ``choice`` is made: the name of an offer, or the path of a file."""
    kept = {k: v for k, v in settings.recent.items() if k != RECENT}
    if choice in OFFERS:
        return {"inbox": "", "recent": {**kept, RECENT: choice}}
    return {"inbox": str(expanded(choice).absolute()), "recent": kept}


class SourcePicker(Dialog[str | None]):
    """Sources to choose from; gives the name of an offer, the path of a file, or nothing."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="sources.close", tooltip="Leave all as it is"),
    ]
    DEFAULT_CSS = """
    SourcePicker { align: center middle; }
    SourcePicker > Vertical {
        width: 64; max-width: 100%; height: auto; max-height: 100%;
        padding: 0 1; border: round $primary; background: $surface;
    }
    SourcePicker OptionList { height: auto; max-height: 6; border: none; }
    """

    def __init__(self, current: Source, file: str = "") -> None:
        super().__init__()
        self.current, self.file = current, file

    def compose(self) -> ComposeResult:
        with Vertical() as view:
            view.border_title = "Notifications from"
            view.border_subtitle = "enter Use · esc Close"
            yield OptionList(*self._options(), markup=False, compact=True)
            yield Label("or a JSON or JSONL file, which is followed:", markup=False)
            yield Input(
                self.file,
                placeholder="path of the file",
                compact=True,
                tooltip="One notification or stack a line; what is appended arrives at once",
            )

    def _options(self) -> list[Option]:
        found = []
        for name, offer in offered().items():
            mark = "●" if offer.source == self.current else " "
            found.append(Option(Text(f"{mark} {offer.source.title}: {offer.about}"), id=name))
        return found

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.dismiss(event.value.strip())

    def action_close(self) -> None:
        """Choose nothing."""
        self.dismiss(None)
