"""The app as a person meets it: screens, status, errors, questions, settings, its end."""

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from afm_mlx import cli
from afm_mlx.errors import InputError
from afm_mlx.tui import settings
from afm_mlx.tui.app import AfmApp
from afm_mlx.tui.help import Keys
from afm_mlx.tui.models import ModelPicker
from afm_mlx.tui.problems import LOG_BYTES, Details, log, problem
from afm_mlx.tui.screen import AfmScreen, Command, Question, titles
from afm_mlx.tui.services import Services, Status
from afm_mlx.tui.settings import Settings
from afm_mlx.tui.status import line
from tests.tui.support import (
    SIZES,
    app_with,
    fake_services,
    in_app,
    screen_text,
    snapshot,
    told,
    until,
)

import pytest
from textual.app import ComposeResult
from textual.binding import Binding
from textual.messages import ExitApp
from textual.pilot import Pilot
from textual.widgets import Static


class Screen(AfmScreen):
    """A screen that fails, asks, and takes its time to leave."""

    BINDINGS = [
        Binding("x", "fail", "Fail", id="x.fail", tooltip="Fail in a worker"),
        Binding("y", "ask", "Ask", id="x.ask", tooltip="Ask something"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[bool] = []
        self.leaving, self.left, self.may_go = False, False, asyncio.Event()
        self.may_go.set()
        self.called = 0

    def compose_body(self) -> ComposeResult:
        yield Static("[bold]body[/]", markup=False)

    def commands(self) -> Iterable[Command]:
        yield "Count", "Counts", self.count

    def count(self) -> None:
        self.called += 1

    def action_fail(self) -> None:
        self.run_worker(self._fail())

    async def _fail(self) -> None:
        raise ZeroDivisionError("by [red]nothing[/]")

    def action_ask(self) -> None:
        self.run_worker(self._ask())

    async def _ask(self) -> None:
        self.answers.append(await self.confirm("Delete [all] of it?"))

    async def leave(self) -> None:
        self.leaving = True
        await self.may_go.wait()
        self.left = True


def services_there(folder: Path | None = None) -> Services:
    return fake_services(folder=folder)


def is_shown(app: AfmApp, mode: str) -> bool:
    return app.current_mode == mode


# ---- lines


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_status_line_fits(width: int) -> None:
    status = Status("smollm2-135m", "ready", "", 3.7, "friendly", 212 * 10**6, 3e-4, 0.038, 212, 24)
    text = line(status, width)
    assert text.cell_len <= max(width, len(" smollm2-135m"))
    assert text.plain.startswith(" smollm2-135m")
    if width == 120:
        assert text.plain.split(" · ")[:4] == [
            " smollm2-135m",
            "◆ friendly",
            "3.7 bits",
            text.plain.split(" · ")[3],
        ]
        assert text.plain.endswith("first token 38 ms · 212 tok/s · swap 0.3 ms · 24 tok")


def test_status_line_says_what_there_is_not() -> None:
    assert "loading m" in line(Status("m", "loading"), 80).plain
    assert "F6" in line(Status("m", "failed"), 80).plain
    assert "⧗ training" in line(Status("m", "ready", "training"), 80).plain


@pytest.mark.parametrize("width", [24, 40, 60, 80])
def test_titles_fit(width: int) -> None:
    found = titles("writing", width)
    assert [mode for mode, _ in found][1] == "writing"
    assert sum(len(title) + 1 for _, title in found) <= width
    assert [title.startswith("▸") for _, title in found] == [False, True, False, False, False]


# ---- screens


@pytest.mark.parametrize("size", [(80, 24), (40, 12), (20, 5)])
def test_screens_and_keys_in_little_room(size: tuple[int, int]) -> None:
    services = services_there()
    app = app_with(services)

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: services.status.state == "ready")
        for key, mode in (("f2", "writing"), ("f5", "distill"), ("f1", "notifications")):
            await pilot.press(key)
            await until(pilot, partial(is_shown, app, mode))
        await pilot.press("f7")
        await until(pilot, lambda: isinstance(app.screen, Keys))
        await pilot.press("f2")  # a view that is open keeps its place
        assert isinstance(app.screen, Keys)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Keys))
        await pilot.press("f6")
        await until(pilot, lambda: isinstance(app.screen, ModelPicker))
        await pilot.press("escape", "f8")
        await until(pilot, lambda: isinstance(app.screen, Details))

    in_app(app, test, size)
    services.engine.close()


