"""``afm quantize`` and ``python -m afm_mlx.quant``: show a compression run."""

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

from afm_mlx import compare, recover
from afm_mlx.cli.output import Bar, console, errors, print_json, show_table
from afm_mlx.compare import Compared, CompareOptions, Row
from afm_mlx.compress import PLAN, Compression, Event, Loaded, Written, compress
from afm_mlx.distill.cutting import Progress as Asked
from afm_mlx.quant.quantize import Account, Made, Planned
from afm_mlx.quant.statistics import Progress
from afm_mlx.recover import AdapterOptions
from afm_mlx.training import Evaluated, Resumed, Saved, Step, Stopped, TrainingOptions, to_json

import tyro
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Command:
    compression: Annotated[Compression, tyro.conf.arg(name="")]
    tables: int = 0
    """Then train tables, scales and norms by the model's own answers for so many steps: no bits
    more."""
    tables_rate: float = recover.TRAINING.learning_rate
    """Highest learning rate of that."""
    adapter: int = 0
    """Then train a recovery adapter for so many steps, into OUT/recovery."""
    adapter_rate: float = recover.TRAINING.learning_rate
    """Highest learning rate of that."""
    rank: int = AdapterOptions.rank
    """Rank of the recovery adapter."""
    report: bool = False
    """Then measure it beside MLX's own weights at several widths, into OUT/report.md."""
    comparison: CompareOptions = field(default_factory=CompareOptions)
    plan_only: bool = False
    """Show the plan and stop there; a second run with --plan goes on from it."""
    json: bool = False
    """Print one JSON object for each event, for programs."""


def main(arguments: Sequence[str]) -> int:
    """Run ``afm quantize`` with the arguments after its name."""
    command = tyro.cli(
        Command,
        prog="afm quantize",
        args=list(arguments),
        description=inspect.getdoc(Compression),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if command.compression.uncalibrated:
        errors.print(
            Text(
                "WARNING: without calibration the error is several times as large;"
                " leave --uncalibrated out for anything that is to be used",
                style="bold red",
            )
        )
    return (_json if command.json else _show)(command)


def events(command: Command) -> Iterator[Event | recover.Event | compare.Event]:
    """All that happens: compression, then the stages of recovery that were asked for."""
    options = command.compression
    yield from compress(options, command.plan_only)
    if command.plan_only:
        return
    out = Path(options.out)
    data = recover.RecoveryData(options.calibration.data)
    stages: list[tuple[recover.Stage, TrainingOptions, Path]] = []
    if command.tables:
        tables = replace(recover.TRAINING, steps=command.tables, learning_rate=command.tables_rate)
        stages.append(("tables", tables, out))
    if command.adapter:
        adapter = replace(
            recover.TRAINING, steps=command.adapter, learning_rate=command.adapter_rate
        )
        stages.append(("adapter", adapter, out / recover.RECOVERY))
    for stage, training, folder in stages:
        given = recover.Recovery(
            options.out,
            options.model,
            options.revision,
            data,
            adapter=AdapterOptions(command.rank),
            training=training,
        )
        yield from recover.recover(given, stage, folder, options.folder / "recovery")
    if command.report:
        yield from compare.compare(options, command.comparison, out)


def _json(command: Command) -> int:
    for event in events(command):
        name = type(event).__name__.lower()
        if isinstance(event, Step | Evaluated | Resumed | Saved | Stopped):
            print_json(to_json(event))
            continue
        if isinstance(event, Planned):
            print_json({"event": "plan", **asdict(event.plan), "account": asdict(event.account)})
        elif isinstance(event, Written):
            print_json({"event": name, **asdict(event), "folder": str(event.folder)})
        elif isinstance(event, recover.Recovered | Compared):
            print_json({"event": name, **asdict(event), "folder": str(event.folder)})
        else:
            print_json({"event": name, **asdict(event)})
    return 0


def _show(command: Command) -> int:
    with Bar() as bar:
        view = _View(bar, command.compression.uncalibrated)
        for event in events(command):
            view.see(event)
    return 0


class _View:
    """Events as lines and bars; a pipe gets a line every few seconds in place of the bar."""

    def __init__(self, bar: Bar, blind: bool) -> None:
        self.bar, self.blind = bar, blind
        self.loaded = Loaded("", 0, 0)

    def see(self, event: object) -> None:
        match event:
            case Loaded():
                self.loaded = event
            case Progress():
                self.bar("reading calibration text", event.done, event.total)
            case Made():
                self.bar("fitting weights", event.number, event.total)
            case Planned():
                _print_plan(event, self.loaded, self.blind)
            case Written():
                console.print(
                    Text(f"model: afm chat --model {event.folder}\nplan:  {event.folder / PLAN}")
                )
            case Asked():
                self.bar("asking the source", event.done, event.total)
            case Step():
                text = f"step {event.step} · loss {event.loss:.3f}"
                self.bar(f"{text} · {event.tokens_per_second:.0f} tok/s", event.step, None)
            case Evaluated():
                console.print(Text(f"after step {event.step}: KL {event.metrics['kl']:.3f}"))
            case Row():
                figures = ", ".join(f"{text} {f.kl:.3f}" for text, f in event.found.items())
                console.print(Text(f"{event.bits:.2f} bits, {event.name}: KL {figures}"))
            case Compared():
                console.print(Text(f"report: {event.folder}/report.md"))
            case Resumed():
                console.print(Text(f"goes on after step {event.step}"))
            case Stopped():
                console.print(Text(f"stopped after step {event.step}: {event.reason}", "red"))
            case recover.Recovered():
                before, after = event.before["kl"], event.after["kl"]
                console.print(
                    Text(f"{event.stage}: KL {before:.3f} -> {after:.3f}, in {event.folder}")
                )


def _print_plan(event: Planned, loaded: Loaded, blind: bool) -> None:
    plan, account = event.plan, event.account
    expected = "" if blind else f"; expected loss {account.cost:+.3f} nats a token"
    summary = _summary(account, loaded) + expected
    console.print(Text(f"{loaded.name}, {plan.form} weights, {summary}"))
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
    show_table(table)
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
        f" {account.size / 1e6:.0f} MB of {loaded.size / 1e6:.0f} MB"
    )
