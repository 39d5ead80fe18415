"""What the app shows or writes is of now: models, settings, messages, runs, texts."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

from afm_mlx import checkpoint
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine
from afm_mlx.errors import ModelError
from afm_mlx.tui import settings
from afm_mlx.tui.notifications.rows import ROOM, originals
from afm_mlx.tui.services import Services
from tests.tui.inbox_screen import INBOX, NOW, choose, inbox, reading, settled, show, text
from tests.tui.support import fake_services, tiny, until
from tests.tui.test_rows import stack_of

import pytest
from textual.pilot import Pilot

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
