"""Reading notifications, following a file, the demo, stacks."""

import asyncio
import json
import os
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.features import Notification, NotificationStack
from afm_mlx.tui.inbox import Arrived, Inbox, InboxOptions, News
from afm_mlx.tui.inbox.arrivals import OLDEST, Reader, arrived, minutes_ago, printable, shown_time
from afm_mlx.tui.inbox.demo import DemoSource, invented, pauses
from afm_mlx.tui.inbox.file import FileSource, Log
from tests.tui.support import take

import pytest

NOW = datetime(2025, 3, 30, 9, 41, tzinfo=UTC)
LINE = {"app": "Messages", "title": "Ana", "body": "hello"}


def one(body: str, app: str = "Messages", group: str | None = None, **other: Any) -> Arrived:
    """A notification; its id is its text unless told otherwise."""
    minutes, id = other.get("minutes_ago"), other.get("id", body)
    return Arrived(app, group, Notification("Ana", body, minutes), id)


def bodies(found: list[Arrived] | tuple[Arrived, ...]) -> list[str]:
    return [a.notification.body for a in found]


# ---- JSON


def test_single_notifications_and_stacks() -> None:
    reader = Reader(NOW)
    (single,) = reader.read({**LINE, "thread": "Lunch", "minutes_ago": 4, "id": 7})
    assert single == Arrived("Messages", "Lunch", Notification("Ana", "hello", 4), "7")
    data = {"app": "Mail", "group": None, "notifications": [{"title": "A", "body": "b"}] * 2}
    first, second = reader.read(data)
    assert NotificationStack("Mail", (first.notification, second.notification)) == (
        NotificationStack.from_json(data)
    )
    assert first.id != second.id  # two that say the same are two


@pytest.mark.parametrize(
    "data",
    [
        [],
        "text",
        {},
        {"app": "Mail"},
        {"app": "Mail", "body": 3},
        {"app": " ", "body": "hello"},
        {"app": "Mail", "body": " \x1b"},
        {**LINE, "id": True},
        {**LINE, "id": []},
        {**LINE, "minutes_ago": "4"},
        {**LINE, "minutes_ago": float("nan")},
        {**LINE, "time": "soon"},
        {**LINE, "time": 1e300},
        {**LINE, "time": {}},
        {"app": "Mail", "notifications": []},
        {"app": "Mail", "notifications": [{"title": "A"}]},
    ],
)
def test_what_is_no_notification(data: Any) -> None:
    with pytest.raises(InputError):
        Reader(NOW).read(data)


@pytest.mark.parametrize(
    ("data", "minutes"),
    [
        ({}, None),
        ({"minutes_ago": 2.6}, 3),
        ({"minutes_ago": -5}, 0),
        ({"minutes_ago": 10**400}, OLDEST),
        ({"time": "2025-03-30T09:31:00+00:00"}, 10),
        ({"time": "2025-03-30T09:31"}, 10),
        ({"time": "09:40"}, 1),
        ({"time": "09:42"}, 24 * 60 - 1),
        ({"time": NOW.timestamp() - 120}, 2),
    ],
)
def test_times(data: dict[str, Any], minutes: int | None) -> None:
    assert minutes_ago(data, NOW) == minutes


def test_what_acts_on_a_terminal_is_taken_out() -> None:
    # an escape sequence in a notification could write to the clipboard or repaint the screen
    assert printable("a\x1b]52;c;aGk=\x07b\x9b2J\tc\u202ed\r\ne") == "a ]52;c;aGk= b 2J c d\ne"
    assert printable("half a pair \ud83d") == "half a pair ?"
    found = arrived("Ma\nil", "x\n y", "t\nt", "b\nb", None, "1")
    assert (found.app, found.group) == ("Ma il", "x y")
    assert found.notification == Notification("t t", "b\nb")


