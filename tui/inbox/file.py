"""A JSON or JSONL file that is followed: what is appended arrives, and a rewrite starts anew.

A look every half second compares size and time of change; of a changed file all is read, and what
begins with the bytes before was appended to. A last line without its end, or a list without its
end, is being written: it counts as broken only if it is the same at the next look.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from stat import S_ISREG
from typing import Any

from afm_mlx.errors import InputError, first_line
from afm_mlx.tui.inbox.arrivals import Arrived, News, Reader, entries, local_now, one_line

LARGEST = 64 * 2**20
_LIST = re.compile(rb"[\xef\xbb\xbf\s]*(?:\[\s*(?:\{|\n)|\{\s*\n)")
"""How a list or an object over several lines begins."""
REMEDY = "give a JSON or JSONL file of notifications"


@dataclass(frozen=True)
class FileSource:
    """Notifications in the file at ``path``.

    Attributes:
        interval: seconds between two looks.
    """

    path: Path
    interval: float = 0.5

    @property
    def title(self) -> str:
        return one_line(self.path.name)

    async def follow(self) -> AsyncGenerator[News, None]:
        """What is in the file, then what is appended or rewritten.

        Raises:
            InputError: the file cannot be read at first; later it may come and go.
        """
        log = Log()
        news: News | None = await asyncio.to_thread(log.look, self.path)
        while True:
            if news is not None:
                yield news
            await asyncio.sleep(self.interval)
            try:
                news = await asyncio.to_thread(log.look, self.path)
            except InputError:  # an editor may just be putting another file in its place
                news = None


class Log:
    """A file as it was at the last look."""

    def __init__(self, clock: Callable[[], datetime] = local_now) -> None:
        self._clock = clock
        self._stamp: tuple[int, ...] = ()
        self._text = b""
        self._reader = Reader(clock())
        self._lines = 0
        self._skipped, self._reason = 0, ""
        self._unfinished = ""

    def look(self, path: Path) -> News | None:
        """What is new in the file; ``None`` if it is as before.

        Raises:
            InputError: it cannot be read.
        """
        try:
            stat = path.stat()
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if stamp == self._stamp:
                return self._left_unfinished()
            if not S_ISREG(stat.st_mode):  # a device may have no end
                raise InputError(f"{path} is no file: {REMEDY}")
            if stat.st_size > LARGEST:
                raise InputError(
                    f"{path} has more than {LARGEST >> 20} MB: keep the newest notifications only"
                )
            text = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path} ({first_line(error)}): {REMEDY}") from error
        self._stamp = stamp
        return self._news(text)

    def _left_unfinished(self) -> News | None:
        reason, self._unfinished = self._unfinished, ""
        if not reason:
            return None
        return News((), False, self._skipped + 1, self._reason or reason)

    def _news(self, text: bytes) -> News | None:
        document, self._unfinished = _document(text), ""
        if document is None and _LIST.match(text) and _parsed(_first(text)) is None:
            self._unfinished = _fault(text)
            return None
        appended = bool(self._text) and text.startswith(self._text) and document is None
        done = len(self._text) if appended else 0
        if not appended:
            self._reader, self._lines = Reader(self._clock()), 0
            self._skipped, self._reason = 0, ""
        if document is not None:
            found = [one for value in document for one in self._read(value, "entry")]
            self._text = b""
            return News(tuple(found), True, self._skipped, self._reason)
        *lines, rest = text[done:].split(b"\n")
        if _parsed(rest) is not None:
            lines, rest = [*lines, rest], b""
        found = [one for line in lines for one in self._line(line)]
        self._text = text[: len(text) - len(rest)]
        if rest.strip():
            self._unfinished = f"line {self._lines + 1}: it ends in the middle"
        return News(tuple(found), not appended, self._skipped, self._reason)

    def _line(self, line: bytes) -> list[Arrived]:
        self._lines += 1
        if not line.strip():
            return []
        value = _parsed(line)
        if value is None:
            self._skip(f"line {self._lines}: broken JSON, correct it")
            return []
        return [one for entry in entries(value) for one in self._read(entry, "line")]

    def _read(self, value: Any, unit: str) -> list[Arrived]:
        if unit == "entry":
            self._lines += 1
        try:
            return self._reader.read(value)
        except InputError as error:
            self._skip(f"{unit} {self._lines}: {error}")
            return []

    def _skip(self, reason: str) -> None:
        self._skipped += 1
        self._reason = self._reason or reason


def _document(text: bytes) -> Iterator[Any] | None:
    """Entries of a file that is one JSON document over several lines, or a list."""
    head = text.lstrip(b"\xef\xbb\xbf \t\r\n")
    several = head.startswith(b"[") or (head.startswith(b"{") and _parsed(_first(head)) is None)
    value = _parsed(text) if several else None
    return None if value is None else entries(value)


def _fault(text: bytes) -> str:
    """Where JSON over several lines is broken."""
    try:
        json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: broken JSON, correct it"
    except (ValueError, RecursionError):
        pass
    return "broken JSON, correct it"


def _first(text: bytes) -> bytes:
    return text.split(b"\n", 1)[0]


def _parsed(text: bytes) -> Any:
    """A JSON value; ``None`` if it is broken."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
