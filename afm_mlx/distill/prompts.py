"""Read what teachers are asked: conversations up to the last question, one a line.

Lines are ``{"messages": [...]}``, bare lists of messages, or have a ``"prompt"``, as the files
of ``data.sources`` do; but they need no answer, and one that they have is left out.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afm_mlx.data.sources import ROLES, Source, files
from afm_mlx.errors import InputError, first_line
from afm_mlx.tokenizer import Message

Prompt = tuple[Message, ...]


def read_prompts(path: Path) -> list[Prompt]:
    """The conversations in a JSON Lines file or in a folder of such files.

    Raises:
        InputError: nothing there, or a line that is no prompt; the message names file and line.
    """
    found = []
    for file in files(Source(str(path))):
        if file.suffix.lower() != ".jsonl":
            raise InputError(f"{file} holds no prompts: give .jsonl files only")
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(
                f"cannot read {file} ({first_line(error)}): check its permissions"
            ) from error
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    found.append(_prompt(json.loads(line.decode("utf-8-sig"))))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"{file}:{number} is no prompt ({first_line(error)}): write it like"
                    ' {"messages": [{"role": "user", "content": "..."}]}'
                ) from error
    if not found:
        raise InputError(f"{path} holds no prompts: give a line for each")
    return found


def key_of(prompt: Sequence[Message]) -> str:
    """SHA-256 of a conversation."""
    turns = [[m.role, m.content] for m in prompt]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()


def _prompt(record: Any) -> Prompt:
    """The messages of a record up to the last one of the user."""
    if isinstance(record, dict):
        given = record.get("messages")
        record = [{"role": "user", "content": record.get("prompt")}] if given is None else given
    messages = [_message(turn) for turn in record] if isinstance(record, list) else []
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if not messages or messages[-1].role != "user":
        raise ValueError("no question at its end")
    return tuple(messages)


def _message(turn: Any) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else ("", "")
    if role not in ROLES or not isinstance(content, str) or not content.strip():
        raise ValueError("a message without a role or text")
    return Message(role, content.encode("utf-8", "replace").decode("utf-8"))