def test_shown_times() -> None:
    def shown(**ago: float) -> str:
        return shown_time((NOW - timedelta(**ago)).timestamp(), NOW)

    assert [shown(minutes=1), shown(hours=11)] == ["09:40", "22:41"]
    assert [shown(hours=13), shown(days=4), shown(days=6)] == ["Sat", "Wed", "2025-03-24"]
    assert shown_time(-1e300, NOW) == ""


# ---- the file


def write(path: Path, *lines: Any, end: str = "\n") -> None:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + end, encoding="utf-8")


def look(log: Log, path: Path) -> News:
    """The next look, at a file whose time of change is surely another."""
    os.utime(path, ns=(0, random.randrange(2**40)))
    news = log.look(path)
    assert news is not None
    return news


def test_lines_that_are_appended(tmp_path: Path) -> None:
    path, log = tmp_path / "inbox.jsonl", Log()
    write(path, LINE, {**LINE, "body": "two"})
    news = look(log, path)
    assert news.fresh and bodies(news.arrived) == ["hello", "two"]
    assert log.look(path) is None
    with path.open("a") as file:
        file.write(json.dumps({**LINE, "body": "three"}) + "\n")
    news = look(log, path)
    assert not news.fresh and bodies(news.arrived) == ["three"]


def test_a_line_that_is_written_in_two_goes(tmp_path: Path) -> None:
    # the first half was counted as broken for good, and the notification never came
    path, log = tmp_path / "inbox.jsonl", Log()
    text = json.dumps({**LINE, "body": "later"})
    write(path, LINE, text[:20], end="")
    news = look(log, path)
    assert bodies(news.arrived) == ["hello"] and not news.skipped  # the rest may be on its way
    assert log.look(path) == News((), False, 1, "line 2: it ends in the middle")
    assert log.look(path) is None
    write(path, LINE, text, end="")
    news = look(log, path)
    assert bodies(news.arrived) == ["later"] and news.skipped == 0
    write(path, LINE, text, {**LINE, "body": "more"})
    assert bodies(look(log, path).arrived) == ["more"]


def test_a_file_that_is_rewritten(tmp_path: Path) -> None:
    path, log = tmp_path / "inbox.jsonl", Log()
    write(path, LINE, {**LINE, "body": "two"})
    before = look(log, path).arrived
    write(path, {**LINE, "body": "two"}, {**LINE, "body": "a longer one than before"})
    news = look(log, path)
    assert news.fresh and bodies(news.arrived) == ["two", "a longer one than before"]
    assert news.arrived[0].id == before[1].id  # so it is known to be the same
    path.write_bytes(b"")
    assert look(log, path) == News((), fresh=True)


def test_broken_lines_are_counted(tmp_path: Path) -> None:
    path, log = tmp_path / "inbox.jsonl", Log()
    write(path, LINE, "", "{broken", '{"app": "Mail"}', "[1]", {**LINE, "body": "last"})
    with path.open("ab") as file:
        file.write(b"\xff\xfe\n" + b"[" * 100_000 + b"\n")
    news = look(log, path)
    assert bodies(news.arrived) == ["hello", "last"]
    assert (news.skipped, news.reason) == (5, "line 3: broken JSON, correct it")
    with path.open("a") as file:
        file.write("nothing\n")
    assert look(log, path).skipped == 6


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("whole", [list, lambda items: {"inbox": items}])
def test_one_json_document(
    tmp_path: Path, indent: int | None, whole: Callable[[list[Any]], Any]
) -> None:
    path, log = tmp_path / "inbox.json", Log()
    stack = {"app": "Mail", "group": "Post", "notifications": [{"title": "A", "body": "b"}]}
    path.write_text(json.dumps(whole([LINE, stack, 5]), indent=indent), encoding="utf-8-sig")
    news = look(log, path)
    assert news.fresh and bodies(news.arrived) == ["hello", "b"]
    assert news.skipped == 1 and "no JSON object" in news.reason
    path.write_text(json.dumps(whole([stack]), indent=indent))
    news = look(log, path)
    assert news.fresh and bodies(news.arrived) == ["b"] and not news.skipped


