"""A text as a person types it, as input of a feature: as JSON, or in the plain form of its kind."""

import json
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.features import (
    Change,
    ChatMessage,
    Feature,
    Notification,
    NotificationStack,
    Text,
    Thread,
)
from afm_mlx.features.inputs import Input

HINTS: dict[type[Any], str] = {
    Text: "a text",
    Change: "what to change on the first line, the text below",
    Thread: "a message a line, as Ana: see you at seven",
    NotificationStack: "the app on the first line, then Title: body, a notification a line",
}
"""What to type for each kind of input."""


def value_for(feature: Feature[Any], text: str) -> Input:
    """The input that ``text`` stands for.

    Raises:
        InputError: it is not of the form that :data:`HINTS` names.
    """
    if feature.input is not Text and text.lstrip().startswith("{"):
        return feature.input.from_json(_object(text))
    lines = [line for line in text.splitlines() if line.strip()]
    if feature.input is Change:
        first, _, rest = text.strip().partition("\n")
        return Change(rest, first)
    if feature.input is Thread:
        return Thread(tuple(ChatMessage(*_named(line)) for line in lines))
    if feature.input is NotificationStack:
        return NotificationStack(
            lines[0] if lines else "", tuple(Notification(*_named(line)) for line in lines[1:])
        )
    return Text(text)


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError("this begins as JSON and is none: correct it, or type text") from error


def _named(line: str) -> tuple[str, str]:
    """``Ana: hello`` as name and text."""
    name, colon, text = line.partition(":")
    return (name.strip(), text.strip()) if colon else ("Message", line.strip())
