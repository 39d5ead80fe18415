"""The screen of adapters on a tiny model: checked, trained, stopped, used, compared, moved."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx.adapters import formats, library
from afm_mlx.adapters.adapter import About
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine
from afm_mlx.tui.adapters import training as trainer_module
from afm_mlx.tui.adapters.dialogs import Lines
from afm_mlx.tui.adapters.listing import BARE, Listing
from afm_mlx.tui.adapters.screen import AdaptersScreen
from afm_mlx.tui.adapters.trainer import Trainer
from afm_mlx.tui.panes import Panes
from afm_mlx.tui.plot import Plot
from afm_mlx.tui.screen import Question
from afm_mlx.tui.services import Services
from afm_mlx.tui.settings import AUTO
from afm_mlx.tui.writing.sheet import Sheet
from tests.adapters import pupil
from tests.adapters.made import random_adapter
from tests.conftest import random_model
from tests.tui.pictures import THEMES, picture
from tests.tui.support import SIZES, Visitor, app_with, in_app, screen_text, snapshot

import pytest
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import Input, Static

WIDE = SIZES[0]
PATIENCE = 120.0
"""Seconds that training gets on a busy machine."""


def base() -> Checkpoint:
    """A tiny model with room for the prompts of features, that has a signature."""
    args = replace(pupil.ARGS, num_hidden_layers=1, max_position_embeddings=8192)
    return pupil.base(random_model(args))


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    monkeypatch.setattr(trainer_module, "SAMPLE_TOKENS", 3)
    engine = Engine(base)
    yield Services(engine, home=tmp_path / "adapters", shipped=tmp_path / "features")
    engine.close()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Training stands still at its third sample until it is stopped; samples cost nothing."""
    asked: list[int] = []

    def say(_: Checkpoint, prompt: Any, cancelled: Callable[[], bool]) -> str:
        asked.append(len(prompt))
        while len(asked) > 2 and not cancelled():
            time.sleep(0.01)
        return "It is red."

    monkeypatch.setattr(trainer_module, "say", say)
    return asked


class Person(Visitor):
    """Someone at the screen of adapters."""

    patience = PATIENCE
    screen: AdaptersScreen

    def __init__(self, pilot: Pilot[None]) -> None:
        super().__init__(pilot)
        self.services = self.screen.services

    @property
    def listing(self) -> Listing:
        return self.screen.listing

    @property
    def trainer(self) -> Trainer:
        return self.screen.trainer

    @property
    def names(self) -> list[str]:
        return [a.name for a in self.listing.shelf.adapters]

    def said(self, where: str) -> str:
        return str(self.screen.query_one(where, Static).content)

    async def listed(self, *names: str) -> None:
        """Wait until these are the adapters."""
        await self.until(lambda: self.listing.shelf.signature and self.names == list(names))

    def cursor_on(self, name: str) -> None:
        self.listing.query_one("#table").move_cursor(row=self.names.index(name) + 2)  # type: ignore[attr-defined]


def visit(services: Services, test: Any, size: tuple[int, int] = WIDE) -> None:
    async def begin(pilot: Pilot[Any]) -> None:
        pilot.app.animation_level = "none"  # of the line below the tabs
        person = Person(pilot)
        await person.until(lambda: person.listing.shelf.signature)
        await test(person)

    in_app(app_with(services, adapters=AdaptersScreen), begin, size)


def samples(folder: Path, count: int = 24) -> Path:
    """Conversations, and two lines that are none."""
    file = folder / "chat.jsonl"
    pupil.write(file, [*pupil.rows(count), {"other": 1}, {"messages": []}])
    return file


def stored(services: Services, name: str, signature: str = "tiny", **about: Any) -> Path:
    """An adapter in the folder of adapters."""
    folder = services.home / name
    known = About(base_signature=signature, **about)

    def write(checkpoint: Checkpoint) -> None:
        formats.write(random_adapter(base().model, name, about=known), folder)

    services.engine.call(write).result()
    return folder


# ---- training