@pytest.mark.parametrize("size", SIZES)
def test_looks(size: tuple[int, int]) -> None:
    services = services_there()
    app = app_with(services, quantize=Screen)

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: services.status.state == "ready")
        await until(pilot, lambda: "body" in screen_text(app) and "Fail" in screen_text(app))
        await snapshot(pilot, "frame")
        await pilot.press("f7")
        await until(pilot, lambda: "Everywhere" in screen_text(app))
        await snapshot(pilot, "keys")

    in_app(app, test, size)
    services.engine.close()


def test_a_click_on_a_title_leads_there() -> None:
    services = services_there()
    app = app_with(services)

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "F3 Adapters" in screen_text(app))
        row = next(i for i, x in enumerate(screen_text(app).splitlines()) if "F3 Adap" in x)
        column = screen_text(app).splitlines()[row].index("F3 Adapters")
        await pilot.click(offset=(column + 1, row))
        await until(pilot, lambda: app.current_mode == "adapters")

    in_app(app, test, (80, 24))
    services.engine.close()


# ---- errors


def test_exceptions_of_workers_are_shown_and_kept() -> None:
    """An exception in a worker ended the app, with all that was in its editors."""
    services = services_there()
    app = app_with(services, quantize=Screen)

    async def test(pilot: Pilot[Any]) -> None:
        await pilot.press("x")
        await until(pilot, lambda: "ZeroDivisionError" in screen_text(app))
        assert "[red]nothing[/]" in app.problems[0].line
        await until(pilot, lambda: app.log_file.is_file())
        assert "Traceback" in app.log_file.read_text("utf-8")
        await pilot.press("f8")
        await until(pilot, lambda: isinstance(app.screen, Details))
        await until(pilot, lambda: "Traceback" in screen_text(app))
        app.report(InputError("the text [/] is empty: give some text"))
        await until(pilot, lambda: "the text [/] is empty" in screen_text(app))
        assert len(app.problems) == 2 and app.problems[1].expected

    in_app(app, test, (100, 30))
    services.engine.close()


def test_details_name_the_causes() -> None:
    try:
        try:
            raise OSError("disk on fire")
        except OSError as error:
            raise InputError("no: stop") from error
    except InputError as error:
        found = problem(error)
    assert found.line == "no: stop"
    assert found.detail == "because of OSError: disk on fire"


def test_the_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "app.log"
    for text in ("a" * LOG_BYTES, "b"):
        log(problem(ValueError(text)), file)
    assert file.stat().st_size < LOG_BYTES + 1000
    assert "ValueError: b" in file.read_text("utf-8")


# ---- questions


@pytest.mark.parametrize(("keys", "expected"), [("y", True), ("n", False), ("escape", False)])
def test_questions(keys: str, expected: bool) -> None:
    services = services_there()
    app = app_with(services, quantize=Screen)

    async def test(pilot: Pilot[Any]) -> None:
        screen = app.screen
        assert isinstance(screen, Screen)
        await pilot.press("y")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await until(pilot, lambda: "Delete [all] of it?" in screen_text(app))
        await pilot.press(keys)
        await until(pilot, lambda: screen.answers)
        assert screen.answers == [expected]

    in_app(app, test, (60, 20))
    services.engine.close()


# ---- settings, end


def test_theme_is_remembered(tmp_path: Path) -> None:
    services = fake_services(settings=Settings(theme="nord"), folder=tmp_path)
    app = app_with(services)

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: app.theme == "nord")
        app.use_theme("textual-light")
        file = tmp_path / "settings.json"
        await until(pilot, lambda: settings.read(file)[0].theme == "textual-light")

    in_app(app, test, (80, 24))
    services.engine.close()


