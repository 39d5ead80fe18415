"""``afm profile``: where the bits, bytes and microseconds of a model go."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from afm_mlx import checkpoint
from afm_mlx.cli.output import Bar, console, errors, print_json, show_table
from afm_mlx.compress import Compression, workshop
from afm_mlx.errors import InputError
from afm_mlx.quant import measure, profile_html
from afm_mlx.quant.layers import configuration
from afm_mlx.quant.measure import ProfileOptions, Round
from afm_mlx.quant.profile import Operation, Phase, Profile, Whole, read, work
from afm_mlx.quant.quantize import Made, Workshop
from afm_mlx.quant.statistics import Progress
from afm_mlx.quant.variants import Row

import tyro
from rich.table import Table
from rich.text import Text

ROWS = 20
"""Operations shown without ``--all``."""


@dataclass(frozen=True)
class Command:
    """Measure each operation of a model, in prefill and in decoding.

    Shows what it stores, moves and computes, how long it takes, and what it reaches of the
    machine's memory bandwidth and arithmetic.

      afm profile --model quantized --html profile.html
      afm profile --what-if --save profile.json
      afm profile --open-saved profile.json --all
    """

    model: str | None = None
    """Model folder, .gguf file or hub repository; the embedded default if left out."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    options: Annotated[ProfileOptions, tyro.conf.arg(name="")] = field(
        default_factory=ProfileOptions
    )
    what_if: bool = False
    """Add every width that a layer could have, as afm quantize works them out: minutes, unless
    it has done so for this model already."""
    cache: str = ""
    """Where afm quantize keeps them; ~/.cache/afm-mlx/quant if left out."""
    all: bool = False
    """Show all operations, not only those that take longest."""
    json: bool = False
    """Print one JSON object, for programs."""
    html: Path | None = None
    """Write a page with a sortable table, plots and the graph of the model."""
    save: Path | None = None
    """Write the profile to a file."""
    open_saved: Path | None = None
    """Show a profile from its file; nothing is measured."""


def main(arguments: Sequence[str]) -> int:
    """Run ``afm profile`` with the arguments after its name."""
    command = tyro.cli(
        Command,
        prog="afm profile",
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    for path in (command.html, command.save):  # before minutes of work
        if path is not None and path.is_dir():
            raise InputError(f"{path} is a folder: name a file in it")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path.parent} is no folder: make it first")
    found = read(command.open_saved) if command.open_saved else _measured(command)
    if command.save is not None:
        found.save(command.save)
    if command.html is not None:
        profile_html.write(found, command.html)
    if command.json:
        print_json(found.report())
    else:
        _show(found, command.all)
    return 0


def _measured(command: Command) -> Profile:
    loaded = checkpoint.load(command.model, command.revision)
    if command.what_if and configuration(loaded.model):
        raise InputError(f"{loaded.name} has few bits already: name the model it was made from")
    found: Profile | None = None
    rows: Mapping[str, Row] = {}
    with Bar() as bar:
        view = _View(bar)
        for event in measure.profile(loaded.model, loaded.name, command.options):
            if isinstance(event, Profile):
                found = event
            else:
                view.see(event)
        assert found is not None
        if command.what_if:
            wanted = Compression(command.model, command.revision, cache=command.cache)
            for made in workshop(wanted, wanted.format, loaded):
                if isinstance(made, Workshop):
                    rows = made.rows
                else:
                    view.see(made)
    return found.with_choices(rows)


class _View:
    """Events as a bar; a pipe gets a line every few seconds in its place."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar

    def see(self, event: Round | Progress | Made) -> None:
        match event:
            case Round():
                self.bar("measuring", event.done, event.total)
            case Progress():
                self.bar("reading calibration text", event.done, event.total)
            case Made():
                self.bar("fitting weights", event.number, event.total)


def _show(found: Profile, everything: bool) -> None:
    console.print(Text(f"{found.model} on {found.machine.device}, {found.machine.dtype}"))
    ranked = sorted(found.operations, key=lambda o: -o.decode.seconds)
    show_table(_table(found, ranked if everything else ranked[:ROWS]))
    if not everything and len(ranked) > ROWS:
        console.print(Text(f"and {len(ranked) - ROWS} more: --all shows them", style="dim"))
    for line in _summary(found):
        console.print(Text(line))
    for note in found.notes:
        errors.print(Text(f"note: {note}", style="yellow"))


def _table(found: Profile, operations: Sequence[Operation]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("operation", overflow="fold")
    for name in ("shape", "bits", "decode\nms", "GB/s", "roof", "prefill\nms", "GFLOPS"):
        table.add_column(name, justify="right")
    known = any(o.options for o in found.operations)
    if known:
        table.add_column("nats at\nfewest", justify="right")
    for o in operations:
        row = [
            o.name.removeprefix("model.").removeprefix("layers."),
            "x".join(map(str, o.shape)),
            "" if o.bits is None else f"{o.bits:.2f}",
            f"{o.decode.seconds * 1e3:.3f}",
            f"{o.decode.bytes / o.decode.seconds / 1e9:.1f}",
            f"{found.share(o.decode):.0%}",
            f"{o.prefill.seconds * 1e3:.3f}",
            f"{o.prefill.flops / o.prefill.seconds / 1e9:.1f}",
        ]
        if known:
            row.append("" if o.sensitivity is None else f"{o.sensitivity:.4f}")
        table.add_row(*map(Text, row))
    return table


def _summary(found: Profile) -> Iterator[str]:
    totals, machine = found.totals, found.machine
    yield (
        f"{len(found.operations)} operations, {totals.size / 1e6:.1f} MB of weights:"
        f" {totals.linear:.2f} bits in linear layers, {totals.bits:.2f} over all"
    )
    yield (
        f"prefill of {found.tokens} tokens {found.prefill.seconds * 1e3:.1f} ms"
        f" ({found.tokens / found.prefill.seconds:.0f} tok/s),"
        f" {found.rest('prefill') * 1e3:.1f} ms of it outside these operations"
        + _joules(found.prefill)
    )
    yield (
        f"decoding {found.decode.seconds * 1e3:.2f} ms a token"
        f" ({1 / found.decode.seconds:.1f} tok/s),"
        f" {found.rest('decode') * 1e3:.2f} ms of it outside{_joules(found.decode)};"
        f" energy as modelled {totals.joules * 1e3:.1f} mJ"
    )
    yield (
        f"roofline {machine.bandwidth / 1e9:.1f} GB/s, {machine.speed / 1e9:.0f} GFLOPS:"
        f" linear layers reach {_reached(found, 'decode'):.0%} of it in decoding,"
        f" {_reached(found, 'prefill'):.0%} in prefill"
    )
    if totals.cost is not None:
        yield f"expected loss {totals.cost:+.3f} nats a token"


def _joules(whole: Whole) -> str:
    return "" if whole.joules is None else f", {whole.joules:.3f} J measured"


def _reached(found: Profile, phase: Phase) -> float:
    """Part of what the roofline allows that the linear layers reach together."""
    works = [work(o, phase) for o in found.operations if o.kind == "linear"]
    least = sum(found.machine.least_seconds(w.bytes, w.flops) for w in works)
    return least / sum(w.seconds for w in works)
