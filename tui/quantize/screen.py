"""F4: where bits, bytes and time of the model go, and how many bits each matrix shall get.

After Talaria (arXiv 2404.03085): a table of operations with every width worked out beforehand, so
that any change answers at once.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from afm_mlx.compress import Written
from afm_mlx.errors import InputError
from afm_mlx.quant import plan as plan_files
from afm_mlx.quant import profile as profile_files
from afm_mlx.quant.profile import Profile
from afm_mlx.tui.panes import Panes
from afm_mlx.tui.plain import plain
from afm_mlx.tui.quantize import keys, plans, rows, work
from afm_mlx.tui.quantize.desk import Desk, frontier
from afm_mlx.tui.quantize.dialogs import Ask
from afm_mlx.tui.quantize.table import Budget, Filter, Operations
from afm_mlx.tui.quantize.work import Options
from afm_mlx.tui.screen import AfmScreen, Command
from afm_mlx.tui.settings import expanded

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import DataTable, Input, ProgressBar, Static

STEP = 0.1
"""Bits a weight that the budget changes by."""
RECENT = "profile"
"""Name in the settings of the profile that was open last."""
NOTHING = """No profile is open.

p  measures every operation of the model, and works out the widths that its matrices could have:
   a minute, and minutes more for the widths; what was done before is kept
