"""Notifications of a Linux desktop: calls of ``org.freedesktop.Notifications.Notify`` on the bus.

A program that comes with the desktop watches the session bus: ``busctl`` of systemd, which writes
JSON, or ``dbus-monitor --binary``, which writes the messages themselves; its text cannot be told
apart from what a notification says. The arguments are app, the number of one to be replaced, icon,
summary, body and more (Desktop Notifications Specification); the body may be simple markup.
"""

import asyncio
import contextlib
import html
import json
import os
import re
import shutil
import struct
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from afm_mlx.errors import InputError
from afm_mlx.tui.inbox.arrivals import Arrived, News, arrived

INTERFACE, MEMBER, SIGNATURE = "org.freedesktop.Notifications", "Notify", "susssasa{sv}i"
MATCH = f"type='method_call',interface='{INTERFACE}',member='{MEMBER}'"
MONITORS = {
    "busctl": ("--user", "--json=short", "--match", MATCH, "monitor"),
    "dbus-monitor": ("--session", "--binary", MATCH),
}
CHUNK = 65536
LARGEST = 2**27
"""Bytes of a message; the specification allows no more."""
_TAG = re.compile(r"</?(?:b|i|u|a|img)(?:\s[^<>]*)?/?>", re.IGNORECASE)

Parse = Callable[[bytes], tuple[list[Arrived], bytes]]
"""Takes the notifications from the front of a stream; gives the bytes that are left."""


@dataclass(frozen=True)
class BusSource:
    """What is sent to the notification service of this desktop from now on.

    Attributes:
        environment: where the bus is looked for; that of the process if left out.
    """

    environment: Mapping[str, str] | None = None

    @property
    def title(self) -> str:
        return "desktop (D-Bus)"

    async def follow(self) -> AsyncGenerator[News, None]:
        """Notifications as they are sent.

        Raises:
            InputError: there is no session bus, or nothing to watch it with.
        """
        environment = dict(os.environ if self.environment is None else self.environment)
        program, path = monitor(environment)
        process = await asyncio.create_subprocess_exec(
            path, *MONITORS[program], stdout=PIPE, stderr=PIPE, env=environment
        )
        try:
            yield News(fresh=True)
            async for found in _messages(process, PARSERS[program]):
                yield News(tuple(found))
            raise InputError(
                f"{program} ended ({await _last_words(process)}): watching the session bus may be"
                " forbidden here, choose another source"
            )
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def monitor(environment: Mapping[str, str]) -> tuple[str, str]:
    """Name and path of the program that can watch the session bus.

    Raises:
        InputError: there is no bus, or no program.
    """
    socket = os.path.join(environment.get("XDG_RUNTIME_DIR", os.devnull), "bus")
    if not environment.get("DBUS_SESSION_BUS_ADDRESS") and not os.path.exists(socket):
        raise InputError(
            "there is no session bus here: start afm in a terminal of the desktop,"
            " or choose another source"
        )
    for name in MONITORS:
        path = shutil.which(name, path=environment.get("PATH"))
        if path is not None:
            return name, path
    raise InputError(
        "neither busctl nor dbus-monitor is installed: install the package dbus-bin (Debian,"
        " Ubuntu), dbus-tools (Fedora) or dbus (others)"
    )


def parse_json(data: bytes) -> tuple[list[Arrived], bytes]:
    """Notifications of ``busctl``, one JSON object a line, and the rest of the last line."""
    *lines, rest = data.split(b"\n")
    found = []
    for line in lines:
        try:
            message = json.loads(line)
            payload = message["payload"]
            if message["member"] != MEMBER or payload["type"] != SIGNATURE:
                continue
            app, replaces, _, summary, body, *_ = payload["data"]
            id = f"{message['timestamp-realtime']}-{message['cookie']}"
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # another message, or a line of text
        found += _notification(app, replaces, summary, body, id)
    return found, rest


def parse_binary(data: bytes) -> tuple[list[Arrived], bytes]:
    """Notifications of ``dbus-monitor --binary``, and the start of a message that is not whole.

    A message has a head of 16 bytes (byte order, type, ..., length of the body, serial number,
    length of the fields), the fields filled up to 8 bytes, then the body.

    Raises:
        InputError: these are no messages.
    """
    found, at = [], 0
    while len(data) - at >= 16:
        order = {b"l": "<", b"B": ">"}.get(data[at : at + 1])
        if order is None:
            raise InputError("dbus-monitor writes no messages: update it, or install busctl")
        size, serial, fields = struct.unpack_from(f"{order}III", data, at + 4)
        body = at + 16 + -(-fields // 8) * 8
        if size + fields > LARGEST:
            raise InputError("dbus-monitor writes no messages: update it, or install busctl")
        if len(data) < body + size:
            break
        head = data[at + 16 : at + 16 + fields]
        called = all(_quoted(word, order) in head for word in (INTERFACE, MEMBER))
        if called and SIGNATURE.encode() in head:
            values = _arguments(data[body : body + size], order)
            if values is not None:
                found += _notification(*values, id=f"{_sender(head, order)}-{serial}")
        at = body + size
    return found, data[at:]


PARSERS: Mapping[str, Parse] = {"busctl": parse_json, "dbus-monitor": parse_binary}


def plain(body: str) -> str:
    """The text of a body: without the tags that the specification knows, and with its entities."""
    return html.unescape(_TAG.sub("", body))


def _notification(app: str, replaces: int, summary: str, body: str, id: str) -> list[Arrived]:
    """Those that replace the same one, like the steps of a progress, take each other's place."""
    id = f"#{replaces}" if replaces else id
    try:
        return [arrived(app or "Desktop", None, summary, plain(body), None, id)]
    except InputError:
        return []  # it has no text, only an icon or a sound


def _quoted(word: str, order: str) -> bytes:
    return struct.pack(f"{order}I", len(word)) + word.encode() + b"\0"


def _sender(head: bytes, order: str) -> str:
    """Unique name in the fields: number 7, a string."""
    match = re.search(rb"\x07\x01s\x00(....)", head, re.DOTALL)
    if match is None:
        return ""
    (length,) = struct.unpack(f"{order}I", match[1])
    return head[match.end() : match.end() + length].decode("ascii", "replace")


def _arguments(body: bytes, order: str) -> tuple[str, int, str, str] | None:
    """App, number to replace, summary and body of a call; nothing if it has other arguments."""
    try:
        app, at = _string(body, 0, order)
        at += -at % 4
        (replaces,) = struct.unpack_from(f"{order}I", body, at)
        _, at = _string(body, at + 4, order)
        summary, at = _string(body, at, order)
        text, _ = _string(body, at, order)
    except (struct.error, UnicodeDecodeError):
        return None
    return app, replaces, summary, text


def _string(body: bytes, at: int, order: str) -> tuple[str, int]:
    """The string that begins at the next multiple of 4, and where it ends."""
    at += -at % 4
    (length,) = struct.unpack_from(f"{order}I", body, at)
    end = at + 4 + length
    return body[at + 4 : end].decode("utf-8"), end + 1


async def _messages(process: Process, parse: Parse) -> AsyncIterator[list[Arrived]]:
    assert process.stdout is not None
    rest = b""
    while chunk := await process.stdout.read(CHUNK):
        found, rest = await asyncio.to_thread(parse, rest + chunk)
        if found:
            yield found


async def _last_words(process: Process) -> str:
    assert process.stderr is not None
    said = (await process.stderr.read()).decode("utf-8", "replace").strip().splitlines()
    return said[-1].rstrip(".") if said else "without a word"
