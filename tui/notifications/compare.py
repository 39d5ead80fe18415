"""One stack summarised twice: by the model with examples, and by its adapter without."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from afm_mlx.errors import AFMError
from afm_mlx.features import NotificationStack
from afm_mlx.generation import Metrics
from afm_mlx.tui.inbox import Key
from afm_mlx.tui.notifications.rows import verdict
from afm_mlx.tui.notifications.summaries import Door, Summary, summarize

from rich.style import Style
from rich.text import Text

NO_ADAPTER = "There is no adapter for this model: afm adapters build notifications makes one."


@dataclass(frozen=True)
class Comparison:
    """Two summaries of one state of a stack.

    Attributes:
        adapter: its name for requests; none if the model has none.
    """

    value: NotificationStack
    adapter: str | None = None
    by_base: Summary | None = None
    by_adapter: Summary | None = None

    @property
    def key(self) -> Key:
        """Of the stack."""
        return self.value.app, self.value.group


async def compare(
    door: Door,
    value: NotificationStack,
    adapter: str | None,
    tell: Callable[[Comparison], bool],
) -> None:
    """Summarise a stack by the model alone, then by the adapter.

    Args:
        tell: gets what there is, and says whether to go on.

    Raises:
        AFMError: whatever keeps the model from answering.
    """
    shown = Comparison(value, adapter)

    def take(name: str | None, summary: Summary) -> bool:
        nonlocal shown
        if name is None:
            shown = replace(shown, by_base=summary)
        else:
            shown = replace(shown, by_adapter=summary)
        return tell(shown)

    for name in (None, adapter) if adapter else (None,):
        if not tell(shown):
            return
        try:
            await summarize(door, value, name, partial(take, name))
        except AFMError as error:
            take(name, Summary(value, state="failed", problem=str(error)))
            raise


def side(title: str, summary: Summary | None, flag: Style) -> Text:
    """One of the two, as text."""
    lines = [Text(title, style="bold")]
    if summary is None:
        lines.append(Text("…"))
    elif summary.state == "failed":
        lines.append(Text(f"✗ {summary.problem}"))
    else:
        lines += verdict(summary, flag)
    if summary is not None and summary.state == "done":
        lines.append(Text(_cost(summary.metrics), style="dim"))
    return Text("\n").join(lines)


def _cost(spent: Metrics) -> str:
    first, speed = spent.time_to_first_token * 1e3, spent.tokens_per_second
    return (
        f"{spent.prompt_tokens} prompt tokens, first token {first:.0f} ms,"
        f" {spent.generated_tokens} tok at {speed:.0f} tok/s"
    )


def sides(shown: Comparison, flag: Style) -> tuple[Text, Text]:
    """Both, side by side."""
    left = side("base, with examples", shown.by_base, flag)
    if shown.adapter is None:
        return left, Text(NO_ADAPTER)
    return left, side(f"◆ {Path(shown.adapter).name}", shown.by_adapter, flag)
