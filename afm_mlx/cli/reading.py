"""Read what a person hands to a command: files or standard input, text or JSON."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afm_mlx.cli.commands import Format
from afm_mlx.errors import InputError, first_line


def read_items(files: Sequence[Path], format: Format) -> list[Any]:
    """Everything in ``files`` (or standard input): strings, and JSON values as they are.

    JSON may be one value, a list, or one object a line. With ``auto``, files named ``.json``
    or ``.jsonl`` and text that begins like a JSON object or list of objects count as JSON.
    """
    items: list[Any] = []
    for file in files or [Path("-")]:
        text = _read(file)
        if not text.strip():
            raise InputError(f"{_name(file)} is empty: give some text to work on")
        as_json = format == "json" or (
            format == "auto" and (file.suffix in (".json", ".jsonl") or _looks_like_json(text))
        )
        items += _parse(text, file) if as_json else [text]
    return items


def _read(file: Path) -> str:
    try:
        if str(file) == "-":
            if sys.stdin is None:
                raise InputError("standard input is closed: name a file")
            if sys.stdin.isatty():
                print("Type or paste the text, then Ctrl-D.", file=sys.stderr)
            data = sys.stdin.buffer.read()
        else:
            data = file.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"cannot read {file} ({reason}): check the path") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{_name(file)} is not UTF-8 text (byte {error.start}): convert it first,"
            " e.g. with `iconv -f latin1 -t utf-8`"
        ) from error


def _parse(text: str, file: Path) -> list[Any]:
    try:
        value = json.loads(text)
        return value if isinstance(value, list) else [value]
    except RecursionError as error:
        raise InputError(f"{_name(file)} is nested too deeply: give flat JSON") from error
    except json.JSONDecodeError as whole:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) == 1:
            raise _broken(file, whole.lineno, whole) from whole
        items = []
        for number, line in lines:
            try:
                items.append(json.loads(line))
            except json.JSONDecodeError as error:
                worse = whole if number == 1 else error
                raise _broken(file, whole.lineno if number == 1 else number, worse) from error
        return items
    except ValueError as error:  # numbers of thousands of digits
        raise InputError(f"{_name(file)}: {first_line(error)}: correct it") from error


def _broken(file: Path, line: int, error: json.JSONDecodeError) -> InputError:
    return InputError(
        f"{_name(file)} line {line} is broken JSON ({error.msg}): correct it, or use --format text"
    )


def _looks_like_json(text: str) -> bool:
    head = "".join(text[:200].split())
    return head.startswith(('{"', "[{", "[]", "{}"))


def _name(file: Path) -> str:
    return "standard input" if str(file) == "-" else str(file)