def test_a_list_that_is_being_written(tmp_path: Path) -> None:
    # for half a second the inbox was empty, and two hundred lines were called broken
    path, log = tmp_path / "inbox.json", Log()
    whole = json.dumps([LINE, {**LINE, "body": "two"}], indent=1)
    path.write_text(whole)
    assert bodies(look(log, path).arrived) == ["hello", "two"]
    path.write_text(whole[:-20])
    os.utime(path, ns=(0, 5))
    assert log.look(path) is None
    assert log.look(path) == News((), False, 1, "line 10: broken JSON, correct it")
    path.write_text(whole)
    news = look(log, path)
    assert news.fresh and bodies(news.arrived) == ["hello", "two"] and not news.skipped


def test_lines_that_are_lists(tmp_path: Path) -> None:
    path, log = tmp_path / "inbox.jsonl", Log()
    write(path, [LINE], [{**LINE, "body": "two"}, {**LINE, "body": "three"}])
    assert bodies(look(log, path).arrived) == ["hello", "two", "three"]


def test_a_single_object_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "inbox.json"
    path.write_text(json.dumps(LINE, indent=2))
    assert bodies(look(Log(), path).arrived) == ["hello"]


def test_a_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "inbox.jsonl"
    write(path, LINE)

    def change(number: int) -> None:
        if number == 1:
            with path.open("a") as file:
                file.write(json.dumps({**LINE, "body": "two"}) + "\n")
        elif number == 2:  # it may be away for a moment
            path.unlink()
            write(path.with_suffix(".new"), {**LINE, "body": "other"})
            path.with_suffix(".new").rename(path)

    found = asyncio.run(take(FileSource(path, interval=0.01), 3, change))
    assert [bodies(news.arrived) for news in found] == [["hello"], ["two"], ["other"]]
    assert [news.fresh for news in found] == [True, False, True]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    source = FileSource(tmp_path / "none.jsonl")
    assert source.title == "none.jsonl"
    with pytest.raises(InputError, match="cannot read .*none.jsonl .*give a JSON or JSONL file"):
        asyncio.run(take(source, 1, lambda _: None))
    for path in (tmp_path, Path("/dev/zero")):  # reading a device never ended
        with pytest.raises(InputError, match="is no file: give"):
            asyncio.run(take(FileSource(path), 1, lambda _: None))


# ---- the demo


def test_the_demo_arrives() -> None:
    every = invented()
    old = [a for a in every if a.notification.minutes_ago is not None]
    assert old and len(every) - len(old) >= 8
    found = asyncio.run(take(DemoSource(seconds=0), 1 + len(every) - len(old), lambda _: None))
    assert found[0].fresh and [*found[0].arrived] == old
    assert [a for news in found for a in news.arrived] == every


def test_the_demo_is_seeded() -> None:
    assert pauses(9, 8.0, seed=3) == pauses(9, 8.0, seed=3) != pauses(9, 8.0, seed=4)
    assert sum(pauses(9, 8.0, seed=3)) == pytest.approx(8.0)
    with pytest.raises(InputError):
        DemoSource(seconds=-1)


# ---- stacks


def test_stacks_by_app_and_thread() -> None:
    box = Inbox()
    box.add([one("a", minutes_ago=9), one("b", app="Mail", minutes_ago=3)], now=1e6)
    box.add([one("c", minutes_ago=20), one("d", group="Lunch", minutes_ago=8)], now=1e6)
    assert [s.name for s in box.stacks] == ["Mail", "Messages · Lunch", "Messages"]
    assert [i.notification.body for i in box.stacks[2].last(9)] == ["c", "a"]  # oldest first
    assert box.apps == ["Mail", "Messages"] and len(box) == 4
    box.add([one("e")], now=1e6)
    assert box.stacks[0].key == ("Messages", None)  # the newest is on top
    assert box.stacks[0].value.notifications[-1].body == "e"


