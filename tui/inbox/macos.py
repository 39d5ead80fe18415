"""The Notification Center of macOS: the database of its service, read and never written.

Since macOS 15 it is ``~/Library/Group Containers/group.com.apple.usernoted/db2/db``, before it was
``com.apple.notificationcenter/db2/db`` in the folder that ``getconf DARWIN_USER_DIR`` names. Schema
after plaso's parser (``mac_notificationcenter``): ``app(app_id, identifier)`` and ``record(rec_id,
app_id, uuid, data, delivered_date, ...)``; ``data`` is a binary property list with the texts in
``req``: ``titl``, ``subt``, ``body``, and ``thre`` for the thread. Dates count from 2001.

The service keeps the newest rows in a write-ahead log beside the database. ``mode=ro`` reads both,
through the log's index (``-shm``). Where SQLite may not use that index, ``immutable=1`` reads the
database alone: without locks, and without the rows that the service has not yet moved there, so
that they come later. A look that meets the service in the middle of moving them is tried again.
"""

import asyncio
import plistlib
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.parsers.expat import ExpatError

from afm_mlx.errors import InputError, first_line
from afm_mlx.tui.inbox.arrivals import Arrived, News, arrived

GROUP_CONTAINER = "Library/Group Containers/group.com.apple.usernoted/db2/db"
BEFORE_15 = "com.apple.notificationcenter/db2/db"
COCOA_EPOCH = 978_307_200
"""Seconds from 1970 to 2001."""
FULL_DISK_ACCESS = (
    "macOS does not let this terminal read the Notification Center: open System Settings, Privacy &"
    " Security, Full Disk Access, switch on the terminal you run afm in (add it with + if it is not"
    " in the list), quit and open the terminal, then choose this source again"
)
_NAMES = {
    "com.apple.mobilesms": "Messages",
    "com.apple.ichat": "Messages",
    "com.apple.ical": "Calendar",
    "com.tinyspeck.slackmacgap": "Slack",
    "com.microsoft.teams2": "Teams",
    "net.whatsapp.whatsapp": "WhatsApp",
    "ru.keepcoder.telegram": "Telegram",
    "org.whispersystems.signal-desktop": "Signal",
}
"""By bundle identifiers, which the database has in small letters."""
_NO_NAME = frozenset({"app", "client", "desktop", "mac", "macos", "osx"})
_READABLE = re.compile(r"[^\d;:@/._\\|]+")
_REFUSED = re.compile("unable to open|readonly")
ALONE = "mode=ro&immutable=1"
PATIENCE = 3
"""Looks that may fail on end."""
DAMAGED = (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, ExpatError)
Labels = dict[tuple[str, str], str]
"""Names of threads that apps call by a code."""


@dataclass(frozen=True)
class MacSource:
    """The notifications of this Mac.

    Attributes:
        paths: places to look for the database; those that macOS uses if left out.
        interval: seconds between two looks.
        newest: rows that are read, of the newest.
    """

    paths: tuple[Path, ...] = ()
    interval: float = 2.0
    newest: int = 1000

    @property
    def title(self) -> str:
        return "Notification Center"

    async def follow(self) -> AsyncGenerator[News, None]:
        """What the Notification Center has, and again whenever that changes.

        Raises:
            InputError: there is no database, or it may not be read.
        """
        path = await asyncio.to_thread(lambda: find(self.paths or known_paths()))
        stamp: tuple[int, ...] = ()
        labels: Labels = {}
        failed = 0
        while True:
            seen = await asyncio.to_thread(_stamp, path)
            if seen != stamp:
                try:
                    news = await asyncio.to_thread(read, path, self.newest, labels)
                    yield news
                    stamp, failed = seen, 0
                except sqlite3.DatabaseError as error:
                    failed += 1
                    if failed == PATIENCE:
                        raise InputError(
                            f"{path} cannot be read ({first_line(error)}): choose another source"
                        ) from error
            await asyncio.sleep(self.interval)


def known_paths() -> tuple[Path, ...]:
    """Where macOS keeps the database, the newer place first.

    Raises:
        InputError: this is no Mac.
    """
    if sys.platform != "darwin":
        raise InputError("only macOS has a Notification Center: choose another source")
    found = [Path.home() / GROUP_CONTAINER]
    asked = subprocess.run(["getconf", "DARWIN_USER_DIR"], capture_output=True, text=True)
    if asked.stdout.strip():
        found.append(Path(asked.stdout.strip()) / BEFORE_15)
    return tuple(found)


