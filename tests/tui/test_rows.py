"""How stacks are drawn: widths, marks, and text that is nothing but text."""

from dataclasses import replace
from datetime import UTC, datetime

from afm_mlx.facts import Claim
from afm_mlx.features import Notification
from afm_mlx.tui.inbox import Arrived, Inbox, Stack
from afm_mlx.tui.notifications.rows import EXPANDED, Look, flagged, height, legend, line, originals
from afm_mlx.tui.notifications.summaries import Summary

import pytest
from rich.style import Style

NOW = datetime(2025, 3, 30, 9, 41, tzinfo=UTC)


def stack_of(*notifications: tuple[str, str], app: str = "Chat", group: str | None = None) -> Stack:
    box = Inbox()
    box.add(
        [Arrived(app, group, Notification(*n), str(i)) for i, n in enumerate(notifications)],
        NOW.timestamp(),
    )
    return box.stacks[0]


NASTY = (
    ("Ana", "plain"),
    ("👩‍👩‍👧‍👦", "family 🏳️‍🌈 and 日本語のとても長いテキスト" * 3),
    ("מאיה", "שלום עולם"),
    ("[red]x", "[/] [@click=app.quit]do not[/] \\["),
    ("", "e\u0301" * 50),
)


@pytest.mark.parametrize("width", [1, 5, 12, 13, 40, 120])
def test_lines_are_as_wide_as_they_should_be(width: int) -> None:
    # a line that was a cell too wide broke the row below it
    stack = stack_of(*NASTY, app="日本語アプリ", group="[b]g")
    value = stack.value
    for summary in (
        None,
        Summary(value, "שלום 🎉 [b]" * 9, "writing"),
        Summary(value, "done", "done", True, (Claim("name", "x", 0, 1),)),
        Summary(value, state="failed", problem="too long: " * 20),
    ):
        for look in (Look(NOW), Look(NOW, True, True, True, True, True)):
            for number in range(height(stack, look.expanded)):
                drawn = line(stack, summary, look, number, width)
                assert drawn.cell_len == width and "\n" not in drawn.plain
    assert legend("a file.jsonl", 3, ["2 skipped (line 5: broken)"], width).cell_len == width


def test_a_right_to_left_name_stays_before_the_time() -> None:
    # terminals that reorder took the digits of the time for a part of the name
    head = line(stack_of(("מאיה", "hello"), app="מאיה"), None, Look(NOW), 0, 60).plain
    assert (
        "מאיה\u200e (1)" in head
        and "\u200e" not in line(stack_of(("Ana", "hello")), None, Look(NOW), 0, 60).plain
    )


def test_what_a_row_says() -> None:
    stack = stack_of(("Ana", "hello"), ("Ben", "hello too"))
    claims = (Claim("name", "Zoe", 0, 3),)
    summary = Summary(stack.value, "Zoe says hello", "done", True, claims)
    head, second = (line(stack, summary, Look(NOW), n, 60).plain for n in (0, 1))
    assert head.split() == "Chat (2) ! urgent ⚑ check 09:41".split()
    assert second.strip() == "✦ Zoe says hello"
    off = Look(NOW, off=True)
    assert line(stack, summary, off, 0, 60).plain.split() == "Chat (2) off 09:41".split()
    assert line(stack, summary, off, 1, 60).plain.strip() == "› Ben: hello too"
    refused = replace(summary, refused="Zoe says hello", text="Ben: hello too")
    assert "check" not in line(stack, refused, Look(NOW), 0, 60).plain
    assert line(stack, refused, Look(NOW), 1, 60).plain.strip() == "› Ben: hello too"
    italic = line(stack, summary, Look(NOW), 1, 60)
    assert [italic.plain[s.start : s.end] for s in italic.spans if s.style == "italic"] == [
        "Zoe says hello"
    ]


def test_an_expanded_stack_of_many() -> None:
    stack = stack_of(*((f"{n}", "text") for n in range(1000)))
    rows = [line(stack, None, Look(NOW), n, 40).plain.strip() for n in range(height(stack, True))]
    assert len(rows) == 3 + EXPANDED
    assert rows[2:4] == [f"{1000 - EXPANDED} older", f"{1000 - EXPANDED}: text"]
    assert rows[-1] == "999: text"
    shown = originals(stack, NOW).plain
    assert shown.startswith("700 older ones are not shown.") and shown.endswith("999  text")


def test_a_body_that_is_very_long() -> None:
    # every row drew all of it, and scrolling stood still
    stack = stack_of(("Log", "word " * 400_000))
    assert line(stack, None, Look(NOW), 1, 40).plain == "  › Log: word word word word word word …"
    shown = originals(stack, NOW).plain
    assert len(shown) < 5000 and shown.endswith("… 1,996,000 more characters")


def test_flagged_words_stand_between_brackets() -> None:
    claims = (Claim("name", "Zoe", 0, 3), Claim("time", "9:00", 14, 18))
    assert flagged("Zoe writes at 9:00!", claims, Style()).plain == "⟦Zoe⟧ writes at ⟦9:00⟧!"
    # claims of another text are not drawn into this one
    assert flagged("Ana writes", claims, Style()).plain == "Ana writes"