def test_the_same_is_taken_once() -> None:
    box = Inbox()
    assert box.add([one("a", id="1")], now=0)
    value = box.stacks[0].value
    assert not box.add([one("a", id="1", minutes_ago=3)], now=60)
    assert box.stacks[0].value == value and len(box) == 1
    assert box.add([one("b", id="2"), one("changed", id="1")], now=120)
    assert [n.body for n in box.stacks[0].value.notifications] == ["b", "changed"]
    box.add([one("a", app="Mail", id="1")], now=120)  # the id of another app
    assert len(box) == 3
    box.add([one("moved", group="Lunch", id="2")], now=180)
    assert [(s.name, len(s)) for s in box.stacks][0] == ("Messages · Lunch", 1)


def test_replacing_keeps_what_stays() -> None:
    # after a rewrite of the file every stack was summarised once more
    box = Inbox()
    box.add([one("a"), one("b", app="Mail")], now=0)
    kept = box.get(("Messages", None))
    assert kept is not None
    value = kept.value
    given = [one("a", minutes_ago=5), one("c", app="Home")]
    assert box.add(given, now=300) and box.keep(given)
    assert box.get(("Messages", None)) is kept and kept.value == value
    assert box.get(("Mail", None)) is None
    assert not box.add(given, now=300) and not box.keep(given)
    assert box.keep([]) and not box.stacks and not box.apps


def test_what_the_model_reads_is_capped() -> None:
    box = Inbox(InboxOptions(newest=3, characters=30))
    box.add([one(f"text {n}") for n in range(10)], now=0)
    (stack,) = box.stacks
    assert [n.body for n in stack.value.notifications] == ["text 7", "text 8", "text 9"]
    assert stack.left_out == 7
    box.add([one("x" * 25)], now=1)  # the three newest have too many characters together
    assert [n.body for n in stack.value.notifications] == ["x" * 25] and stack.left_out == 10
    box.add([one("y" * 100)], now=2)  # too long alone: it goes whole, and nothing beside it
    assert [n.body for n in stack.value.notifications] == ["y" * 100]
    with pytest.raises(InputError):
        InboxOptions(newest=0)


def test_the_value_is_other_when_the_stack_is() -> None:
    box = Inbox()
    box.add([one("a")], now=0)
    (stack,) = box.stacks
    before = stack.value
    box.add([one("b")], now=1)
    assert stack.value != before


def test_stacks_are_those_of_a_slow_inbox() -> None:
    chance = random.Random(1)
    box, known = Inbox(), dict[tuple[str, str], tuple[float, int, Arrived]]()
    for number in range(600):
        found = one(
            f"{number}",
            app=chance.choice("AB"),
            group=chance.choice((None, "x", "y")),
            minutes_ago=chance.choice((None, *range(50))),
            id=str(chance.randrange(200)),
        )
        box.add([found], now=1e6)
        moment = 1e6 - 60 * (found.notification.minutes_ago or 0)
        known[found.app, found.id] = (moment, number, found)
        if number % 150:
            continue
        stacks: dict[tuple[str, str | None], list[tuple[float, int, Arrived]]] = {}
        for entry in sorted(known.values(), key=lambda e: e[:2]):
            stacks.setdefault((entry[2].app, entry[2].group), []).append(entry)
        order = sorted(stacks.items(), key=lambda s: s[1][-1][:2], reverse=True)
        assert [s.key for s in box.stacks] == [key for key, _ in order]
        for stack, (_, entries) in zip(box.stacks, order, strict=True):
            assert [i.id for i in stack.last(10**6)] == [e[2].id for e in entries]


def test_ten_thousand_in_one_stack_and_in_as_many() -> None:
    box = Inbox()
    box.add([one(str(n)) for n in range(10_000)], now=0)
    box.add([one(str(n), app=f"App {n}") for n in range(10_000)], now=1)
    assert len(box) == 20_000 and len(box.stacks) == 10_001
    many = box.stacks[-1]
    assert len(many) == 10_000 and many.left_out == 10_000 - box.options.newest