o  opens a profile that was saved, of this machine or another"""


class QuantizeScreen(AfmScreen):
    """Table, budget and plans."""

    AUTO_FOCUS = "Operations"
    KEYS = (Operations, Filter)
    BINDINGS: ClassVar[list[BindingType]] = keys.BINDINGS
    DEFAULT_CSS = """
    QuantizeScreen #table { height: 1fr; }
    QuantizeScreen Operations { height: 1fr; }
    QuantizeScreen Panes .panes--first { width: 3fr; }
    QuantizeScreen Panes ContentSwitcher { width: 2fr; }
    QuantizeScreen Panes.-beside Tabs { display: none; }
    QuantizeScreen #below {
        height: 2; padding: 0 1; background: $panel; text-wrap: nowrap; text-overflow: ellipsis;
    }
    QuantizeScreen #filter { display: none; }
    QuantizeScreen #nothing { padding: 1 2; display: none; }
    QuantizeScreen.-nothing #nothing { display: block; }
    QuantizeScreen.-nothing Panes { display: none; }
    QuantizeScreen #work { height: 1; display: none; }
    QuantizeScreen.-working #work { display: block; }
    QuantizeScreen #doing { width: auto; padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.options = Options()
        self.taken: Profile | None = None
        self.desk: Desk | None = None
        self.best: list[tuple[float, float]] = []
        self.places: list[int] = []
        self.before: list[Desk] = []
        self.changes: list[Callable[[Desk], Desk]] = []
        self.order, self.wanted = rows.ORDERS[0], ""
        self.working = False

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="work"):
            yield Static(id="doing", markup=False)
            yield ProgressBar(show_eta=False)
        yield Static(NOTHING, id="nothing", markup=False)
        table = Vertical(
            Filter(),
            Operations(),
            Static(id="below", markup=False),
        )
        yield Panes(("table", "Operations", table), ("budget", "Budget", Budget()))

    def on_mount(self) -> None:
        self.add_class("-nothing")
        recent = self.services.settings.recent.get(RECENT)
        if recent and Path(recent).is_file():
            self.run_worker(self._reopen(Path(recent)))

    async def leave(self) -> None:
        self.workers.cancel_group(self, "work")

    def commands(self) -> Iterable[Command]:
        for title, about, action in keys.COMMANDS:
            yield title, about, partial(self.run_action, action)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "stop":
            return self.working
        if action in ("measure", "apply"):
            return not self.working
        if action in keys.OF_ROWS and self.desk is None:
            return None
        return True

    # ---- what is shown

    def show(self, desk: Desk, keep: bool = True) -> None:
        """Show a desk; the one before can be had back if ``keep``."""
        if keep and self.desk is not None:
            self.before.append(self.desk)
        known = self.desk is not None and self.desk.profile is desk.profile
        self.desk = desk
        self.remove_class("-nothing")
        self.refresh_bindings()
        if not known:
            self.best = frontier(desk)
            self._arrange()
        self._draw()

    def _arrange(self) -> None:
        """Sort and filter the rows; changes of bits leave them in their places."""
        if self.desk is not None:
            found = rows.arranged(rows.lines(self.desk), self.order, self.wanted)
            self.places = [x.number for x in found]

    def _draw(self) -> None:
        if self.desk is None:
            return
        found = rows.lines(self.desk)
        self.query_one(Operations).show([found[n] for n in self.places], self.order)
        self.query_one(Budget).show(self.desk, self.best)
        self._point()

    def _point(self) -> None:
        """Say what other widths of the row under the cursor would change."""
        current = self.query_one(Operations).current
        if self.desk is not None:
            changes = "   ".join(rows.what_if(self.desk, current)) if current else ""
            text = plain(f"{rows.brief(self.desk)}\n{changes}")
            self.query_one("#below", Static).update(text)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        self._point()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        self._sort(str(event.column_key.value))

    def action_sort(self) -> None:
        """Sort by the next column."""
        place = rows.ORDERS.index(self.order) + 1
        self._sort(rows.ORDERS[place % len(rows.ORDERS)])

    def _sort(self, order: str) -> None:
        self.order = order
        self._arrange()
        self._draw()

    def action_filter(self) -> None:
        """Type words that the rows must have."""
        field = self.query_one("#filter", Input)
        field.display = True
        field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.wanted = event.value
        self._arrange()
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.input.display = bool(event.value.strip())
        self.query_one(Operations).focus()

    # ---- bits and budget

    def on_operations_step(self, event: Operations.Step) -> None:
        self._change(lambda desk: desk.stepped(event.name, event.by))

    def action_budget(self, by: int) -> None:
        """Change the budget a little."""
        self._change(lambda desk: desk.budgeted(desk.budget + by * STEP))

    def action_release(self) -> None:
        """Let the budget choose for the row."""
        current = self.query_one(Operations).current
        if self.desk is not None and current in self.desk.chosen:
            self._change(lambda desk: desk.released(current))

    def _change(self, change: Callable[[Desk], Desk]) -> None:
        """Change the desk as soon as the changes before are made; keys may come quicker."""
        self.changes.append(change)
        if len(self.changes) == 1:
            self.run_worker(self._make_changes(), group="changes")

    async def _make_changes(self) -> None:
        try:
            while self.changes:
                try:
                    before = self.desk
                    if before is not None:
                        desk = await asyncio.to_thread(self.changes[0], before)
                        if self.desk is before:  # no other profile came meanwhile
                            self.show(desk)
                except InputError as error:
                    self.notify(str(error), markup=False)
                del self.changes[0]
        finally:
            self.changes.clear()

    def action_undo(self) -> None:
        """Show the desk before this one."""
        if self.before:
            self.show(self.before.pop(), keep=False)

    def action_set_budget(self) -> None:
        """Ask for the budget."""
        self.run_worker(self._set_budget())

    async def _set_budget(self) -> None:
        desk = self._there()
        least, most = desk.limits
        hint = f"bits a weight of the linear layers, {least:.2f} to {most:.2f}"
        text = await self._ask("Budget", f"{desk.budget:.2f}", hint)
        if text is None:
            return
        try:
            budget = float(text.replace(",", "."))
            if not math.isfinite(budget):
                raise ValueError(text)
        except ValueError as error:
            raise InputError(f"{text!r} is no number of bits: give one such as 3.5") from error
        self._change(lambda desk: desk.budgeted(budget))

    def _there(self) -> Desk:
        if self.desk is None or not self.desk.choices:
            raise InputError("there are no widths to choose from yet: p works them out")
        return self.desk

    # ---- profiles

    async def take(self, profile: Profile) -> None:
        """Show a profile with the usual budget, unless another is taken meanwhile."""
        self.taken = profile
        desk = await asyncio.to_thread(Desk.of, profile)
        if self.taken is profile:
            self.before = []
            self.show(desk, keep=False)

    def action_open(self) -> None:
        """Open a profile."""
        self.run_worker(self._ask_profile())

    async def _ask_profile(self) -> None:
        known = await asyncio.to_thread(lambda: sorted(self._folder("profiles").glob("*.json")))
        hint = "file of afm profile --save, or of this screen"
        name = await self._ask("Open profile", "", hint, list(map(str, known)))
        if name is not None:
            await self._open(expanded(name))

    async def _reopen(self, file: Path) -> None:
        """Show the profile of last time, unless there is one by now."""
        profile = await asyncio.to_thread(profile_files.read, file)
        if self.taken is None:
            await self.take(profile)

    async def _open(self, file: Path) -> None:
        await self.take(await asyncio.to_thread(profile_files.read, file))
        self._remember(file)

    def _remember(self, file: Path) -> None:
        recent = {**self.services.settings.recent, RECENT: str(file.absolute())}
        self.afm.change_settings(recent=recent)

    def action_save_profile(self) -> None:
        """Save the profile."""
        self.run_worker(self._save_profile())

    async def _save_profile(self) -> None:
        if self.desk is None:
            raise InputError("there is no profile to save: p measures one")
        name = await self._ask("Save profile", "profile.json", "file; one that is there goes")
        if name is not None:
            await asyncio.to_thread(plans.keep, self.desk.profile, expanded(name))
            self.notify(f"saved as {name}", markup=False)

    def action_measure(self) -> None:
        """Measure the model."""
        self.run_worker(self._measure(), group="work", exclusive=True)

    async def _measure(self) -> None:
        job = partial(work.profile, options=self.options)
        with self.services.busy("measuring"):
            async for event in self._events(job):
                if isinstance(event, Profile):
                    file = plans.profile_file(self._folder("profiles"), event.model)
                    await asyncio.to_thread(plans.keep, event, file)
                    self._remember(file)
                    await self.take(event)

    # ---- plans

    def action_save_plan(self) -> None:
        """Save the plan under a name."""
        self.run_worker(self._save_plan())

    async def _save_plan(self) -> None:
        desk, folder = self._there(), self._folder("plans")
        known = await asyncio.to_thread(plans.saved, folder)
        default = f"{Path(desk.profile.model).stem}-{desk.totals.linear:.1f}"
        name = await self._ask("Save plan", default, "name; one that is there goes", known)
        if name is not None:
            file = plans.plan_file(folder, name)
            await self._write_plan(desk, file)
            self.notify(f"saved as {file}", markup=False)

    async def _write_plan(self, desk: Desk, file: Path) -> None:
        base = self.services.engine.call(lambda base: (base.name, base.signature))
        name, signature = await asyncio.wrap_future(base)
        if name != desk.profile.model:
            raise InputError(
                f"the profile is of {desk.profile.model}, and {name} is in use: choose that model"
                " with F6, or measure this one with p"
            )
        await asyncio.to_thread(plans.save, plans.make(desk, signature), file)

    def action_open_plan(self) -> None:
        """Open a plan."""
        self.run_worker(self._open_plan())

    async def _open_plan(self) -> None:
        desk, folder = self._there(), self._folder("plans")
        known = await asyncio.to_thread(plans.saved, folder)
        name = await self._ask("Open plan", "", "name of a plan, or path of a plan.toml", known)
        if name is None:
            return
        file = plans.plan_file(folder, name) if name in known else expanded(name)
        found = await asyncio.to_thread(plan_files.read, file)
        self.show(desk.planned(found))

    def action_apply(self) -> None:
        """Write a model with these bits."""
        self.run_worker(self._apply(), group="work", exclusive=True)

    async def _apply(self) -> None:
        desk = self._there()
        name = f"{Path(desk.profile.model).stem}-{desk.totals.linear:.1f}-bits"
        default = str(self.services.models / name)
        given = await self._ask("Write a model", default, "its folder")
        if given is None:
            return
        out = expanded(given).absolute()
        if await asyncio.to_thread(plans.replaceable, out):
            if not await self.confirm(f"{out} is there already. Replace it?", "Replace"):
                return
        file = plans.plan_file(self._folder("plans"), "applied")
        await self._write_plan(desk, file)
        done = None
        with self.services.busy("quantizing"):
            async for event in self._events(
                partial(work.write, options=self.options, plan=file, out=out)
            ):
                done = event if isinstance(event, Written) else done
        if done is not None:
            size = f"{done.account.size / 1e6:.0f} MB, {done.account.linear:.2f} bits"
            self.notify(f"{out}: {size}", title="Written", markup=False)
            # Elsewhere a question would take the letters that a person types there.
            if self.app.screen is self and await self.confirm(
                f"{out.name} is written ({size}). Use it now?", "Use it"
            ):
                self.afm.open_model(str(out))

    # ---- work

    async def _events(self, job: Callable[..., Any]) -> AsyncIterator[Any]:
        """Events of a job on the engine's thread, shown as they come."""
        self._set_working(True)
        self._say("waiting for the engine", 0, 0)
        run = self.services.engine.stream(job)
        try:
            async for event in run:
                said = work.describe(event)
                if said is not None:
                    self._say(*said)
                yield event
        finally:
            run.cancel()
            self._set_working(False)

    def _say(self, text: str, done: int, total: int) -> None:
        self.query_one("#doing", Static).update(plain(text))
        self.query_one(ProgressBar).update(total=total or None, progress=done)

    def _set_working(self, working: bool) -> None:
        self.working = working
        self.set_class(working, "-working")
        self.refresh_bindings()

    def action_stop(self) -> None:
        """Stop what runs."""
        self.workers.cancel_group(self, "work")
        self.notify("stopped: what was worked out is kept")

    async def _ask(
        self, title: str, value: str = "", hint: str = "", offered: Iterable[str] = ()
    ) -> str | None:
        return await self.afm.push_screen_wait(Ask(title, value, hint, list(offered)))

    def _folder(self, name: str) -> Path:
        """Folder of the plans or profiles, beside that of the adapters."""
        return self.services.home.parent / name
