"""Notifications of a Linux desktop: messages as they are recorded, and a bus of this test."""

import asyncio
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.features import Notification
from afm_mlx.tui.inbox import Arrived
from afm_mlx.tui.inbox.dbus import (
    MONITORS,
    BusSource,
    monitor,
    parse_binary,
    parse_json,
    plain,
)
from tests.tui.support import HANGS

import pytest

# what `dbus-monitor --binary` wrote of a call with the arguments of SAID
CALL = (
    "6c0104017000000002000000ad00000001016f001e0000002f6f72672f667265656465736b746f702f4e6f74"
    "696669636174696f6e73000003017300060000004e6f746966790000020173001d0000006f72672e66726565"
    "6465736b746f702e4e6f74696669636174696f6e73000000060173001d0000006f72672e667265656465736b"
    "746f702e4e6f74696669636174696f6e73000000080167000d73757373736173617b73767d69000000000000"
    "07017300040000003a312e310000000005000000536c61636b00000000000000000000000000000006000000"
    "496e6772696400001600000061202271756f74656422206c696e650a7365636f6e6400000000000023000000"
    "07000000757267656e63790001790001010000007800017300000000020000006869000088130000"
)
SAID = Notification("Ingrid", 'a "quoted" line\nsecond')


def message(*arguments: Any, **other: Any) -> dict[str, Any]:
    """A message as ``busctl --json=short`` writes it."""
    return {
        "type": "method_call",
        "cookie": 2,
        "timestamp-realtime": 1795308093748065,
        "sender": ":1.1",
        "interface": "org.freedesktop.Notifications",
        "member": "Notify",
        "payload": {"type": "susssasa{sv}i", "data": [*arguments, [], {}, 5000]},
        **other,
    }


def lines(*messages: Any) -> bytes:
    return b"".join(json.dumps(m).encode() + b"\n" for m in messages)


def recorded() -> bytes:
    data = bytes.fromhex(CALL)
    assert len(data) == 16 + 0xB0 + 0x70  # head, fields up to a multiple of 8, body
    return data


def texts(found: list[Arrived]) -> list[Notification]:
    return [a.notification for a in found]


# ---- busctl


def test_json_messages() -> None:
    data = lines(message("Slack", 0, "", "Ingrid", 'a "quoted" line\nsecond'))
    (found,), rest = parse_json(data + b'{"half":')
    assert (found.app, found.group, found.notification) == ("Slack", None, SAID)
    assert found.id == "1795308093748065-2" and rest == b'{"half":'


def test_other_messages_are_no_notifications() -> None:
    good = message("Slack", 0, "", "Ingrid", "text")
    others = [
        {**good, "member": "CloseNotification"},
        {**good, "payload": {"type": "u", "data": [3]}},
        {**good, "payload": {"type": "susssasa{sv}i", "data": [1]}},
        {"type": "signal"},
        [],
        3,
        message("Player", 0, "icon", "", ""),
    ]
    data = b"Monitoring bus message stream.\n" + lines(*others, good) + b"[" * 10**5 + b"\n"
    found, rest = parse_json(data)
    assert texts(found) == [Notification("Ingrid", "text")] and rest == b""


def test_what_replaces_another() -> None:
    # a download filled the inbox with a notification for every per cent
    found, _ = parse_json(
        lines(*(message("Files", 7, "", "Copying", f"{n} %", cookie=n) for n in (1, 2)))
    )
    assert found[0].id == found[1].id
    single, _ = parse_json(lines(*(message("Files", 0, "", "a", "b", cookie=n) for n in (1, 2))))
    assert single[0].id != single[1].id


def test_a_program_without_a_name() -> None:
    (found,), _ = parse_json(lines(message("", 0, "", "Hello", "")))
    assert found.app == "Desktop"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<b>bold</b> and <i>it</i>", "bold and it"),
        ('<a href="https://x.example">here</a>', "here"),
        ('see <img src="x" alt="y"/> &amp; &lt;3', "see  & <3"),
        ("1 < 2 and 3 > 2, <body> stays", "1 < 2 and 3 > 2, <body> stays"),
    ],
)
def test_markup_of_bodies(body: str, text: str) -> None:
    assert plain(body) == text


# ---- dbus-monitor


def test_recorded_messages() -> None:
    (found,), rest = parse_binary(recorded())
    assert (found.app, found.notification, found.id) == ("Slack", SAID, ":1.1-2")
    assert rest == b""


def test_a_stream_in_pieces_of_any_size() -> None:
    stream = recorded() * 3
    for size in (1, 7, 100, 333):
        found, rest = list[Arrived](), b""
        for start in range(0, len(stream), size):
            new, rest = parse_binary(rest + stream[start : start + size])
            found += new
        assert texts(found) == [SAID] * 3 and rest == b""