def test_check_train_stop_swap_compare(services: Services, tmp_path: Path, held: list[int]) -> None:
    """The whole way of a person's own adapter; stopped, it is the best one so far."""

    async def test(person: Person) -> None:
        person.fill(data=samples(tmp_path), name="notes", rank=2, epochs=10, rate="5e-3")
        await person.press("ctrl+n")
        await person.until(lambda: "time" in person.said("#plan") or person.app.problems)
        plan = person.said("#plan")
        assert "rows    26: 22 to learn, 2 held out, 2 bad" in plan and "fits" in plan
        assert "chat.jsonl:25 has neither 'text'" in plan
        assert "chat.jsonl:26 has no list of messages" in plan

        await person.press("ctrl+t")
        await person.until(lambda: person.services.status.busy == "training")
        await person.until(lambda: person.trainer.watched.saved > 0)
        watched, plot = person.trainer.watched, person.screen.query_one(Plot)
        await person.until(lambda: plot.drawings and len(plot.series[0].points) >= watched.saved)
        for words in ("⠤⠤ train", "● held-out", "⧗ training"):
            # The last one tells what others wait for.
            await person.until(lambda words=words: words in screen_text(person.app))
        assert watched.samples and watched.left and watched.tokens_per_second > 0
        await person.until(lambda: f"of {watched.steps}" in person.said("#progress"))
        await person.until(
            lambda: f" · peak {watched.peak / 1e6:.0f} MB" in person.said("#progress")
        )
        assert watched.peak > person.services.status.memory > 0  # of the weights
        await person.until(lambda: "after step" in person.said("#said"))
        # What others ask for meanwhile waits for its turn.
        waits = person.services.engine.adapters()
        assert not waits.done()

        await person.press("escape")
        await person.until(lambda: not person.trainer.running)
        assert waits.result() == []
        assert 0 < watched.step < watched.steps and "✓ notes is written" in person.said("#progress")
        await person.listed("notes")
        assert person.services.status.busy == ""
        made = formats.read(person.services.home / "notes")
        best = min(loss for step, loss in watched.held_out if step <= watched.saved)
        assert made.about.metrics["loss"] == pytest.approx(best, abs=1e-3)
        assert made.options.rank == 2 and made.about.base_signature == "tiny"

        assert person.listing.adapter and person.listing.adapter.name == "notes"
        await person.press("ctrl+s")
        await person.until(lambda: "notes is in use" in person.told)
        assert person.services.settings.adapter == str(person.services.home / "notes")
        assert " ms" in person.told and person.services.status.adapter == "notes"

        person.screen.query_one(Sheet).text = "Rivers carry salt into the sea."
        await person.press("ctrl+r")
        await person.until(lambda: "tok/s" in person.said("#right-answer"))
        assert person.said("#left-answer").startswith(BARE)
        assert person.said("#right-answer").startswith("notes")
        assert not person.screen.comparing.running and not person.app.problems

    visit(services, test)


def test_a_run_to_its_end_goes_on_when_it_is_longer(services: Services, tmp_path: Path) -> None:
    async def test(person: Person) -> None:
        person.fill(data=samples(tmp_path), name="notes", rank=2, epochs=0.5, rate="5e-3")
        await person.press("ctrl+t")
        await person.until(lambda: person.trainer.watched.finished or person.app.problems)
        steps = person.trainer.watched.steps
        assert person.trainer.watched.step == steps and not person.trainer.watched.ended
        await person.listed("notes")
        # The saves of the first run are gone on from, not begun anew under the same name.
        person.fill(epochs=1)
        await person.press("escape")
        assert not person.trainer.has_class("-watch")
        await person.press("ctrl+t")
        await person.until(lambda: person.trainer.watched.steps > steps)
        await person.until(lambda: person.trainer.watched.finished)
        assert person.trainer.watched.losses[0][0] == steps + 1
        assert not person.app.problems

    visit(services, test)


def test_quitting_keeps_the_best(services: Services, tmp_path: Path, held: list[int]) -> None:
    # A person who quits in the midst of training would else lose hours.
    async def test(person: Person) -> None:
        person.fill(data=samples(tmp_path), name="notes", rank=2, epochs=10, rate="5e-3")
        await person.press("ctrl+t")
        await person.until(lambda: person.trainer.watched.saved > 0)
        await person.press("ctrl+q")
        await person.until(lambda: not person.app.is_running)

    visit(services, test)
    made = formats.read(services.home / "notes")
    assert made.about.metrics["loss"] < made.about.metrics["loss_before"]


