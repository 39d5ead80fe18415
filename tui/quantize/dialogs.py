"""Questions of this screen: a name or a path, perhaps one of those that are there."""

from collections.abc import Sequence
from typing import ClassVar

from afm_mlx.tui.dialog import Dialog
from afm_mlx.tui.plain import plain

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option


class Ask(Dialog[str | None]):
    """A line to type in, with suggestions below; Escape gives ``None``."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="ask.close", tooltip="Do nothing"),
    ]
    DEFAULT_CSS = """
    Ask { align: center middle; }
    Ask > Vertical {
        width: 70; max-width: 100%; height: auto; max-height: 100%;
        padding: 0 1; border: round $primary; background: $surface;
    }
    Ask OptionList { height: auto; max-height: 8; border: none; }
    Ask Static { height: auto; color: $text-muted; }
    """

    def __init__(
        self, title: str, value: str = "", hint: str = "", offered: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.asked, self.value, self.hint, self.offered = title, value, hint, list(offered)

    def compose(self) -> ComposeResult:
        with Vertical() as view:
            view.border_title = plain(self.asked)
            view.border_subtitle = "enter OK · esc Close"
            yield Input(self.value, compact=True)
            yield Static(plain(self.hint), markup=False)
            if self.offered:
                options = (Option(plain(text)) for text in self.offered)
                yield OptionList(*options, markup=False, compact=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self.dismiss(event.value.strip())

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.offered[event.option_index])

    def action_close(self) -> None:
        self.dismiss(None)