def built(order: str, member: str, *arguments: Any) -> bytes:
    """A message after the D-Bus specification: fields of one type only, then the body."""

    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack(f"{order}I", len(data)) + data + b"\0"

    def padded(data: bytes, to: int) -> bytes:
        return data + b"\0" * (-len(data) % to)

    fields = b""
    for code, value in ((2, "org.freedesktop.Notifications"), (3, member), (7, ":1.9")):
        fields = padded(fields, 8) + bytes([code]) + b"\x01s\0" + text(value)
    fields = padded(fields, 8) + b"\x08\x01g\0\x0dsusssasa{sv}i\0"
    body = b""
    for value in arguments:
        body = padded(body, 4)
        body += text(value) if isinstance(value, str) else struct.pack(f"{order}I", value)
    start = b"l" if order == "<" else b"B"
    sizes = struct.pack(f"{order}III", len(body), 77, len(fields))
    return padded(start + b"\x01\0\x01" + sizes + fields, 8) + body


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders(order: str) -> None:
    call = built(order, "Notify", "Müll", 0, "icon", "Größe", "ünï 🎉")
    other = built(order, "CloseNotification", "x", 0, "", "not", "me")
    (found,), rest = parse_binary(other + call + call[:30])
    assert (found.app, found.id) == ("Müll", ":1.9-77")
    assert found.notification == Notification("Größe", "ünï 🎉") and rest == call[:30]


def test_arguments_that_are_cut_or_no_text() -> None:
    short = built("<", "Notify", "App", 0)
    wrong = built("<", "Notify", "App", 0, "", "xx", "yy").replace(b"xx", b"\xff\xfe")
    assert parse_binary(short + wrong) == ([], b"")


def test_what_is_no_stream_of_messages() -> None:
    for data in (b"signal time=17.5 sender=x", b"l\x01\0\x01" + b"\xff" * 12):
        with pytest.raises(InputError, match="writes no messages"):
            parse_binary(data)


# ---- programs


def test_where_there_is_no_bus_or_no_program(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no session bus"):
        monitor({"PATH": os.environ["PATH"]})
    with pytest.raises(InputError, match="no session bus"):
        monitor({"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(tmp_path)})
    (tmp_path / "bus").touch()
    with pytest.raises(InputError, match="install the package dbus-bin"):
        monitor({"PATH": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)})
    program = tmp_path / "dbus-monitor"
    program.touch(mode=0o755)
    found = monitor({"PATH": str(tmp_path), "DBUS_SESSION_BUS_ADDRESS": "unix:path=/x"})
    assert found == ("dbus-monitor", str(program))


def test_a_program_that_ends(tmp_path: Path) -> None:
    program = tmp_path / "busctl"
    program.write_text("#!/bin/sh\necho 'Access denied.' >&2\n")
    program.chmod(0o755)
    source = BusSource({"PATH": str(tmp_path), "DBUS_SESSION_BUS_ADDRESS": "unix:path=/x"})

    async def all() -> None:
        async for _ in source.follow():
            pass

    with pytest.raises(InputError, match=r"busctl ended \(Access denied\)"):
        asyncio.run(all())


@pytest.fixture
def bus() -> Iterator[dict[str, str]]:
    """The environment of a session bus of this test's own."""
    if shutil.which("dbus-daemon") is None or shutil.which("busctl") is None:
        pytest.skip("there is no dbus-daemon or no busctl here")
    command = ["dbus-daemon", "--session", "--print-address", "--nofork"]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert daemon.stdout is not None
    address = daemon.stdout.readline().strip()
    yield {"PATH": os.environ["PATH"], "DBUS_SESSION_BUS_ADDRESS": address}
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()


def notify(environment: dict[str, str], text: str) -> None:
    """Call Notify; it fails, as there is no service, but the monitor hears it."""
    service = "org.freedesktop.Notifications"
    command = ["busctl", "--user", "call", service, "/org/freedesktop/Notifications", service]
    command += ["Notify", "susssasa{sv}i", "Clock", "0", "", text, "body", "0", "0", "5000"]
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize("program", MONITORS)
def test_a_real_bus(
    program: str, bus: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which(program)
    if real is None:
        pytest.skip(f"there is no {program} here")
    (tmp_path / program).symlink_to(real)
    source = BusSource({**bus, "PATH": str(tmp_path)})

    async def first() -> Arrived:
        news = source.follow()
        sending = None
        try:
            async with asyncio.timeout(HANGS):
                async for one in news:
                    if one.arrived:
                        return one.arrived[0]
                    # it is not known when the monitor listens: send until it heard one
                    sending = asyncio.create_task(again())
        finally:
            if sending is not None:
                sending.cancel()
            await news.aclose()
        raise AssertionError("the source ended")

    async def again() -> None:
        while True:
            await asyncio.to_thread(notify, bus, "Wake up")
            await asyncio.sleep(0.05)

    found = asyncio.run(first())
    assert found.app == "Clock" and found.notification == Notification("Wake up", "body")
