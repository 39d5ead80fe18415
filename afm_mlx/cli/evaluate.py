"""``afm eval features``: answer the evaluation rows, show how well, and what an adapter changes."""

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from afm_mlx import packages
from afm_mlx.adapters import library
from afm_mlx.cli.output import Bar, console, print_json, show_table
from afm_mlx.distill.files import digest, write_json
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.evaluation import (
    Answers,
    Estimate,
    EvaluationOptions,
    Line,
    evaluate,
    lines,
    load,
    settings,
)
from afm_mlx.evaluation.rows import KINDS
from afm_mlx.evaluation.run import BASE
from afm_mlx.evaluation.table import LOWER
from afm_mlx.quant.kv import KVOptions

import tyro
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

OWN = "its adapter"
"""The variant in which each feature has the adapter that it uses by itself."""


@dataclass(frozen=True)
class Command:
    """Evaluate the features on rows that nothing was trained on, with and without adapters.

    DATA is a folder with the *.eval.jsonl files of the feature data. Every row goes through the
    feature as a person's text would, once with the model alone and once with the adapter that the
    feature has; the answers are then checked: limits, facts, edits, overlap with a reference, and a
    verdict in five dimensions. With --save a broken run goes on where it stopped. Examples:

      afm eval features data --limit 10
      afm eval features data --feature proofread --adapter proof --save proof.json
    """

    options: Annotated[EvaluationOptions, tyro.conf.arg(name="")]
    data: Annotated[Positional[Path], tyro.conf.arg(metavar="DATA")]
    """Folder with the evaluation files."""
    adapter: tuple[str, ...] = ()
    """Adapters to compare with the model alone: names or folders; those that features use by
    themselves if none is named."""
    adapters: Path | None = None
    """Folder of all adapters; that of your user data if left out."""
    save: Path | None = None
    """Write the figures to this JSON file, and the answers beside it as they come."""
    model: str | None = None
    """Model folder, .gguf file or hub repository; the embedded default if left out."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    kv: Literal["16", "8", "8/4"] = "16"
    """Bits of the KV cache; 8/4 is 8 for keys and 4 for values."""
    json: bool = False
    """Print the figures as one JSON object."""


def main(arguments: Sequence[str]) -> int:
    """Run ``afm eval features`` with the arguments after its name."""
    command = tyro.cli(
        Command,
        prog="afm eval features",
        args=list(arguments),
        description=f"{inspect.getdoc(Command)}\n\nFeatures: {', '.join(KINDS)}.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return asyncio.run(_run(command))


async def _run(command: Command) -> int:
    options = command.options
    if command.save and command.save.is_dir():
        raise InputError(f"{command.save} is a folder: name a file in it, such as all.json")
    tasks = load(command.data, options.feature or KINDS, options.limit, options.seed)
    with Engine.open(command.model, command.revision, KVOptions.parse(command.kv)) as engine:
        checkpoint = await engine.ready()
        names = dict.fromkeys(task.feature.name for task in tasks)
        variants, weights = {BASE: {"": ""}}, {}
        for own, adapters, folders in await _load(engine, command, list(names)):
            variants[own], weights[own] = adapters, _weights(folders)
        known: dict[str, Any] = {}
        if command.save:
            signature = await asyncio.to_thread(lambda: checkpoint.signature)
            known = settings(options, command.data, tasks, signature, weights, command.kv)
        answers = Answers(known, command.save and command.save.with_suffix(".answers.jsonl"))
        with Bar() as bar:
            async for event in evaluate(engine, tasks, variants, answers, options):
                name = event.given.variant or "model alone"
                bar(f"{name} · {event.given.kind}", event.done, event.total)
    wanted = {(v, task.kind, task.id) for v in variants for task in tasks}
    given = [answer for key, answer in answers.known.items() if key in wanted]
    found = lines(tasks, given, BASE, options.seed)
    report = {
        "model": checkpoint.name,
        "settings": known,
        "options": asdict(options),
        "lines": [asdict(line) for line in found],
    }
    if command.save:
        write_json(command.save, report)
    if command.json:
        print_json(report)
    else:
        show_table(_table(found, list(variants)))
        console.print(
            Text(
                "percent of the rows that all answered, 95 % intervals; * is better if lower", "dim"
            )
        )
    return 0


async def _load(
    engine: Engine, command: Command, names: list[str]
) -> list[tuple[str, dict[str, str], list[Path]]]:
    """Variants beside the model alone: name, adapters by feature, and their folders."""
    if not command.adapter:
        own = await packages.load(engine, names, command.adapters)
        return [(OWN, own, [Path(folder) for folder in own.values()])] if own else []
    found: dict[str, tuple[str, dict[str, str], list[Path]]] = {}
    known = packages.packages()
    for name in command.adapter:
        folder = library.locate(name, command.adapters or library.home())
        listed = await asyncio.wrap_future(engine.load_adapter(folder))
        if listed.name in (OWN, *found):
            raise InputError(f"two adapters are called {listed.name!r}: name only one of them")
        feature = listed.about.feature
        served = known[feature].features if feature in known else (feature,)
        wanted = [n for n in served if n in KINDS] or [""]
        found[listed.name] = (listed.name, dict.fromkeys(wanted, listed.name), [folder])
    return list(found.values())


def _weights(folders: list[Path]) -> str:
    """What tells adapters apart from others of the same names."""
    files = sorted({f for folder in folders for f in folder.glob("*.safetensors")})
    return " ".join(digest(f)[:16] for f in files)


def _table(found: list[Line], variants: list[str]) -> Table:
    table = Table(box=None)
    for name in ("", "", "rows"):
        table.add_column(name, justify="right" if name else "left")
    for variant in variants:
        table.add_column(Text(variant or "model alone"), justify="right")
        if variant != BASE:
            table.add_column("difference", justify="right")
    kind = ""
    for line in found:
        if kind and line.kind != kind:
            table.add_row()
        first = line.kind if line.kind != kind else ""
        kind = line.kind
        rows = [str(line.values[v].rows) for v in variants if v in line.values]
        shown = rows[0] if len({*rows}) == 1 else " / ".join(rows)  # as of precision
        cells = []
        for variant in variants:
            cells.append(_value(line.values.get(variant)))
            if variant != BASE:
                cells.append(_difference(line.differences.get(variant), line.figure))
        star = "*" if line.figure in LOWER else ""
        table.add_row(first, line.figure + star, shown, *cells)
    return table


def _value(estimate: Estimate | None) -> Text:
    if estimate is None:
        return Text("")
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    return Text(f"{value:.1f}").append(f" [{low:.0f} to {high:.0f}]", "dim")


def _difference(estimate: Estimate | None, figure: str) -> Text:
    if estimate is None:
        return Text("")
    value, low, high = (100 * x for x in (estimate.value, estimate.low, estimate.high))
    style = ""
    if low > 0 or high < 0:
        style = "green" if (value > 0) != (figure in LOWER) else "red"
    return Text(f"{value:+.1f}", style).append(f" [{low:+.0f} to {high:+.0f}]", "dim")
