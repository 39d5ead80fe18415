"""What went wrong, in one line and in full: notifications, the view of details, the log file."""

import asyncio
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from afm_mlx.errors import AFMError, first_line
from afm_mlx.files import write_bytes
from afm_mlx.tui import settings
from afm_mlx.tui.dialog import Dialog
from afm_mlx.tui.plain import plain

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

LOG_BYTES = 200_000
"""The log keeps its end of about that length."""


@dataclass(frozen=True)
class Problem:
    """An error that a person was told of.

    Attributes:
        line: what is wrong and what to do.
        detail: the traceback of what nobody foresaw, and the causes of the rest.
        expected: whether the package raised it on purpose.
    """

    when: datetime
    line: str
    detail: str
    expected: bool

    @property
    def text(self) -> str:
        """All that is known, as it stands in the log."""
        return f"{self.when:%Y-%m-%d %H:%M:%S} {self.line}\n{self.detail}".rstrip() + "\n"


def problem(error: BaseException) -> Problem:
    """What to tell of an error, and to keep of it."""
    expected = isinstance(error, AFMError)
    if expected:
        causes, cause = [], error.__cause__
        while cause is not None:
            causes.append(f"because of {type(cause).__name__}: {cause}")
            cause = cause.__cause__
        return Problem(datetime.now(), str(error), "\n".join(causes), True)
    line = f"a fault of the program ({type(error).__name__}: {first_line(error)})"
    detail = "".join(traceback.format_exception(error))
    return Problem(datetime.now(), f"{line}: F8 shows all of it, please report it", detail, False)


def log_file() -> Path:
    """Where problems are kept when the app has ended."""
    return settings.folder("logs") / "app.log"


def log(found: Problem, file: Path) -> None:
    """Add a problem to the log.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        before = file.read_bytes()[-LOG_BYTES:]
    except OSError:
        before = b""
    write_bytes(file, before + found.text.encode("utf-8", "replace"), new_folder=True)


class Details(Dialog[None]):
    """All problems since the app began, newest first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f8", "close", "Close", id="details.close", tooltip="Close this view"),
    ]
    DEFAULT_CSS = """
    Details { align: center middle; }
    Details > VerticalScroll {
        width: 90%; height: 90%; padding: 0 1; border: round $error; background: $surface;
    }
    """

    def __init__(self, problems: Sequence[Problem], file: Path) -> None:
        super().__init__()
        self.problems, self.file = problems, file

    def compose(self) -> ComposeResult:
        text = "\n".join(p.text for p in reversed(self.problems)) or "Nothing went wrong so far."
        with VerticalScroll() as view:
            view.border_title = "Details"
            view.border_subtitle = "esc Close"
            yield Static(plain(f"{text}\nLog: {self.file}"), markup=False)

    def action_close(self) -> None:
        self.dismiss()


async def keep(found: Problem, file: Path) -> None:
    """Write a problem to the log beside the loop."""
    await asyncio.to_thread(log, found, file)