def find(paths: Sequence[Path]) -> Path:
    """The first of ``paths`` that is there.

    Raises:
        InputError: none is, or it may not be read; the message says how to allow it.
    """
    for path in paths:
        try:
            with path.open("rb") as file:
                file.read(1)
            return path
        except PermissionError as error:
            raise InputError(FULL_DISK_ACCESS) from error
        except OSError:
            continue
    places = " or ".join(map(str, paths))
    raise InputError(f"there is no Notification Center at {places}: choose another source")


def read(path: Path, newest: int, labels: Labels) -> News:
    """The ``newest`` notifications of a database, oldest first.

    Args:
        labels: names of threads so far; new ones are added.

    Raises:
        sqlite3.DatabaseError: it is none, has another schema, or was changed meanwhile.
    """
    now, found, skipped, reason = time.time(), [], 0, ""
    for number, identifier, uuid, data, delivered in reversed(_rows(path, newest)):
        id = uuid.hex() if isinstance(uuid, bytes) else str(number)
        minutes = max(0, round((now - delivered - COCOA_EPOCH) / 60)) if delivered else None
        try:
            found.append(decode(id, identifier, data, minutes, labels))
        except InputError as error:
            skipped, reason = skipped + 1, reason or f"record {number}: {error}"
    return News(tuple(found), True, skipped, reason)


def decode(
    id: str, identifier: str, data: bytes, minutes_ago: int | None, labels: Labels
) -> Arrived:
    """A row of the database as a notification.

    Many apps call a thread by a code; it is then named after the first title in it.

    Raises:
        InputError: the property list is damaged, or says nothing that can be shown.
    """
    try:
        values = plistlib.loads(data)
    except DAMAGED as error:
        raise InputError("its property list is damaged: nothing to correct here") from error
    request = values.get("req") if isinstance(values, dict) else None
    fields = request if isinstance(request, dict) else {}
    title, subtitle, thread = (_text(fields, name) for name in ("titl", "subt", "thre"))
    title = " · ".join(text for text in (title, subtitle) if text)
    if thread and not _READABLE.fullmatch(thread):
        thread = labels.setdefault((identifier, thread), title)
    body = _text(fields, "body")
    return arrived(app_name(identifier), thread or None, title, body, minutes_ago, id)


def app_name(identifier: str) -> str:
    """What a person calls the app with this bundle identifier: the last part that is a name."""
    bundle = identifier.rpartition(":")[2]
    if bundle.lower() in _NAMES:
        return _NAMES[bundle.lower()]
    parts = [part for part in bundle.split(".") if part]
    named = [part for part in parts[1:] if part.lower() not in _NO_NAME] or parts or ["?"]
    return named[-1][:1].upper() + named[-1][1:]


def _text(fields: dict[str, Any], name: str) -> str:
    """A text; a list is a message to be translated, which only the app could."""
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _rows(path: Path, newest: int) -> list[tuple[int, str, Any, bytes, float | None]]:
    query = (
        "SELECT record.rec_id, coalesce(app.identifier, ''), record.uuid, record.data,"
        " CAST(record.delivered_date AS REAL)"
        " FROM record JOIN app ON app.app_id = record.app_id"
        " ORDER BY coalesce(record.delivered_date, 0) DESC, record.rec_id DESC LIMIT ?"
    )
    # Without its index nobody has the log open; SQLite would make one, in a folder of the system.
    indexed = path.with_name(path.name + "-shm").exists()
    ways = ("mode=ro", ALONE) if indexed else (ALONE,)
    for way in ways:
        try:
            uri = f"file:{quote(str(path))}?{way}"
            with closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as database:
                return database.execute(query, (newest,)).fetchall()
        except sqlite3.OperationalError as error:
            if way == ALONE or not _REFUSED.search(str(error)):
                raise
    raise AssertionError("the last way returns or raises")


def _stamp(path: Path) -> tuple[int, ...]:
    """Sizes and times of the database and its log."""
    found = []
    for file in (path, path.with_name(path.name + "-wal")):
        try:
            stat = file.stat()
            found += [stat.st_ino, stat.st_size, stat.st_mtime_ns]
        except OSError:
            found.append(0)
    return tuple(found)
