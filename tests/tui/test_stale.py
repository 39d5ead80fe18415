"""What the app shows or writes is of now: models, settings, messages, runs, texts."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError, ModelError
from afm_mlx.tui import settings
from afm_mlx.tui.adapters.files import bring_in
from afm_mlx.tui.adapters.screen import AdaptersScreen
from afm_mlx.tui.notifications.rows import ROOM, originals
from afm_mlx.tui.panes import Panes
from afm_mlx.tui.services import Services
from afm_mlx.tui.writing import textfile
from afm_mlx.tui.writing.desk import Desk
from afm_mlx.tui.writing.files import FileDialog
from afm_mlx.tui.writing.sheet import Sheet
from afm_mlx.tui.writing.textfile import TextFile
from afm_mlx.tui.writing.tools import TOOLS
from afm_mlx.tui.writing.work import Job
from tests.tui.foreign_run import run_folder
from tests.tui.inbox_screen import INBOX, NOW, choose, inbox, reading, settled, show, text
from tests.tui.support import app_with, fake_services, in_app, tiny, until
from tests.tui.test_distill_screen import Person as Runs
from tests.tui.test_distill_screen import visit as runs
from tests.tui.test_rows import stack_of
from tests.tui.writer import Person, at_the_desk

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

# ---- models


def test_a_model_that_is_there_is_shown_after_another_one_failed() -> None:
    """The status line said for ever that it was loading."""
    gates = {name: threading.Event() for name in ("first", "gone", "slow")}

    def open_engine(source: str | None) -> Engine:
        def load() -> Checkpoint:
            assert gates[str(source)].wait(60)
            if source == "gone":
                raise ModelError("no such model: name another")
            return replace(tiny(), name=str(source))

        return Engine(load)

    async def work() -> None:
        services = Services(open_engine("first"), open_engine=open_engine)
        start = asyncio.create_task(services.start())
        gates["gone"].set()
        with pytest.raises(ModelError):
            await services.open_model("gone")
        assert services.status.state == "loading"
        gates["first"].set()
        await start
        assert (services.status.model, services.status.state) == ("first", "ready")
        stopped = asyncio.create_task(services.open_model("slow"))
        await asyncio.sleep(0)
        assert services.status.state == "loading"
        stopped.cancel()
        gates["slow"].set()
        with pytest.raises(asyncio.CancelledError):
            await stopped
        assert (services.status.model, services.status.state) == ("first", "ready")
        await services.close()

    asyncio.run(work())


def test_a_model_that_fails_says_nothing_of_the_one_that_is_loading() -> None:
    gate = threading.Event()

    def fail() -> Checkpoint:
        raise ModelError("no such model: name another")

    def load() -> Checkpoint:
        assert gate.wait(60)
        return replace(tiny(), name="second")

    async def work() -> None:
        services = Services(Engine(fail), open_engine=lambda source: Engine(load))
        opening = asyncio.create_task(services.open_model("second"))
        await asyncio.sleep(0)
        with pytest.raises(ModelError):
            await services.start()
        assert services.status.state == "loading"
        gate.set()
        await opening
        assert (services.status.model, services.status.state) == ("second", "ready")
        await services.close()

    asyncio.run(work())


def test_a_model_in_the_folder_of_now_is_found_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny()
    checkpoint.save(tmp_path / "model", base.model, base.tokenizer, base="tiny")
    monkeypatch.chdir(tmp_path)

    async def work() -> None:
        services = fake_services(folder=tmp_path, open_engine=Engine.open)
        await services.open_model("model")
        await services.close()

    asyncio.run(work())
    found, _ = settings.read(tmp_path / "settings.json")
    assert found.model == str(tmp_path / "model")
    assert settings.lasting("owner/name") == "owner/name"


# ---- settings


def test_two_apps_keep_each_others_settings(tmp_path: Path) -> None:
    """What the one wrote was as it had been when the other began."""

    async def work() -> None:
        one, two = fake_services(folder=tmp_path), fake_services(folder=tmp_path)
        await asyncio.wrap_future(one.change(theme="nord", recent={"profile": "p.json"}))
        await asyncio.wrap_future(two.change(switched_off=("Mail",), recent={"plan": "q.json"}))
        await asyncio.wrap_future(one.change(recent={}))
        await asyncio.wrap_future(two.change(recent={"plan": "r.json"}))
        await one.close()
        await two.close()

    asyncio.run(work())
    found, _ = settings.read(tmp_path / "settings.json")
    assert (found.theme, found.switched_off) == ("nord", ("Mail",))
    assert found.recent == {"plan": "r.json"}


# ---- messages


def test_a_corrected_older_line_is_shown(tmp_path: Path) -> None:
    """Number and newest of the notifications were as before, and the old text stayed."""
    items = [{**item, "id": str(n)} for n, item in enumerate(INBOX)]
    path = inbox(tmp_path, *items)

    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await choose(pilot, "Messages")
        await pilot.press("enter")
        await until(pilot, lambda: "Saw on Saturday 10:00?" in text(pilot))
        inbox(tmp_path, {**items[0], "body": "Saw on Saturday 11:00?"}, *items[1:])
        await until(pilot, lambda: "Saw on Saturday 11:00?" in text(pilot))

    show(reading(path), test)


def test_very_long_messages_have_so_much_room() -> None:
    """To wrap 300 long ones took twelve seconds, at every change."""
    stack = stack_of(*((f"{n}", "word " * 800) for n in range(300)))
    shown = originals(stack, NOW).plain
    assert shown.startswith("296 older ones are not shown.") and "299  word" in shown
    assert len(shown) < 1.1 * ROOM
    alone = stack_of(("a" * 50_000, "b" * 50_000))
    assert len(originals(alone, NOW).plain) < ROOM


# ---- runs


def test_another_folder_shows_nothing_of_the_run_before(tmp_path: Path) -> None:
    one, two = run_folder(tmp_path / "one"), run_folder(tmp_path / "two")
    (two / "metrics.jsonl").unlink()

    async def test(person: Runs) -> None:
        async def watch_one() -> None:
            person.fill(out=one)
            await person.press("ctrl+o")
            await person.until(lambda: "step 2 of 40" in person.said and person.loss.series)

        await watch_one()
        person.fill(out=two)
        await person.press("ctrl+o")
        await person.until(lambda: not person.loss.series)
        assert "step 2" not in person.said and "student at the start" in person.said

        await watch_one()
        person.fill(out=tmp_path / "three")
        await person.press("ctrl+n")
        await person.until(lambda: "8.00 GB: fits" in person.said)
        await person.state("")
        await person.until(lambda: not person.loss.series)
        assert "step 2" not in person.said and "student at the start" not in person.said

    runs(test)


def test_a_paused_run_stays_so_while_its_folder_is_watched(tmp_path: Path) -> None:
    """Stop did not write its best student any more."""

    async def test(person: Runs) -> None:
        person.fill(steps=4000, out=tmp_path / "out")
        await person.press("ctrl+r")
        await person.until(lambda: person.runner.watched.saved)
        await person.press("ctrl+t")
        await person.state("paused")
        saved = person.runner.watched.saved
        await person.press("ctrl+o")
        await person.state("watching")
        await person.press("escape")
        await person.state("paused")
        assert person.runner.watched.saved == saved
        await person.press("escape")
        await person.until(lambda: "report.md" in person.said)

    runs(test)


# ---- texts


def test_again_is_on_the_text_of_now() -> None:
    async def test(person: Person) -> None:
        person.write("one two three")
        person.engine.go_on.clear()
        person.screen.use(TOOLS[1])
        await person.until(lambda: person.engine.prompts)
        await person.press("escape")
        person.engine.go_on.set()
        person.write("four five six")
        await person.done(person.press("ctrl+r"))
        assert "four five six" in person.engine.prompts[-1]
        person.write("four five six seven")
        await person.done(person.press("ctrl+r"))
        assert "five six seven" in person.engine.prompts[-1]
        await person.press("ctrl+s")
        assert person.text == "alpha beta"

    at_the_desk(test, "alpha beta")


def test_again_stays_with_its_part() -> None:
    text = "Hello. See you soon."
    job = Job.on(TOOLS[1], text, 7, 20)
    assert Desk("Oh, " + text).again(job, 0, 0) == job
    now = Desk("Hello. See you never.").again(replace(job, attempt=2), 0, 0)
    assert (now.source, now.tool, now.attempt) == ("Hello. See you never.", job.tool, 2)


def test_what_is_being_written_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Escape closed the dialog, the file was written, and the app said that it was not saved."""
    begun, gate, write = threading.Event(), threading.Event(), textfile.write

    def slowly(file: TextFile, text: str) -> TextFile:
        begun.set()
        assert gate.wait(60)
        return write(file, text)

    monkeypatch.setattr(textfile, "write", slowly)

    async def test(person: Person) -> None:
        person.write("precious")
        for name, says in (("kept.txt", "Saved"), ("none/kept.txt", "could not be written")):
            begun.clear()
            gate.clear()
            await person.press("f10")
            await person.until(lambda: isinstance(person.app.screen, FileDialog))
            person.app.screen.query_one(Input).value = str(tmp_path / name)
            await person.press("enter")
            await person.until(begun.is_set)
            await person.press("escape")
            await person.until(lambda: person.app.screen is person.screen)
            gate.set()
            await person.until(lambda says=says: says in person.told)
        assert (tmp_path / "kept.txt").read_text() == "precious"
        assert not person.screen.unsaved and person.screen.editor.border_title == "Text · kept.txt"

    at_the_desk(test, "Hello!")


# ---- adapters


def test_only_features_that_are_there_are_brought_in(tmp_path: Path) -> None:
    async def work() -> None:
        services = fake_services(folder=tmp_path)
        with pytest.raises(InputError, match="no feature 'sumary': leave it.*summary"):
            await bring_in(services, str(tmp_path), feature="sumary")
        await services.close()

    asyncio.run(work())


def test_a_text_to_compare_is_copied() -> None:
    services = fake_services("yes")

    async def test(pilot: Pilot[None]) -> None:
        sheet = pilot.app.screen.query_one(Sheet)
        pilot.app.screen.query_one(Panes).shown = "compare"
        sheet.load_text("good morning")
        sheet.focus()
        sheet.select_all()
        await pilot.press("ctrl+c")
        await until(pilot, lambda: pilot.app.clipboard == "good morning")

    in_app(app_with(services, adapters=AdaptersScreen), test, (120, 36))
