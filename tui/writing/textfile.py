"""Text files as they are: read and written with their own encoding, mark and line ends."""

import codecs
import os
import re
import shutil
import stat
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from afm_mlx.errors import InputError, first_line
from afm_mlx.files import replacing

MOST_BYTES = 5_000_000
"""Largest file that is opened; an editor would be slow with more."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ENDS = re.compile(r"\r\n|\r|\n")
_ODD_ENDS = re.compile("[\v\f\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class TextFile:
    """A file and how its text is written down.

    Attributes:
        mark: the bytes at its beginning that tell the encoding, if it has them.
        changed: when the file was last changed, in nanoseconds, as it was read or written.
        note: what could not be kept, if anything.
    """

    path: Path
    encoding: str = "utf-8"
    mark: bytes = b""
    newline: str = "\n"
    changed: int | None = None
    note: str = ""


def read(path: Path) -> tuple[TextFile, str]:
    """The text of a file, its lines ended by ``\\n`` alone.

    Raises:
        InputError: it cannot be read, is too large, or is no text.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"{path} is no file: open a text file")
        if about.st_size > MOST_BYTES:
            size = f"{about.st_size / 1e6:.0f} MB, more than {MOST_BYTES / 1e6:.0f}"
            raise InputError(f"{path} has {size}: open a part of it")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot open {path} ({first_line(error)}): check its name") from error
    mark, encoding = next(((m, e) for m, e in _MARKS if content.startswith(m)), (b"", ""))
    text, encoding = _decoded(content[len(mark) :], encoding, path)
    ends = Counter(_ENDS.findall(text))
    newline = ends.most_common(1)[0][0] if ends else "\n"
    odd = len(_ODD_ENDS.findall(text))
    text = plain_ends(text)
    notes = ["its line ends differ and become the same"] if len(ends) > 1 else []
    notes += [f"{odd} unusual separators become line ends"] if odd else []
    if encoding not in ("utf-8", "utf-16-le", "utf-16-be"):
        notes.append(f"read as {encoding}")
    return TextFile(path, encoding, mark, newline, about.st_mtime_ns, "; ".join(notes)), text


def plain_ends(text: str) -> str:
    """``text`` with ``\\n`` at the end of every line, as an editor has it."""
    return _ODD_ENDS.sub("\n", _ENDS.sub("\n", text))


def _decoded(content: bytes, encoding: str, path: Path) -> tuple[str, str]:
    if not encoding and b"\0" in content:
        raise InputError(f"{path} is no text: open a text file")
    for name in (encoding,) if encoding else ("utf-8", "windows-1252", "latin-1"):
        try:
            return content.decode(name), name
        except UnicodeDecodeError:
            continue
    raise InputError(f"{path} is damaged {encoding} text: save it anew where it came from")


def unwritable(file: TextFile, text: str) -> str:
    """The first character of ``text`` that the file's encoding does not have, if any."""
    try:
        text.encode(file.encoding)
    except UnicodeEncodeError as error:
        return text[error.start]
    return ""


def write(file: TextFile, text: str) -> TextFile:
    """Write ``text`` to the file, which is whole or as it was; its permissions stay.

    Raises:
        InputError: it cannot be written, or has no way to write a character.
    """
    odd = unwritable(file, text)
    if odd:
        raise InputError(f"{file.encoding} has no {odd!r}: save the file as UTF-8")
    content = file.mark + text.replace("\n", file.newline).encode(file.encoding)
    path = file.path.resolve()  # a link stays one
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
            if path.exists():
                shutil.copymode(path, temporary)
        return replace(file, changed=path.stat().st_mtime_ns, note="")
    except OSError as error:
        raise InputError(f"{path} could not be written ({first_line(error)}): try again") from error


def changed_outside(file: TextFile) -> bool:
    """Whether the file is another one than was read or written last."""
    try:
        now = file.path.stat().st_mtime_ns
    except OSError:
        return False  # gone: nothing would be overwritten
    return now != file.changed


def complete(typed: str) -> list[str]:
    """Paths that begin with ``typed``, folders with a slash at their end; hidden ones if asked."""
    folder, _, name = typed.rpartition("/")
    folder += "/" if "/" in typed else ""
    try:
        found = sorted(
            f"{folder}{p.name}{'/' if p.is_dir() else ''}"
            for p in Path(os.path.expanduser(folder) or ".").iterdir()
            if p.name.startswith(name) and (name.startswith(".") or p.name[0] != ".")
        )
    except OSError:
        return []  # no such folder: nothing to complete
    return sorted(found, key=lambda p: not p.endswith("/"))
