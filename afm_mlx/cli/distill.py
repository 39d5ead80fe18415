"""``afm distill`` and ``python -m afm_mlx.distill``: show a distillation run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from afm_mlx import parallel
from afm_mlx.cli.output import Bar, console, errors, print_json, show_table
from afm_mlx.distill import run
from afm_mlx.distill.markdown import amount, duration
from afm_mlx.distill.plan import Plan
from afm_mlx.distill.recipe import Recipe, from_values, parse_setting, read_toml, settings
from afm_mlx.distill.results import Results, Scores, architecture_rows
from afm_mlx.errors import InputError
from afm_mlx.parallel import Group
from afm_mlx.training import Evaluated, Resumed, Saved, Step, Stopped, to_json

import tyro
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Command:
    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    plan: bool = False
    """Show the plan, and whether it fits into memory, and stop there."""
    json: bool = False
    """Print one JSON object for each event, for programs."""


def main(arguments: Sequence[str]) -> int:
    """Run ``afm distill`` with the arguments after its name."""
    values, rest = _settings(list(arguments))
    command = tyro.cli(
        Command,
        prog="python -m afm_mlx.distill",
        args=rest,
        default=Command(from_values(values)),
        description=f"{Recipe.__doc__}\n\nA recipe file gives any setting:"
        " --config recipe.toml; key=value sets one.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    with parallel.join() as group:
        if group is not None and group.rank():
            for _ in run.distill(command.recipe, command.plan, group):
                pass  # the first process speaks for all
            return 0
        return (_json if command.json else _show)(command, group)


def _settings(arguments: list[str]) -> tuple[dict[str, object], list[str]]:
    """Settings from ``--config FILE`` and ``key=value``, and the arguments that are left."""
    values: dict[str, object] = {}
    given: dict[str, object] = {}
    rest: list[str] = []
    i = 0
    while i < len(arguments):
        argument = arguments[i]
        if argument == "--config" or argument.startswith("--config="):
            name = argument.partition("=")[2]
            if not name:
                i += 1
                if i == len(arguments):
                    raise InputError("--config needs the name of a TOML file after it")
                name = arguments[i]
            values |= read_toml(Path(name))
        elif _is_setting(argument, rest):
            name, value = parse_setting(argument)
            given[name] = value
        else:
            rest.append(argument)
        i += 1
    return values | given, rest


def _is_setting(argument: str, before: list[str]) -> bool:
    """Whether it is ``key=value``, and no value of an option that happens to look so."""
    name = argument.partition("=")[0]
    if "=" not in argument or not name.isidentifier():
        return False
    return name in settings() or not before


def _json(command: Command, group: Group | None) -> int:
    for event in run.distill(command.recipe, command.plan, group):
        name = type(event).__name__.lower()
        if isinstance(event, run.Planned):
            plan = event.plan
            more = {"needed": plan.needed, "verdict": plan.verdict, "notes": event.notes}
            print_json({"event": "plan", **asdict(plan), **more})
        elif isinstance(event, run.Finished):
            results = asdict(event.results)
            print_json({"event": "finished", **results, "report": str(event.report)})
        elif isinstance(event, run.Progress | run.Measured):
            print_json({"event": name, **asdict(event)})
        else:
            print_json(to_json(event))
    return 0


def _show(command: Command, group: Group | None) -> int:
    with Bar() as bar:
        view = _View(bar, command.recipe)
        for event in run.distill(command.recipe, command.plan, group):
            view.see(event)
    return 0


class _View:
    """Events as lines and bars; a pipe gets a line every few seconds in place of the bar."""

    def __init__(self, bar: Bar, recipe: Recipe) -> None:
        self.bar, self.recipe = bar, recipe

    def see(self, event: run.RunEvent) -> None:
        match event:
            case run.Planned():
                _print_plan(event.plan)
                for note in event.notes:
                    errors.print(Text(f"note: {note}", style="yellow"))
            case run.Progress():
                self.bar(event.stage, event.done, event.total)
            case run.Measured():
                console.print(Text(f"{event.who}: {_scores(event.scores)}"))
            case Step():
                agreement = event.parts.get("agreement")
                text = (
                    f"step {event.step} · loss {event.loss:.3f}"
                    + (f" · agreement {agreement:.2f}" if agreement is not None else "")
                    + f" · {event.tokens_per_second:.0f} tok/s"
                )
                self.bar(text, event.step, self.recipe.training.steps)
            case Evaluated():
                scores = Scores(**event.metrics)
                better = "" if event.better else " (no better)"
                console.print(Text(f"after step {event.step}: {_scores(scores)}{better}"))
            case Resumed():
                console.print(Text(f"goes on after step {event.step}"))
            case Stopped():
                console.print(Text(f"stopped after step {event.step}: {event.reason}", "red"))
            case run.Finished():
                _print_end(event.results, event.report)
            case Saved():
                pass


def _scores(scores: Scores) -> str:
    parts = [f"perplexity {scores.perplexity:.1f}"] if scores.perplexity is not None else []
    if scores.test_perplexity is not None:
        parts.append(f"on the test text {scores.test_perplexity:.1f}")
    if scores.kl:
        parts.append(f"KL {scores.kl:.3f}")
    if scores.agreement is not None and scores.kl:
        parts.append(f"agreement {scores.agreement:.1%}")
    return ", ".join(parts)


def _print_plan(plan: Plan) -> None:
    table = Table(box=None, title=f"{plan.teacher} teaches", title_justify="left")
    for name in ("", "teacher", "student"):
        table.add_column(name)
    sizes = (plan.teacher_parameters, plan.after.num_parameters)
    table.add_row("parameters", *(amount(s) for s in sizes))
    for row in architecture_rows(plan.before or plan.after, plan.after):
        table.add_row(row.name, row.before if plan.before else "", row.after)
    show_table(table)
    console.print(
        Text(
            f"{amount(plan.tokens)} tokens in all, {plan.epochs:.2f} times through"
            f" {plan.train_windows} windows"
            + (f"; teacher's answers {plan.disk / 1e6:.0f} MB on disk" if plan.disk else "")
        )
    )
    parts = " + ".join(f"{name} {size / 1e9:.2f}" for name, size in plan.memory.items() if size)
    style = {"fits": "green", "tight": "yellow"}.get(plan.verdict, "red")
    console.print(
        Text(f"memory: {parts} = {plan.needed / 1e9:.2f} GB of {plan.available / 1e9:.2f} GB: ")
        + Text(plan.verdict, style=style)
        + Text(f"; {plan.advice}" if plan.advice else "")
    )


def _print_end(results: Results, report: Path) -> None:
    table = Table(box=None)
    for name in ("", "parameters", "perplexity", "KL", "agreement"):
        table.add_column(name, justify="right" if name else "left")
    for name, size, scores in (
        ("teacher", results.teacher_parameters, results.of_teacher),
        ("student at the start", results.student_parameters, results.of_pruned),
        ("student, distilled", results.student_parameters, results.of_distilled),
    ):
        table.add_row(
            name,
            amount(size or 0),
            *(
                "" if v is None else f"{v:.{d}f}"
                for v, d in ((scores.perplexity, 1), (scores.kl, 3), (scores.agreement, 3))
            ),
        )
    show_table(table)
    if results.seconds:
        console.print(Text(f"trained for {duration(results.seconds)}"))
    console.print(Text(f"report: {report}\nstudent: afm chat --model {results.path}"))
