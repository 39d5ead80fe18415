"""Show answers: live on a terminal, plain text in a pipe, JSON for programs."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from afm_mlx.errors import DecodingFailureError
from afm_mlx.features import Answer, Edit, Progress, Proofread
from afm_mlx.generation import Metrics

from rich import progress
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
PIPE_SECONDS = 15
"""Between two lines of progress in a pipe."""
PIPE_WIDTH = 200
"""Characters in a line of a table in a pipe, where nothing has to be folded."""


def show_table(table: Table) -> None:
    """Print a table, as wide as it needs to be in a pipe."""
    piped = not console.file.isatty()
    (Console(width=PIPE_WIDTH, highlight=False) if piped else console).print(table)


class Bar:
    """Progress on standard error: a bar, or in a pipe a line every few seconds."""

    def __init__(self) -> None:
        self._shown = 0.0
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, text: str, done: int, total: int | None) -> None:
        """Say that ``done`` of ``total`` is done, if it is known how much there is."""
        self._bar.update(self._task, description=text, completed=done, total=total)
        if not errors.is_terminal and time.monotonic() > self._shown + PIPE_SECONDS:
            self._shown = time.monotonic()
            errors.print(Text(text if total is None else f"{text} ({done} of {total})"))


async def show(events: AsyncIterator[Progress | Answer], heading: str = "") -> Answer:
    """Stream ``events`` to a terminal and print the answer; plain text in a pipe."""
    if not console.is_terminal:
        answer = await final(events)
        console.print(Text(f"{heading}: " if heading else "") + Text(answer.text))
        for note in _notes(answer):
            errors.print(Text(f"note: {note}"))
        return answer
    if heading:
        console.print(Text(heading, style="bold"))
    with Live(console=console, transient=True, refresh_per_second=12) as live:
        async for event in events:
            if isinstance(event, Answer):
                answer = event
            else:
                live.update(_progress(event))
    console.print(Padding(_answer(answer), (0, 0, 0, 2)))
    for note in _notes(answer):
        console.print(Text(f"  note: {note}", style="yellow"))
    console.print(Text(f"  {timing(answer.metrics)}", style="dim"))
    return answer


async def final(events: AsyncIterator[Progress | Answer]) -> Answer:
    """The answer at the end of a run."""
    async for event in events:
        if isinstance(event, Answer):
            return event
    raise DecodingFailureError("the run ended without an answer: try again")


def _notes(answer: Answer) -> list[str]:
    invented = dict.fromkeys(claim.text for claim in answer.claims)
    return [*answer.notes, *([f"not in the original: {', '.join(invented)}"] if invented else [])]


def timing(metrics: Metrics) -> str:
    """One line: time to first token, speed, cached part of the prompt, memory."""
    return (
        f"first token {metrics.time_to_first_token * 1000:.0f} ms"
        f" · {metrics.tokens_per_second:.1f} tok/s"
        f" · {metrics.prompt_tokens} prompt tokens ({metrics.cached_tokens} cached)"
        f" · {metrics.bytes_per_second / 1e9:.1f} GB/s"
        f" · peak {metrics.peak_memory / 2**20:.0f} MB"
    )


def print_json(value: Any) -> None:
    """One JSON value on one line of standard output."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def _progress(event: Progress) -> RenderableType:
    text = Text("  " + event.text.strip().replace("\n", "\n  "), style="dim")
    if event.parts == 1:
        return text
    return Group(text, Text(f"  part {event.part} of {event.parts}", style="dim"))


def _answer(answer: Answer) -> RenderableType:
    value = answer.value
    if isinstance(value, Proofread):
        if not value.edits:
            return Text("No corrections.", style="green")
        return Group(Text(value.corrected), Text(), *map(_edit, value.edits))
    if isinstance(value, list) and value and isinstance(value[0], list):
        table = Table()
        for head in value[0]:
            table.add_column(Text(head))  # as Text: brackets in it are no markup
        for row in value[1:]:
            table.add_row(*map(Text, row))
        return table
    if isinstance(value, list):
        return Text("\n".join(f"• {item}" for item in value))
    if answer.feature == "notification-summary":
        return Text(answer.text, style="italic")
    return Text(answer.text)


def _edit(edit: Edit) -> Text:
    line = Text("  ")
    line.append(f"-{edit.was}-" if edit.was.strip() else "", style="red strike")
    line.append(f" +{edit.to}+" if edit.to.strip() else "", style="green")
    return line
