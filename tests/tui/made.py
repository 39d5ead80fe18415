"""A saved tiny model and adapters for it, for tests that start the app in a process of its own."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.adapters import formats
from afm_mlx.adapters.adapter import About
from afm_mlx.checkpoint import Checkpoint
from tests.adapters.made import random_adapter
from tests.tui.support import tiny

ROOT = Path(__file__).parents[2]
PATIENCE = 900.0
"""Seconds that a model of 135 M weights gets on a busy machine."""


def saved_model(folder: Path) -> Checkpoint:
    """The tiny model, as a folder that the app opens."""
    base = tiny()
    checkpoint.save(folder, base.model, base.tokenizer, base="tiny")
    return checkpoint.load(str(folder))


def saved_adapters(base: Checkpoint, home: Path, names: Iterable[str]) -> None:
    """Adapters of these names for any feature of ``base``; each answers in its own way."""
    about = About(base_signature=base.signature)
    for seed, name in enumerate(names, 1):
        adapter = random_adapter(base.model, name, about=about, seed=seed)
        formats.write(adapter, home / name)


def environment(folder: Path) -> Mapping[str, str]:
    """Of a process of the app that keeps all its files in ``folder``, and asks nobody."""
    folders = {f"XDG_{n}_HOME": str(folder / n.lower()) for n in ("CONFIG", "STATE", "DATA")}
    return {**os.environ, **folders, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def adapters_home(folder: Path) -> Path:
    """Where such a process looks for adapters."""
    return folder / "data" / "afm-mlx" / "adapters"