def test_settings_that_cannot_be_written_are_reported(tmp_path: Path) -> None:
    """Whoever changed them: a choice of an adapter was lost in silence."""
    (tmp_path / "file").write_text("", "utf-8")
    services = fake_services(folder=tmp_path / "file")
    app = app_with(services)

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: services.status.state == "ready")
        services.choose(None)
        await until(pilot, lambda: app.problems)
        assert "could not be written" in app.problems[0].line

    in_app(app, test, (80, 24))
    services.engine.close()


def test_unknown_theme_and_damaged_settings_are_no_obstacle() -> None:
    settings.path().parent.mkdir(parents=True)
    settings.path().write_text("{", "utf-8")
    services = Services.open("no-such-model")
    services.settings = Settings(theme="no such theme")
    app = app_with(services)

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "the settings in" in screen_text(app))

    in_app(app, test, (100, 24))
    services.engine.close()


@pytest.mark.parametrize("how", ["key", "signal"])
def test_the_end_lets_screens_keep_their_best(how: str) -> None:
    """A browser's tab that was closed, or a signal, lost what ran; only the key asked."""
    services = services_there()
    app = app_with(services, quantize=Screen)

    async def run() -> Screen:
        async with app.run_test() as pilot:
            screen = app.screen
            assert isinstance(screen, Screen)
            if how == "key":
                await pilot.press("ctrl+q")
            else:
                app.post_message(ExitApp())
            await until(pilot, lambda: screen.left and not app.is_running)
        return screen

    asyncio.run(run())
    with pytest.raises(InputError, match="closed"):
        services.engine.call(lambda _: None)


@pytest.mark.parametrize("how", ["signal", "tab"])
def test_a_second_signal_cuts_nothing_short(how: str) -> None:
    """A machine that is shut down sends two of them, and a lost server is missed again and again:
    what ran lost its best. A person who quits a second time means it."""
    app = app_with(services_there(), quantize=Screen)

    async def test(pilot: Pilot[Any]) -> None:
        screen = app.screen
        assert isinstance(screen, Screen)
        screen.may_go.clear()

        def end() -> None:
            if how == "signal":
                app._end_alone()
            else:
                app.post_message(ExitApp())

        end()
        end()
        await until(pilot, lambda: screen.leaving)
        end()
        await pilot.pause()
        await pilot.pause()
        assert app.is_running and not screen.left
        screen.may_go.set()
        await until(pilot, lambda: screen.left and not app.is_running)

    in_app(app, test, (80, 24))


def test_nothing_in_a_message_acts_on_the_terminal() -> None:
    app = app_with(services_there(), quantize=Screen)

    async def test(pilot: Pilot[Any]) -> None:
        app.report(InputError("\x1b]52;c;QQ==\x1b\\ is damaged"))
        app.notify("two\nlines", title="\x9b2J")
        error, note = told(app)
        assert (error.message, note.message) == ("␛]52;c;QQ==␛\\ is damaged", "two\nlines")
        assert note.title == "\ufffd2J"
        app.action_details()
        await until(pilot, lambda: "␛]52;c;QQ==␛" in screen_text(app))
        assert "\x1b" not in screen_text(app)

    in_app(app, test, (100, 24))


# ---- command line


def test_the_command_line_opens_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[str | None, str | None]] = []

    def opened(model: str | None, inbox: str | None) -> int:
        calls.append((model, inbox))
        return 0

    monkeypatch.setattr("afm_mlx.tui.app.main", opened)
    monkeypatch.setattr("afm_mlx.cli._terminal", lambda: True)
    monkeypatch.chdir(tmp_path)
    assert cli.main([]) == 0
    assert cli.main(["app", "--model", "m", "--inbox", "box.jsonl"]) == 0
    assert calls == [(None, None), ("m", str(tmp_path / "box.jsonl"))]


def test_without_a_terminal_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["app"]) == 2
    assert "--serve" in capsys.readouterr().err
