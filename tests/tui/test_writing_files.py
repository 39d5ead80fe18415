"""The writing screen with files, long texts, the clipboard, and when the app ends."""

from pathlib import Path
from typing import Any

from afm_mlx.tui.app import AfmApp
from afm_mlx.tui.screen import Question
from afm_mlx.tui.writing.files import FileDialog
from afm_mlx.tui.writing.sheet import Editor
from afm_mlx.tui.writing.tools import TOOLS
from tests.tui.support import (
    screen_text,
)
from tests.tui.writer import Person, at_the_desk

import pytest
from textual.widgets import Input, OptionList


def test_quitting_asks_and_can_be_called_off(tmp_path: Path) -> None:
    """A key held down too long answered the question, and No left only saving or losing."""

    async def test(person: Person) -> None:
        screen: Any = person.screen
        person.write("precious")
        for no in ("n", "escape"):
            await person.press("ctrl+q", "ctrl+q")
            await person.until(lambda: isinstance(person.app.screen, Question))
            await person.press("ctrl+q")
            assert isinstance(person.app.screen, Question) and not person.app._exit
            await person.press(no)
            await person.until(lambda: person.app.screen is screen)
            assert person.text == "precious"
        await person.press("f9")
        await person.until(lambda: isinstance(person.app.screen, FileDialog))
        person.app.screen.query_one(Input).value = str(tmp_path / "kept.txt")
        await person.press("enter")
        await person.until(lambda: person.app.screen is screen and not person.screen.unsaved)
        assert (tmp_path / "kept.txt").read_text() == "precious"
        person.write("more")
        await person.press("ctrl+q")
        await person.until(lambda: isinstance(person.app.screen, Question))
        await person.press("y")
        await person.until(lambda: person.app._exit)
        assert (tmp_path / "kept.txt").read_text() == "precious"

    at_the_desk(test, "Hello!")


def test_a_closed_terminal_does_not_wait_for_an_answer() -> None:
    async def test(person: Person) -> None:
        person.write("not saved")
        await person.press("ctrl+q")
        await person.until(lambda: isinstance(person.app.screen, Question))
        assert isinstance(person.app, AfmApp)
        person.app._end_alone()
        await person.until(lambda: person.app._exit)

    at_the_desk(test, "Hello!")


def test_opening_and_saving(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_bytes("Grüße\r\nAna\r\n".encode("utf-16"))
    (tmp_path / "left.txt").write_text("other")

    async def test(person: Person) -> None:
        screen = person.screen
        person.write("not saved")
        await person.press("ctrl+l")
        await person.until(lambda: isinstance(person.app.screen, Question))
        await person.press("n")
        await person.until(lambda: person.app.screen is screen)
        assert person.text == "not saved"
        await person.press("ctrl+l")
        await person.until(lambda: isinstance(person.app.screen, Question))
        await person.press("y")
        await person.until(lambda: isinstance(person.app.screen, FileDialog))
        path = person.app.screen.query_one(Input)
        path.value = "zebra"  # a border at its focus hid what was typed
        await person.until(lambda: "zebra" in screen_text(person.app))
        path.value = f"{tmp_path}/nothing.txt"
        await person.press("enter")
        await person.until(lambda: "cannot open" in screen_text(person.app))
        path.value = f"{tmp_path}/let"
        path.cursor_position = len(path.value)
        await person.until(lambda: person.app.screen.query_one(OptionList).option_count == 1)
        await person.press("tab")
        await person.until(lambda: path.value == str(letter))
        await person.press("enter")
        await person.until(lambda: person.app.screen is screen)
        assert person.text == "Grüße\nAna\n"
        assert screen.editor.border_title == "Text · letter.txt"
        screen.editor.focus()
        screen.editor.move_cursor((1, 0))
        await person.press("X")
        await person.until(lambda: screen.editor.border_title == "Text · letter.txt · not saved")
        await person.press("f9")
        await person.until(lambda: not screen.unsaved)
        assert letter.read_bytes().decode("utf-16") == "Grüße\r\nXAna\r\n"
        # Another program's changes are not lost without a question.
        letter.write_bytes(b"changed outside")
        await person.press("Y", "f9")
        await person.until(lambda: isinstance(person.app.screen, Question))
        await person.press("n")
        await person.until(lambda: person.app.screen is screen)
        assert letter.read_bytes() == b"changed outside"
        await person.press("f10")
        await person.until(lambda: isinstance(person.app.screen, FileDialog))
        person.app.screen.query_one(Input).value = str(tmp_path / "left.txt")
        await person.press("enter")
        await person.until(lambda: isinstance(person.app.screen, Question))
        await person.press("y")
        await person.until(lambda: person.app.screen is screen and not person.screen.unsaved)
        assert (tmp_path / "left.txt").read_bytes().decode("utf-16") == "Grüße\r\nXYAna\r\n"

    at_the_desk(test)


def test_a_long_text(tmp_path: Path) -> None:
    line = "The bus number 12 to the old harbour is late again today, says Ana. " * 5
    lines = [line] * 590
    text = "\n".join(lines)
    assert len(text) > 200_000
    file = tmp_path / "long.txt"
    file.write_text(text)

    async def test(person: Person) -> None:
        assert await person.screen.open_file(file)
        person.select((300, 0), (300, 37))
        await person.use("friendly")
        await person.press("ctrl+s")
        lines[300] = "Sorry, is" + line[39:]
        assert person.text == "\n".join(lines)
        await person.press("ctrl+o", "ctrl+z")
        assert person.text == text
        # All of it is over the limit of a request: it says so.
        person.select((0, 0), (0, 0))
        person.screen.use(TOOLS[5])
        await person.until(lambda: "split it" in person.told)

    at_the_desk(test, "Sorry,")


def test_one_long_line_is_not_wrapped() -> None:
    # every key took seconds, since the line was wrapped for each of its rows
    async def test(person: Person) -> None:
        editor = person.screen.query_one(Editor)
        editor.become("word " * 40_000)
        await person.until(lambda: not editor.soft_wrap)
        editor.become("word " * 100)
        await person.until(lambda: editor.soft_wrap)

    at_the_desk(test)


def test_the_clipboard(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(person: Person) -> None:
        await person.press("ctrl+v")
        assert "terminal's own key" in person.told
        person.write("hey")
        await person.use("friendly")
        monkeypatch.setenv("TERM", "linux")
        await person.press("ctrl+c")
        assert person.app.clipboard == "Hello, Ana!"
        assert "no clipboard for programs" in person.told
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("TERM_PROGRAM", raising=False)
        person.screen.editor.focus()
        person.select((0, 0), (0, 2))
        await person.press("ctrl+c")
        assert person.app.clipboard == "he"
        assert "Copied 2 characters to the terminal's clipboard" in person.told
        await person.press("ctrl+v", "ctrl+v")
        assert person.text == "hehey"

    at_the_desk(test, "Hello, Ana!")
