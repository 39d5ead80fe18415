"""One notification that arrived, and how JSON says it.

Two shapes, freely mixed: one notification, ``{"app", "title", "body", "group" or "thread",
"minutes_ago" or "time", "id"}``, where all but ``app`` and ``body`` may be left out; and a whole
stack as :meth:`afm_mlx.features.NotificationStack.from_json` takes it. ``time`` is ISO 8601, a
time of the day (the last one that was), or seconds since 1970.
"""

import re
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any, Protocol

from afm_mlx.errors import InputError
from afm_mlx.features import Notification, NotificationStack

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Escape sequences would act on the terminal, and changes of direction on what stands beside."""
HALF_A_DAY = timedelta(hours=12)
OLDEST = 100 * 366 * 24 * 60
"""Minutes; what is older counts as that old."""


@dataclass(frozen=True)
class Arrived:
    """A notification as a source gives it.

    Attributes:
        group: thread within the app, if there is one.
        id: the same again for the same notification of the app.
    """

    app: str
    group: str | None
    notification: Notification
    id: str


@dataclass(frozen=True)
class News:
    """What one look at a source brought.

    Attributes:
        fresh: ``arrived`` is all there is now; what is not in it is gone.
        skipped: entries that could not be read, of all that were there so far.
        reason: what was wrong with the first of them.
    """

    arrived: tuple[Arrived, ...] = ()
    fresh: bool = False
    skipped: int = 0
    reason: str = ""


class Source(Protocol):
    """Something that notifications come from.

    Attributes:
        title: what a person reads.
    """

    @property
    def title(self) -> str: ...

    def follow(self) -> AsyncGenerator[News, None]:
        """News as they come, until it is closed; ``InputError`` names what stands in the way."""
        ...


def harmless(text: str) -> str:
    """``text`` with blanks for what would act on a terminal, of the same length."""
    return _CONTROL.sub(" ", text)


def printable(text: str) -> str:
    """``text`` without what would act on a terminal; a tab is a blank."""
    whole = text.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a pair
    return harmless(whole.replace("\r\n", "\n")).strip()


def one_line(text: str) -> str:
    """``text`` as :func:`printable`, with single blanks for all there are."""
    return " ".join(printable(text).split())


def arrived(
    app: str, group: str | None, title: str, body: str, minutes_ago: int | None, id: str
) -> Arrived:
    """A notification of a source, fit to be shown.

    Raises:
        InputError: it names no app, or says nothing.
    """
    app, title, body = one_line(app), one_line(title), printable(body)
    if not app:
        raise InputError("the app has no name: give one")
    if not title and not body:
        raise InputError("the notification has neither title nor body: give one")
    group = one_line(group) or None if group else None
    return Arrived(app, group, Notification(title, body, minutes_ago), id)


class Reader:
    """Reads JSON values of one file; those without an id get one by what they say.

    Two that say the same are told apart by their order, so a file read again gives the same ids.
    """

    def __init__(self, now: datetime) -> None:
        self._now = now
        self._said: Counter[tuple[str, str | None, str, str]] = Counter()

    def read(self, data: Any) -> list[Arrived]:
        """The notifications of a JSON value.

        Raises:
            InputError: it is neither a notification nor a stack.
        """
        if not isinstance(data, dict):
            raise InputError("this is no JSON object: give one notification or stack each")
        if "notifications" in data:
            stack = NotificationStack.from_json(data)
            given = zip(stack.notifications, data["notifications"], strict=True)
            return [self._one(stack.app, stack.group, n.title, n.body, raw) for n, raw in given]
        group = _text(data, "group", None)
        group = _text(data, "thread", None) if group is None else group
        app, title = _text(data, "app"), _text(data, "title", "")
        return [self._one(app or "", group, title or "", _text(data, "body") or "", data)]

    def _one(self, app: str, group: str | None, title: str, body: str, data: Any) -> Arrived:
        said = (app, group, title, body)
        self._said[said] += 1
        id = data.get("id")
        if isinstance(id, bool) or not isinstance(id, str | int | None):
            raise InputError("the id is neither a text nor a number: correct it")
        if id is None:
            id = "\0".join([group or "", title, body, str(self._said[said])])
        return arrived(app, group, title, body, minutes_ago(data, self._now), str(id))


def minutes_ago(data: Any, now: datetime) -> int | None:
    """How long ago a JSON notification came; ``None`` if it does not say.

    Raises:
        InputError: it says so in a way that cannot be read.
    """
    minutes, when = data.get("minutes_ago"), data.get("time")
    if minutes is not None:
        if isinstance(minutes, bool) or not isinstance(minutes, int | float):
            raise InputError("minutes_ago is no number: correct it")
        return _whole(minutes)
    if when is None:
        return None
    try:
        return _whole((now - _moment(when, now)).total_seconds() / 60)
    except (ValueError, OverflowError, OSError, TypeError) as error:
        raise InputError(
            f"the time {str(when)[:40]!r} cannot be read: write 2025-03-30T09:41 or 09:41"
        ) from error


def _moment(when: Any, now: datetime) -> datetime:
    if isinstance(when, int | float) and not isinstance(when, bool):
        return datetime.fromtimestamp(when, now.tzinfo)
    if re.fullmatch(r"\d\d:\d\d(:\d\d)?", when):
        moment = datetime.combine(now.date(), time.fromisoformat(when), now.tzinfo)
        return moment if moment <= now else moment - timedelta(days=1)
    moment = datetime.fromisoformat(when)
    return moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)


def _whole(minutes: float) -> int:
    try:
        return min(max(0, round(minutes)), OLDEST)
    except (ValueError, OverflowError) as error:  # JSON of Python's may hold NaN and Infinity
        raise InputError("minutes_ago is no number: correct it") from error


def _text(data: Any, name: str, *default: str | None) -> str | None:
    value = data.get(name, *default)
    if default and value is None:
        return default[0]
    if not isinstance(value, str):
        raise InputError(f"the JSON lacks the text {name!r}: add it")
    return value


def entries(value: Any) -> Iterator[Any]:
    """The notifications and stacks in one JSON document: a list, an object with an ``inbox``."""
    inbox = value.get("inbox") if isinstance(value, dict) else value
    yield from inbox if isinstance(inbox, list) else [value]


def local_now() -> datetime:
    """Now, in the time zone of this machine."""
    return datetime.now().astimezone()


def shown_time(then: float, now: datetime) -> str:
    """A moment in seconds since 1970 as the inbox shows it: 09:41, a weekday, or a day."""
    try:
        moment = datetime.fromtimestamp(then, now.tzinfo)
    except (ValueError, OverflowError, OSError):  # millions of years ago
        return ""
    if moment.date() == now.date() or now - moment < HALF_A_DAY:
        return f"{moment:%H:%M}"
    return f"{moment:%a}" if (now - moment).days < 6 else moment.date().isoformat()