def test_bad_fields_and_files_are_one_line(services: Services, tmp_path: Path) -> None:
    async def test(person: Person) -> None:
        for fields, says in (
            ({"data": "", "name": "a"}, "nothing to learn from"),
            ({"data": "none.jsonl", "name": ""}, "has no name"),
            ({"data": "none.jsonl", "name": "a b"}, "no name for an adapter"),
            ({"data": tmp_path / "none.jsonl", "name": "a"}, "there is no"),
            ({"data": samples(tmp_path), "name": "a", "rank": "x"}, "rank must be a whole number"),
        ):
            count = len(person.app.problems)
            person.fill(**fields)
            await person.press("ctrl+t")
            await person.until(lambda count=count: len(person.app.problems) > count)
            problem = person.app.problems[-1]
            assert says in problem.line and problem.expected and "\n" not in problem.line
        assert not person.trainer.running and not list(person.services.home.glob("*"))

    visit(services, test)


# ---- files


def test_import_export_delete(services: Services, tmp_path: Path) -> None:
    stored(services, "one", feature="proofread", metrics={"loss": 1.5, "loss_before": 3.0})

    async def answer(person: Person, **lines: str) -> None:
        await person.until(lambda: isinstance(person.app.screen, Lines))
        for name, text in lines.items():
            person.app.screen.query_one(f"#ask-{name}", Input).value = text
        person.app.screen.query_one(Input).focus()
        await person.press("enter")

    async def test(person: Person) -> None:
        await person.listed("one")
        person.cursor_on("one")
        await person.until(lambda: "1.500, 3.000 without" in person.said("#details"))
        for words in ("proofread", "1.500", "fits yes"):
            await person.until(lambda words=words: words in screen_text(person.app))

        await person.press("ctrl+g")
        await answer(person, out=str(tmp_path / "there"), form="peft")
        await person.until(lambda: "is written to" in person.told)
        assert (tmp_path / "there" / formats.PEFT_WEIGHTS).is_file()

        await person.press("ctrl+o")
        await answer(person, folder=str(tmp_path / "there"), name="two", feature="summary")
        await person.listed("one", "two")
        one, two = (formats.read(services.home / name) for name in ("one", "two"))
        assert all((one.weights[k] == two.weights[k]).all() for k in one.weights)
        assert two.about.feature == "summary" and two.about.base_signature == "tiny"

        person.cursor_on("two")
        await person.press("ctrl+s")
        await person.until(lambda: services.settings.adapters)
        assert services.settings.adapters == {"summary": str(services.home / "two")}
        kept = library.cache() / "two-0123456789ab"
        kept.mkdir(parents=True)

        person.listing.query_one("#table").focus()
        await person.press("delete")
        await person.until(lambda: isinstance(person.app.screen, Question))
        await person.press("n")
        await person.until(lambda: person.app.screen is person.screen)
        assert (services.home / "two").is_dir()
        await person.press("delete")
        await person.until(lambda: isinstance(person.app.screen, Question))
        await person.press("y")
        await person.listed("one")
        assert not (services.home / "two").exists() and not kept.exists()
        # Requests would name an adapter that is gone.
        assert services.settings.adapters == {} and services.settings.adapter == AUTO
        assert not person.app.problems

    visit(services, test)


