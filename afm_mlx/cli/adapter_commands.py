"""What can be typed after ``afm adapters``, as in :mod:`afm_mlx.cli.commands`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class TrainAdapter:
    """Train an adapter on samples of your own: see `afm adapters train --help`."""


@dataclass(frozen=True)
class BuildAdapters:
    """Make the adapters of the features for a model: see `afm adapters build --help`."""


@dataclass(frozen=True)
class Adapters:
    """Options that all commands on adapters share."""

    adapters: Path | None = None
    """Folder of all adapters; that of your user data if left out."""
    json: bool = False
    """Print JSON, for programs."""


@dataclass(frozen=True)
class ListAdapters(Adapters):
    """Show all adapters: what each is for, its model, its size and figures."""

    def run(self) -> int:
        from afm_mlx.cli import adapters

        return adapters.show_all(self)


@dataclass(frozen=True, kw_only=True)
class ShowAdapter(Adapters):
    """Show all that is known of one adapter.

    afm adapters show notes
    afm adapters show notes --json | jq .metrics
    """

    name: Positional[str]
    """Name of an adapter, or a folder that holds one."""

    def run(self) -> int:
        from afm_mlx.cli import adapters

        return adapters.show(self)


@dataclass(frozen=True, kw_only=True)
class ImportAdapter(Adapters):
    """Copy an adapter that mlx-lm or PEFT wrote to the others.

    afm adapters import ~/Downloads/my-lora --name notes
    """

    folder: Positional[Path]
    """Folder with adapters.safetensors or adapter_model.safetensors."""
    name: str = ""
    """What to call it; the folder's name if left out."""
    feature: str = ""
    """Feature that it is for, such as notification-summary."""
    model: str | None = None
    """Check that it fits this model, and bind it to it."""

    def run(self) -> int:
        from afm_mlx.cli import adapters

        return adapters.bring_in(self)


@dataclass(frozen=True, kw_only=True)
class ExportAdapter(Adapters):
    """Write an adapter as a folder for other programs.

    afm adapters export notes shared/notes --form peft
    """

    name: Positional[str]
    """Name of an adapter, or a folder that holds one."""
    out: Positional[Path]
    """New folder."""
    form: Literal["mlx", "peft"] = "mlx"
    """mlx for mlx-lm, peft for PEFT and transformers."""

    def run(self) -> int:
        from afm_mlx.cli import adapters

        return adapters.give_out(self)


@dataclass(frozen=True, kw_only=True)
class RemoveAdapter(Adapters):
    """Delete an adapter and what its training kept; asks before."""

    name: Positional[str]
    """Name of an adapter."""
    yes: bool = False
    """Do not ask."""

    def run(self) -> int:
        from afm_mlx.cli import adapters

        return adapters.remove(self)
