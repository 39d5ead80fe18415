"""A screen with a text of its own: opened, saved, copied, pasted, and asked about if not saved."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from afm_mlx.tui.plain import plain
from afm_mlx.tui.screen import LONG_NOTICE, AfmScreen
from afm_mlx.tui.writing import clipboard, textfile
from afm_mlx.tui.writing.files import FileDialog
from afm_mlx.tui.writing.sheet import Editor
from afm_mlx.tui.writing.textfile import TextFile

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.widgets import TextArea


class TextScreen(AfmScreen):
    """Base of the writing screen: what it does with its text apart from the tools.

    Attributes:
        file: what the text was read from or saved to.
        saved: the text as it was then.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f9", "save", "Save", id="writing.save", tooltip="Save the text to its file"),
        Binding(
            "f10", "save_as", "Save as", show=False, id="writing.save-as",
            tooltip="Save the text to another file",
        ),
        Binding(
            "ctrl+l", "open", "Open", show=False, id="writing.open", tooltip="Open a text file"
        ),
        Binding(
            "ctrl+c,super+c", "copy_text", "Copy", show=False, id="writing.copy",
            tooltip="Copy what is selected, else the result",
        ),
    ]  # fmt: skip

    SAVES = True

    def __init__(self) -> None:
        super().__init__()
        self.file: TextFile | None = None
        self.saved = ""

    @property
    def editor(self) -> Editor:
        return self.query_one(Editor)

    @property
    def unsaved(self) -> bool:
        """Whether there is text that no file has."""
        return self.editor.text != self.saved

    @property
    def name_of_text(self) -> str:
        return self.file.path.name if self.file else "the text"

    def text_opened(self) -> None:
        """Called when there is another text than before."""

    def text_to_copy(self) -> str:
        """What to copy where nothing is selected."""
        return self.editor.text

    # ---- title

    @on(TextArea.Changed, "Editor")
    @on(TextArea.SelectionChanged, "Editor")
    def describe_text(self) -> None:
        """Say above and below the text what it is."""
        editor = self.editor
        title = f"Text · {self.file.path.name}" if self.file else "Text"
        editor.border_title = plain(title + (" · not saved" if self.unsaved else ""))
        start, end = editor.span
        chosen = f"{end - start:,} of " if end > start else ""
        editor.border_subtitle = Text(f"{chosen}{len(editor.text):,} characters")

    # ---- files

    @work(group="file", exclusive=True)
    async def action_open(self) -> None:
        question = f"{self.name_of_text} is not saved. Open another text and lose the changes?"
        if self.unsaved and not await self.confirm(question, "Open"):
            return
        await self.app.push_screen_wait(FileDialog("Open", self._folder(), self.open_file))

    @work(group="file", exclusive=True)
    async def action_save(self) -> None:
        await self._save()

    @work(group="file", exclusive=True)
    async def action_save_as(self) -> None:
        await self._save(another=True)

    def _folder(self) -> str:
        """Where to look for files first."""
        folder = self.file.path.parent if self.file else Path()
        return "" if folder == Path() else f"{folder}{os.sep}"

    async def open_file(self, path: Path) -> bool:
        """Go on with the text of a file.

        Raises:
            InputError: it cannot be read.
        """
        file, text = await asyncio.to_thread(textfile.read, path)
        self.file, self.saved = file, text
        self.editor.become(text)
        self.editor.move_cursor((0, 0))
        self.describe_text()
        self.text_opened()
        if file.note:
            self.notify(f"{path.name}: {file.note}", timeout=LONG_NOTICE, markup=False)
        return True

    async def _save(self, another: bool = False) -> bool:
        """Whether the text is saved now."""
        if self.file is None or another:
            given = str(self.file.path) if self.file else ""
            return await self.app.push_screen_wait(FileDialog("Save as", given, self.save_to))
        return await self._write(self.file)

    async def save_to(self, path: Path) -> bool:
        """Save to a file, which is the text's own from then on; asks before it replaces another.

        Raises:
            InputError: it cannot be written.
        """
        if self.file is not None and path == self.file.path:
            return await self._write(self.file)
        there = await asyncio.to_thread(path.exists)
        if there and not await self.confirm(f"{path} is there already. Replace it?"):
            return False
        return await self._write(replace(self.file or TextFile(path), path=path, changed=None))

    async def _write(self, file: TextFile) -> bool:
        text = self.editor.text
        if file.changed is not None and await asyncio.to_thread(textfile.changed_outside, file):
            question = f"{file.path.name} was changed by another program. Replace it?"
            if not await self.confirm(question, "Replace"):
                return False
        odd = await asyncio.to_thread(textfile.unwritable, file, text)
        if odd:
            question = f"{file.encoding} has no {odd!r}. Save as UTF-8?"
            if not await self.confirm(question, "UTF-8"):
                return False
            file = replace(file, encoding="utf-8", mark=b"")
        writing = asyncio.ensure_future(self._put(file, text))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:  # the thread writes on
            writing.add_done_callback(self._written_late)
            raise
        return True

    async def _put(self, file: TextFile, text: str) -> None:
        self.file = await asyncio.to_thread(textfile.write, file, text)
        self.saved = text
        if self.is_attached:  # or the app has ended
            self.describe_text()
            self.notify(f"Saved {file.path}", timeout=3, markup=False)

    def _written_late(self, writing: asyncio.Future[None]) -> None:
        error = None if writing.cancelled() else writing.exception()
        if error is not None and self.is_attached:
            self.report(error)

    async def may_leave(self) -> bool:
        question = f"{self.name_of_text} is not saved. End without it?"
        return not self.unsaved or await self.confirm(question, "Lose it")

    # ---- clipboard

    def action_copy_text(self) -> None:
        self.copy(self.get_selected_text() or self.text_to_copy())

    @on(Editor.NothingToPaste)
    def nothing_to_paste(self) -> None:
        self.notify(clipboard.NOTHING_TO_PASTE, timeout=LONG_NOTICE, markup=False)
