"""The Notification Center of macOS, on databases made here with the schema of the real one."""

import asyncio
import plistlib
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.features import Notification
from afm_mlx.tui.inbox import News, macos
from afm_mlx.tui.inbox.macos import COCOA_EPOCH, MacSource, app_name, decode, find, read
from tests.tui.support import take

import pytest

# as plaso lists it, https://github.com/log2timeline/plaso (macos_notificationcenter)
SCHEMA = """
CREATE TABLE app (app_id INTEGER PRIMARY KEY, identifier VARCHAR);
CREATE TABLE dbinfo (key VARCHAR, value VARCHAR);
CREATE TABLE record (rec_id INTEGER PRIMARY KEY, app_id INTEGER, uuid BLOB, data BLOB,
    request_date REAL, request_last_date REAL, delivered_date REAL, presented Bool,
    style INTEGER, snooze_fire_date REAL);
INSERT INTO app VALUES (1, 'com.apple.mobilesms'), (2, 'com.tinyspeck.slackmacgap');
"""


def plist(**request: Any) -> bytes:
    """The data of a record."""
    content = {"app": "com.example", "date": 7.6e8, "req": {"iden": "x", **request}}
    return plistlib.dumps(content, fmt=plistlib.FMT_BINARY)


def add(
    database: sqlite3.Connection,
    data: bytes | None,
    uuid: bytes | None,
    app: int = 1,
    minutes_ago: float | None = 0,
) -> None:
    moment = time.time() - COCOA_EPOCH
    delivered = None if minutes_ago is None else moment - 60 * minutes_ago
    database.execute(
        "INSERT INTO record (app_id, uuid, data, delivered_date) VALUES (?, ?, ?, ?)",
        (app, uuid, data, delivered),
    )
    database.commit()


def made(path: Path, wal: bool = False) -> sqlite3.Connection:
    """A database that is open for writing, as the service has its own."""
    database = sqlite3.connect(path)
    if wal:
        database.execute("PRAGMA journal_mode=WAL")
    database.executescript(SCHEMA)
    return database


def bodies(news: News) -> list[str]:
    return [a.notification.body for a in news.arrived]


def test_records_become_notifications(tmp_path: Path) -> None:
    with closing(made(tmp_path / "db")) as database:
        add(database, plist(titl="Ana", body="late, sorry", thre="Lunch"), b"\x01\x02", 1, 5)
        add(database, plist(titl="Ben", subt="#ops", body="up\nagain"), None, 2, None)
        add(database, plist(titl="Ana", body="here now", thre="Lunch"), b"\x03", 1, 2.2)
        news = read(tmp_path / "db", 100, {})
    undated, first, last = news.arrived
    assert (undated.app, undated.group, undated.id) == ("Slack", None, "2")
    assert undated.notification == Notification("Ben · #ops", "up\nagain", None)
    assert (first.app, first.group, first.id) == ("Messages", "Lunch", "0102")
    assert first.notification == Notification("Ana", "late, sorry", 5)
    assert last.notification == Notification("Ana", "here now", 2)
    assert news.fresh and not news.skipped


def test_the_newest_are_read(tmp_path: Path) -> None:
    with closing(made(tmp_path / "db")) as database:
        for minutes in (3, 1, 4, 2):
            add(database, plist(titl="t", body=str(minutes)), None, 1, minutes)
        assert bodies(read(tmp_path / "db", 3, {})) == ["3", "2", "1"]


def test_damaged_records_are_counted(tmp_path: Path) -> None:
    with closing(made(tmp_path / "db")) as database:
        damaged = [None, b"", b"bplist00", b"bplist00\xff" * 9, plist(), plistlib.dumps([1])]
        damaged.append(plist(titl=["a key", "that only the app can translate"]))
        damaged.append(b"<?xml version='1.0'?><plist><dict><key>req</key>")
        for data in damaged:
            add(database, data, None)
        add(database, plist(titl="t", body="fine", subt=3), None)
        news = read(tmp_path / "db", 100, {})
    assert bodies(news) == ["fine"] and news.skipped == len(damaged)
    assert news.reason.startswith("record 1: its property list is damaged")


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("com.apple.MobileSMS", "Messages"),
        ("com.apple.mobilesms", "Messages"),
        ("_SYSTEM_CENTER_:com.apple.mail", "Mail"),
        ("com.spotify.client", "Spotify"),
        ("org.example.app", "Example"),
        ("zed", "Zed"),
        ("", "?"),
    ],
)
def test_names_of_apps(identifier: str, name: str) -> None:
    assert app_name(identifier) == name


