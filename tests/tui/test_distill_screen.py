"""The screen of distillation: a run as a process, followed, paused, stopped, looked into."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.distill.results import read_metrics
from afm_mlx.model import PRESETS
from afm_mlx.saves import Saves
from afm_mlx.tui.distill.nexttokens import Next
from afm_mlx.tui.distill.process import Order, Process
from afm_mlx.tui.distill.runner import Runner
from afm_mlx.tui.distill.screen import DistillScreen
from afm_mlx.tui.distill.watching import look_into
from afm_mlx.tui.panes import Panes
from afm_mlx.tui.plot import Plot
from tests.conftest import random_model, tiny_tokenizer
from tests.tui.foreign_run import lines, look, run_folder, step
from tests.tui.pictures import THEMES, picture
from tests.tui.support import (
    SIZES,
    Visitor,
    app_with,
    fake_services,
    in_app,
    screen_text,
    snapshot,
)

import pytest
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import Static

SCRIPT = (sys.executable, str(Path(__file__).with_name("scripted_run.py")))
WIDE = SIZES[0]
PATIENCE = 120.0
"""Seconds that a process gets on a busy machine."""
HOURS = 900.0
"""The same for a real run."""


class Scripted(DistillScreen):
    """The screen with a program that says what a run says, and learns nothing."""

    command = SCRIPT


class Person(Visitor):
    """Someone at the screen of distillation."""

    patience = PATIENCE
    screen: DistillScreen

    @property
    def runner(self) -> Runner:
        return self.screen.runner

    @property
    def said(self) -> str:
        return str(self.screen.query_one("#said", Static).content)

    @property
    def loss(self) -> Plot:
        return self.screen.query_one("#loss", Plot)

    async def state(self, *states: str) -> None:
        await self.until(lambda: self.runner.state in states)


def visit(test: Any, size: tuple[int, int] = WIDE, screen: Any = Scripted) -> None:
    services = fake_services("yes")

    async def begin(pilot: Pilot[Any]) -> None:
        pilot.app.animation_level = "none"  # of the line below the tabs
        await test(Person(pilot))

    try:
        in_app(app_with(services, distill=screen), begin, size)
    finally:
        services.engine.close()


# ---- a run of our own


def test_plan_run_pause_resume_stop(tmp_path: Path) -> None:
    async def test(person: Person) -> None:
        person.fill(teacher="teacher", data="'a b.txt'", steps=400_000, out=tmp_path / "out")
        await person.press("ctrl+n")
        await person.until(lambda: "8.00 GB: fits" in person.said)
        await person.state("")
        assert "! a note" in person.said and "FFN 128 to 256" in person.said
        assert not (tmp_path / "out").exists()

        await person.press("ctrl+r")
        await person.until(lambda: person.loss.drawings and "step " in person.said)
        await person.until(lambda: "▶ running" in person.said)
        await person.until(lambda: "esc Stop" in screen_text(person.app))
        drawn = person.loss.drawings
        await person.until(lambda: person.loss.drawings > drawn + 1)
        assert len(person.loss.series[0].points) > 1

        await person.press("ctrl+t")
        await person.state("paused")
        watched = person.runner.watched
        # It ended at a save, so hardly a step is lost.
        assert watched.saved > 0 and watched.step - watched.saved <= 2
        await person.until(lambda: "‖ paused" in person.said)

        saved = watched.saved
        await person.press("ctrl+r")
        await person.until(lambda: person.runner.watched.step > saved + 3)
        text = (tmp_path / "out" / "metrics.jsonl").read_text()
        assert f'"resumed", "step": {saved}' in text

        await person.press("escape")
        await person.state("")
        await person.until(lambda: "report.md" in person.said)
        assert "✓ student, distilled" in person.said
        steps = json.loads((tmp_path / "out" / "recipe.json").read_text())["training"]["steps"]
        assert steps == person.runner.watched.saved  # no step was taken to write the student
        assert not person.app.problems

    visit(test)


def test_a_second_press_pauses_at_once(tmp_path: Path) -> None:
    # Saves may be minutes apart.
    async def test(person: Person) -> None:
        person.fill(steps=400_000, out=tmp_path / "out", more="--every 400000")
        await person.press("ctrl+r")
        await person.until(lambda: person.runner.watched.step > 2)
        await person.press("ctrl+t")
        await person.until(lambda: "pausing" in person.said)
        await person.press("ctrl+t")
        await person.state("paused")
        assert person.runner.watched.saved == 0
        await person.press("escape")
        await person.until(lambda: "nothing was saved yet" in person.said)

    visit(test)


def test_what_a_run_refuses_is_one_line(tmp_path: Path) -> None:
    async def test(person: Person) -> None:
        for fields, says in (
            ({"teacher": "none"}, "there is no model none: check its name"),
            ({"teacher": "x", "steps": "many"}, "steps must be a whole number"),
            ({"teacher": "'x", "steps": "1"}, "close it"),
        ):
            count = len(person.app.problems)
            person.fill(out=tmp_path / "out", **fields)
            await person.press("ctrl+r")
            await person.until(lambda count=count: len(person.app.problems) > count)
            assert says in person.app.problems[-1].line and person.app.problems[-1].expected
            await person.state("")

    visit(test)


def test_quitting_ends_the_process(tmp_path: Path) -> None:
    """It would go on unseen otherwise, and take the machine."""
    found: list[Any] = []

    async def test(person: Person) -> None:
        person.fill(steps=400_000, out=tmp_path / "out")
        await person.press("ctrl+r")
        await person.until(lambda: person.runner.watched.saved)
        found.append(person.runner._process)
        await person.press("ctrl+q")
        await person.until(lambda: not person.app.is_running)

    visit(test)
    assert found[0]._process.returncode is not None


# ---- a run of elsewhere


def test_a_file_that_grows_is_followed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")

    async def test(person: Person) -> None:
        person.fill(out=folder)
        await person.press("ctrl+o")
        await person.until(lambda: "step 2 of 40" in person.said)
        assert "◉ following" in person.said and "held out at 2" in person.said
        assert "student at the start: perplexity 30.00" in person.said
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(lines(step(3, 2.0), {"no": "event"}) + "broken\n" + json.dumps(step(4, 1.5)))
        await person.until(lambda: "step 4 of 40" in person.said)
        assert "cannot be read: 1" in person.said
        await person.until(lambda: len(person.loss.series[0].points) == 4)
        await person.press("escape")
        await person.state("")

    visit(test)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    async def test(person: Person) -> None:
        person.fill(out=tmp_path)
        await person.press("ctrl+o")
        await person.until(lambda: person.app.problems)
        assert "is no folder of a run" in person.app.problems[-1].line
        await person.press("ctrl+b")
        await person.until(lambda: len(person.app.problems) == 2)
        assert person.runner.state == ""

    visit(test)


# ---- the command itself


@pytest.mark.slow
def test_the_command_does_what_the_screen_relies_on(tmp_path: Path) -> None:
    """Interrupted it goes on after its last save; told to take no more steps it writes the
    student."""
    args = replace(PRESETS["tiny"], num_hidden_layers=1)
    checkpoint.save(tmp_path / "teacher", random_model(args), tiny_tokenizer(), base="none")
    (tmp_path / "text.txt").write_text("The sea is salty, and so are some lakes. " * 60)
    (tmp_path / "recipe.toml").write_text(
        "window = 32\nheld_out = 2\ncalibration = 4\ntop_k = 32\nevaluate_every = 2\nsave_every = 2"
    )
    order = Order(
        str(tmp_path / "teacher"),
        str(tmp_path / "text.txt"),
        "5000",
        str(tmp_path / "recipe.toml"),
        str(tmp_path / "out"),
    )

    async def go(arguments: list[str], interrupt_at: int = 0) -> list[dict[str, Any]]:
        found, process = [], Process(arguments)
        async for event in process.events():
            found.append(event)
            if event["event"] == "saved" and 0 < interrupt_at <= event["step"]:
                process.interrupt()
        return found

    async def all_of_it() -> None:
        first = await asyncio.wait_for(go(order.arguments(), 2), HOURS)
        saved = max(e["step"] for e in first if e["event"] == "saved")
        assert first[0]["event"] == "plan" and first[-1]["event"] != "finished"
        # An interrupt may come after a save is written and before it is told.
        written = max(Saves(tmp_path / "out" / "saves").steps())
        assert saved <= written <= saved + 2
        second = await asyncio.wait_for(go(order.arguments(), saved + 2), HOURS)
        (resumed,) = [e["step"] for e in second if e["event"] == "resumed"]
        assert resumed == written
        saved = max(e["step"] for e in second if e["event"] == "saved")
        third = await asyncio.wait_for(go(order.arguments(saved)), HOURS)
        assert third[-1]["event"] == "finished" and "step" not in {e["event"] for e in third}

    asyncio.run(all_of_it())
    found = look_into(tmp_path / "out")
    assert found.student == ("student as last written", str(tmp_path / "out" / "student"))
    assert read_metrics(found.metrics).steps and found.of_start["kl"] > 0


# ---- next tokens


def test_next_tokens_of_teacher_and_student(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    for place, seed in ((tmp_path / "teacher", 1), (folder / "start", 2)):
        model = random_model(replace(PRESETS["tiny"], num_hidden_layers=1), seed)
        checkpoint.save(place, model, tiny_tokenizer(), base="none")
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["teacher"] = [str(tmp_path / "teacher")]
    (folder / "recipe.json").write_text(json.dumps(recipe))

    async def test(person: Person) -> None:
        person.fill(out=folder)
        await person.press("ctrl+b")
        await person.until(lambda: len(person.screen.tokens.found) == 2 or person.app.problems)
        (teacher, one), (student, two) = person.screen.tokens.found
        assert (teacher, student) == ("teacher", "student as pruned, untrained")
        assert len(one) == len(two) == 5 and one != two
        assert [n.probability for n in one] == sorted([n.probability for n in one], reverse=True)
        for words in ("student as pruned", "█", "saved folders"):
            await person.until(lambda words=words: words in screen_text(person.app))

    visit(test)


# ---- looks


@pytest.mark.parametrize("size", SIZES)
def test_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run_folder(tmp_path / "run")
    steps = [step(n, 5 / n) for n in range(3, 31)]
    looks = [look(n, 2 / n) for n in (10, 20, 30)]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(lines(*steps, *looks))

    async def test(person: Person) -> None:
        person.fill(out="run")
        await person.press("ctrl+o")
        await person.until(lambda: "step 30 of 40" in person.said and person.loss.drawings)
        person.screen.tokens.show(
            [("teacher", [Next(" the", 0.5), Next(" it", 0.25)]), ("student", [Next(" a", 0.4)])]
        )
        person.app.set_focus(None)
        panes = person.screen.query_one(Panes)
        panes.shown = "curves"
        for theme in THEMES:
            person.app.theme = theme
            await picture(person.pilot, "distill")
        # In a wide window the run is always there.
        for pane in ("run", "tokens")[size == WIDE :]:
            panes.shown = pane
            await snapshot(person.pilot, f"distill-{pane}")

    visit(test, size)


def test_the_footer_offers_what_can_be_done() -> None:
    async def test(person: Person) -> None:
        states = {"": 5, "planning": 2, "running": 3, "paused": 6, "ending": 1, "watching": 6}
        for state, count in states.items():
            person.runner.state = state  # type: ignore[assignment]
            await person.pilot.pause()
            own = [b for b in DistillScreen.BINDINGS if isinstance(b, Binding)]
            assert all(b.id and b.tooltip for b in own)
            offered = {
                active.binding.action
                for active in person.screen.active_bindings.values()
                if active.binding in own and active.binding.show and active.enabled
            }
            assert len(offered) == count
            assert ("stop" in offered) == (state not in ("", "ending"))

    visit(test)
