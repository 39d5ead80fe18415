"""Where adapters live, and how one is found by its name."""

import os
import re
import shutil
import sys
from pathlib import Path

from afm_mlx.adapters import formats
from afm_mlx.adapters.store import Store
from afm_mlx.errors import InputError, first_line

_NAME = re.compile(r"[\w-]+")
TOKENS = "tokens"
"""What the folder with an adapter's training text is called after its name."""


def home() -> Path:
    """Folder of all adapters: in the user's data, never in the current folder."""
    usual = "Library/Application Support" if sys.platform == "darwin" else ".local/share"
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / usual) / "afm-mlx" / "adapters"


def cache() -> Path:
    """Where training keeps tokens and saves."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "afm-mlx" / "adapters"


def check_name(name: str) -> None:
    """Raise for what is no name of an adapter.

    Raises:
        InputError: it has other than letters, digits, ``-`` and ``_``.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for an adapter: use letters, digits, - and _")


def locate(name: str, folder: Path) -> Path:
    """Folder of the adapter ``name`` of all those in ``folder``, or of one elsewhere by its path.

    Raises:
        InputError: there is none.
    """
    if name not in Store.find(folder) and formats.is_adapter(Path(name)):
        return Path(name)
    return find(name, folder)


def find(name: str, folder: Path) -> Path:
    """Folder of the adapter ``name`` of all those in ``folder``.

    Raises:
        InputError: there is none.
    """
    known = Store.find(folder)
    if name not in known:
        listed = ", ".join(known) or "none"
        raise InputError(f"there is no adapter {name!r} in {folder} ({listed}): name another")
    return known[name]


def remove(name: str, folder: Path) -> int:
    """Delete an adapter of those in ``folder`` and what its training kept; bytes freed.

    Raises:
        InputError: there is none, or it cannot be deleted.
    """
    doomed = [find(name, folder)]
    kept = re.compile(f"{re.escape(name)}-([0-9a-f]{{12}}|{TOKENS})")
    # Or the next run of that name would go on where this one ended; with what other ranks keep.
    found = [*cache().glob("*"), *cache().glob("rank-*/*")]
    doomed += [path for path in found if kept.fullmatch(path.name)]
    freed = 0
    for path in doomed:
        freed += sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise InputError(
                f"{path} cannot be deleted ({first_line(error)}): check its permissions"
            ) from error
    return freed
