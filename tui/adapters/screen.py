"""F3 Adapters: those on this machine, one trained on samples of one's own, two compared."""

import asyncio
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

from afm_mlx.adapters.formats import Form
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.tui.adapters.comparing import Comparing
from afm_mlx.tui.adapters.dialogs import Lines
from afm_mlx.tui.adapters.files import bring_in, delete, give_out, serves
from afm_mlx.tui.adapters.listing import Listing, shelf, signature
from afm_mlx.tui.adapters.trainer import Trainer
from afm_mlx.tui.panes import Panes, ended
from afm_mlx.tui.plot import Plot
from afm_mlx.tui.screen import AfmScreen, Command
from afm_mlx.tui.settings import AUTO, Choice

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.worker import WorkType

WILL_NOT_FIT = "This will not fit into memory, and may end the app. Train all the same?"
FORMS: tuple[Form, ...] = ("mlx", "peft")


class AdaptersScreen(AfmScreen):
    """Adapters: a list, a pane to train one, a pane to compare two."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "use", "Swap in", id="adapters.use", tooltip="Use it from now on"),
        Binding(
            "ctrl+n", "check", "Check", id="adapters.check", tooltip="Read the samples, show a plan"
        ),
        Binding("ctrl+t", "train", "Train", id="adapters.train", tooltip="Train an adapter"),
        Binding(
            "ctrl+r", "compare", "Compare", id="adapters.compare", tooltip="Ask two adapters alike"
        ),
        Binding(
            "ctrl+o", "import", "Import", id="adapters.import", tooltip="Take one from a folder"
        ),
        Binding("escape", "stop", "Stop", id="adapters.stop", tooltip="Stop, and keep the best"),
        Binding(
            "escape", "back", "Fields", show=False, id="adapters.back",
            tooltip="Show the fields of training again",
        ),
        Binding(
            "ctrl+g", "export", "Export", show=False, id="adapters.export",
            tooltip="Write it for mlx-lm or PEFT",
        ),
        Binding(
            "delete", "delete", "Delete", show=False, id="adapters.delete", tooltip="Delete it"
        ),
        Binding(
            "ctrl+l", "log", "Log scale", show=False, id="adapters.log",
            tooltip="Curves on a logarithmic scale, or a plain one",
        ),
    ]  # fmt: skip

    def compose_body(self) -> ComposeResult:
        yield Panes(
            ("list", "Adapters", Listing()),
            ("train", "Train", Trainer(self.services)),
            ("compare", "Compare", Comparing(self.services)),
        )

    def on_mount(self) -> None:
        self._settings = self.services.settings
        self._signed: tuple[Engine, str] | None = None
        self._forget = self.services.on_change(self._changed)
        self.refresh_list()

    def on_unmount(self) -> None:
        self._forget()

    def commands(self) -> Iterable[Command]:
        return [
            ("Check samples", "Read them and show what training takes", self.action_check),
            ("Train an adapter", "On samples of your own", self.action_train),
            ("Compare adapters", "Two answers to one text", self.action_compare),
            ("Swap in the adapter", "The one under the cursor", self.action_use),
            ("Import an adapter", "A folder of mlx-lm or PEFT", self.action_import),
            ("Export the adapter", "For mlx-lm or PEFT", self.action_export),
            ("Delete the adapter", "And what its training kept", self.action_delete),
            ("Refresh the list of adapters", "Look at the folder again", self.refresh_list),
        ]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if not self.is_mounted:
            return True
        if action == "stop":
            return self.trainer.running or self.trainer.checking or self.comparing.running
        if action == "back":
            return not self.trainer.running
        if action in ("check", "train"):
            return not self.trainer.running
        return True

    @property
    def listing(self) -> Listing:
        """The list of adapters."""
        return self.query_one(Listing)

    @property
    def trainer(self) -> Trainer:
        """The pane that trains."""
        return self.query_one(Trainer)

    @property
    def comparing(self) -> Comparing:
        """The pane that compares."""
        return self.query_one(Comparing)

    # ---- the list

    def refresh_list(self, select: str = "") -> None:
        """Read the folders of adapters again."""
        self._work(partial(self._list, select), "list")

    async def _list(self, select: str) -> None:
        engine = self.services.engine
        if self._signed is None or self._signed[0] is not engine:
            if not self.listing.shelf.adapters:  # the engine may be at work for minutes
                self.listing.show(await shelf(self.services, ""), self.services.settings, select)
            self._signed = engine, await signature(self.services)
        found = await shelf(self.services, self._signed[1])
        self.listing.show(found, self.services.settings, select)
        self.comparing.offer(found)
        if select and self.listing.adapter is not None:
            self.comparing.choose("right", self.listing.choice)

    def _changed(self) -> None:
        """Mark what is in use now; another model fits other adapters."""
        if self._signed is not None and self._signed[0] is not self.services.engine:
            self.refresh_list()
        elif self._settings is not self.services.settings:
            self._settings = self.services.settings
            self.listing.show(self.listing.shelf, self._settings)

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        self.action_use()

    def action_use(self) -> None:
        """Swap in the adapter under the cursor."""
        self._work(partial(self._use, self.listing.choice), "use")

    async def _use(self, choice: Choice) -> None:
        self._tell_if_queued()
        adapter, began = self.listing.adapter, time.perf_counter()
        features: tuple[str, ...] = ()
        if choice is not None and choice != AUTO:
            choice = await self.services.load(choice)  # one that cannot be used changes nothing
        if adapter is not None:
            features = await asyncio.to_thread(serves, adapter.about.feature, self.services.shipped)
        for feature in features or (None,):
            self.services.choose(choice, feature)
        took = (time.perf_counter() - began) * 1e3
        name = adapter.name if adapter else "the model as it is" if choice is None else "automatic"
        self.services.set_status(adapter=adapter.name if adapter else "")
        served = f" for {', '.join(features)}" if features else ""
        self.notify(f"{name} is in use{served}, after {took:.1f} ms", markup=False)

    # ---- training

    def on_trainer_wanted(self, event: Trainer.Wanted) -> None:
        if event.action == "check":
            self.action_check()
        else:
            self.action_train()

    def action_check(self) -> None:
        """Read the samples and show what training takes."""
        self._show("train")
        if not self.trainer.running:
            self._work(self._check, "train")

    async def _check(self) -> None:
        await self.trainer.check()

    def action_train(self) -> None:
        """Train what the fields say."""
        self._show("train")
        if not self.trainer.running:
            self._work(self._train, "train")

    async def _train(self) -> None:
        planned = await self.trainer.check(again=False)
        if planned.memory.verdict == "will not fit" and not await self.confirm(WILL_NOT_FIT):
            return
        await self.trainer.train()

    def on_trainer_ended(self, event: Trainer.Ended) -> None:
        self.refresh_list(event.adapter)

    def action_stop(self) -> None:
        """Stop what runs; a training keeps its best."""
        if self.comparing.running:
            self.workers.cancel_group(self, "compare")
        elif self.trainer.checking:
            self.workers.cancel_group(self, "train")
        else:
            self.trainer.stop()

    def action_back(self) -> None:
        """Show the fields of training again."""
        self.trainer.back()

    def action_log(self) -> None:
        """Switch the scale of the curves."""
        plot = self.query_one(Plot)
        plot.logarithmic = not plot.logarithmic

    async def leave(self) -> None:
        """Stop a run and wait until its best adapter is written."""
        if self.trainer.running:
            self.trainer.stop()
            await ended(self, "train")

    # ---- comparing

    def on_comparing_wanted(self, event: Comparing.Wanted) -> None:
        self.action_compare()

    def action_compare(self) -> None:
        """Ask both adapters about the text."""
        self._show("compare")
        self._work(self.comparing.compare, "compare")

    # ---- files

    def action_import(self) -> None:
        """Take an adapter from a folder."""
        self._work(self._import, "files")

    async def _import(self) -> None:
        asked = Lines(
            "Take an adapter that mlx-lm, PEFT or this app wrote, for the model in use.",
            "Import",
            [
                ("folder", "folder", "", "with adapter_config.json in it"),
                ("name", "name", "", "that of the folder"),
                ("feature", "feature", "", "any, or one such as proofread"),
            ],
        )
        given = await self.app.push_screen_wait(asked)
        if given is not None:
            self._tell_if_queued()
            target = await bring_in(self.services, given["folder"], given["name"], given["feature"])
            self.notify(f"{target.name} is among the adapters", markup=False)
            self.refresh_list(target.name)

    def action_export(self) -> None:
        """Write the adapter under the cursor for others."""
        self._work(self._export, "files")

    async def _export(self) -> None:
        adapter = self._own()
        asked = Lines(
            f"Write {adapter.name} for mlx-lm or PEFT.",
            "Export",
            [
                ("out", "new folder", "", "where it goes"),
                ("form", "form", FORMS[0], " or ".join(FORMS)),
            ],
        )
        given = await self.app.push_screen_wait(asked)
        if given is None:
            return
        form = next((known for known in FORMS if known == given["form"]), None)
        if form is None or not given["out"]:
            raise InputError(f"name a new folder, and {' or '.join(FORMS)} as the form")
        self._tell_if_queued()
        target = await give_out(self.services, adapter.folder, given["out"], form)
        self.notify(f"{adapter.name} is written to {target}", markup=False)

    def action_delete(self) -> None:
        """Delete the adapter under the cursor, after a question."""
        self._work(self._delete, "files")

    async def _delete(self) -> None:
        adapter = self._own()
        if adapter.shipped:
            raise InputError(f"{adapter.name} came along with the app: it cannot be deleted")
        question = f"Delete the adapter {adapter.name} and what its training kept, for good?"
        if await self.confirm(question, "Delete"):
            freed = await delete(self.services, adapter.folder)
            self.notify(f"{adapter.name} is deleted: {freed / 1e6:.1f} MB", markup=False)
            self.refresh_list()

    def _own(self) -> Any:
        if self.listing.adapter is None:
            raise InputError("no adapter is under the cursor: move it to one in the list")
        return self.listing.adapter

    # ---- all of them

    def _tell_if_queued(self) -> None:
        """Say why what needs the engine has to wait."""
        if self.services.status.busy:
            self.notify(f"queued: {self.services.status.busy} goes on", markup=False)

    def _show(self, pane: str) -> None:
        self.query_one(Panes).shown = pane

    def _work(self, job: WorkType[None], group: str) -> None:
        self.run_worker(job, group=group, exclusive=True)
