"""Which adapter serves a feature on a model: an own one, one that was built, one that came along.

An adapter belongs to the model whose base signature it names, and to no other.
"""

import asyncio
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from afm_mlx.adapters import formats, library
from afm_mlx.adapters.store import Store
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.packages.package import SHIPPED, packages

RECORD = "build.json"
"""What a built adapter was made of; an adapter without it is a person's own."""


def find(
    feature: str, signature: Callable[[], str], home: Path | None = None, shipped: Path = SHIPPED
) -> list[Path]:
    """Folders of the adapters for ``feature`` on a model, the one to use first.

    A person's own come first, the newest of them before all. Then come those of packages: those
    that serve fewer features before others, and built ones in ``home`` before shipped ones.

    Args:
        signature: gives the model's base signature; only asked where an adapter is for the
            feature.
        home: folder of all adapters; that of the user's data if left out.
    """
    known = packages(shipped)
    at_home = list(Store.find(home or library.home()).values())
    found = [*at_home, *(p.folder for p in known.values() if formats.is_adapter(p.folder))]
    serving = []
    for folder in found:
        made_for, base = _claims(folder)
        serves = known[made_for].features if made_for in known else (made_for,)
        if base and feature in serves and base == signature():
            came_along = folder not in at_home
            own = not came_along and not (folder / RECORD).is_file()
            served = 0 if own else len(serves)
            serving.append((served, came_along, -_written(folder / formats.CONFIG), folder))
    return [folder for *_, folder in sorted(serving)]


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # just removed
        return 0.0


def _claims(folder: Path) -> tuple[str, str]:
    """The feature or package, and the model, that an adapter says it is for."""
    try:
        config = json.loads((folder / formats.CONFIG).read_text(encoding="utf-8"))
        return str(config.get("feature", "")), str(config.get("base_signature", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return "", ""  # damaged: it is for nothing


async def load(
    engine: Engine, features: Iterable[str], home: Path | None = None, shipped: Path = SHIPPED
) -> dict[str, str]:
    """Load the adapters for ``features`` into an engine; damaged ones are passed over, with a
    warning.

    Returns:
        Names of adapters for requests, by feature; features without one are left out.
    """
    names = list(dict.fromkeys(features))
    folders = await asyncio.wrap_future(
        engine.call(lambda base: [find(n, lambda: base.signature, home, shipped) for n in names])
    )
    usable: dict[Path, bool] = {}
    chosen: dict[str, str] = {}
    for name, serving in zip(names, folders, strict=True):
        for folder in serving:
            if folder not in usable:
                usable[folder] = await _loaded(engine, folder)
            if usable[folder]:
                chosen[name] = str(folder)
                break
    return chosen


async def _loaded(engine: Engine, folder: Path) -> bool:
    """Whether an adapter could be loaded."""
    try:
        await asyncio.wrap_future(engine.load_adapter(folder, str(folder)))
    except InputError as error:
        warnings.warn(f"{error}; it is not used", RuntimeWarning, stacklevel=3)
        return False
    return True
