"""Which adapter serves a feature on a model: an own one, one that was built, one that came along.

An adapter belongs to the model whose base signature it names, and to no other.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from afm_mlx.adapters import formats, library
from afm_mlx.adapters.store import Store
from afm_mlx.engine import Engine
from afm_mlx.packages.package import SHIPPED, packages

RECORD = "build.json"
"""What a built adapter was made of; an adapter without it is a person's own."""


def find(
    feature: str, signature: Callable[[], str], home: Path | None = None, shipped: Path = SHIPPED
) -> Path | None:
    """Folder of the adapter for ``feature`` on a model, or none.

    Among those in ``home`` that name the feature, a person's own come before those that were
    built, and newer before older; then come those of the packages.

    Args:
        signature: gives the model's base signature; only asked where an adapter is for the
            feature.
        home: folder of all adapters; that of the user's data if left out.
    """
    found = list(Store.find(home or library.home()).values())
    found.sort(key=lambda f: ((f / RECORD).is_file(), -(f / formats.CONFIG).stat().st_mtime))
    known = packages(shipped)
    found += [p.folder for p in known.values() if formats.is_adapter(p.folder)]
    for folder in found:
        made_for, base = _claims(folder)
        serves = known[made_for].features if made_for in known else (made_for,)
        if base and feature in serves and base == signature():
            return folder
    return None


def _claims(folder: Path) -> tuple[str, str]:
    """The feature or package, and the model, that an adapter says it is for."""
    try:
        config = json.loads((folder / formats.CONFIG).read_text(encoding="utf-8"))
        return str(config.get("feature", "")), str(config.get("base_signature", ""))
    except (OSError, ValueError, AttributeError):
        return "", ""  # damaged: it is for nothing


async def load(
    engine: Engine, features: Iterable[str], home: Path | None = None, shipped: Path = SHIPPED
) -> dict[str, str]:
    """Load the adapters for ``features`` into an engine.

    Returns:
        Names of adapters for requests, by feature; features without one are left out.

    Raises:
        InputError: an adapter is damaged.
    """
    names = list(dict.fromkeys(features))
    folders = await asyncio.wrap_future(
        engine.call(lambda base: [find(n, lambda: base.signature, home, shipped) for n in names])
    )
    found = {n: folder for n, folder in zip(names, folders, strict=True) if folder is not None}
    for folder in dict.fromkeys(found.values()):
        await asyncio.wrap_future(engine.load_adapter(folder, str(folder)))
    return {name: str(folder) for name, folder in found.items()}
