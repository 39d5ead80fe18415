"""Answers are read for what they say; limits hold; inventions are caught."""

from afm_mlx.features import Notification, NotificationStack, Text, Thread, reading
from afm_mlx.features.inputs import ChatMessage
from afm_mlx.text import words

import pytest

STACK = NotificationStack(
    "Messages",
    (Notification("Ana", "Lunch at 12?"), Notification("Ana", "Make it 13:00, bus is late")),
    "Ana",
)
THREAD = Thread((ChatMessage("Ana", "Are you in?"),))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("  plain ", "plain"),
        ('"quoted"', "quoted"),
        ('"a" and "b"', '"a" and "b"'),
        ("Here is the corrected text:\nIt works.", "It works."),
        ("Sure! Here you go: It works.", "It works."),
        ("Summary: short", "short"),
        ("The corrected plan is fine", "The corrected plan is fine"),
        ("Sure, see you at 19:00", "Sure, see you at 19:00"),
        ("Here is the plan: meet at 10:30", "meet at 10:30"),
        ("Here are the keys", "Here are the keys"),
        ("Okay, I will be there at 19:00.", "Okay, I will be there at 19:00."),
    ],
)
def test_clean(answer: str, text: str) -> None:
    assert reading.clean(answer) == text


def test_what_the_source_begins_with_stays() -> None:
    assert reading.clean("Summary: we met", "Summary: we meet") == "Summary: we met"
    assert reading.clean('"It works"', '"it works"') == '"It works"'


def test_notification_summary_is_one_short_line() -> None:
    answer = "Lunch moved to 13:00 because the bus is late, see you there soon my friend.\nMore"
    found = reading.notification_summary(answer, STACK)
    assert found.value == "Lunch moved to 13:00 because the bus is late"
    assert found.note is None


@pytest.mark.parametrize("answer", ["Lunch with Boris", "Lunch at 14:00", "", " \n"])
def test_invented_facts_show_the_newest_notification(answer: str) -> None:
    found = reading.notification_summary(answer, STACK)
    assert found.value == "Ana: Make it 13:00, bus is late"
    assert found.note


def test_summary_limits() -> None:
    long = "Birds fly. Fish swim. Dogs bark. Cats sleep."
    assert reading.summary(long, Text("x")).value == "Birds fly. Fish swim. Dogs bark."
    crowded = " ".join(f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(200))
    assert len(words(reading.summary(crowded, Text("x")).value)) == reading.SUMMARY_WORDS
    assert reading.summary(" ", Text("First. Second. Third.")).value == "First. Second."


def test_key_points() -> None:
    answer = "Key points:\n- one\n* two.\n3. three\n- one\n" + "".join(
        f"- p{i}\n" for i in range(9)
    )
    found = reading.key_points(answer, Text("x"))
    assert found.value == ["one", "two", "three", "p0", "p1", "p2"]


def test_list_of_nothing_shows_the_text() -> None:
    found = reading.bullets("", Text("First. Second."))
    assert found.value == ["First.", "Second."]
    assert found.note


def test_table() -> None:
    found = reading.table("| a | b |\n|---|:--|\n| 1 | 2 |\n| 3 |\n", Text("x"))
    assert found.value == [["a", "b"], ["1", "2"], ["3", ""]]
    assert reading.table("no table", Text("One. Two.")).value == [["Text"], ["One."], ["Two."]]


def test_proofread_gives_edits() -> None:
    source = Text("  i has two apple.\n")
    found = reading.proofread("I have two apples.", source).value
    assert found.corrected == "  I have two apples.\n"
    assert [(e.was, e.to) for e in found.edits] == [
        ("i", "I"),
        ("has", "have"),
        ("apple.", "apples."),
    ]
    for edit in found.edits:
        assert source.text[edit.start : edit.end] == edit.was


def test_proofread_refuses_a_rewrite() -> None:
    source = Text("i has two apple")
    found = reading.proofread("What a lovely day it is for fruit of all kinds", source)
    assert (found.value.corrected, found.value.edits) == (source.text, ())
    assert found.note


def test_what_a_limit_leaves_out_is_told() -> None:
    text = Text("x")
    assert reading.summary("One. Two. Three. Four.", text).cut
    assert not reading.summary("One. Two. Three.", text).cut
    line = "Lunch moved to 13:00 because the bus is late, see you there soon my friend"
    assert reading.notification_summary(line, STACK).cut
    assert not reading.notification_summary("Lunch at 13:00.", STACK).cut
    assert reading.key_points("- a\n" * 3 + "- b " * 20, text).cut
    assert not reading.key_points("- a\n- b.", text).cut
    assert reading.replies("yes\nno, I have to see my old friends from school then", THREAD).cut
    assert not reading.replies("Yes.\nNo.", THREAD).cut


def test_empty_rewrite_is_the_text() -> None:
    assert reading.rewrite("See you on Monday", Text("come at noon")).value == "See you on Monday"
    assert reading.rewrite("", Text("come")).value == "come"


def test_replies() -> None:
    found = reading.replies('1. "Yes, I am!"\n2. Sorry, no.\n3. Maybe', THREAD)
    assert found.value == ["Yes, I am!", "Sorry, no."]
    once = reading.replies("Yes\nYes", THREAD)
    assert once.value[0] == "Yes" and len(set(once.value)) == 2 and once.note
    long = "yes of course I will come to your party with all my friends\nno"
    assert reading.replies(long, THREAD).value == ["yes of course I will come", "no"]


def test_choice() -> None:
    assert reading.choice("yes", STACK).value is True
    assert reading.choice("no", STACK).value is False
