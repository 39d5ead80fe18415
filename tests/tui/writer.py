"""Someone at the writing screen, for its tests."""

from collections.abc import Awaitable, Callable

from afm_mlx.tui.writing.result import ResultPane
from afm_mlx.tui.writing.screen import WritingScreen
from afm_mlx.tui.writing.sheet import Reader
from afm_mlx.tui.writing.work import Result
from tests.tui.support import (
    Answers,
    ScriptedEngine,
    Visitor,
    app_with,
    fake_services,
    in_app,
    until,
)

from textual.pilot import Pilot
from textual.widgets import Button, Input, Static


class Person(Visitor):
    """Someone at the writing screen."""

    screen: WritingScreen

    def __init__(self, pilot: Pilot[None]) -> None:
        super().__init__(pilot)
        engine = self.screen.services.engine
        assert isinstance(engine, ScriptedEngine)
        self.engine = engine

    @property
    def text(self) -> str:
        return self.screen.editor.text

    @property
    def shown(self) -> str:
        """What stands in the pane of the result."""
        return self.screen.query_one(Reader).text

    @property
    def result(self) -> Result:
        assert self.screen.desk.result is not None
        return self.screen.desk.result

    @property
    def remarks(self) -> str:
        return str(self.screen.query_one("#remark", Static).content)

    def write(self, text: str) -> None:
        self.screen.editor.load_text(text)
        self.screen.editor.focus()

    def select(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        self.screen.editor.selection = type(self.screen.editor.selection)(start, end)

    async def drawn(self) -> None:
        """Wait until what is shown is what lies on the desk."""
        await self.pilot.pause()
        await self.app.workers.wait_for_complete([w for w in self.app.workers if w.group == "view"])
        await self.pilot.pause()

    async def done(self, asking: Awaitable[object]) -> None:
        """Ask, and wait for the result."""
        before = self.screen.desk.result
        await asking
        await self.until(lambda: self.screen.desk.result is not before)
        await self.drawn()

    async def use(self, tool: str) -> None:
        """Use a tool by its button."""
        self.screen.query_one(f"#{tool}", Button).press()
        await self.done(self.pilot.pause())

    async def describe(self, instruction: str) -> None:
        await self.press("ctrl+g")
        self.screen.query_one("#change", Input).value = instruction
        await self.done(self.pilot.press("enter"))


def at_the_desk(
    test: Callable[[Person], Awaitable[None]],
    answers: Answers = "yes",
    size: tuple[int, int] = (100, 20),
) -> None:
    app = app_with(fake_services(answers), writing=WritingScreen)

    async def run(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: isinstance(app.screen, WritingScreen) and app.screen.is_mounted)
        await until(pilot, lambda: bool(app.screen.query(ResultPane)))
        await test(Person(pilot))

    in_app(app, run, size)
