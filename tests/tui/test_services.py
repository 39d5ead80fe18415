"""Services on tiny models: loading, swapping models and adapters, running, cancelling, settings."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.adapters import formats
from afm_mlx.adapters.adapter import About
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine
from afm_mlx.errors import InputError, ModelError
from afm_mlx.features import SUMMARY, Answer, Progress, Text
from afm_mlx.generation import GenerationOptions
from afm_mlx.tui import settings
from afm_mlx.tui.services import Services, in_background
from afm_mlx.tui.settings import AUTO, Settings
from tests.adapters.made import random_adapter
from tests.tui.support import HANGS, ScriptedEngine, fake_services, tiny

import pytest

TEXT = Text("The ferry leaves at nine. Bring a coat.")


def go(work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run(work)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tiny model, an adapter for its summaries, and one for another model."""
    base = tiny()
    checkpoint.save(tmp_path / "model", base.model, base.tokenizer, base="tiny")
    saved = checkpoint.load(str(tmp_path / "model"))
    for name, signature in (("mine", saved.signature), ("foreign", "0" * 64)):
        about = About(feature="summary", base_signature=signature)
        adapter = random_adapter(saved.model, name, about=about)
        formats.write(adapter, tmp_path / "adapters" / name)
    return tmp_path


def opened(folder: Path, known: Settings = Settings()) -> Services:  # noqa: B008 - frozen
    return Services(
        Engine.open(str(folder / "model")),
        known,
        folder / "settings.json",
        home=folder / "adapters",
        shipped=folder / "features",
    )


def test_status_tells_the_model(folder: Path) -> None:
    async def work() -> None:
        services = opened(folder)
        assert services.status.state == "loading"
        told: list[str] = []
        stop = services.on_change(lambda: told.append(services.status.state))
        await services.start()
        status = services.status
        assert (status.state, status.model) == ("ready", "model")
        assert status.bits == pytest.approx(32, rel=0.01)  # float32 and a header
        assert status.memory > 1e6
        assert told == ["ready"]
        stop()
        services.set_status(busy="training")
        assert told == ["ready"]
        await services.close()

    go(work())


def test_no_model_at_all() -> None:
    async def work() -> None:
        services = Services(Engine.open("no-such-model"))
        with pytest.raises(ModelError, match="unknown model"):
            await services.start()
        assert services.status.state == "failed"
        await services.close()

    go(work())


def test_another_model_takes_the_place_only_if_it_loads(folder: Path) -> None:
    async def work() -> None:
        services = fake_services(folder=folder, open_engine=Engine.open)
        await services.start()
        before, status = services.engine, services.status
        with pytest.raises(ModelError):
            await services.open_model("no-such-model")
        assert services.engine is before and services.status == status
        assert await asyncio.wrap_future(before.call(lambda _: True))  # it still works
        await services.open_model(str(folder / "model"))
        assert services.engine is not before and services.status.model == "model"
        with pytest.raises(InputError, match="closed"):
            before.call(lambda _: None)
        await services.close()
        assert settings.read(folder / "settings.json")[0].model == str(folder / "model")

    go(work())


def test_the_model_asked_for_last_is_the_one_used(folder: Path) -> None:
    """A model that was left for another took its place when it was there at last."""
    gates = {name: threading.Event() for name in ("slow", "fast", "first")}

    def open_engine(source: str | None) -> Engine:
        def load() -> Checkpoint:
            assert gates[str(source)].wait(60)
            return replace(tiny(), name=str(source))

        return Engine(load)

    async def work() -> None:
        services = Services(open_engine("first"), open_engine=open_engine)
        first, start = services.engine, asyncio.create_task(services.start())
        slow = asyncio.create_task(services.open_model("slow"))
        await asyncio.sleep(0)
        gates["fast"].set()
        await services.open_model("fast")
        gates["slow"].set()
        gates["first"].set()
        assert await slow == ""
        await start  # that engine is closed: nobody is told that it cannot be used
        assert services.engine is not first
        assert (services.status.model, services.status.state) == ("fast", "ready")
        assert services.settings.model == "fast"
        await services.close()

    go(work())


def test_a_failure_brings_back_what_is_so_now(folder: Path) -> None:
    """It brought back all that stood there when the other model was asked for."""

    async def work() -> None:
        services = opened(folder)
        await services.start()
        with services.busy("training"):
            asked = asyncio.create_task(services.open_model("no-such-model"))
            await asyncio.sleep(0)
            assert services.status.state == "loading"
        with pytest.raises(ModelError):
            await asked
        assert (services.status.state, services.status.busy) == ("ready", "")
        await services.close()

    go(work())


def test_adapters_that_do_not_fit_another_model_are_let_go(folder: Path) -> None:
    """Every request failed with them, and the remedy was not said."""
    other = tiny(7)
    checkpoint.save(folder / "other", other.model, other.tokenizer, base="tiny")

    async def work() -> None:
        services = opened(folder)
        await services.start()
        services.choose("mine")
        services.choose(None, "priority")
        assert await services.open_model(str(folder / "model")) == ""
        assert services.settings.adapter == "mine"
        services.choose("mine", "summary")
        said = await services.open_model(str(folder / "other"))
        assert said.endswith("not used from now on: mine")
        assert services.settings.adapter == AUTO
        assert dict(services.settings.adapters) == {"priority": None}
        assert await services.adapter_for("summary") is None
        await services.close()

    go(work())


