"""Files that are whole or not there: written under a temporary name, flushed, then renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from afm_mlx.errors import InputError, first_line

from safetensors import SafetensorError

REMEDY = "free some space or choose another folder"


@contextlib.contextmanager
def replacing(path: Path, remedy: str = REMEDY, new_folder: bool = False) -> Iterator[Path]:
    """A path to write to in the place of ``path``, which it becomes if nothing fails.

    It has the same suffix, and lies in the same folder.

    Args:
        remedy: what the message proposes.
        new_folder: make the folder if it is not there.

    Raises:
        InputError: the disk is full or not writable; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        if new_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        flush(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} could not be written ({first_line(error)}): {remedy}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes, new_folder: bool = False) -> None:
    """Write a file whole, as :func:`replacing` does.

    Raises:
        InputError: the folder cannot be written.
    """
    with replacing(path, new_folder=new_folder) as temporary:
        temporary.write_bytes(content)


def flush(path: Path) -> None:
    """Have a file or folder on the disk itself before this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` if nothing fails.

    Raises:
        InputError: the disk is full or not writable; ``folder`` is as it was.
    """
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        yield temporary
        _replace(temporary, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder} could not be written ({first_line(error)}): {REMEDY}"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace(temporary: Path, folder: Path) -> None:
    """Put the folder ``temporary`` in the place of ``folder``, flushed to disk."""
    temporary.chmod(0o755)
    for file in temporary.iterdir():
        flush(file)
    if not folder.exists():
        temporary.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent)) / folder.name
    try:
        folder.rename(old)
        temporary.rename(folder)
    except BaseException:  # Ctrl-C too
        if old.exists() and not folder.exists():
            old.rename(folder)
        old.parent.rmdir()
        raise
    shutil.rmtree(old.parent, ignore_errors=True)
