"""The screen of distillation: a run as a process, followed, paused, stopped, looked into."""

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.distill.results import Metrics, read_metrics
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS
from afm_mlx.tui.app import AfmApp
from afm_mlx.tui.distill.nexttokens import Next, bars, likeliest, top
from afm_mlx.tui.distill.process import Order, Process
from afm_mlx.tui.distill.runner import Runner, summary
from afm_mlx.tui.distill.screen import DistillScreen
from afm_mlx.tui.distill.watching import Folder, Watched, curves, figures, follow, look_into
from afm_mlx.tui.panes import Panes
from afm_mlx.tui.plot import Plot
from tests.conftest import random_model, tiny_tokenizer
from tests.tui.pictures import THEMES, picture
from tests.tui.support import (
    SIZES,
    app_with,
    fake_services,
    in_app,
    screen_text,
    snapshot,
    until,
)

import pytest
from textual.binding import Binding
from textual.pilot import Pilot
from textual.widgets import Input, Static

SCRIPT = (sys.executable, str(Path(__file__).with_name("scripted_run.py")))
WIDE = SIZES[0]
PATIENCE = 120.0
"""Seconds that a process gets on a busy machine."""
HOURS = 900.0
"""The same for a real run."""


class Scripted(DistillScreen):
    """The screen with a program that says what a run says, and learns nothing."""

    command = SCRIPT


class Person:
    """Someone at the screen of distillation."""

    def __init__(self, pilot: Pilot[None]) -> None:
        assert isinstance(pilot.app, AfmApp) and isinstance(pilot.app.screen, DistillScreen)
        self.pilot, self.app, self.screen = pilot, pilot.app, pilot.app.screen

    @property
    def runner(self) -> Runner:
        return self.screen.runner

    @property
    def said(self) -> str:
        return str(self.screen.query_one("#said", Static).content)

    @property
    def loss(self) -> Plot:
        return self.screen.query_one("#loss", Plot)

    def fill(self, **fields: object) -> None:
        for name, value in fields.items():
            self.screen.query_one(f"#{name}", Input).value = str(value)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def until(self, condition: Any) -> None:
        await until(self.pilot, condition, PATIENCE)

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


def lines(*events: dict[str, Any]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def step(number: int, loss: float) -> dict[str, Any]:
    return {
        "event": "step",
        "step": number,
        "tokens": 96 * number,
        "seconds": 0.5 * number,
        "loss": loss,
        "tokens_per_second": 192.0,
        "parts": {"agreement": 0.5},
    }


def look(number: int, kl: float) -> dict[str, Any]:
    return {
        "event": "evaluation",
        "step": number,
        "tokens": 96 * number,
        "seconds": 0.5 * number,
        "perplexity": 9.5,
        "kl": kl,
        "agreement": 0.625,
        "better": True,
    }


def run_folder(folder: Path, steps: int = 40) -> Path:
    """The folder of a run that somebody else started."""
    folder.mkdir()
    recipe = {"teacher": ["teacher"], "student": "", "training": {"steps": steps}}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    start = {
        "teacher": {"perplexity": 4.5, "kl": 0.0, "agreement": 1.0},
        "pruned": {"perplexity": 30.0, "kl": 1.25, "agreement": 0.25},
    }
    (folder / "start.json").write_text(json.dumps(start))
    text = lines(step(1, 3.0), step(2, 2.5), look(2, 0.9), {"event": "saved", "step": 2})
    (folder / "metrics.jsonl").write_text(text)
    return folder


# ---- a run of our own


def test_plan_run_pause_resume_stop(tmp_path: Path) -> None:
    async def test(person: Person) -> None:
        person.fill(teacher="teacher", data="'a b.txt'", steps=4000, out=tmp_path / "out")
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
        person.fill(steps=4000, out=tmp_path / "out", more="--every 4000")
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
        person.fill(steps=4000, out=tmp_path / "out")
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


def test_following_waits_and_skips(tmp_path: Path) -> None:
    """The file is not there yet, then half a line is; each state of it comes once."""
    file = tmp_path / "metrics.jsonl"

    async def run() -> list[Metrics]:
        found: list[Metrics] = []
        begun = asyncio.Event()

        async def read() -> None:
            async for metrics in follow(file, 0.01):
                found.append(metrics)
                begun.set()

        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        assert not found
        file.write_text(lines(step(1, 3.0)) + json.dumps(step(2, 2.5))[:30])
        await asyncio.wait_for(begun.wait(), HOURS)
        begun.clear()
        with file.open("a") as f:
            f.write("\n" + lines(step(2, 2.5), {"event": "resumed", "step": 1}, step(2, 2.4)))
        await asyncio.wait_for(begun.wait(), HOURS)
        task.cancel()
        return found

    first, *_, last = asyncio.run(run())
    assert [s.step for s in first.steps] == [1] and first.unreadable == 1
    assert [(s.step, s.loss) for s in last.steps] == [(1, 3.0), (2, 2.4)]


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
        second = await asyncio.wait_for(go(order.arguments(), saved + 2), HOURS)
        assert [e["step"] for e in second if e["event"] == "resumed"] == [saved]
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


def test_the_likeliest_tokens(tmp_path: Path) -> None:
    """Beside the probabilities of the whole vocabulary, computed by numpy."""
    import numpy as np

    model = random_model(PRESETS["tiny"])
    checkpoint.save(tmp_path / "model", model, tiny_tokenizer(), base="none")
    found = asyncio.run(likeliest(str(tmp_path / "model"), "The sea", 3))
    import mlx.core as mx

    tokens = mx.array([tiny_tokenizer().encode("The sea")])
    logits = np.array(model(tokens)[0, -1]).astype(np.float64)
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-chances)[:3]
    assert [n.probability for n in found] == pytest.approx(chances[best].tolist(), rel=1e-3)
    assert [n.token for n in found] == [tiny_tokenizer().decode([i]) for i in best.tolist()]
    with pytest.raises(InputError, match="type some"):
        asyncio.run(likeliest(None, ""))


