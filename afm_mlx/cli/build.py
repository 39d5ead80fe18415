"""``afm adapters build``: make the adapters of the feature packages for a model."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.adapters.train import Planned
from afm_mlx.cli.output import Bar, console, errors, print_json
from afm_mlx.distill.markdown import amount, duration
from afm_mlx.packages import build as making
from afm_mlx.packages.build import Answered, Begun, BuildEvent, Built, Trained, UpToDate
from afm_mlx.packages.judge import judge
from afm_mlx.training import Evaluated, Resumed, Step, to_json

import tyro
from rich.text import Text

TOLD = (" good", " poor", " accuracy")
"""Figures that are printed; the README of an adapter has all."""


@dataclass(frozen=True)
class Command:
    """Make the adapters of the features for a model, from the data that comes along.

    Features use an adapter by themselves once there is one for their model. What is up to date is
    left alone, and a new adapter only replaces one that did no better on samples held out. Each is
    then measured on evaluation rows; its README tells how well it did. Ctrl-C stops at any time,
    and the same command goes on. Examples:

      afm adapters build --base quantized
      afm adapters build --feature summary proofread
    """

    base: str | None = None
    """Model folder, .gguf file or hub repository; the embedded default if left out."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    feature: tuple[str, ...] = ()
    """Only these, such as summary; all if none is named."""
    force: bool = False
    """Build what is up to date too, and replace better ones."""
    adapters: Path | None = None
    """Folder of all adapters; that of your user data if left out."""
    json: bool = False
    """Print one JSON object for each event, for programs."""


def main(arguments: Sequence[str]) -> int:
    """Run ``afm adapters build`` with the arguments after its name."""
    command = tyro.cli(
        Command,
        prog="afm adapters build",
        args=list(arguments),
        description=inspect.getdoc(Command),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    packages = making.chosen(command.feature)
    base = checkpoint.load(command.base, command.revision)
    with Bar() as bar:
        shown = _Shown(bar)
        try:
            for event in making.build(base, packages, judge, command.adapters, force=command.force):
                if command.json:
                    print_json(_plain(event))
                else:
                    shown.see(event)
        except KeyboardInterrupt:
            errors.print(Text("afm: stopped: the same command goes on"))
            return 130
    return 0


class _Shown:
    """A build as people see it; a pipe gets a line every few seconds for the bar."""

    def __init__(self, bar: Bar) -> None:
        self.bar, self.steps = bar, 0

    def see(self, event: BuildEvent) -> None:
        match event:
            case UpToDate():
                why = "is up to date" if event.better else "stays, a newer one was no better"
                console.print(Text(f"{event.package} {why}: {event.folder}"))
            case Begun():
                console.print(Text(f"{event.package}, {event.number} of {event.total}", "bold"))
            case Trained(event=Planned() as plan):
                self.steps = plan.steps
                console.print(
                    Text(
                        f"  {plan.data.samples} samples, {amount(plan.data.tokens)} tokens,"
                        f" {plan.steps} steps, about {duration(plan.seconds)}"
                    )
                )
            case Trained(event=Resumed() as resumed):
                console.print(Text(f"  goes on after step {resumed.step}"))
            case Trained(event=Step() as step):
                text = f"{event.package} · step {step.step} · loss {step.loss:.3f}"
                self.bar(text, step.step, self.steps)
            case Trained(event=Evaluated() as seen):
                loss = f"{seen.metrics['loss']:.3f}"
                console.print(Text(f"  after step {seen.step}: held-out loss {loss}", "dim"))
            case Answered():
                self.bar(f"{event.package} · evaluation rows", event.done, event.total)
            case Built():
                _print_built(event)


def _print_built(event: Built) -> None:
    console.print(Text(f"  held-out loss {event.loss:.3f}, {event.loss_before:.3f} before"))
    for name, value in event.figures.items():
        if name.endswith(TOLD):
            was = event.figures_before.get(name)
            before = f", {was:.0%} before" if was is not None else ""
            console.print(Text(f"  {name}: {value:.0%}{before}"))
    if not event.replaced:
        console.print(Text("  no better than the one there, which stays", style="yellow"))
    console.print(Text(f"  {event.folder}"))


def _plain(event: BuildEvent) -> dict[str, Any]:
    """An event as one line of JSON."""
    if isinstance(event, Trained):
        inner = event.event
        if isinstance(inner, Planned):
            return {"event": "plan", "package": event.package, **asdict(inner)}
        return {**to_json(inner), "package": event.package}
    name = {UpToDate: "up-to-date", Begun: "begun", Answered: "answered", Built: "built"}
    known = asdict(event)
    return {
        "event": name[type(event)],
        **{k: str(v) if isinstance(v, Path) else v for k, v in known.items()},
    }
