"""The adapters on this machine, and what is known of the one under the cursor."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from afm_mlx.distill.markdown import number
from afm_mlx.errors import AFMError
from afm_mlx.tui.adapters.files import base_names
from afm_mlx.tui.plain import visible
from afm_mlx.tui.services import Services
from afm_mlx.tui.settings import AUTO, Choice, Settings
from afm_mlx.tui.shelf import Installed

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import DataTable, Static

BARE = "(base model)"
"""What stands for the model without an adapter."""
PACKAGES = "(automatic)"
"""What stands for the adapter that each feature's package has."""
COLUMNS = ("", "adapter", "fits", "for", "MB", "loss")


@dataclass(frozen=True)
class Shelf:
    """All adapters, and the model in use.

    Attributes:
        signature: of the model; empty if it is not known.
        bases: names of the models that they were trained on, by folder.
    """

    adapters: tuple[Installed, ...] = ()
    signature: str = ""
    bases: tuple[tuple[str, str], ...] = ()

    def fits(self, adapter: Installed) -> str:
        """Whether it is for the model in use, in a word."""
        if adapter.problem:
            return "damaged"
        if not adapter.about.base_signature or not self.signature:
            return "unknown"
        return "yes" if adapter.fits(self.signature) else "no"

    def base(self, adapter: Installed) -> str:
        """The model that it is for, as far as its folder says."""
        name = dict(self.bases).get(str(adapter.folder), "")
        signature = adapter.about.base_signature[:12] or "names none"
        return f"{name} ({signature})" if name else signature


async def signature(services: Services) -> str:
    """The base signature of the model in use, empty if it has none; waits for the engine."""
    try:
        return await asyncio.wrap_future(services.engine.call(lambda base: base.signature))
    except AFMError:  # it cannot be loaded, or has no files
        return ""


async def shelf(services: Services, signature: str) -> Shelf:
    """The adapters as they are now, beside the model of that signature."""
    adapters = await services.installed()
    folders = {str(a.folder): a.folder for a in adapters}
    bases = await asyncio.to_thread(base_names, folders)
    return Shelf(tuple(adapters), signature, tuple(bases.items()))


def in_use(settings: Settings, adapter: Installed) -> bool:
    """Whether a person chose it, for all features or for some."""
    names = (str(adapter.folder), adapter.name)
    return settings.adapter in names or any(v in names for v in settings.adapters.values())


def details(found: Shelf, adapter: Installed) -> list[str]:
    """All that is known of an adapter, line by line."""
    about = adapter.about
    made = "came along" if adapter.shipped else "built from a package" if adapter.built else "own"
    lines = [
        f"feature  {about.feature or 'any'}",
        f"base     {found.base(adapter)}: fits {found.fits(adapter)}",
        f"rank     {adapter.rank or 'unknown'}, {adapter.nbytes / 1e6:.2f} MB, {made}",
    ]
    if adapter.problem:
        lines.append(f"✗ {adapter.problem}")
    for name, value in about.metrics.items():
        before = about.metrics.get(f"{name}_before")
        if not name.endswith("_before"):
            without = f", {number(before)} without" if before is not None else ""
            lines.append(f"{name:<8} {number(value)}{without}")
    return [*lines, f"folder   {adapter.folder}"]


class Listing(Vertical):
    """A table of all adapters, above what is known of the one under the cursor."""

    DEFAULT_CSS = """
    Listing > DataTable { height: 2fr; min-height: 4; }
    Listing > VerticalScroll { height: 1fr; min-height: 3; border-top: solid $panel; }
    Listing Static { height: auto; padding: 0 1; }
    """

    class Chosen(Message):
        """Enter was pressed on an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()

    def compose(self) -> ComposeResult:
        yield DataTable(cursor_type="row", id="table")
        with VerticalScroll():
            yield Static(id="details", markup=False)

    def on_mount(self) -> None:
        table = self.query_one(DataTable)
        for column in COLUMNS:
            table.add_column(column, key=column)

    @property
    def choice(self) -> Choice:
        """Folder of the adapter under the cursor, ``AUTO``, or ``None`` for the bare model."""
        adapter = self.adapter
        if adapter is not None:
            return str(adapter.folder)
        return AUTO if self.query_one(DataTable).cursor_row == 0 else None

    @property
    def adapter(self) -> Installed | None:
        """The adapter under the cursor."""
        row = self.query_one(DataTable).cursor_row - 2
        return self.shelf.adapters[row] if 0 <= row < len(self.shelf.adapters) else None

    def show(self, found: Shelf, settings: Settings, select: str = "") -> None:
        """List these, with the cursor where it was, or on the adapter named ``select``."""
        table = self.query_one(DataTable)
        row = table.cursor_row
        self.shelf = found
        table.clear()
        for cells in rows(found, settings):
            table.add_row(*(Text(visible(cell)) for cell in cells))
        names = [a.name for a in found.adapters]
        table.move_cursor(row=names.index(select) + 2 if select in names else row)
        self._describe()

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        self._describe()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        event.stop()
        self.post_message(self.Chosen())

    def _describe(self) -> None:
        adapter = self.adapter
        if adapter is not None:
            lines = [adapter.name, *details(self.shelf, adapter)]
        elif self.choice == AUTO:
            lines = ["Each feature has the adapter of its package, if there is one for the model."]
        else:
            lines = ["The model as it is; features show it examples."]
        self.query_one("#details", Static).update(Text(visible("\n".join(lines))))


def rows(found: Shelf, settings: Settings) -> Sequence[tuple[str, ...]]:
    """The cells of the table: automatic, the bare model, then the adapters."""
    lines = [
        ("●" if settings.adapter == AUTO else "", PACKAGES, "", "all", "", ""),
        ("●" if settings.adapter is None else "", BARE, "yes", "all", "", ""),
    ]
    for adapter in found.adapters:
        loss = adapter.about.metrics.get("loss")
        lines.append(
            (
                "●" if in_use(settings, adapter) else "",
                adapter.name,
                found.fits(adapter),
                adapter.about.feature or "any",
                f"{adapter.nbytes / 1e6:.1f}",
                "" if loss is None else f"{loss:.3f}",
            )
        )
    return lines
