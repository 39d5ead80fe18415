"""``afm quantize`` and ``python -m afm_mlx.quant``: show a compression run."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from afm_mlx.cli.output import console, errors, print_json
from afm_mlx.compress import Compression, Loaded, Written, compress
from afm_mlx.quant.quantize import Account, Made, Planned
from afm_mlx.quant.statistics import Progress

import tyro
from rich import progress
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Command:
    compression: Annotated[Compression, tyro.conf.arg(name="")]
    plan_only: bool = False
    """Show the plan and stop there; a second run with --plan goes on from it."""
    json: bool = False
    """Print one JSON object for each event, for programs."""


def main(arguments: Sequence[str]) -> int:
    """Run ``afm quantize`` with the arguments after its name."""
    command = tyro.cli(
        Command,
        prog="python -m afm_mlx.quant",
        args=list(arguments),
        description=Compression.__doc__,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return (_json if command.json else _show)(command)


def _json(command: Command) -> int:
    for event in compress(command.compression, command.plan_only):
        name = type(event).__name__.lower()
        if isinstance(event, Planned):
            print_json({"event": "plan", **asdict(event.plan), "account": asdict(event.account)})
        elif isinstance(event, Written):
            print_json({"event": name, **asdict(event), "folder": str(event.folder)})
        else:
            print_json({"event": name, **asdict(event)})
    return 0


def _show(command: Command) -> int:
    options = command.compression
    if options.uncalibrated:
        errors.print(
            Text(
                "WARNING: without calibration the error is several times as large;"
                " leave --uncalibrated out for anything that is to be used",
                style="bold red",
            )
        )
    with progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as bar:
        view = _View(bar)
        for event in compress(options, command.plan_only):
            view.see(event)
    return 0


class _View:
    """Events as lines and bars; a pipe gets a line every few seconds in place of the bar."""

    def __init__(self, bar: progress.Progress) -> None:
        self.bar, self.shown = bar, 0.0
        self.task = bar.add_task("", total=None)
        self.loaded = Loaded("", 0, 0)

    def see(self, event: object) -> None:
        match event:
            case Loaded():
                self.loaded = event
            case Progress():
                self._bar("reading calibration text", event.done, event.total)
            case Made():
                self._bar("fitting weights", event.number, event.total)
            case Planned():
                _print_plan(event, self.loaded)
            case Written():
                console.print(
                    Text(f"model: afm chat --model {event.folder}\nplan:  {event.folder}/plan.toml")
                )

    def _bar(self, text: str, done: int, total: int) -> None:
        self.bar.update(self.task, description=text, completed=done, total=total)
        if not errors.is_terminal and time.monotonic() > self.shown + 15:
            self.shown = time.monotonic()
            errors.print(Text(f"{text} ({done} of {total})"))


def _print_plan(event: Planned, loaded: Loaded) -> None:
    plan, account = event.plan, event.account
    console.print(Text(f"{loaded.name}, {plan.form} weights, {_summary(account, loaded)}"))
    kinds: dict[str, Counter[int]] = {}
    for name, bits in plan.bits.items():
        kinds.setdefault(name.rpartition(".")[2], Counter())[bits] += 1
    widths = sorted(set(plan.bits.values()))
    table = Table(box=None)
    table.add_column("layers with")
    for bits in widths:
        table.add_column(f"{bits} bits", justify="right")
    for kind, counts in kinds.items():
        table.add_row(kind, *(str(counts[b] or "") for b in widths))
    console.print(table)
    if account.left:
        errors.print(
            Text(
                f"note: {len(account.left)} matrices stay at 16 bits, no width fits their shape:"
                f" {account.left[0]}" + (" and others" if len(account.left) > 1 else ""),
                style="yellow",
            )
        )


def _summary(account: Account, loaded: Loaded) -> str:
    return (
        f"{account.linear:.2f} bits in linear layers, {account.model:.2f} over all,"
        f" {account.size / 1e6:.0f} MB of {loaded.size / 1e6:.0f} MB;"
        f" expected loss {account.cost:+.3f} nats a token"
    )
