"""Read training samples: JSON Lines, JSON, plain text, folders of these, data sets of the Hub.

Records are ``{"text": ...}``, ``{"messages": [{"role", "content"}, ...]}``, the bare list of
messages that Apple's adapter toolkit trains on, or ``{"prompt", "completion"}``; other keys
are ignored. A ``.txt`` or ``.md`` file is one document.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError, first_line
from afm_mlx.tokenizer import Message

SUFFIXES = (".json", ".jsonl", ".md", ".txt")
ROLES = ("system", "user", "assistant")
_HUB = re.compile(
    r"hf:(?P<path>[\w.-]+/[\w.-]+)(?:/(?P<name>[\w.-]+))?"
    r"(?:@(?P<revision>[\w./-]+))?(?::(?P<split>.+))?"
)
_BOM = b"\xef\xbb\xbf"
_SKIP = "correct it, or leave such samples out with --skip-bad"


@dataclass(frozen=True)
class Sample:
    """A text or a conversation, exactly one of the two.

    Attributes:
        source: where it was read, ``file:line``, for reports.
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if (self.text is None) == (not self.messages):
            raise InputError("a sample is either a text or messages: give one of the two")

    @property
    def content(self) -> str:
        """All that people wrote in it; contents of messages are joined by line ends."""
        if self.text is not None:
            return self.text
        return "\n".join(m.content for m in self.messages)

    def map(self, function: Callable[[str], str]) -> "Sample":
        """The same sample with ``function`` applied to its text or to each message's."""
        if self.text is not None:
            return replace(self, text=function(self.text))
        return replace(
            self, messages=tuple(replace(m, content=function(m.content)) for m in self.messages)
        )


@dataclass(frozen=True)
class Source:
    """Where samples come from and how large a share of the training they get.

    Attributes:
        path: file, folder, or ``hf:owner/name[/configuration][@revision][:split]``.
        weight: share beside other sources, above 0; shares need not sum to 1.
        text_field: key of the text in records.
    """

    path: str
    weight: float = 1.0
    text_field: str = "text"

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("a source has no path: give a file or a folder, e.g. chat.jsonl:0.3")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise InputError(
                f"the weight of {self.path} must be a number above 0, not {self.weight}:"
                f" write e.g. {self.path}:0.5"
            )
        if not self.text_field:
            raise InputError("the name of the text field is empty: leave it out for 'text'")
        if self.is_hub and not _HUB.fullmatch(self.path):
            raise InputError(
                f"{self.path} names no data set: write hf:owner/name, hf:owner/name:split or"
                " hf:owner/name/configuration:split"
            )

    @property
    def is_hub(self) -> bool:
        """Whether it is a data set of the Hugging Face Hub."""
        return self.path.startswith("hf:")

    @classmethod
    def parse(cls, spec: str, text_field: str = "text") -> "Source":
        """Read ``path`` or ``path:weight``, e.g. ``data/chat.jsonl:0.3``.

        What follows the last colon is a weight only if it is a number.
        """
        path, colon, weight = spec.rpartition(":")
        try:
            return cls(path, float(weight), text_field) if colon else cls(spec, 1.0, text_field)
        except ValueError:
            return cls(spec, 1.0, text_field)


def files(source: Source) -> list[Path]:
    """The files of a source on this machine, in the order in which they are read.

    Folders are searched recursively for :data:`SUFFIXES`; hidden files are left out.

    Raises:
        InputError: nothing there that can be read.
    """
    root = Path(os.path.expanduser(source.path))
    if os.path.isdir(root):
        found = [
            path
            for path in root.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and os.path.isfile(path)
            and not any(part.startswith(".") for part in path.relative_to(root).parts)
        ]
        if not found:
            raise InputError(f"{root} holds no {', '.join(SUFFIXES)} files: name another folder")
        return sorted(found)
    if not os.path.exists(root):  # Path.exists raises where it may not look
        raise InputError(f"there is no {root}: check the path")
    if root.suffix.lower() not in SUFFIXES:
        raise InputError(f"{root} cannot be read: convert it to .jsonl, .json, .txt or .md")
    return [root]


def read(
    source: Source, skip_bad: bool = False, report: list[str] | None = None
) -> Iterator[Sample]:
    """Samples of ``source``, one after the other.

    Args:
        skip_bad: leave out what cannot be used, in place of an error.
        report: gets one line for each sample left out.

    Raises:
        InputError: no such file or data set, no usable sample, or, without ``skip_bad``, a
            sample that cannot be used; the message names file and line.
    """
    count = 0
    for where, record in _hub(source) if source.is_hub else _local(source):
        try:
            sample = _sample(record, source.text_field, where)
        except _BadSample as bad:
            message = f"{where} {bad}"
            if not skip_bad:
                raise InputError(f"{message}: {_SKIP}") from bad
            if report is not None:
                report.append(message)
            continue
        count += 1
        yield sample
    if not count:
        raise InputError(
            f"{source.path} has no usable sample: give lines such as"
            f' {{"{source.text_field}": "..."}} or {{"messages": [...]}}'
        )