def test_bars() -> None:
    one = [Next(" the", 0.5), Next("\x1b[31m", 0.25), Next("漢字", 0.0)]
    drawn = bars([("teacher", one), ("student", [Next(" a", 1.0)])], 60)
    assert drawn == [
        "teacher                        student",
        "' the'    ███████······· 0.50  ' a'      ██████████████ 1.00",
        "'\\x1b[31m ████·········· 0.25",
        "'漢字'    ·············· 0.00",
    ]
    assert bars([], 60) == [""]
    assert [i for i, _ in top([0.0, 3.0, 1.0], 2)] == [1, 2]
    assert sum(p for _, p in top([0.0, 3.0, 1.0], 3)) == pytest.approx(1)
    assert top([1e4, -1e4], 1) == [(0, 1.0)]  # no overflow


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


# ---- what needs no screen


def test_fields_become_arguments() -> None:
    assert Order().arguments() == ["--out", "distilled"]
    order = Order("a 'b c'", "x.jsonl:0.7 y/", "9", "r.toml", "~/run", "ffn=0.25 --learned-masks 3")
    assert order.arguments() == [
        *("--config", "r.toml", "ffn=0.25", "--learned-masks", "3"),
        *("--teacher", "a", "b c", "--data", "x.jsonl:0.7", "y/"),
        *("--steps", "9", "--out", str(Path.home() / "run")),
    ]
    assert order.arguments(4)[-4:-2] == ["--steps", "4"]


def test_events_that_lack_something_change_nothing() -> None:
    watched = Watched()
    for event in ({}, {"event": "progress"}, {"event": "step"}, {"event": "new kind", "step": 9}):
        watched.see(event)
    assert (watched.step, watched.saved) == (0, 0)
    watched.see({"event": "progress", "stage": "importance", "done": 3, "total": 32})
    assert summary(watched, None, Folder(Path()))[0] == "✓ plan … importance 3 of 32"
    watched.see({"event": "resumed", "step": 7})
    watched.see({"event": "stopped", "reason": "no better perplexity"})
    assert watched.saved == 7 and "! no better perplexity" in summary(watched, None, Folder(Path()))


def test_curves_and_figures(tmp_path: Path) -> None:
    assert figures(Metrics(), 10) == ["no step is taken yet"]
    found = read_metrics(run_folder(tmp_path / "run") / "metrics.jsonl")
    drawn = curves(found)
    assert drawn["loss"]["train"] == [(1.0, 3.0), (2.0, 2.5)]
    assert drawn["KL"]["held-out"] == [(2.0, 0.9)]
    assert drawn["agreement %"] == {"train": [(1.0, 50.0), (2.0, 50.0)], "held-out": [(2.0, 62.5)]}
    assert figures(found, 40)[0] == "step 2 of 40, 192 tokens in 1.0 s, 19.0 s left"
    assert look_into(tmp_path / "run").teacher == "teacher"
    assert look_into(tmp_path / "run").student is None
    with pytest.raises(InputError, match="no folder of a run"):
        look_into(tmp_path)


def test_a_home_of_nobody() -> None:
    """pathlib raises a RuntimeError, which ended the app."""
    assert Order(out="~nobody-of-that-name/run").folder == Path("~nobody-of-that-name/run")
    assert Order(out="~/run").folder == Path.home() / "run"
