"""A conversation pasted as text: one message a line, ``name: text``; ``me`` is the person."""

import re

from afm_mlx.errors import InputError
from afm_mlx.features import ChatMessage, Thread

_MESSAGE = re.compile(r"\s*(?:[-*•]\s+)?([^\s:][^:\n]{0,39}?)\s*:(?:\s+(.*)|$)")
ME = "me"


def parse(text: str) -> Thread:
    """The messages of ``text``; a line without a name goes on with the message before it.

    Raises:
        InputError: there is no message, or the last one is the person's own.
    """
    messages: list[ChatMessage] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        found = _MESSAGE.fullmatch(line.rstrip())
        if found:
            sender = ME if found[1].casefold() == ME else found[1]
            messages.append(ChatMessage(sender, found[2] or ""))
        elif messages:
            last = messages[-1]
            messages[-1] = ChatMessage(last.sender, f"{last.text}\n{line.strip()}".strip())
        else:
            raise InputError(
                f"{line.strip()[:40]!r} has no name: begin each message with 'name: ', yours"
                f" with '{ME}: '"
            )
    messages = [m for m in messages if m.text]
    if not messages:
        raise InputError("there are no messages: write one a line, as 'name: text'")
    if messages[-1].sender == ME:
        raise InputError("the last message is your own: add the one to answer below it")
    return Thread(tuple(messages))


def with_reply(text: str, reply: str) -> str:
    """The conversation with ``reply`` as the person's next message."""
    body = text.rstrip("\n")
    return f"{body}\n{ME}: {reply}{text[len(body) :]}"
