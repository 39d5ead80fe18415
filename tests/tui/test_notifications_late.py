"""The screen of notifications: what comes too late, fails, or is not wanted any more."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from afm_mlx.errors import InputError
from afm_mlx.features import NOTIFICATION_SUMMARY, PRIORITY
from afm_mlx.tui.services import Services
from tests.tui.inbox_screen import (
    INBOX,
    append,
    engine,
    gated,
    inbox,
    problems,
    reading,
    screen,
    script,
    settled,
    show,
    text,
)
from tests.tui.support import (
    ScriptedEngine,
    until,
)

import pytest
from textual.pilot import Pilot
from textual.widgets import Static


def test_no_line_of_an_older_state(tmp_path: Path) -> None:
    path = inbox(tmp_path, INBOX[2])
    newer = {"app": "Mail", "title": "Lindqvist Letting", "body": "Signed, thank you"}
    answers = script({"[Mail]\n- Lindqvist Letting: Please sign the lease by 17:00 today\n- L":
                      "The newer line", "[Mail]": "Please sign the older line"})  # fmt: skip

    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot, 1)
        assert "✦ Please sign the older line" in text(pilot)
        engine(pilot).go_on.clear()
        append(path, newer)
        await until(pilot, lambda: len(screen(pilot).box) == 2)
        await pilot.pause()
        assert "older line" not in text(pilot) and "Signed, thank you" in text(pilot)
        engine(pilot).go_on.set()
        await settled(pilot, 1)
        assert "✦ The newer line" in text(pilot)

    show(reading(path, answers), test)


def failing(
    services: Services, monkeypatch: pytest.MonkeyPatch, reason: str, which: Any = None
) -> None:
    """Have requests fail; those of one feature, if it is given."""
    real = services.run

    def run(feature: Any, value: Any, **more: Any) -> Any:
        if which is None or feature is which:
            raise InputError(reason)
        return real(feature, value, **more)

    monkeypatch.setattr(services, "run", run)


def reopened(pilot: Pilot[None]) -> Services:
    """Another model from now on, that says nothing yet."""
    services = screen(pilot).services
    services.engine = ScriptedEngine(script({"": "By the new model"}))
    services.engine.go_on.clear()
    services.change(model="another")
    return services


def test_no_line_by_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = reading(inbox(tmp_path))
    old = services.engine

    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        assert "✦ Sign the lease" in text(pilot) and "! urgent" in text(pilot)
        reopened(pilot)
        await pilot.pause()
        assert "✦ Sign the lease" not in text(pilot) and "! urgent" not in text(pilot)
        engine(pilot).go_on.set()
        await settled(pilot)
        assert "✦ By the new model" in text(pilot)

    show(services, test)
    old.close()


@pytest.mark.parametrize("change", ["model", "adapter", "app", "stack", "screen"])
def test_what_is_being_written_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = inbox(tmp_path, INBOX[2])
    services = reading(path)
    opened = [services.engine]
    gate = gated(services, monkeypatch, "Half an old", "Half an old line")

    async def test(pilot: Pilot[None]) -> None:
        found = screen(pilot)
        await until(pilot, lambda: "✦ Half an old▌" in text(pilot))
        match change:
            case "model":
                opened.append(reopened(pilot).engine)
            case "adapter":
                services.choose(None, NOTIFICATION_SUMMARY.name)
            case "app":
                found.switch("Mail")
            case "screen":
                await pilot.press("f2")
                append(path, {"app": "Mail", "body": "Signed"})
            case "stack":
                append(path, {"app": "Mail", "body": "Signed"})
        gated(services, monkeypatch, "A new", "A new line")
        if change in ("stack", "screen"):
            await until(pilot, lambda: len(found.box) == 2)
        gate.set()
        if change == "screen":
            await until(pilot, lambda: found.summaries.of(found.box.stacks[0]))
            await pilot.press("f1")
        if change == "app":
            await until(pilot, lambda: not found.working)
        else:
            await until(pilot, lambda: "✦ A new▌" in text(pilot))
        await pilot.pause()
        assert "Half an old" not in text(pilot)

    show(services, test)
    for each in opened:
        each.close()


def test_leaving_in_the_middle(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        found = screen(pilot)
        await until(pilot, lambda: engine(pilot).prompts)
        await found.leave()
        await until(pilot, lambda: not found.working)
        assert not any(found.summaries.of(stack) for stack in found.box.stacks)
        assert not problems(pilot)

    show(reading(inbox(tmp_path), held=True), test)


@pytest.mark.parametrize("change", ["model", "app", "stack", "stop"])
def test_a_comparison_that_came_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = inbox(tmp_path, INBOX[2])
    services = reading(path)
    opened = [services.engine]

    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot, 1)
        gate = gated(services, monkeypatch, "Half an old", "Half an old line")
        await pilot.press("c")
        await until(pilot, lambda: "Half an old" in text(pilot))
        gated(services, monkeypatch, "A new", "A new line")
        match change:
            case "model":
                opened.append(reopened(pilot).engine)
            case "app":
                await pilot.press("x")
            case "stack":
                append(path, {"app": "Mail", "body": "Signed"})
                await until(pilot, lambda: len(found.box) == 2)
            case "stop":
                await pilot.press("escape")
        gate.set()
        await until(pilot, lambda: not found._runs("compare"))
        await pilot.pause()
        said = {
            "app": "Summaries of Mail are off: x switches them on.",
            "stack": "More has arrived since this stack was compared",
        }.get(change, "c summarizes the chosen stack")
        compared = found.query_one(".base", Static)
        assert said in str(compared.content) and "Half an old" not in text(pilot)
        if change == "app":  # nor when it is on again
            await pilot.press("x")
            await pilot.pause()
            assert "c summarizes the chosen stack" in str(compared.content)

    show(services, test)
    for each in opened:
        each.close()


def test_a_summary_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = reading(inbox(tmp_path, INBOX[2]))

    failing(services, monkeypatch, "the adapter is damaged: train it again")

    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "✗ no summary: the adapter is damaged" in text(pilot))
        assert len(problems(pilot)) == 1

    show(services, test)


def test_a_line_stays_if_its_urgency_cannot_be_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = reading(inbox(tmp_path, INBOX[2]))
    failing(services, monkeypatch, "adapter is for another model: train it", PRIORITY)

    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot, 1)
        assert "✦ Sign the lease" in text(pilot) and "no summary" not in text(pilot)
        assert len(problems(pilot)) == 1

    show(services, test)


def test_other_words_are_wanted_while_urgency_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same words came again."""
    services = reading(inbox(tmp_path, INBOX[2]))
    real, gate = services.run, asyncio.Event()

    async def run(feature: Any, value: Any, **more: Any) -> AsyncIterator[Any]:
        if feature is PRIORITY:
            await gate.wait()
        async for event in real(feature, value, **more):
            yield event

    monkeypatch.setattr(services, "run", run)

    async def test(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "✦ Sign the lease" in text(pilot))
        await pilot.press("ctrl+r")
        gate.set()
        await settled(pilot, 1)
        found = [r.options.sampling for r in engine(pilot).requests if not r.choices]
        assert [(mode.kind, mode.seed) for mode in found[1:]] == [("random", 1)]

    show(services, test)
