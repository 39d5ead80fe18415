"""The choice of a model: those on this machine, or a folder, a file, a repository of the Hub."""

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

from afm_mlx import hub
from afm_mlx.errors import AFMError
from afm_mlx.hub import Installed
from afm_mlx.tui.dialog import Dialog
from afm_mlx.tui.plain import plain
from afm_mlx.tui.services import Services, in_background

from huggingface_hub import constants
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input, OptionList, ProgressBar, Static
from textual.widgets.option_list import Option

LOOK = 0.5
"""Seconds between two looks at how far a download is."""


def downloaded(source: str, cache: Path | None = None) -> int:
    """Bytes of a repository that are in the Hub's cache so far, unfinished files counted."""
    folder = (cache or Path(constants.HF_HUB_CACHE)) / f"models--{source.replace('/', '--')}"
    return _size((folder / "blobs").glob("*"))


def _size(files: Iterable[Path]) -> int:
    """Bytes of the files that can be read; others may be removed or renamed meanwhile."""
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total


def listed(folder: Path) -> list[Installed]:
    """Models on this machine: the embedded one, those of the Hub's cache, those in ``folder``."""
    own = (config.parent for config in sorted(folder.glob("*/config.json")))
    return hub.installed() + [
        Installed(str(path), "written here", _size(path.glob("*")), str(path)) for path in own
    ]


async def fetch(source: str | None, tell: Callable[[str], None]) -> None:
    """Have a model on this machine; ``tell`` is told how far its download is.

    Raises:
        ModelError: it is not to be had.
    """
    before = await asyncio.to_thread(downloaded, source or "")
    loop = asyncio.get_running_loop()
    began = loop.time()
    waiting = asyncio.ensure_future(in_background(partial(hub.resolve, source)))
    try:
        while not (await asyncio.wait([waiting], timeout=LOOK))[0]:
            size = await asyncio.to_thread(downloaded, source or "")
            if size > before:
                rate = (size - before) / (loop.time() - began)
                tell(f"downloading: {size / 1e6:.0f} MB so far, {rate / 1e6:.1f} MB/s")
        await waiting
    finally:
        waiting.cancel()


class ModelPicker(Dialog[None]):
    """Models to choose from; stays open until one is in use."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Close", id="models.stop", tooltip="Stop, or close this"),
    ]
    DEFAULT_CSS = """
    ModelPicker { align: center middle; }
    ModelPicker > Vertical {
        width: 76; max-width: 100%; height: auto; max-height: 100%;
        padding: 0 1; border: round $primary; background: $surface;
    }
    ModelPicker OptionList { height: auto; max-height: 10; border: none; }
    ModelPicker #said { height: auto; }
    ModelPicker ProgressBar { display: none; }
    ModelPicker.-working ProgressBar { display: block; }
    """

    def __init__(self, services: Services, remedy: str = "") -> None:
        super().__init__()
        self.services, self.remedy = services, remedy
        self.models: list[Installed] = []

    def compose(self) -> ComposeResult:
        with Vertical() as view:
            view.border_title = "Model"
            view.border_subtitle = "enter Use · esc Close"
            yield OptionList(markup=False, compact=True)
            yield Input(placeholder="folder, .gguf file, or owner/name on the Hub", compact=True)
            yield Static(plain(self.remedy), id="said", markup=False)
            yield ProgressBar(show_eta=False, show_percentage=False)

    async def on_mount(self) -> None:
        try:
            self.models = await asyncio.to_thread(listed, self.services.models)
        except OSError as error:
            self._say(f"the models cannot be listed: {error}; name one below")
        if not self.query(OptionList):  # closed meanwhile
            return
        options = self.query_one(OptionList)
        for model in self.models:
            used = model.name == (self.services.settings.model or hub.DEFAULT_MODEL)
            mark = "● " if used else "  "
            label = f"{mark}{model.name}  {model.kind}, {model.size / 1e6:.0f} MB"
            options.add_option(Option(plain(label)))
        if not self.models:
            options.display = False
            self.query_one(Input).focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self._use(self.models[event.option_index].name)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.value.strip():
            self._use(event.value.strip())

    def _use(self, source: str) -> None:
        self.run_worker(self._open(source), group="model", exclusive=True)

    async def _open(self, source: str) -> None:
        self.add_class("-working")
        try:
            self._say(f"looking for {source}")
            await fetch(source, self._say)
            self._say(f"loading {source}")
            notice = await self.services.open_model(source)
            if notice:
                self.app.notify(notice, severity="warning", timeout=10, markup=False)
            self.dismiss()
        except AFMError as error:
            self._say(str(error))
        finally:
            self.remove_class("-working")

    def _say(self, text: str) -> None:
        for said in self.query("#said").results(Static):  # none where this was closed meanwhile
            said.update(plain(text))

    def action_stop(self) -> None:
        """Stop what runs; a download goes on where it stopped, the next time."""
        if self.has_class("-working"):
            self.workers.cancel_group(self, "model")
            self._say("stopped: choose it again, and a download goes on")
        else:
            self.dismiss()