def test_adapters_by_choice(folder: Path) -> None:
    async def work() -> None:
        services = opened(folder)
        mine = str(folder / "adapters" / "mine")
        assert await services.adapter_for("rewrite") is None
        assert await services.adapter_for("summary") == mine
        assert services.status.swap is not None and services.status.swap > 0
        services.choose(None)
        assert await services.adapter_for("summary") is None
        services.choose("mine", "rewrite")
        assert await services.adapter_for("rewrite") == mine
        assert await services.adapter_for("summary") is None
        services.choose(AUTO)  # for all: what was chosen for one goes too
        assert await services.adapter_for("rewrite") is None
        with pytest.raises(InputError, match="another model"):
            await services.load("foreign")
        services.choose("gone")
        with pytest.raises(InputError, match="choose another"):
            await services.adapter_for("summary")
        await services.close()

    go(work())


def test_an_adapter_is_read_again_when_its_files_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After another training an answer came from the matrices that were in memory."""

    async def work() -> None:
        services = opened(folder)
        name = await services.load("mine")
        loads = []
        plain = services.engine.load_adapter

        def watched(path: str | Path, known: str | None = None) -> Any:
            loads.append(path)
            return plain(path, known)

        monkeypatch.setattr(services.engine, "load_adapter", watched)
        assert await services.load("mine") == name
        assert loads == []
        os.utime(Path(name) / formats.WEIGHTS, (1e9, 2e9))
        await services.load(name)
        assert loads == [Path(name)]
        await services.close()

    go(work())


def test_list_of_adapters(folder: Path) -> None:
    async def work() -> None:
        (folder / "adapters" / "broken").mkdir()
        (folder / "adapters" / "broken" / formats.CONFIG).write_text("{", "utf-8")
        services = opened(folder)
        base: Checkpoint = await services.engine.ready()
        known = {x.name: x for x in await services.installed()}
        assert set(known) == {"mine", "foreign", "broken"}
        mine = known["mine"]
        assert (mine.rank, mine.about.feature, mine.shipped) == (4, "summary", False)
        assert mine.nbytes == (mine.folder / formats.WEIGHTS).stat().st_size
        signature = base.signature
        assert [known[n].fits(signature) for n in ("mine", "foreign", "broken")] == [
            True,
            False,
            False,
        ]
        assert "damaged" in known["broken"].problem
        await services.close()

    go(work())


def test_peft_folders_are_listed(folder: Path) -> None:
    base = tiny()
    about = About(feature="rewrite", metrics={"loss": 1.5})
    adapter = random_adapter(base.model, "peft", about=about)
    formats.write(adapter, folder / "adapters" / "peft", "peft")

    async def work() -> None:
        services = opened(folder)
        found = next(x for x in await services.installed() if x.name == "peft")
        assert (found.problem, found.rank, found.about.metrics) == ("", 4, {"loss": 1.5})
        await services.close()

    go(work())


def test_a_run_keeps_the_status_up_to_date() -> None:
    async def work() -> None:
        services = fake_services("Ferry at nine.")
        events = [event async for event in services.run(SUMMARY, TEXT)]
        *progress, last = events
        assert isinstance(last, Answer) and last.text == "Ferry at nine."
        assert all(isinstance(p, Progress) for p in progress)
        status = services.status
        assert (status.first_token, status.tokens, status.adapter) == (0.04, 4, "")
        again = [event async for event in services.run("summary", TEXT)]
        assert isinstance(again[-1], Answer)
        await services.close()

    go(work())


def test_a_run_with_the_models_own_answers(folder: Path) -> None:
    async def work() -> None:
        services = opened(folder)
        texts = {}
        few = GenerationOptions(maximum_response_tokens=8, grounded=False)
        for adapter in (None, "mine", AUTO):
            async for event in services.run("summary", TEXT, adapter, options=few):
                if isinstance(event, Answer):
                    texts[adapter] = event.value
            assert services.status.adapter == ("mine" if adapter else "")
        assert texts["mine"] == texts[AUTO] != texts[None]
        assert services.status.tokens_per_second
        await services.close()

    go(work())


def test_closing_a_run_stops_the_engine() -> None:
    async def work() -> None:
        services = fake_services("one two three four")
        assert isinstance(services.engine, ScriptedEngine)
        services.engine.go_on.clear()
        run = services.run("summary", TEXT)
        waiting = asyncio.ensure_future(anext(run))
        while not services.engine.prompts:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        free = services.engine.call(lambda _: "free")
        assert await asyncio.wait_for(asyncio.wrap_future(free), HANGS) == "free"
        await services.close()

    go(work())


def test_settings_are_written_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        services = fake_services(folder=tmp_path)
        services.change(theme="nord")
        await asyncio.wrap_future(services.change(inbox="a.jsonl"))
        found, _ = settings.read(tmp_path / "settings.json")
        assert (found.theme, found.inbox) == ("nord", "a.jsonl")
        await services.close()

    go(work())


def test_what_the_command_line_says_counts_this_time_only(tmp_path: Path) -> None:
    """``--inbox`` was remembered for ever as soon as a theme was chosen."""

    async def work() -> None:
        settings.write(Settings(model=str(tmp_path / "none"), inbox="usual"), settings.path())
        services = Services.open("no-such-model", "other")
        assert (services.settings.model, services.settings.inbox) == ("no-such-model", "other")
        await asyncio.wrap_future(services.change(theme="nord"))
        found, _ = settings.read(settings.path())
        expected = Settings("nord", str(tmp_path / "none"), inbox="usual")
        assert found == expected
        await services.close()

    go(work())


def test_busy_is_shown_and_taken_back() -> None:
    services = fake_services()
    with pytest.raises(KeyError):
        with services.busy("training"):
            assert services.status.busy == "training"
            raise KeyError
    assert services.status.busy == ""
    with services.busy("training"):
        with services.busy("measuring"):  # it waits
            assert services.status.busy == "training"
        assert services.status.busy == "training"
    services.engine.close()


def test_errors_in_the_background_reach_the_caller() -> None:
    def job() -> None:
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        asyncio.run(in_background(job))
