"""The app: five screens on F1 to F5, one engine behind them.

afm
afm app --model MODEL --inbox FILE
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any, ClassVar

from afm_mlx.errors import AFMError, InputError
from afm_mlx.tui.dialog import Palette
from afm_mlx.tui.help import Keys, Section, rows
from afm_mlx.tui.models import ModelPicker
from afm_mlx.tui.palette import Commands
from afm_mlx.tui.plain import visible
from afm_mlx.tui.problems import Details, Problem, keep, log_file, problem
from afm_mlx.tui.screen import SCREENS, AfmScreen, Command, Question
from afm_mlx.tui.services import Services
from afm_mlx.tui.settings import AUTO, Choice
from afm_mlx.tui.writing.tools import TOOLS

from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.messages import ExitApp
from textual.screen import ModalScreen
from textual.theme import Theme
from textual.worker import WorkerFailed

PARENT = 5.0
"""Seconds between two looks whether the server of a tab is still there."""


def screen_class(mode: str) -> type[AfmScreen]:
    """The class of a screen; imported when it is first wanted."""
    module = import_module(f"afm_mlx.tui.{mode}.screen")
    found: type[AfmScreen] = vars(module)[f"{mode.capitalize()}Screen"]
    return found


class AfmApp(App[None]):
    """The terminal app.

    Args:
        services: the door to the package; closed when a person quits.
        screens: gives the classes of the screens by their modes.
        mode: the screen that is shown first.

    Attributes:
        alone: nobody can answer questions any more.
    """

    TITLE = "afm"
    DEFAULT_MODE = "notifications"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {Commands}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(f"f{n}", f"go({mode!r})", title, show=False, id=f"app.{mode}", tooltip=title)
            for n, (mode, (title, _)) in enumerate(SCREENS.items(), 1)
        ),
        Binding(
            "f6", "models", "Model", show=False, id="app.models", tooltip="Choose another model"
        ),
        Binding(
            "f7,question_mark",
            "keys",
            "Keys",
            show=False,
            id="app.keys",
            tooltip="All keys of all screens",
        ),
        Binding(
            "f8",
            "details",
            "Details",
            show=False,
            id="app.details",
            tooltip="All that is known of what went wrong",
        ),
        Binding(
            "ctrl+p",
            "command_palette",
            "palette",
            show=False,
            priority=True,
            id="app.palette",
            tooltip="Search all commands: adapters, models, tools, themes",
        ),
        Binding(
            "ctrl+q",
            "quit",
            "Quit",
            show=False,
            priority=True,
            id="app.quit",
            tooltip="End the app; running work keeps its best",
        ),
    ]

    def __init__(
        self,
        services: Services,
        screens: Callable[[str], type[AfmScreen]] = screen_class,
        mode: str = DEFAULT_MODE,
    ) -> None:
        super().__init__()
        self.services, self.problems = services, list[Problem]()
        self.log_file = log_file()
        self._screens, self._made = screens, dict[str, AfmScreen]()
        self._written, self._leaving, self._ending = services.written, False, False
        self.alone = False
        self.start_mode = mode
        for name in SCREENS:
            self.add_mode(name, partial(self._make, name))

    def _make(self, mode: str) -> AfmScreen:
        self._made[mode] = made = self._screens(mode)()
        return made

    async def on_mount(self) -> None:
        if self.start_mode != self.DEFAULT_MODE:
            await self.switch_mode(self.start_mode)
        if self.services.settings.theme in self.available_themes:
            self.theme = self.services.settings.theme
        if self.services.notice:
            self.notify(self.services.notice, severity="warning", timeout=10, markup=False)
        self.theme_changed_signal.subscribe(self, self._theme_changed)
        self.services.on_change(self._look_at_writing)
        if served():
            self.set_interval(PARENT, partial(self._look_for_server, os.getppid()))
        elif not self.is_headless:  # a terminal that is closed, a machine that is shut down
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self._end_alone)
        self.run_worker(self._start(), name="start")

    async def _start(self) -> None:
        try:
            await self.services.start()
        except AFMError as error:
            self.report(error)
            self.action_models(str(error))

    # ---- screens

    async def action_go(self, mode: str) -> None:
        """Show a screen; a question that is open keeps its own."""
        if not isinstance(self.screen, ModalScreen):
            await self.switch_mode(mode)

    def go_to_commands(self) -> Iterator[Command]:
        """One command for each screen."""
        for number, (mode, (title, _)) in enumerate(SCREENS.items(), 1):
            yield f"Go to: {title}", f"F{number}", partial(self.action_go, mode)

    def screen_commands(self) -> Iterator[Command]:
        """What the screens that were opened offer, this one's first."""
        made = sorted(self._made, key=lambda mode: mode != self.current_mode)
        for mode in made:
            for title, about, call in self._made[mode].commands():
                if mode == self.current_mode:
                    yield title, about, call
                else:
                    where = SCREENS[mode][0]
                    yield f"{where}: {title}", about, partial(self._call_on, mode, call)
        if "writing" not in self._made:
            where = SCREENS["writing"][0]
            for tool in TOOLS:
                yield f"{where}: {tool.label}", tool.about, partial(self._use_tool, tool.label)

    async def _use_tool(self, label: str) -> None:
        """Open the screen with the writing tools and use one of them."""
        await self.action_go("writing")
        for title, _, call in self._made["writing"].commands():
            if title == label:
                self.call_later(call)

    async def _call_on(self, mode: str, call: Callable[[], object]) -> None:
        await self.action_go(mode)
        self.call_later(call)  # it may be a coroutine function or not

    def action_command_palette(self) -> None:
        """Show the command palette."""
        if not isinstance(self.screen, Palette):
            self.push_screen(Palette())

    def action_keys(self) -> None:
        """Show all keys."""
        self.push_screen(Keys(self._sections()))

    def _sections(self) -> Iterator[Section]:
        yield "Everywhere", list(rows([AfmApp], self.get_key_display))
        for number, (mode, (title, _)) in enumerate(SCREENS.items(), 1):
            found = self._screens(mode)
            yield f"{title} · F{number}", list(rows([found, *found.KEYS], self.get_key_display))

    # ---- model, adapter, theme

    def action_models(self, remedy: str = "") -> None:
        """Choose a model."""
        if not isinstance(self.screen, ModelPicker):
            self.push_screen(ModelPicker(self.services, remedy))

    def open_model(self, source: str | None) -> None:
        """Use another model; the one there stays if that fails."""
        self.run_worker(self._open_model(source), group="model", exclusive=True)

    async def _open_model(self, source: str | None) -> None:
        notice = await self.services.open_model(source)
        if notice:
            self.notify(notice, severity="warning", timeout=10, markup=False)

    def choose_adapter(self, adapter: Choice) -> None:
        """Use an adapter for all features; the choice there stays if it cannot be used."""
        self.run_worker(self._choose(adapter), group="adapter", exclusive=True)

    async def _choose(self, adapter: Choice) -> None:
        if adapter is not None and adapter != AUTO:
            adapter = await self.services.load(adapter)
        self.services.choose(adapter)

    def use_theme(self, name: str) -> None:
        """Use a theme from now on."""
        self.theme = name

    def _theme_changed(self, theme: Theme) -> None:
        if theme.name != self.services.settings.theme:
            self.change_settings(theme=theme.name)

    def change_settings(self, **changes: object) -> None:
        """Change settings, which are written at once."""
        self.services.change(**changes)

    def _look_at_writing(self) -> None:
        """Report what keeps settings from being written, whoever changed them."""
        if self._written is not self.services.written:
            self._written = self.services.written
            self.run_worker(asyncio.wrap_future(self._written), name="settings")

    # ---- problems

    def notify(self, message: str, *, title: str = "", **options: Any) -> None:
        """Show a message; what is in it does nothing to the terminal."""
        super().notify(visible(message), title=visible(title), **options)

    def report(self, error: BaseException) -> None:
        """Tell of an error in a notification, and keep it for the view of details."""
        found = problem(error)
        self.problems.append(found)
        title = "F8 shows details"
        self.notify(found.line, title=title, severity="error", timeout=10, markup=False)
        if not found.expected:
            self.run_worker(keep(found, self.log_file), name="log")

    def action_details(self) -> None:
        """Show what went wrong in full."""
        self.push_screen(Details(self.problems, self.log_file))

    def _handle_exception(self, error: Exception) -> None:
        """Exceptions in workers are shown; in anything else of the app they end it."""
        if isinstance(error, WorkerFailed):
            self.report(error.error)
        else:
            super()._handle_exception(error)

    # ---- end

    async def action_quit(self) -> None:
        """Have running work keep its best, and end; a second time ends at once."""
        if not self._leaving:
            self._leaving = True
            self.run_worker(self._leave(), name="leave")
        elif not isinstance(self.screen, ModalScreen):  # a question waits for its answer
            self._end()

    def on_exit_app(self, event: ExitApp) -> None:
        """The end of a browser's tab: it ends the app as a person does."""
        if not self._ending:
            event.prevent_default()
            self._end_alone()

    def _end_alone(self) -> None:
        """End the app with nobody there to be asked: work keeps its best all the same."""
        self.alone = True
        if isinstance(self.screen, Question):
            self.screen.dismiss(False)
        self.call_later(self._leave_once)

    async def _leave_once(self) -> None:
        """Quit, unless that has begun: a machine that is shut down sends more than one signal, and
        a second one is nobody's wish to end at once."""
        if not self._leaving:
            await self.action_quit()

    def _end(self) -> None:
        self._ending = True
        self.exit()

    def _look_for_server(self, server: int) -> None:
        """A server that was killed tells nobody, and its apps would stay with their models."""
        if os.getppid() != server:
            self.post_message(ExitApp())

    async def _leave(self) -> None:
        for screen in self._made.values():
            willing = self.alone or await screen.may_leave()
            if not (willing or self.alone):  # nobody may be left meanwhile to be asked
                self._leaving = False
                return
        for screen in self._made.values():
            try:
                await screen.leave()
            except Exception as error:  # of any screen: the others are to be asked too
                self.report(error)
        await self.services.close()
        self._end()


def served() -> bool:
    """Whether the app is in a browser's tab."""
    return "TEXTUAL_DRIVER" in os.environ


def main(model: str | None = None, inbox: str | None = None) -> int:
    """``afm app``: run the app in this terminal.

    Raises:
        InputError: there is no terminal.
    """
    if not served() and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError("the app needs a terminal: run it in one, or in a browser with --serve")
    services = Services.open(model, inbox)
    try:
        app = AfmApp(services)
        app.run()
        return app.return_code or 0
    finally:
        services.engine.close()