def test_threads_with_a_code_are_named_after_their_first_title() -> None:
    # stacks were called "Messages · iMessage;-;+4915112345"
    labels: macos.Labels = {}
    code = "iMessage;+;chat8213"
    groups = [
        decode(str(n), "com.apple.MobileSMS", plist(titl=title, body="b", thre=code), 0, labels)
        for n, title in enumerate(["Allotment", "Rashid"])
    ]
    assert [a.group for a in groups] == ["Allotment", "Allotment"]
    other = decode("3", "com.apple.mail", plist(titl="Bo", body="b", thre=code), 0, labels)
    assert other.group == "Bo"
    assert decode("4", "a.b", plist(titl="Bo", body="b"), 0, labels).group is None


# ---- opening


def test_what_is_still_in_the_log_is_read(tmp_path: Path) -> None:
    # rows stay in the write-ahead log for minutes: without it new notifications came late
    with closing(made(tmp_path / "db", wal=True)) as database:
        add(database, plist(titl="t", body="old"), None, 1, 5)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        add(database, plist(titl="t", body="new"), None)
        assert bodies(read(tmp_path / "db", 100, {})) == ["old", "new"]


def test_without_the_index_the_database_is_read_alone(tmp_path: Path) -> None:
    folder = tmp_path / "copy #1"
    folder.mkdir()
    with closing(made(tmp_path / "db", wal=True)) as database:
        add(database, plist(titl="t", body="old"), None, 1, 5)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        add(database, plist(titl="t", body="new"), None)
        (folder / "db").write_bytes((tmp_path / "db").read_bytes())
        (folder / "db-wal").write_bytes((tmp_path / "db-wal").read_bytes())
    before = sorted(p.name for p in folder.iterdir())
    assert bodies(read(folder / "db", 100, {})) == ["old"]
    # SQLite would have put an index there, and taken the log in
    assert sorted(p.name for p in folder.iterdir()) == before
    (folder / "db-shm").touch()
    (folder / "db-wal").unlink()
    (folder / "db-wal").mkdir()  # a log that cannot be opened
    assert bodies(read(folder / "db", 100, {})) == ["old"]


def test_reading_changes_nothing(tmp_path: Path) -> None:
    with closing(made(tmp_path / "db", wal=True)) as database:
        add(database, plist(titl="t", body="b"), None)
        files = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "db-shm"}
        read(tmp_path / "db", 100, {})
        for name, content in files.items():
            assert (tmp_path / name).read_bytes() == content


def test_where_it_is(tmp_path: Path) -> None:
    new, old = tmp_path / "new" / "db", tmp_path / "old" / "db"
    with pytest.raises(InputError, match="there is no Notification Center at .*new.*old"):
        find([new, old])
    old.parent.mkdir()
    old.write_bytes(b"x")
    assert find([new, old]) == old
    new.parent.mkdir()
    new.write_bytes(b"x")
    assert find([new, old]) == new


def test_where_reading_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = tmp_path / "db"
    path.write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(InputError, match="System Settings, .*Full Disk Access") as error:
        find([path])
    assert "\n" not in str(error.value)


def test_the_known_places(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked:
        stdout = "/var/folders/xy/0/\n"

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: Asked)
    assert macos.known_paths() == (
        Path.home() / "Library/Group Containers/group.com.apple.usernoted/db2/db",
        Path("/var/folders/xy/0/com.apple.notificationcenter/db2/db"),
    )
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(InputError, match="only macOS"):
        macos.known_paths()


# ---- following


def test_it_is_followed(tmp_path: Path) -> None:
    with closing(made(tmp_path / "db", wal=True)) as database:
        add(database, plist(titl="t", body="a"), b"1")

        def change(number: int) -> None:
            if number == 1:
                add(database, plist(titl="t", body="b"), b"2")
            else:
                database.execute("DELETE FROM record WHERE uuid = x'31'")
                database.commit()

        source = MacSource((tmp_path / "none", tmp_path / "db"), interval=0.01)
        found = asyncio.run(take(source, 3, change))
    # what a person dismissed is gone here too
    assert [bodies(news) for news in found] == [["a"], ["a", "b"], ["b"]]
    assert all(news.fresh for news in found)


def test_a_database_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE other (x)")
    with pytest.raises(InputError, match="no such table: record.*choose another source"):
        asyncio.run(take(MacSource((path,), interval=0.01), 1, lambda _: None))
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(InputError, match="file is not a database"):
        asyncio.run(take(MacSource((path,), interval=0.01), 1, lambda _: None))
