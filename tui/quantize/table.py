"""The table of operations, and the panel with budget, totals and the frontier."""

from dataclasses import dataclass
from typing import ClassVar

from afm_mlx.tui.plain import plain
from afm_mlx.tui.plot import Plot, Series
from afm_mlx.tui.quantize import rows
from afm_mlx.tui.quantize.desk import Desk
from afm_mlx.tui.quantize.rows import COLUMNS, Line

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Resize
from textual.message import Message
from textual.widgets import DataTable, Input, Static
from textual.widgets.data_table import ColumnKey

Cell = Text
WIDEST = {"time": len("~100.0"), "cost": len("+0.0123")}
"""Characters that a change can bring to cells; a column stays as wide as it is at first."""


class Operations(DataTable[Cell]):
    """Rows of a desk; left and right ask for narrower and wider weights."""

    @dataclass
    class Step(Message):
        """The row ``name`` shall get the next width."""

        name: str
        by: int

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left",
            "step(-1)",
            "Fewer bits",
            id="quantize.fewer",
            tooltip="Fewer bits for this matrix",
            group=Binding.Group("Bits", compact=True),
        ),
        Binding(
            "right",
            "step(1)",
            "More bits",
            id="quantize.more",
            tooltip="More bits for this matrix",
            group=Binding.Group("Bits", compact=True),
        ),
    ]

    def __init__(self) -> None:
        super().__init__(cursor_type="row", zebra_stripes=True)
        self.shown: list[Line] = []
        self._order = ""

    def show(self, found: list[Line], order: str) -> None:
        """Show these rows in this order; the chosen one stays chosen."""
        before, most = self.current, rows.largest(found)
        old = {x.name: x for x in self.shown}
        names = [x.name for x in found]
        if old.keys() != set(names) or not self.columns:  # slower: other rows
            self.clear(columns=True)
            for column in COLUMNS:
                self.add_column(_head(column, order), key=column)
            for x in found:
                texts = rows.cells(x, most).items()
                self.add_row(*(_cell(column, text) for column, text in texts), key=x.name)
        else:
            for x in found:
                if old[x.name] != x:
                    for column, text in rows.cells(x, most).items():
                        self.update_cell(x.name, column, _cell(column, text))
            if names != list(old) or order != self._order:
                for column in COLUMNS:
                    self.columns[ColumnKey(column)].label = _head(column, order)
                places = {x.short: place for place, x in enumerate(found)}
                self.sort("name", key=lambda cell: places[cell.plain])
        self.shown, self._order = found, order
        if before in names and before != self.current:
            self.move_cursor(row=names.index(before))

    @property
    def current(self) -> str | None:
        """Name of the row under the cursor."""
        if 0 <= self.cursor_row < len(self.shown):
            return self.shown[self.cursor_row].name
        return None

    def action_step(self, by: int) -> None:
        if self.current is not None:
            self.post_message(self.Step(self.current, by))


def _head(column: str, order: str) -> Cell:
    label = COLUMNS[column] + (" ▾" if column == order else "  ")
    return _cell(column, label.rjust(WIDEST.get(column, 0)))


def _cell(column: str, text: str) -> Cell:
    left = column in ("name", "sensitivity")
    return plain(text, justify="left" if left else "right", no_wrap=True)


class Filter(Input):
    """Words that the rows must have; Escape shows all rows again."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "escape", "leave", "All rows", id="quantize.all", tooltip="Leave the filter: all rows"
        ),
    ]

    def __init__(self) -> None:
        super().__init__(placeholder="words of a name or kind", id="filter", compact=True)

    async def action_leave(self) -> None:
        self.value = ""
        await self.action_submit()


class Budget(Vertical):
    """What the plan takes, beside the best there is."""

    DEFAULT_CSS = """
    Budget { padding: 0 1; overflow-y: auto; }
    Budget > Static { height: auto; }
    Budget > #slider { text-style: bold; margin-bottom: 1; }
    Budget > #measured { color: $text-muted; margin-top: 1; }
    Budget > Plot { height: 1fr; min-height: 7; margin-top: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.desk: Desk | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="slider", markup=False)
        yield Static(id="summary", markup=False)
        yield Plot("bits a weight", "nats", logarithmic=True)
        yield Static(id="measured", markup=False)

    def on_resize(self, event: Resize) -> None:
        self._slide()

    def show(self, desk: Desk, best: list[tuple[float, float]]) -> None:
        """Show a desk and the frontier of its profile."""
        self.desk = desk
        self._slide()
        self._say("summary", "\n".join(rows.summary(desk)))
        self._say("measured", "\n".join(rows.measured(desk)))
        plot = self.query_one(Plot)
        plot.display = bool(desk.choices)
        then = desk.totals
        if then.cost is not None:
            here = Series("this plan", [(then.linear, then.cost)], joined=False)
            plot.show([Series("best", best), here])

    def _slide(self) -> None:
        text = ""
        if self.desk is not None and self.desk.choices:
            width = max(self.content_size.width - 2, 20)
            text = f"Budget {self.desk.budget:.2f} bits\n{rows.slider(self.desk, width)}"
        self._say("slider", text)

    def _say(self, name: str, text: str) -> None:
        self.query_one(f"#{name}", Static).update(plain(text))
