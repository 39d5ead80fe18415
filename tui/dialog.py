"""Views that lie over a screen, and close once."""

from typing import TypeVar

from textual import on
from textual.await_complete import AwaitComplete
from textual.command import CommandPalette
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList

Answer = TypeVar("Answer")


class Dialog(ModalScreen[Answer]):
    """Base of all dialogs: the first answer counts, whatever lies over the dialog by then.

    Textual takes away the view on top, whichever it is, as often as it is told: two quick Enters
    would take away the screen below too, and a worker's answer the palette over the dialog.
    """

    answered = False

    def dismiss(self, result: Answer | None = None) -> AwaitComplete:
        """Close the dialog and what lies over it; once it is closed this does nothing."""
        if self.answered or self not in self.app.screen_stack:
            return AwaitComplete()
        self.answered = True
        while (above := self.app.screen) is not self:
            above.dismiss()
        return super().dismiss(result)


class Palette(CommandPalette):
    """The command palette; what is chosen is done once."""

    answered = False

    def dismiss(self, result: None = None) -> AwaitComplete:
        """Close the palette; once it is closed this does nothing."""
        if self.answered or self is not self.app.screen:
            return AwaitComplete()
        self.answered = True
        return super().dismiss(result)

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def _only_once(self, event: Input.Submitted | OptionList.OptionSelected) -> None:
        """A second Enter does not choose again."""
        if self.answered:
            event.stop()
            event.prevent_default()