def test_an_adapter_of_another_model_changes_nothing(services: Services, tmp_path: Path) -> None:
    stored(services, "good")
    stored(services, "wrong", "another")
    stored(services, "broken")
    (services.home / "broken" / formats.WEIGHTS).write_bytes(b"cut short")

    async def test(person: Person) -> None:
        await person.listed("broken", "good", "wrong")
        assert [person.listing.shelf.fits(a) for a in person.listing.shelf.adapters] == [
            "yes",
            "yes",
            "no",
        ]
        person.cursor_on("good")
        await person.press("ctrl+s")
        await person.until(lambda: "good is in use" in person.told)
        used = person.services.settings
        for name, says in (("wrong", "is for another model"), ("broken", "damaged or cut short")):
            count = len(person.app.problems)
            person.cursor_on(name)
            await person.press("ctrl+s")
            await person.until(lambda count=count: len(person.app.problems) > count)
            assert says in person.app.problems[-1].line
            assert "\n" not in person.app.problems[-1].line
            assert person.services.settings is used
        # The one in use answers still.
        person.screen.query_one(Sheet).text = "Rivers carry salt."
        person.screen.comparing.choose("left", str(services.home / "good"))
        await person.press("ctrl+r")
        await person.until(lambda: "tok/s" in person.said("#right-answer"))
        assert person.said("#left-answer").startswith("good")

    visit(services, test)


def test_names_and_reasons_are_data(services: Services, tmp_path: Path) -> None:
    """Markup in the name of a folder, an escape sequence in a sample: shown, not obeyed."""
    folder = stored(services, "good", feature="[red]any[/red]")
    folder.rename(services.home / "[bold]x")

    async def test(person: Person) -> None:
        await person.listed("[bold]x")
        person.cursor_on("[bold]x")
        await person.until(lambda: "[red]any" in person.said("#details"))
        await person.until(lambda: "[bold]x" in screen_text(person.app))
        data = tmp_path / "chat.jsonl"
        bad = {"messages": [{"role": "\x1b]0;owned\x07[red]", "content": "x"}]}
        pupil.write(data, [*pupil.rows(8), bad])
        person.fill(data=data, name="notes")
        await person.press("ctrl+n")
        await person.until(lambda: "time" in person.said("#plan"))
        assert "\x1b" not in person.said("#plan") and "[red]" in person.said("#plan")

    visit(services, test)


# ---- looks


@pytest.mark.parametrize("size", SIZES)
def test_looks(services: Services, size: tuple[int, int]) -> None:
    async def test(person: Person) -> None:
        # In a wide window the list is always there.
        for pane in ("list", "train", "compare")[size == WIDE :]:
            person.screen.query_one(Panes).shown = pane
            await snapshot(person.pilot, f"adapters-{pane}")

    visit(services, test, size)


@pytest.mark.parametrize("size", SIZES)
def test_looks_while_it_trains(services: Services, size: tuple[int, int]) -> None:
    stored(services, "mail", feature="summary", metrics={"loss": 1.25})
    stored(services, "other", signature="another model")

    async def test(person: Person) -> None:
        await person.listed("mail", "other")
        watched = person.trainer.watched
        watched.losses += [(n, 4 - n / 10) for n in range(1, 21)]
        watched.held_out += [(0, 4.1), (10, 3.2), (20, 2.4)]
        watched.samples.append(trainer_module.Sampled(10, "It is red."))
        watched.steps, watched.step, watched.seconds = 40, 20, 10.0
        watched.best, watched.tokens_per_second, watched.peak = (20, 2.4), 200.0, 412 * 10**6
        person.trainer.running = True
        person.trainer._called = "notes"
        person.trainer.add_class("-watch")
        person.screen.query_one(Panes).shown = "train"
        person.trainer._show()
        plot = person.screen.query_one(Plot)
        await person.until(lambda: plot.drawings)
        for theme in THEMES:
            person.app.theme = theme
            await picture(person.pilot, "adapters")
        person.trainer.running = False

    visit(services, test, size)


def test_the_footer_offers_what_can_be_done(services: Services) -> None:
    async def test(person: Person) -> None:
        own = [b for b in AdaptersScreen.BINDINGS if isinstance(b, Binding)]
        assert len({b.id for b in own}) == len(own) and all(b.tooltip for b in own)
        for running in (False, True, False):
            person.trainer.running = running
            await person.pilot.pause()
            offered = {
                active.binding.action
                for active in person.screen.active_bindings.values()
                if active.binding in own and active.binding.show and active.enabled
            }
            assert len(offered) <= 6
            assert ("stop" in offered) == running and ("train" in offered) == (not running)

    visit(services, test)
