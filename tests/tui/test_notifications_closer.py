"""The screen of notifications: looking closer, other words, comparing, choices."""

import json
from pathlib import Path

from afm_mlx.adapters import formats
from afm_mlx.adapters.adapter import About
from afm_mlx.features import NOTIFICATION_SUMMARY, PRIORITY
from afm_mlx.tui.notifications.listing import InboxList
from afm_mlx.tui.settings import AUTO
from tests.adapters import pupil
from tests.adapters.made import random_adapter
from tests.tui.inbox_screen import (
    INBOX,
    append,
    asked,
    choose,
    engine,
    inbox,
    prompts,
    reading,
    screen,
    script,
    settled,
    show,
    text,
)
from tests.tui.support import (
    PATIENCE,
    tiny,
    told,
    until,
)

import pytest
from textual.pilot import Pilot


def test_expanding_and_originals(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await choose(pilot, "Messages")
        await pilot.press("space")
        assert "▾ Messages · Allotment (2)" in text(pilot)
        assert "      Rashid: Saw on Saturday 10:00?" in text(pilot)
        await pilot.press("space")
        assert "      Rashid: Saw on Saturday 10:00?" not in text(pilot)
        await pilot.press("o")
        shown = text(pilot)
        assert "› Ottoline: Sunday 10:00 instead" in shown
        assert "  ✦ Sign the lease" not in shown
        await pilot.press("o")
        assert "  ✦ Sign the lease" in text(pilot)
        await pilot.click(InboxList, offset=(8, 3))
        assert screen(pilot).chosen is screen(pilot).box.stacks[1]

    show(reading(inbox(tmp_path)), test)


def test_the_messages_and_what_was_checked(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await choose(pilot, "Messages")
        shown = text(pilot)
        assert "✓ names  ✓ times  ✓ numbers  ✓ negations" in shown
        assert "08:26  Rashid  Saw on Saturday 10:00?" in shown
        await choose(pilot, "Shop")  # the model invented both, so its words were not taken
        shown = text(pilot)
        assert "✦ not taken: ⟦Zelda⟧ invites you on ⟦Monday⟧" in shown
        assert "✗ names  ✗ times  ✓ numbers  ✓ negations" in shown
        assert "⚑ Zelda, Monday is not in the notifications" in shown
        assert "  › Shop: [bold]50 %[/bold] off [link=x]everything[/link]" in shown  # no markup

    show(reading(inbox(tmp_path)), test)


def test_escape_leaves_the_messages_first(tmp_path: Path) -> None:
    # on a narrow terminal there was no way back while the model wrote
    async def test(pilot: Pilot[None]) -> None:
        found = screen(pilot)
        await until(pilot, lambda: engine(pilot).prompts)
        await pilot.press("enter")
        assert "to be summarised" in text(pilot)
        await pilot.press("escape")
        assert found.query_one(InboxList).has_focus and found.working
        await pilot.press("escape")
        await until(pilot, lambda: not found.working)

    show(reading(inbox(tmp_path), held=True), test, (60, 20))


def test_again_gives_other_words(tmp_path: Path) -> None:
    # the model's likeliest answer was the same each time
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot, 1)
        for _ in range(2):
            await pilot.press("ctrl+r")
            await settled(pilot, 1)
        found = [r.options.sampling for r in engine(pilot).requests if not r.choices]
        assert [(mode.kind, mode.seed) for mode in found[1:]] == [("random", 1), ("random", 2)]

    show(reading(inbox(tmp_path, INBOX[2])), test)


def test_one_again_and_all_again(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await choose(pilot, "Mail")
        engine(pilot).answers = script({"": "Other words"})
        await pilot.press("ctrl+r")
        await settled(pilot)
        assert [len(prompts(pilot, f"[{app}]")) for app in ("Mail", "Shop")] == [2, 1]
        assert "Ottoline moved the saw" in text(pilot) and "✦ Other words" in text(pilot)
        await pilot.press("ctrl+t")
        await settled(pilot)
        assert [len(prompts(pilot, f"[{app}]")) for app in ("Mail", "Shop")] == [3, 2]
        assert "Ottoline moved the saw" not in text(pilot)

    show(reading(inbox(tmp_path)), test)


def test_base_and_adapter_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pupil.base(tiny().model)
    monkeypatch.setattr("tests.tui.support.tiny", lambda: pupil.base(tiny().model))
    about = About(feature=NOTIFICATION_SUMMARY.name, base_signature=base.signature)
    adapter = random_adapter(base.model, "lines", about=about)
    formats.write(adapter, tmp_path / "adapters" / "lines")

    def answer(prompt: str) -> str:
        if "Is this urgent?" in prompt:
            return "no"
        return "Please sign the lease" if "Pirjo" in prompt else "Sign by 17:00"  # examples

    path = inbox(tmp_path, INBOX[2])

    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot, 1)
        assert "✦ Sign by 17:00" in text(pilot)
        await pilot.press("c")
        await until(pilot, lambda: found.comparison and found.comparison.by_adapter)
        await settled(pilot, 1)
        shown = text(pilot)
        assert "base, with examples" in shown and "◆ lines" in shown
        assert "✦ Please sign the lease" in shown and "prompt tokens" in shown
        assert asked(pilot)[-2:] == [None, str(tmp_path / "adapters" / "lines")]
        # what was compared is of the stack as it was
        append(path, {"app": "Mail", "body": "Signed, thank you"})
        await until(pilot, lambda: len(found.box) == 2)
        await settled(pilot, 1)
        assert "More has arrived since" in text(pilot)
        assert "Please sign the lease" not in text(pilot).split("│", 1)[1]
        # the model alone from now on; the adapter can be compared still
        await pilot.press("ctrl+a")
        await settled(pilot, 1)
        assert asked(pilot)[-1] is None
        await pilot.press("c")
        await until(pilot, lambda: asked(pilot)[-1] is not None)
        await until(pilot, lambda: found.comparison and found.comparison.by_adapter)
        await pilot.press("ctrl+a")
        await settled(pilot, 1)
        assert found.services.settings.choice(PRIORITY.name) == AUTO
        assert asked(pilot)[-1] is not None

    show(reading(path, answer), test)


def test_comparing_without_an_adapter(tmp_path: Path) -> None:
    async def test(pilot: Pilot[None]) -> None:
        await settled(pilot)
        await choose(pilot, "Mail")
        await pilot.press("c")
        await settled(pilot)
        assert "There is no adapter for this model" in text(pilot)
        assert "✦ Sign the lease by 17:00 today" in text(pilot)

    show(reading(inbox(tmp_path)), test, (60, 20))


def test_an_app_that_is_switched_off(tmp_path: Path) -> None:
    path = inbox(tmp_path)

    async def test(pilot: Pilot[None]) -> None:
        found = await settled(pilot)
        await choose(pilot, "Mail")
        await pilot.press("x")
        await until(pilot, lambda: (tmp_path / "settings.json").exists())
        assert found.services.settings.switched_off == ("Shop", "Mail")
        shown = text(pilot)
        assert "Mail (1)  off" in shown and "Sign the lease" not in shown
        assert "Summaries of Mail are off" in shown
        assert "Please sign the lease by 17:00 today" in shown  # its notifications stay
        append(path, {"app": "Mail", "body": "Signed, thank you"})
        await until(pilot, lambda: "Signed, thank you" in text(pilot))
        await settled(pilot)
        assert len(prompts(pilot, "[Mail]")) == 1 and not prompts(pilot, "[Shop]")
        for key in ("ctrl+r", "c"):
            await pilot.press(key)
            assert not found.working
        await until(pilot, lambda: len(told(pilot.app)) == 2)
        await pilot.press("x")
        await settled(pilot)
        assert len(prompts(pilot, "[Mail]")) == 2
        await pilot.pause()

    services = reading(path, switched_off=("Shop",))
    show(services, test)
    services.written.result(PATIENCE)
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert kept["switched_off"] == ["Shop"]


def test_the_adapter_that_was_chosen_comes_back(tmp_path: Path) -> None:
    chosen = {NOTIFICATION_SUMMARY.name: "mine", "other": "kept"}

    async def test(pilot: Pilot[None]) -> None:
        services = screen(pilot).services
        await pilot.press("ctrl+a")
        assert [services.settings.choice(f.name) for f in (NOTIFICATION_SUMMARY, PRIORITY)] == [
            None,
            None,
        ]
        await until(pilot, lambda: "by the model alone now" in text(pilot))
        await pilot.press("ctrl+a")
        assert services.settings.choice(NOTIFICATION_SUMMARY.name) == "mine"
        assert services.settings.choice(PRIORITY.name) == AUTO
        assert services.settings.choice("other") == "kept"

    show(reading(inbox(tmp_path, INBOX[2]), adapters=chosen), test)