class _BadSample(Exception):
    """What is wrong with one sample, as the end of a sentence."""


_Record = tuple[str, Any]  # where it stands, and its value or a _BadSample


def _local(source: Source) -> Iterator[_Record]:
    for path in files(source):
        try:
            suffix = path.suffix.lower()
            if suffix == ".jsonl":
                yield from _lines(path)
            elif suffix == ".json":
                yield from _items(path)
            else:
                yield f"{path}:1", _document(path, source.text_field)
        except OSError as error:
            raise InputError(
                f"cannot read {path} ({first_line(error)}): check its permissions"
            ) from error


def _lines(path: Path) -> Iterator[_Record]:
    empty = True
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.removeprefix(_BOM).strip():
                empty = False
                yield f"{path}:{number}", _json(line)
    if empty:
        yield str(path), _BadSample("is empty")


def _items(path: Path) -> Iterator[_Record]:
    items = _json(path.read_bytes())
    if isinstance(items, list) and items:
        for number, item in enumerate(items, 1):
            yield f"{path} item {number}", item
    elif isinstance(items, _BadSample):
        yield str(path), items
    elif isinstance(items, list):
        yield str(path), _BadSample("is empty")
    else:
        yield str(path), _BadSample("is no JSON list (JSON Lines belong in a .jsonl file)")


def _document(path: Path, text_field: str) -> Any:
    text = _decode(path.read_bytes())
    return text if isinstance(text, _BadSample) else {text_field: text}


def _hub(source: Source) -> Iterator[_Record]:
    match = _HUB.fullmatch(source.path)
    assert match is not None  # Source has checked it
    given = {k: v for k, v in match.groupdict().items() if v is not None}
    try:
        load_dataset = import_module("datasets").load_dataset
    except ImportError as error:
        raise InputError(
            f"{source.path} needs the package datasets: run `pip install 'afm-mlx[datasets]'`"
        ) from error
    try:
        rows = load_dataset(**{"split": "train", **given}, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{source.path} row {number}", row
    except Exception as error:  # the libraries below raise many kinds
        raise InputError(
            f"{source.path} cannot be read ({first_line(error)}): check name, split and"
            " connection, or download it as .jsonl"
        ) from error


def _decode(data: bytes) -> str | _BadSample:
    try:
        return data.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        return _BadSample(f"is not UTF-8 text (byte {error.start})")


def _json(data: bytes) -> Any:
    text = _decode(data)
    if isinstance(text, _BadSample):
        return text
    if not text.strip():
        return _BadSample("is empty")
    try:
        return json.loads(text)
    except RecursionError:
        return _BadSample("is nested too deeply")
    except json.JSONDecodeError as error:
        return _BadSample(f"is broken JSON ({error.msg})")
    except ValueError as error:  # numbers of thousands of digits
        return _BadSample(f"cannot be read ({first_line(error)})")


def _sample(record: Any, text_field: str, where: str) -> Sample:
    if isinstance(record, _BadSample):
        raise record
    if isinstance(record, list):
        return Sample(messages=_messages(record), source=where)
    if not isinstance(record, dict):
        raise _BadSample("is no JSON object or list of messages")
    given = {k for k, v in record.items() if v is not None}  # tables have every column
    if text_field in given:
        return Sample(_text(record[text_field], repr(text_field)), source=where)
    if "messages" in given:
        return Sample(messages=_messages(record["messages"]), source=where)
    if {"prompt", "completion"} <= given:
        turns = (("user", "prompt"), ("assistant", "completion"))
        messages = tuple(Message(role, _text(record[key], repr(key))) for role, key in turns)
        return Sample(messages=messages, source=where)
    raise _BadSample(f"has neither {text_field!r} nor 'messages' nor 'prompt' and 'completion'")


def _messages(items: Any) -> tuple[Message, ...]:
    if not isinstance(items, list) or not items:
        raise _BadSample("has no list of messages")
    messages = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict) or "role" not in item or "content" not in item:
            raise _BadSample(f"message {number} has no 'role' and 'content'")
        if item["role"] not in ROLES:
            raise _BadSample(
                f"message {number} has the role {item['role']!r}, none of {', '.join(ROLES)}"
            )
        if item["role"] == "system" and number > 1:
            raise _BadSample(f"message {number} is a system message, which may only come first")
        messages.append(Message(item["role"], _text(item["content"], f"message {number}")))
    if not any(m.role == "assistant" for m in messages):
        raise _BadSample("has no assistant message, so nothing to learn")
    return tuple(messages)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _BadSample(f"{name} is no text")
    if not value.strip():
        raise _BadSample(f"{name} is empty")
    return value.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half a pair
