"""``afm adapters``: train adapters and show the run; list, show, import, export and remove them."""

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from afm_mlx import checkpoint, parallel
from afm_mlx.adapters import formats, library, lora
from afm_mlx.adapters.adapter import Adapter
from afm_mlx.adapters.data import DataReport
from afm_mlx.adapters.memory import Memory
from afm_mlx.adapters.store import Store
from afm_mlx.adapters.train import AdapterTraining, Event, Finished, Planned, train_adapter
from afm_mlx.cli.adapter_commands import (
    Adapters,
    ExportAdapter,
    ImportAdapter,
    ListAdapters,
    RemoveAdapter,
    ShowAdapter,
)
from afm_mlx.cli.output import Bar, console, errors, print_json, show_table
from afm_mlx.distill.markdown import amount, duration
from afm_mlx.errors import InputError
from afm_mlx.features import FEATURES
from afm_mlx.parallel import Group
from afm_mlx.training import Evaluated, Resumed, Saved, Step, Stopped, to_json

import tyro
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

LISTED = 5
"""Samples that cannot be used, one line each."""


@dataclass(frozen=True)
class Command:
    """Train a LoRA adapter on samples of your own; the model itself stays as it is.

    DATA holds one sample a line, as a conversation, as the list of messages that Apple's toolkit
    takes, as prompt and completion, or as text:

      {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
      {"prompt": "...", "completion": "..."}

    Only the assistant's words are learnt. Some samples are held out to look at; training ends when
    they gain no more, and the best adapter is kept. Ctrl-C stops at any time, and the same command
    goes on. Examples:

      afm adapters train mail.jsonl --name mail
      afm adapters train mail.jsonl --name mail --plan
      afm adapters train mail.jsonl --name mail --model quantized --start quantized/recovery
    """

    training: Annotated[AdapterTraining, tyro.conf.arg(name="")]
    data: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA...")] = ()
    """JSONL, JSON or text files, or folders of them."""
    model: str | None = None
    """Model folder, .gguf file or hub repository; the embedded default if left out."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    plan: bool = False
    """Show what would be done, and whether it fits into memory, and stop there."""
    json: bool = False
    """Print one JSON object for each event, for programs."""


def train(arguments: Sequence[str]) -> int:
    """Run ``afm adapters train`` with the arguments after its name."""
    command = tyro.cli(
        Command,
        prog="afm adapters train",
        args=list(arguments),
        description=inspect.getdoc(Command),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if not command.data:
        raise InputError("there is nothing to learn from: name a file, e.g. chat.jsonl")
    if command.training.feature:
        _check_feature(command.training.feature)
    with parallel.join() as group:
        base = checkpoint.load(command.model, command.revision)
        return _Training(command, base, group).run()


class _Training:
    """A run as people or programs see it; a pipe gets a line every few seconds for the bar."""

    def __init__(self, command: Command, base: checkpoint.Checkpoint, group: Group | None) -> None:
        self.command, self.base, self.group = command, base, group
        self.speaks = group is None or group.rank() == 0
        self.steps = self.saved = self.best = 0

    def run(self) -> int:
        command = self.command
        with Bar() as bar:
            self.bar = bar
            try:
                for event in train_adapter(
                    self.base, command.data, command.training, command.plan, self.group
                ):
                    if isinstance(event, Saved):
                        self.saved, self.best = event.step, event.step if event.best else self.best
                    if self.speaks:
                        (_print_event if command.json else self.see)(event)
            except KeyboardInterrupt:
                kept = "nothing is saved yet"
                if self.saved:
                    kept = f"step {self.saved} and the best one, step {self.best}, are saved"
                errors.print(Text(f"afm: stopped, {kept}: the same command goes on"))
                return 130
        return 0

    def see(self, event: Event) -> None:
        match event:
            case Planned():
                self.steps = event.steps
                _print_plan(event, self.base.name)
            case Step():
                text = f"step {event.step} · loss {event.loss:.3f}"
                self.bar(f"{text} · {event.tokens_per_second:.0f} tok/s", event.step, self.steps)
            case Evaluated():
                better = "" if event.better else " (no better)"
                console.print(Text(f"after step {event.step}: {_figures(event.metrics)}{better}"))
            case Resumed():
                console.print(Text(f"goes on after step {event.step}"))
            case Stopped():
                console.print(Text(f"stopped after step {event.step}: {event.reason}"))
            case Finished():
                if event.after:
                    console.print(
                        Text(
                            f"held-out samples: {_figures(event.before)} without,"
                            f" {_figures(event.after)} with the adapter"
                        )
                    )
                console.print(Text(f"adapter: {event.folder}"))
            case Saved():
                pass


def _print_event(event: Event) -> None:
    if isinstance(event, Planned):
        memory = {"needed": event.memory.needed, "verdict": event.memory.verdict}
        print_json({"event": "plan", **asdict(event), **memory})
    elif isinstance(event, Finished):
        print_json({"event": "finished", **asdict(event), "folder": str(event.folder)})
    else:
        print_json(to_json(event))


def _figures(metrics: Mapping[str, float]) -> str:
    return f"loss {metrics['loss']:.3f}, {metrics['accuracy']:.1%} of tokens right"


def _print_plan(plan: Planned, base: str) -> None:
    data = plan.data
    for note in _notes(data):
        errors.print(Text(f"note: {note}", style="yellow"))
    share = data.learnt / max(data.tokens, 1)
    console.print(
        Text(
            f"{data.samples} samples for {base}, {data.held_out} held out; {amount(data.tokens)}"
            f" tokens, {share:.0%} of them learnt; longest {data.longest}, in windows of"
            f" {data.window} with {data.padding:.1%} padding"
        )
    )
    left = f", {plan.done} of them done" if plan.done else ""
    console.print(
        Text(
            f"{plan.epochs:.1f} times through in {plan.steps} steps of about {plan.samples:.1f}"
            f" samples{left}; {amount(plan.parameters)} numbers learn; about"
            f" {duration(plan.seconds)}"
        )
    )
    _print_memory(plan.memory)


def _notes(data: DataReport) -> list[str]:
    notes = [f"skipped {line}" for line in data.bad[:LISTED]]
    if len(data.bad) > LISTED:
        notes.append(f"skipped {len(data.bad) - LISTED} more that cannot be used")
    if data.too_long:
        notes.append(
            f"left out {data.too_long} conversations longer than the window allows: raise --window"
        )
    return notes


def _print_memory(memory: Memory) -> None:
    parts = " + ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.parts.items() if size)
    style = {"fits": "green", "tight": "yellow"}.get(memory.verdict, "red")
    console.print(
        Text(f"memory: {parts} = {memory.needed / 1e9:.2f} GB of {memory.available / 1e9:.2f} GB: ")
        + Text(memory.verdict, style=style)
        + Text(f"; {memory.advice}" if memory.advice else "")
    )


# ---- adapters that are there


def _home(command: Adapters) -> Path:
    return command.adapters or library.home()


def show_all(command: ListAdapters) -> int:
    found: list[dict[str, Any]] = []
    for name, folder in Store.find(_home(command)).items():
        try:
            found.append(_known(formats.read(folder, name), folder))
        except InputError as error:  # one that is damaged must not hide the others
            found.append({"name": name, "folder": str(folder), "problem": str(error)})
    if command.json:
        for line in found:
            print_json(line)
        return 0
    table = Table("adapter", "feature", "rank", "MB", "model", "held-out loss", box=None)
    for line in found:
        if "problem" in line:
            table.add_row(Text(line["name"]), Text(line["problem"], style="red"))
            continue
        loss = line["metrics"].get("loss", math.nan)
        table.add_row(
            Text(line["name"]),
            Text(line["feature"]),
            str(line["rank"]),
            f"{line['bytes'] / 1e6:.1f}",
            line["base_signature"][:12] or "not known",
            "" if math.isnan(loss) else f"{loss:.3f}",
        )
    show_table(table)
    if not found:
        console.print("No adapters: `afm adapters train --help` tells how to make one.")
    return 0


def show(command: ShowAdapter) -> int:
    folder = library.locate(command.name, _home(command))
    known = _known(formats.read(folder), folder)
    if command.json:
        print_json(known)
        return 0
    table = Table(box=None, show_header=False)
    metrics = known.pop("metrics")
    for name, value in {**known, **metrics}.items():
        shown = f"{value:.4g}" if isinstance(value, float) else _listed(value)
        table.add_row(name.replace("_", " "), Text(shown))
    show_table(table)
    return 0


def _listed(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def _known(adapter: Adapter, folder: Path) -> dict[str, Any]:
    """All that is known of an adapter, as JSON has it."""
    about = asdict(adapter.about)
    options = {**asdict(adapter.options), "keys": list(adapter.options.keys)}
    return {
        "name": adapter.name,
        "folder": str(folder),
        **about,
        **options,
        "bytes": adapter.nbytes,
    }


def bring_in(command: ImportAdapter) -> int:
    name = command.name or command.folder.resolve().name
    library.check_name(name)
    if command.feature:
        _check_feature(command.feature)
    adapter = formats.read(command.folder, name)
    about = adapter.about
    if command.model is not None:
        base = checkpoint.load(command.model)
        if about.base_signature not in ("", base.signature):
            raise InputError(
                f"{command.folder} was trained on another model than {base.name}: name that one"
            )
        lora.fit(base.model, adapter)
        about = replace(about, base_signature=base.signature)
    about = replace(about, feature=command.feature or about.feature)
    folder = _home(command) / name
    formats.write(replace(adapter, about=about), folder)
    _done(command, folder, f"{name}: {folder}")
    if not about.base_signature and not command.json:
        errors.print(
            Text("note: it names no model: with --model it is checked and bound", style="yellow")
        )
    return 0


def give_out(command: ExportAdapter) -> int:
    adapter = formats.read(library.locate(command.name, _home(command)))
    formats.write(adapter, command.out, command.form)
    _done(command, command.out, f"{adapter.name}: {command.out}")
    return 0


def remove(command: RemoveAdapter) -> int:
    home = _home(command)
    library.find(command.name, home)
    if not command.yes:
        if not sys.stdin.isatty():
            raise InputError(f"{command.name} would be deleted for good: say so with --yes")
        if input(f"Delete adapter {command.name}? [y/N] ").strip().lower() not in ("y", "yes"):
            console.print("Nothing is deleted.")
            return 0
    freed = library.remove(command.name, home)
    if command.json:
        print_json({"name": command.name, "freed": freed})
    else:
        console.print(Text(f"{command.name}: {freed / 1e6:.1f} MB freed"))
    return 0


def _done(command: Adapters, folder: Path, line: str) -> None:
    if command.json:
        print_json({"folder": str(folder)})
    else:
        console.print(Text(line))


def _check_feature(name: str) -> None:
    if name not in FEATURES:
        raise InputError(f"there is no feature {name!r}: choose among {', '.join(FEATURES)}")
