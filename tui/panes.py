"""One pane beside the others, of which one is seen at a time; with little room all are tabs."""

import contextlib
from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import Resize
from textual.reactive import reactive
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import ContentSwitcher, Input, Label, Tab, Tabs
from textual.worker import WorkerError

PAUSE = 0.1
"""Seconds between two changes of what is shown of a run: more cannot be read."""
WIDE = 100
"""Columns from which the first pane is always there."""


class Panes(Vertical):
    """Panes by name and title; the first one stays beside the others where there is room.

    Attributes:
        shown: name of the pane that is seen, of those that are tabs.
    """

    DEFAULT_CSS = """
    Panes { height: 1fr; }
    Panes > Tabs { height: 2; }
    Panes > Horizontal { height: 1fr; }
    Panes ContentSwitcher { width: 1fr; height: 1fr; }
    Panes ContentSwitcher > * { height: 1fr; }
    Panes .panes--first { width: 2fr; height: 1fr; }
    Panes.-beside ContentSwitcher { width: 3fr; border-left: solid $panel; }
    Panes.-first ContentSwitcher { display: none; }
    Panes.-others .panes--first { display: none; }
    """

    shown: reactive[str] = reactive("", init=False)

    def __init__(self, *panes: tuple[str, str, Widget], id: str | None = None) -> None:
        super().__init__(id=id)
        self.names = [name for name, _, _ in panes]
        self._panes = panes
        for name, _, widget in panes:
            widget.id = name
        panes[0][2].add_class("panes--first")
        self.set_reactive(Panes.shown, self.names[0])

    def compose(self) -> ComposeResult:
        yield Tabs(*(Tab(Content(title), id=f"tab-{name}") for name, title, _ in self._panes))
        with Horizontal():
            yield self._panes[0][2]
            others = [widget for _, _, widget in self._panes[1:]]
            with ContentSwitcher(initial=self.names[1]):
                yield from others

    @property
    def beside(self) -> bool:
        """Whether there is room for the first pane beside another one."""
        return self.app.size.width >= WIDE

    def on_resize(self, event: Resize) -> None:
        tabs, first = self.query_one(Tabs), f"tab-{self.names[0]}"
        if self.beside:
            tabs.hide(first)
            self.shown = self.shown  # validated anew
        else:
            tabs.show(first)
        self._arrange()

    def on_tabs_tab_activated(self, event: Tabs.TabActivated) -> None:
        event.stop()
        self.shown = str(event.tab.id).removeprefix("tab-")

    def validate_shown(self, name: str) -> str:
        """The first pane is no tab while it lies beside the others."""
        first = self.names[0]
        if name != first or not self.is_mounted or not self.beside:
            return name
        return self.shown if self.shown != first else self.names[1]

    def watch_shown(self) -> None:
        self._arrange()

    def _arrange(self) -> None:
        tabs, beside = self.query_one(Tabs), self.beside
        first = self.shown == self.names[0]
        if tabs.active != f"tab-{self.shown}":
            tabs.active = f"tab-{self.shown}"
        self.set_class(beside, "-beside")
        self.set_class(first and not beside, "-first")
        self.set_class(not first and not beside, "-others")
        if not first:
            self.query_one(ContentSwitcher).current = self.shown


class Field(Horizontal):
    """A name and a line to type in."""

    DEFAULT_CSS = """
    Field { height: 1; margin-bottom: 0; }
    Field > Label { width: 12; color: $text-muted; }
    Field > Input { width: 1fr; }
    """

    def __init__(self, label: str, id: str, value: str = "", hint: str = "", tip: str = "") -> None:
        super().__init__()
        self.label, self.given = label, value
        self._input = Input(value, hint, id=id, compact=True, tooltip=tip or None)

    def compose(self) -> ComposeResult:
        yield Label(self.label, markup=False)
        yield self._input


class Soon:
    """Calls a function soon after it was asked to, once for all times it was asked meanwhile."""

    def __init__(self, widget: Widget, call: Callable[[], object]) -> None:
        self._widget, self._call = widget, call
        self._waiting: Timer | None = None

    def __call__(self) -> None:
        if self._waiting is None:
            self._waiting = self._widget.set_timer(PAUSE, self._now)

    def _now(self) -> None:
        self._waiting = None
        self._call()


def values(widget: Widget, names: tuple[str, ...]) -> dict[str, str]:
    """What is typed into the fields of these names."""
    return {name: widget.query_one(f"#{name}", Input).value.strip() for name in names}


async def ended(node: Widget, group: str) -> None:
    """Wait until a node's workers of that group are done, whatever their end."""
    for worker in list(node.workers):
        if worker.node is node and worker.group == group:
            with contextlib.suppress(WorkerError):  # it was reported
                await worker.wait()
