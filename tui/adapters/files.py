"""Adapters brought in from elsewhere, given out, and deleted; the engine's thread reads them."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from afm_mlx.adapters import formats, library
from afm_mlx.adapters.formats import Form
from afm_mlx.adapters.train import RECORD
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.errors import InputError
from afm_mlx.features import FEATURES
from afm_mlx.packages import packages
from afm_mlx.tui.services import Services
from afm_mlx.tui.settings import AUTO, expanded

_TRIED = "(brought in)"
"""What an adapter is called while it is tried; no folder can be called so."""


async def bring_in(services: Services, folder: str, name: str = "", feature: str = "") -> Path:
    """Take a folder of mlx-lm or PEFT among the adapters, bound to the model in use.

    Raises:
        InputError: it is no adapter, damaged, or for another model, or there is no such feature;
            nothing is written then.
    """
    source = expanded(folder)
    known = {*FEATURES, *await asyncio.to_thread(packages, services.shipped)}
    if feature and feature not in known:
        raise InputError(
            f"there is no feature {feature!r}: leave it empty, or give {', '.join(sorted(known))}"
        )
    called = name or source.resolve().name
    library.check_name(called)
    target, engine = services.home / called, services.engine

    def write(base: Checkpoint) -> None:
        adapter = formats.read(source, called)
        about = replace(
            adapter.about,
            base_signature=base.signature,
            feature=feature or adapter.about.feature,
        )
        formats.write(replace(adapter, about=about), target)

    await asyncio.wrap_future(engine.load_adapter(source, _TRIED))  # refuses other models
    try:
        await asyncio.wrap_future(engine.call(write))
    finally:
        await asyncio.wrap_future(engine.unload_adapter(_TRIED))
    return target


async def give_out(services: Services, folder: Path, out: str, form: Form) -> Path:
    """Write an adapter's folder as mlx-lm or PEFT loads it.

    Raises:
        InputError: it is damaged, or ``out`` exists or cannot be written.
    """
    target = expanded(out)

    def write(_: Checkpoint) -> None:
        formats.write(formats.read(folder), target, form)

    await asyncio.wrap_future(services.engine.call(write))
    return target


async def delete(services: Services, folder: Path) -> int:
    """Delete an adapter of the person's own and what its training kept; bytes freed.

    Where it was chosen, the one of the feature's package is used again.

    Raises:
        InputError: it is gone, or cannot be deleted.
    """
    freed = await asyncio.to_thread(library.remove, folder.name, services.home)
    settings, gone = services.settings, {str(folder), folder.name}
    services.change(
        adapter=AUTO if settings.adapter in gone else settings.adapter,
        adapters={k: v for k, v in settings.adapters.items() if v not in gone},
    )
    loaded = await asyncio.wrap_future(services.engine.adapters())
    if str(folder) in {adapter.name for adapter in loaded}:
        await asyncio.wrap_future(services.engine.unload_adapter(str(folder)))
    return freed


def serves(feature: str, shipped: Path) -> tuple[str, ...]:
    """Features that an adapter which says it is for ``feature`` serves; none says all of them."""
    known = packages(shipped)
    if feature in known:
        return known[feature].features
    return (feature,) if feature in FEATURES else ()


def base_names(folders: Mapping[str, Path]) -> dict[str, str]:
    """Names of the models that adapters say they were trained on; empty where they do not."""
    return {name: _base_name(folder) for name, folder in folders.items()}


def _base_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / RECORD).read_text(encoding="utf-8"))["base"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # of elsewhere, or damaged: its signature still tells
