"""The dialog for a file to open or to save to: a path to type, with what it may become."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ClassVar

from afm_mlx.errors import AFMError, InputError
from afm_mlx.tui.dialog import Dialog
from afm_mlx.tui.plain import visible
from afm_mlx.tui.writing.textfile import complete

from rich.text import Text
from textual import work
from textual.actions import SkipAction
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.suggester import Suggester
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

MOST_SHOWN = 50
"""Paths listed at most; more letters narrow them down."""


class _Paths(Suggester):
    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        found = await asyncio.to_thread(complete, value) if value else []
        return found[0] if found else None


class PathInput(Input):
    """A path to type; Tab completes it as far as there is no choice."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "complete", "Complete", id="file.complete", tooltip="Complete the path"),
    ]

    async def action_complete(self) -> None:
        found = await asyncio.to_thread(complete, self.value)
        common = os.path.commonprefix(found)
        if len(common) <= len(self.value):
            raise SkipAction()
        self.value = common
        self.cursor_position = len(common)


class FileDialog(Dialog[bool]):
    """Asks for a path and uses it; what is wrong with it is said here, to be corrected.

    Args:
        use: opens or saves the file; ``False`` if the person thought better of it.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Cancel", id="file.cancel", tooltip="Leave all as it is"),
    ]
    DEFAULT_CSS = """
    FileDialog { align: center middle; }
    FileDialog > Vertical {
        width: 76; max-width: 100%; height: auto; max-height: 100%;
        padding: 0 1; border: round $primary; background: $surface;
    }
    FileDialog OptionList { height: auto; max-height: 8; border: none; padding: 0; }
    FileDialog OptionList:focus { border: none; }
    FileDialog Static { height: auto; color: $text-error; }
    """

    def __init__(self, title: str, path: str, use: Callable[[Path], Awaitable[bool]]) -> None:
        super().__init__()
        self.heading, self.path, self.use = title, path, use

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = self.heading
            box.border_subtitle = "enter OK · tab Complete · esc Cancel"
            yield PathInput(
                self.path,
                "Path of a file",
                suggester=_Paths(),
                select_on_focus=False,
                compact=True,
            )
            yield OptionList(markup=False)
            yield Static(markup=False)

    def on_input_changed(self, event: Input.Changed) -> None:
        self.query_one(Static).update("")
        self._list(event.value)

    @work(group="list", exclusive=True)
    async def _list(self, typed: str) -> None:
        found = await asyncio.to_thread(complete, typed)
        for options in self.query(OptionList):  # none where the dialog was closed meanwhile
            options.set_options(Option(Text(visible(path))) for path in found[:MOST_SHOWN])
        self._found = found[:MOST_SHOWN]

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        box = self.query_one(PathInput)
        box.value = self._found[event.option_index]
        box.cursor_position = len(box.value)
        box.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._use(event.value.strip())

    @work(group="use", exclusive=True)
    async def _use(self, typed: str) -> None:
        try:
            if not typed:
                raise InputError("the path is empty: type the name of a file")
            if await self.use(Path(os.path.expanduser(typed))):
                self.dismiss(True)
        except AFMError as error:
            for said in self.query("Vertical > Static").results(Static):
                said.update(Text(visible(f"✗ {error}")))

    def action_close(self) -> None:
        self.dismiss(False)
