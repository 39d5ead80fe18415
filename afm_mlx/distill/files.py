"""Files of a run: JSON, and metrics line by line."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError, first_line
from afm_mlx.files import write_bytes


def read_json(path: Path) -> dict[str, Any]:
    """An object written by :func:`write_json`; empty if there is none."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): delete it to begin anew"
        ) from error
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_bytes(path, json.dumps(value, indent=1, ensure_ascii=False).encode())


def digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path} ({first_line(error)}): check its name") from error


class Log:
    """``metrics.jsonl``: one line an event, out of this process at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> "Log":
        self._file = self.path.open("ab")
        if self._file.tell():  # a killed process may have left half a line
            with self.path.open("rb") as f:
                f.seek(-1, os.SEEK_END)
                if f.read(1) != b"\n":
                    self._file.write(b"\n")
        return self

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def __exit__(self, *_: object) -> None:
        self._file.close()
