"""What a person set in the app, kept in a JSON file in the folder of settings.

Keys that this version does not know are kept. A file that cannot be read is set aside under another
name, and the app begins with the defaults and says so.
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from afm_mlx.errors import first_line
from afm_mlx.files import write_bytes

AUTO: Final = "auto"
"""In the place of an adapter: the one that the package of the feature has for the model."""
Choice = str | None
"""Folder or name of an adapter, ``AUTO``, or ``None`` for the model as it is."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Settings:
    """What is remembered from one time to the next.

    Attributes:
        model: source of the model (:func:`afm_mlx.hub.resolve`); the embedded default if none.
        adapter: for all features that ``adapters`` says nothing about.
        adapters: choices by the name of a feature.
        switched_off: apps whose notifications are not summarised.
        inbox: file with the notifications; those that come along if empty.
        recent: what the screens worked with last, by names of theirs.
        other: keys of the file that this version does not know.
    """

    theme: str = "textual-dark"
    model: str | None = None
    adapter: Choice = AUTO
    adapters: Mapping[str, Choice] = field(default_factory=dict)
    switched_off: tuple[str, ...] = ()
    inbox: str = ""
    recent: Mapping[str, str] = field(default_factory=dict)
    other: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.theme, str) or not isinstance(self.inbox, str):
            raise ValueError("theme and inbox are texts")
        if not _is_choice(self.model) or not _is_choice(self.adapter):
            raise ValueError("model and adapter are texts or null")
        if not all(_is_choice(v) for v in self.adapters.values()):
            raise ValueError("adapters are texts or null")
        if not all(isinstance(v, str) for v in (*self.switched_off, *self.recent.values())):
            raise ValueError("switched_off and recent hold texts")

    def choice(self, feature: str) -> Choice:
        """The adapter that a person wants for a feature."""
        return self.adapters.get(feature, self.adapter)


def _is_choice(value: object) -> bool:
    return value is None or isinstance(value, str)


_NAMES = {f.name for f in fields(Settings)} - {"other"}


def folder(name: str = "settings") -> Path:
    """Where the platform wants ``settings`` or ``logs`` of a program."""
    home = Path.home()
    if sys.platform == "darwin":
        usual = "Library/Application Support" if name == "settings" else "Library/Logs"
    else:
        usual = ".config" if name == "settings" else ".local/state"
    given = os.environ.get("XDG_CONFIG_HOME" if name == "settings" else "XDG_STATE_HOME")
    return (Path(given) if given else home / usual) / "afm-mlx"


def path() -> Path:
    """The file of settings."""
    return folder() / "settings.json"


def read(file: Path) -> tuple[Settings, str]:
    """Settings from a file, and what a person must know of it, if anything."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings(), ""
    except (OSError, UnicodeDecodeError) as error:
        return Settings(), _set_aside(file, error)
    try:
        return from_json(json.loads(text)), ""
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        return Settings(), _set_aside(file, error)


def from_json(values: Mapping[str, Any]) -> Settings:
    """Settings from what JSON made of them; raises ``ValueError`` for what cannot be."""
    known = {k: v for k, v in values.items() if k in _NAMES}
    for name in ("adapters", "recent"):
        if not isinstance(known.get(name, _NOTHING), Mapping):
            raise ValueError(f"{name} is no object")
    if not isinstance(known.get("switched_off", []), list):
        raise ValueError("switched_off is no list")
    known["switched_off"] = tuple(known.get("switched_off", ()))
    return Settings(**known, other={k: v for k, v in values.items() if k not in _NAMES})


def write(settings: Settings, file: Path) -> None:
    """Write settings whole.

    Raises:
        InputError: the folder cannot be written.
    """
    values = asdict(settings)
    other = values.pop("other")
    text = json.dumps({**other, **values}, indent=1, ensure_ascii=False) + "\n"
    write_bytes(file, text.encode("utf-8", "replace"), new_folder=True)


def update(before: Settings, after: Settings, file: Path) -> None:
    """Write what ``after`` has that ``before`` had not; the rest stays as another app wrote it.

    Raises:
        InputError: the folder cannot be written.
    """
    known, notice = read(file)
    if notice or not file.exists():
        known = before
    changes = {}
    for name in _NAMES:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            changes[name] = _changed(old, new, getattr(known, name))
    write(replace(known, **changes), file)


def _changed(old: Any, new: Any, known: Any) -> Any:
    """``known`` with the change from ``old`` to ``new``."""
    if not isinstance(new, Mapping) or not new:
        return new
    kept = {k: v for k, v in known.items() if k in new or k not in old}
    return kept | {k: v for k, v in new.items() if k not in old or old[k] != v}


def _set_aside(file: Path, error: Exception) -> str:
    aside = file.with_suffix(".damaged.json")
    begin = f"the settings in {file} cannot be read ({first_line(error)})"
    try:
        file.replace(aside)
    except OSError as failure:
        return f"{begin}, nor set aside ({first_line(failure)}): check the permissions"
    return f"{begin}: they are in {aside} now, and the app began with the usual ones"


def lasting(source: str) -> str:
    """A model's source as it is found from any folder: absolute, if it is a path."""
    found = expanded(source)
    return os.path.abspath(found) if os.path.exists(found) else source


def expanded(path: str | Path) -> Path:
    """``path`` with a home for its ``~``; with ``~name`` as it is if there is nobody of that name
    (where pathlib raises what is no ``OSError``)."""
    return Path(os.path.expanduser(path))
