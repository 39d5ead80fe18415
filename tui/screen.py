"""What all screens share: status line and footer, questions, errors, commands, an orderly end."""

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar, cast

from afm_mlx.tui.dialog import Dialog
from afm_mlx.tui.plain import plain
from afm_mlx.tui.services import Services
from afm_mlx.tui.status import StatusLine
from afm_mlx.tui.writing import clipboard
from afm_mlx.tui.writing.sheet import Sheet

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.dom import DOMNode
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Button, Footer, Static

if TYPE_CHECKING:
    from afm_mlx.tui.app import AfmApp

SCREENS = {
    "notifications": ("Notifications", "Notif."),
    "writing": ("Writing", "Write"),
    "adapters": ("Adapters", "Adapt"),
    "quantize": ("Quantize", "Quant"),
    "distill": ("Distill", "Distil"),
}
"""Titles of the screens, in full and short, by their packages in ``afm_mlx.tui``; F1 is first."""

LONG_NOTICE = 8
"""Seconds that a notice stays which says what to do."""

Command = tuple[str, str, Callable[[], object]]
"""Of the command palette: its title, what it does, and what is called."""


def titles(current: str, width: int) -> list[tuple[str, str]]:
    """Screens and how they are called in ``width`` columns; ``▸`` marks the current one."""
    for name in (lambda pair: pair[0], lambda pair: pair[1], lambda pair: ""):
        found = [
            (mode, f"{'▸' if mode == current else ' '}F{n} {name(pair)}".rstrip())
            for n, (mode, pair) in enumerate(SCREENS.items(), 1)
        ]
        if sum(len(title) + 1 for _, title in found) <= width:
            return found
    return found


class Titles(Static):
    """The screens by their keys; a click leads there too."""

    DEFAULT_CSS = """
    Titles { height: 1; background: $surface; link-style: none; link-color: $foreground; }
    """

    def on_resize(self, event: Resize) -> None:
        current = self.app.current_mode
        parts = [
            f"[{'bold' if mode == current else ''} @click=app.go('{mode}')]{title}[/]"
            for mode, title in titles(current, event.size.width)
        ]
        self.update(" ".join(parts))


class AfmScreen(Screen[None]):
    """Base of the screens on F1 to F5.

    A subclass composes what lies between status line and footer, and has the class ``-wide`` from
    100 columns on, ``-narrow`` below, and ``-low`` below 16 rows. Long work runs in workers
    (``self.run_worker``); an exception in one is shown, and the app goes on.
    """

    DEFAULT_CSS = """
    AfmScreen #head { dock: top; height: auto; }
    AfmScreen.-low Titles { display: none; }
    """
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
    KEYS: ClassVar[tuple[type[DOMNode], ...]] = ()
    """Widgets whose keys the help lists beside those of the screen."""
    SAVES: ClassVar[bool] = False
    """Whether F9 saves what is copied."""
    VERTICAL_BREAKPOINTS = [(0, "-low"), (16, "-high")]

    def compose(self) -> ComposeResult:
        with Vertical(id="head"):
            yield StatusLine(self.services)
            yield Titles()
        yield from self.compose_body()
        yield Footer()

    def compose_body(self) -> ComposeResult:
        """The widgets of the screen."""
        raise NotImplementedError

    @property
    def afm(self) -> "AfmApp":
        """The app."""
        return cast("AfmApp", self.app)

    @property
    def services(self) -> Services:
        """The door to the package."""
        return self.afm.services

    def commands(self) -> Iterable[Command]:
        """What the command palette offers on this screen."""
        return ()

    async def may_leave(self) -> bool:
        """Whether the app may end, before anything is stopped; ask the person if in doubt."""
        return True

    async def leave(self) -> None:
        """Called before the app ends: stop what runs, and keep its best."""

    def report(self, error: BaseException) -> None:
        """Show an error: what is wrong and what to do; F8 shows all that is known of it."""
        self.afm.report(error)

    @on(Sheet.Copy)
    def copy_selected(self, event: Sheet.Copy) -> None:
        self.copy(event.text)

    def copy(self, text: str) -> None:
        """Copy ``text``, and say where it went."""
        if not text:
            return
        self.app.copy_to_clipboard(text)
        said, reaches = clipboard.outcome(text, os.environ, self.SAVES)
        if reaches:
            self.notify(said, timeout=3, markup=False)
        else:
            self.notify(said, severity="warning", timeout=LONG_NOTICE, markup=False)

    async def confirm(self, question: str, yes: str = "Yes") -> bool:
        """Ask before something that cannot be undone; call it in a worker."""
        return await self.afm.push_screen_wait(Question(question, yes))


class Question(Dialog[bool]):
    """A question with two answers; Escape is no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", id="question.yes", tooltip="Do it"),
        Binding("n,escape", "answer(False)", "No", id="question.no", tooltip="Leave all as it is"),
    ]
    DEFAULT_CSS = """
    Question { align: center middle; }
    Question > Vertical {
        width: 60; max-width: 100%; height: auto; max-height: 100%;
        padding: 0 1; border: round $warning; background: $surface;
    }
    Question Horizontal { height: auto; align-horizontal: right; }
    Question Button { margin-left: 1; }
    """

    def __init__(self, question: str, yes: str = "Yes") -> None:
        super().__init__()
        self.question, self.yes = question, yes

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(plain(self.question), markup=False)
            with Horizontal():
                yield Button(Text("No (n)"), id="no", compact=True)
                yield Button(Text(f"{self.yes} (y)"), id="yes", variant="warning", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)
