"""On-device language models in Apple's way, on MLX: prune, distil, palettise, adapt, use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from afm_mlx import blas

if TYPE_CHECKING:
    from afm_mlx.checkpoint import Checkpoint, load, save
    from afm_mlx.engine import Engine
    from afm_mlx.generation import GenerationOptions, SamplingMode
    from afm_mlx.session import LanguageModelSession

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "checkpoint",
    "load": "checkpoint",
    "save": "checkpoint",
    "Engine": "engine",
    "GenerationOptions": "generation",
    "SamplingMode": "generation",
    "LanguageModelSession": "session",
}
__all__ = [
    "Checkpoint",
    "Engine",
    "GenerationOptions",
    "LanguageModelSession",
    "SamplingMode",
    "load",
    "save",
]

blas.preload()  # must come before the first import of mlx.core


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import afm_mlx`` stays quick."""
    if name in _HOMES:
        return getattr(import_module(f"afm_mlx.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
