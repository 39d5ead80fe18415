"""Stacks of notifications by app and thread: oldest first in each, the newest stack on top.

What the model reads of a stack is its :attr:`Stack.value`, a value that can be compared: an answer
belongs to the stack as it is now if and only if it was asked about an equal one.
"""

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass

from afm_mlx.errors import InputError
from afm_mlx.features import Notification, NotificationStack
from afm_mlx.tui.inbox.arrivals import Arrived

Key = tuple[str, str | None]
"""App and thread."""


@dataclass(frozen=True)
class InboxOptions:
    """How much of one stack goes to the model; the rest is counted.

    Attributes:
        newest: notifications, at most.
        characters: of them together, at most; the newest one goes whole in any case.
    """

    newest: int = 24
    characters: int = 6000

    def __post_init__(self) -> None:
        if self.newest < 1:
            raise InputError("newest must be at least 1: it counts the notifications to read")


@dataclass(frozen=True)
class Item:
    """A notification in its place: ``time`` in seconds since 1970, ``number`` by arrival."""

    time: float
    number: int
    notification: Notification
    id: str

    @property
    def place(self) -> tuple[float, int]:
        """What notifications are ordered by."""
        return self.time, self.number


class Stack:
    """Notifications of one app and thread."""

    def __init__(self, key: Key, options: InboxOptions) -> None:
        self.key = key
        self._options = options
        self._items: dict[str, Item] = {}
        self._ordered: list[Item] | None = []
        self._value: NotificationStack | None = None

    @property
    def app(self) -> str:
        return self.key[0]

    @property
    def group(self) -> str | None:
        return self.key[1]

    @property
    def name(self) -> str:
        """App and thread as a person reads them."""
        return f"{self.app} · {self.group}" if self.group else self.app

    @property
    def newest(self) -> Item:
        return self._order()[-1]

    def __len__(self) -> int:
        return len(self._items)

    def last(self, count: int) -> list[Item]:
        """The newest ``count``, oldest first."""
        return self._order()[-count:]

    @property
    def value(self) -> NotificationStack:
        """What the model reads: the newest notifications, as many as the options allow."""
        if self._value is None:
            read = tuple(item.notification for item in self._read())
            self._value = NotificationStack(self.app, read, self.group)
        return self._value

    @property
    def left_out(self) -> int:
        """Older notifications that the model does not read."""
        return len(self) - len(self.value.notifications)

    def _read(self) -> list[Item]:
        newest = self.last(self._options.newest)
        sizes = [len(i.notification.title) + len(i.notification.body) for i in reversed(newest)]
        room = (total <= self._options.characters for total in itertools.accumulate(sizes))
        count = sum(itertools.takewhile(bool, room))
        return newest[-max(count, 1) :]

    def _order(self) -> list[Item]:
        if self._ordered is None:
            self._ordered = sorted(self._items.values(), key=lambda item: item.place)
        return self._ordered

    def _add(self, item: Item) -> None:
        self._items[item.id] = item
        self._value = None
        if self._ordered is not None:
            if self._ordered and item.place < self._ordered[-1].place:
                self._ordered = None
            else:
                self._ordered.append(item)

    def _remove(self, item: Item) -> None:
        del self._items[item.id]
        self._ordered = self._value = None


class Inbox:
    """All stacks; a notification that is there already is not taken twice.

    One with a known id that says something else takes the place of the one before, as the newest.
    """

    def __init__(self, options: InboxOptions | None = None) -> None:
        self.options = options or InboxOptions()
        self._stacks: dict[Key, Stack] = {}
        self._known: dict[tuple[str, str], tuple[Key, Item]] = {}
        self._numbers = itertools.count()
        self._order: list[Stack] | None = []

    def __len__(self) -> int:
        """Number of notifications."""
        return len(self._known)

    @property
    def stacks(self) -> list[Stack]:
        """Newest first."""
        if self._order is None:
            self._order = sorted(self._stacks.values(), key=lambda s: s.newest.place, reverse=True)
        return self._order

    @property
    def apps(self) -> list[str]:
        """By name."""
        return sorted({app for app, _ in self._stacks}, key=str.casefold)

    def get(self, key: Key) -> Stack | None:
        return self._stacks.get(key)

    def add(self, arrived: Iterable[Arrived], now: float | None = None) -> bool:
        """Take what arrived; whether anything is other than before.

        Args:
            now: seconds since 1970 at which it arrived.
        """
        now = time.time() if now is None else now
        changed = False
        for one in arrived:
            changed |= self._take(one, now)
        return changed

    def keep(self, arrived: Iterable[Arrived]) -> bool:
        """Forget all that is not in ``arrived``; whether anything is other than before."""
        gone = set(self._known) - {(one.app, one.id) for one in arrived}
        for known in gone:
            self._drop(known)
        return bool(gone)

    def _take(self, one: Arrived, now: float) -> bool:
        known, key = (one.app, one.id), (one.app, one.group)
        before = self._known.get(known)
        if before is not None:
            if before[0] == key and _says(before[1].notification) == _says(one.notification):
                return False
            self._drop(known)
        moment = now - 60 * (one.notification.minutes_ago or 0)
        item = Item(moment, next(self._numbers), one.notification, one.id)
        if key not in self._stacks:
            self._stacks[key] = Stack(key, self.options)
        self._stacks[key]._add(item)
        self._known[known] = (key, item)
        self._order = None
        return True

    def _drop(self, known: tuple[str, str]) -> None:
        key, item = self._known.pop(known)
        stack = self._stacks[key]
        stack._remove(item)
        if not stack:
            del self._stacks[key]
        self._order = None


def _says(notification: Notification) -> tuple[str, str]:
    return notification.title, notification.body
