"""What features work on: notification stacks, message threads, texts, changes.

The JSON shapes are those of the feature data: ``{"app", "group", "notifications": [{"title",
"body", "minutes_ago"}]}``, ``{"messages": [{"from", "text"}]}``, ``{"text", "instruction"}``
and ``{"text"}``; other keys are ignored.
"""

from dataclasses import dataclass
from typing import Any

from afm_mlx.errors import InputError


@dataclass(frozen=True)
class Notification:
    """One notification as the system shows it."""

    title: str
    body: str
    minutes_ago: int | None = None


@dataclass(frozen=True)
class NotificationStack:
    """Notifications of one app and thread, oldest first."""

    app: str
    notifications: tuple[Notification, ...]
    group: str | None = None

    def __post_init__(self) -> None:
        if not self.notifications:
            raise InputError("the stack has no notifications: give at least one")

    @property
    def source(self) -> str:
        """All that is known, as plain text: what an answer is held to."""
        lines = [f"{self.app} {self.group or ''}", f"{len(self.notifications)} notifications"]
        return "\n".join([*lines, *(f"{n.title}: {n.body}" for n in self.notifications)])

    @classmethod
    def from_json(cls, data: Any) -> "NotificationStack":
        items = _field(data, "notifications", list)
        group = data.get("group")
        return cls(
            app=_field(data, "app", str),
            group=None if group is None else _field(data, "group", str),
            notifications=tuple(
                Notification(_field(n, "title", str), _field(n, "body", str), n.get("minutes_ago"))
                for n in items
            ),
        )


@dataclass(frozen=True)
class ChatMessage:
    """A message in a thread; ``sender`` is ``me`` for the person who will answer."""

    sender: str
    text: str


@dataclass(frozen=True)
class Thread:
    """Messages, oldest first; the last one is to be answered."""

    messages: tuple[ChatMessage, ...]

    def __post_init__(self) -> None:
        if not self.messages:
            raise InputError("the thread has no messages: give at least one")

    @property
    def source(self) -> str:
        """All that is known, as plain text."""
        return "\n".join(f"{m.sender}: {m.text}" for m in self.messages)

    @classmethod
    def from_json(cls, data: Any) -> "Thread":
        return cls(
            tuple(
                ChatMessage(_field(m, "from", str), _field(m, "text", str))
                for m in _field(data, "messages", list)
            )
        )


@dataclass(frozen=True)
class Text:
    """A text to work on."""

    text: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError("the text is empty: give some text to work on")

    @property
    def source(self) -> str:
        """All that is known."""
        return self.text

    @classmethod
    def from_json(cls, data: Any) -> "Text":
        return cls(_field(data, "text", str))


@dataclass(frozen=True)
class Change:
    """A text and what a person wants changed in it."""

    text: str
    instruction: str

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError("the text is empty: give some text to change")
        if not self.instruction.strip():
            raise InputError("the instruction is empty: say what to change")

    @property
    def source(self) -> str:
        """All that is known: the instruction may bring facts of its own."""
        return f"{self.text}\n{self.instruction}"

    @classmethod
    def from_json(cls, data: Any) -> "Change":
        return cls(_field(data, "text", str), _field(data, "instruction", str))


Input = NotificationStack | Thread | Text | Change


def _field(data: Any, name: str, kind: type) -> Any:
    if not isinstance(data, dict) or not isinstance(data.get(name), kind):
        label = "text" if kind is str else "list"
        raise InputError(f"the JSON lacks the {label} {name!r}: see --help")
    value = data[name]
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a pair
    return value
