"""The screen of bits: sums and plans against the package's own, table, files, real tiny models."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.compress import Written
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError
from afm_mlx.quant import plan as plan_files
from afm_mlx.quant import profile as profile_files
from afm_mlx.quant.calibration import CalibrationOptions
from afm_mlx.quant.measure import ProfileOptions, Round
from afm_mlx.quant.profile import Profile
from afm_mlx.tui.quantize import plans, rows, work
from afm_mlx.tui.quantize.desk import Desk
from afm_mlx.tui.quantize.dialogs import Ask
from afm_mlx.tui.quantize.screen import QuantizeScreen
from afm_mlx.tui.quantize.table import Operations
from afm_mlx.tui.quantize.work import Options
from afm_mlx.tui.screen import Question
from afm_mlx.tui.services import Services
from tests.tui.pictures import THEMES, picture
from tests.tui.profiles import MACHINE, UP
from tests.tui.support import (
    PATIENCE,
    SIZES,
    app_with,
    fake_services,
    in_app,
    screen_text,
    snapshot,
    tiny,
    until,
)

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

TEXT = "the boat leaves at nine and the band plays until the lamps go out . " * 60

LONG = 120.0
"""Seconds for real work on a busy machine."""


# ---- real tiny models


@pytest.fixture
def model(tmp_path: Path) -> Path:
    base = tiny()
    checkpoint.save(tmp_path / "model", base.model, base.tokenizer, base="tests")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "model"


def little(tmp_path: Path) -> Options:
    return Options(
        ProfileOptions(8, 1),
        CalibrationOptions((str(tmp_path / "text.txt"),), tokens=256, window=64),
        str(tmp_path / "cache"),
        MACHINE,
    )


def test_measured_planned_and_written(model: Path, tmp_path: Path) -> None:
    """What the desk foretells is what the written model has, to the byte of its account."""
    options = little(tmp_path)
    with Engine.open(str(model)) as engine:
        events = list(engine.stream(partial(work.profile, options=options)))
        profiles = [e for e in events if isinstance(e, Profile)]
        assert [p.totals.cost is not None for p in profiles] == [False, True]
        assert all(work.describe(e) for e in events if not isinstance(e, Profile))
        desk = Desk.of(profiles[-1], 3.3)
        signature = engine.call(lambda base: base.signature).result()
        plans.save(plans.make(desk, signature), tmp_path / "plan.toml")
        wanted = partial(
            work.write, options=options, plan=tmp_path / "plan.toml", out=tmp_path / "small"
        )
        *_, last = engine.stream(wanted)
    assert isinstance(last, Written)
    assert last.account.linear == pytest.approx(desk.totals.linear)
    assert last.account.cost == pytest.approx(desk.totals.cost)
    assert last.account.size == pytest.approx(desk.size, abs=1)
    assert plan_files.read(tmp_path / "small" / "plan.toml").bits == desk.bits
    with Engine.open(str(tmp_path / "small")) as engine:  # few bits already: no widths
        events = list(engine.stream(partial(work.profile, options=options)))
        assert sum(isinstance(e, Profile) for e in events) == 1
        with pytest.raises(InputError, match="few bits already"):
            list(engine.stream(replace_out(wanted, tmp_path / "again")))


def replace_out(job: Any, out: Path) -> Any:
    return partial(job.func, **{**job.keywords, "out": out})


def test_work_stops_when_it_is_told(model: Path, tmp_path: Path) -> None:
    with Engine.open(str(model)) as engine:
        run = engine.stream(partial(work.profile, options=little(tmp_path)))
        seen = []
        for event in run:
            seen.append(event)
            run.cancel()
        assert all(isinstance(e, Round) for e in seen)


# ---- the screen


def screen_of(services: Services, *pairs: Any) -> Any:
    return app_with(services, quantize=QuantizeScreen)


def bits(screen: QuantizeScreen) -> dict[str, int]:
    assert screen.desk is not None
    return dict(screen.desk.bits)


def told(app: Any, part: str) -> bool:
    """Whether the last error was this one."""
    return bool(app.problems) and part in app.problems[-1].line


async def move_to(pilot: Pilot[Any], name: str) -> None:
    """Put the cursor on a row."""
    table = pilot.app.screen.query_one(Operations)
    table.focus()
    table.move_cursor(row=[x.name for x in table.shown].index(name))
    await until(pilot, lambda: table.current == name)


async def answer(pilot: Pilot[Any], text: str) -> None:
    """Answer the question that is or will be open."""
    await until(pilot, lambda: isinstance(pilot.app.screen, Ask) and pilot.app.screen.query(Input))
    pilot.app.screen.query_one(Input).value = text
    await pilot.press("enter")
    await until(pilot, lambda: not isinstance(pilot.app.screen, Ask))


def test_what_came_later_is_not_cut(bare: Profile, found: Profile) -> None:
    """Columns kept the width of their first cells, and nats lost their last digit."""
    services = fake_services()
    app = screen_of(services)

    async def test(pilot: Pilot[Any]) -> None:
        screen = app.screen
        await until(pilot, lambda: services.status.state == "ready")
        await screen.take(bare)
        table = screen.query_one(Operations)
        await until(pilot, lambda: table.shown)
        await screen.take(found)
        await pilot.pause()
        most = rows.largest(table.shown)
        for column in table.ordered_columns:
            longest = max(len(rows.cells(x, most)[str(column.key.value)]) for x in table.shown)
            assert column.content_width >= longest, column.key.value

    in_app(app, test, (120, 36))
    services.engine.close()


def test_the_profile_opened_last_stays(
    bare: Profile, found: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, shown, of = fake_services(), threading.Event(), Desk.of

    def slow_for_bare(profile: Profile) -> Desk:
        assert profile is not bare or shown.wait(PATIENCE)
        return of(profile)

    monkeypatch.setattr(Desk, "of", slow_for_bare)
    app = screen_of(services)

    async def test(pilot: Pilot[Any]) -> None:
        screen = app.screen
        await until(pilot, lambda: services.status.state == "ready")
        older = asyncio.create_task(screen.take(bare))
        await pilot.pause()
        await screen.take(found)
        shown.set()
        await older
        assert screen.desk is not None and screen.desk.profile is found

    in_app(app, test, (120, 36))
    services.engine.close()


@pytest.mark.parametrize("size", [*SIZES, (40, 12)])
def test_looks(size: tuple[int, int], found: Profile) -> None:
    services = fake_services()
    app = screen_of(services)

    async def test(pilot: Pilot[Any]) -> None:
        screen = app.screen
        await until(pilot, lambda: services.status.state == "ready")
        await until(pilot, lambda: all(x in screen_text(app) for x in ("No profile", "Bits")))
        if size in SIZES:
            await snapshot(pilot, "quantize-empty")
        await screen.take(found)
        screen._sort("size")
        await move_to(pilot, UP)
        wanted = ["3→2 ", "palette", "Bits"]
        wanted += ["this plan", "note"] if size[0] > 100 else []
        await until(pilot, lambda: all(x in screen_text(app) for x in wanted))
        screen.query_one(Operations).scroll_home(animate=False)
        for theme in THEMES if size in SIZES else ():
            app.theme = theme
            await picture(pilot, "quantize")

    in_app(app, test, size)
    services.engine.close()


def test_keys_change_rows_budget_order_and_filter(found: Profile) -> None:
    services = fake_services()
    app = screen_of(services)

    async def test(pilot: Pilot[Any]) -> None:
        screen: QuantizeScreen = app.screen
        await screen.take(found)
        table = screen.query_one(Operations)
        await move_to(pilot, UP)
        first = bits(screen)
        await pilot.press("left")
        await until(pilot, lambda: bits(screen)[UP] == first[UP] - 1)
        await until(pilot, lambda: "•" in screen_text(app))
        await pilot.press("u")
        await until(pilot, lambda: bits(screen) == first)
        places = [x.name for x in table.shown]
        await pilot.press(*["left_square_bracket"] * 3)  # quicker than a plan is made
        await until(pilot, lambda: screen.desk and round(screen.desk.budget, 6) == 3.2)
        assert screen.desk is not None
        assert screen.desk.totals.linear <= 3.2
        assert [x.name for x in table.shown] == places  # rows do not jump about
        await pilot.press("left", "r")
        await until(pilot, lambda: screen.desk is not None and not screen.desk.chosen)
        await pilot.press("b")
        await answer(pilot, "2,5")
        await until(pilot, lambda: screen.desk is not None and screen.desk.budget == 2.5)
        await pilot.press("b")
        await answer(pilot, "few")
        await until(pilot, lambda: told(app, "no number of bits"))
        await pilot.press("s")
        await until(pilot, lambda: screen.order == "size")
        assert table.shown[0].size == max(x.size for x in table.shown)
        assert table.current == UP
        await pilot.press("slash")
        screen.query_one("#filter", Input).value = "1. up"
        await until(pilot, lambda: len(table.shown) == 1)
        await pilot.press("enter")
        await until(pilot, lambda: table.has_focus)
        await pilot.press("right")
        name = table.shown[0].name
        await until(pilot, lambda: screen.desk is not None and name in screen.desk.chosen)

    in_app(app, test, (120, 36))
    services.engine.close()


def test_profiles_and_plans_are_opened_and_saved(
    found: Profile, model: Path, tmp_path: Path
) -> None:
    given = replace(found, model=str(model))
    given.save(tmp_path / "given.json")
    found.save(tmp_path / "other.json")
    services = Services(Engine.open(str(model)), home=tmp_path / "a", shipped=tmp_path / "b")
    app = screen_of(services)

    async def test(pilot: Pilot[Any]) -> None:
        screen: QuantizeScreen = app.screen
        await until(pilot, lambda: services.status.state == "ready")
        await pilot.press("e")  # nothing is there to be saved
        await until(pilot, lambda: told(app, "no widths"))
        await pilot.press("o")
        await answer(pilot, str(tmp_path / "none.json"))
        await until(pilot, lambda: told(app, "is no profile"))
        await pilot.press("o")
        await answer(pilot, str(tmp_path / "given.json"))
        await until(pilot, lambda: screen.desk is not None)
        recent = str(tmp_path / "given.json")
        await until(pilot, lambda: services.settings.recent.get("profile") == recent)
        first = bits(screen)
        await pilot.press("e")
        await answer(pilot, "mine")
        await until(pilot, lambda: (tmp_path / "plans" / "mine.toml").is_file())
        await pilot.press("b")
        await answer(pilot, "2.3")
        await until(pilot, lambda: bits(screen) != first)
        await pilot.press("l")
        await until(pilot, lambda: isinstance(app.focused, Input))
        await pilot.press("tab", "enter")  # the first of those that are there
        await until(pilot, lambda: bits(screen) == first)
        await pilot.press("w")
        await answer(pilot, str(tmp_path / "again.json"))
        await until(pilot, lambda: (tmp_path / "again.json").is_file())
        await pilot.press("o")
        await answer(pilot, str(tmp_path / "other.json"))
        await until(pilot, lambda: screen.desk and screen.desk.profile.model == "tiny")
        await pilot.press("e")
        await answer(pilot, "other")
        await until(pilot, lambda: told(app, "choose that model"))

    in_app(app, test, (110, 36))
    services.engine.close()
    assert profile_files.read(tmp_path / "again.json") == given


def test_the_profile_that_was_open_last_opens_again(found: Profile, tmp_path: Path) -> None:
    found.save(tmp_path / "given.json")
    services = fake_services(folder=tmp_path)
    services.change(recent={"profile": str(tmp_path / "given.json")})
    app = screen_of(services)

    async def test(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: app.screen.desk is not None)

    in_app(app, test, (80, 24))
    services.engine.close()


def open_tiny(source: str | None) -> Engine:
    return Engine.open(source)


def test_measure_and_apply_on_the_screen(model: Path, tmp_path: Path) -> None:
    services = Services(
        Engine.open(str(model)),
        home=tmp_path / "adapters",
        shipped=tmp_path / "features",
        open_engine=open_tiny,
    )
    app = screen_of(services)
    said: list[str] = []

    async def test(pilot: Pilot[Any]) -> None:
        screen: QuantizeScreen = app.screen
        screen.options = little(tmp_path)
        services.on_change(lambda: said.append(services.status.busy))
        await until(pilot, lambda: services.status.state == "ready")
        await pilot.press("p")
        await until(pilot, lambda: screen.desk is not None and screen.desk.choices, LONG)
        await until(pilot, lambda: not screen.working)
        assert "measuring" in said
        assert list((tmp_path / "profiles").glob("*.json"))
        await pilot.press("a")
        await answer(pilot, str(tmp_path))  # a folder that is no model stays
        await until(pilot, lambda: told(app, "choose another folder"))
        await pilot.press("a")
        await answer(pilot, str(tmp_path / "small"))
        await until(pilot, lambda: isinstance(app.screen, Question), LONG)
        assert "quantizing" in said and (tmp_path / "small" / "plan.toml").is_file()
        await pilot.press("y")
        await until(pilot, lambda: services.status.model == "small")
        await until(pilot, lambda: services.status.state == "ready")
        assert services.status.bits is not None and services.status.bits < 16

    in_app(app, test, (100, 30))
    services.engine.close()


def test_escape_stops_the_work(model: Path, tmp_path: Path) -> None:
    services = Services(Engine.open(str(model)), home=tmp_path / "a", shipped=tmp_path / "b")
    app = screen_of(services)

    async def test(pilot: Pilot[Any]) -> None:
        screen: QuantizeScreen = app.screen
        screen.options = replace(little(tmp_path), measuring=ProfileOptions(8, 10_000))
        await until(pilot, lambda: services.status.state == "ready")
        assert not shown(app, "stop") and shown(app, "measure")
        await pilot.press("p")
        await until(pilot, lambda: screen.working and "measuring" in screen_text(app))
        await until(pilot, lambda: "esc Stop" in screen_text(app))
        assert shown(app, "stop") and not shown(app, "measure")
        await pilot.press("escape")
        await until(pilot, lambda: not screen.working)
        await until(pilot, lambda: "p Measure" in screen_text(app))
        free = services.engine.call(lambda _: "free")
        await until(pilot, free.done)
        assert services.status.busy == ""

    in_app(app, test, (80, 24))
    services.engine.close()


def shown(app: Any, action: str) -> bool:
    """Whether a key for ``action`` does something now."""
    active: Sequence[Any] = list(app.screen.active_bindings.values())
    return any(x.binding.action == action and x.enabled for x in active)
