"""Word differences, their signs, and the review of corrections."""

import random

from afm_mlx.features import Edit
from afm_mlx.text import word_edits
from afm_mlx.tui.writing.protect import protected
from afm_mlx.tui.writing.review import Correction, Review
from afm_mlx.tui.writing.worddiff import Piece, diff, marked, reason, signed

import pytest


def sides(pieces: tuple[Piece, ...]) -> tuple[str, str]:
    return (
        "".join(p.text for p in pieces if p.sign != "added"),
        "".join(p.text for p in pieces if p.sign != "removed"),
    )


def test_words_that_differ() -> None:
    pieces = diff("i think their going", "I think they're going")
    assert [(p.sign, p.text) for p in pieces] == [
        ("removed", "i"),
        ("added", "I"),
        ("same", " think "),
        ("removed", "their"),
        ("added", "they're"),
        ("same", " going"),
    ]


def test_neighbouring_words_are_one_change() -> None:
    # Word by word, a rewritten sentence is an unreadable alternation.
    assert diff("a red fox ran", "the brown fox ran")[:2] == (
        Piece("removed", "a red"),
        Piece("added", "the brown"),
    )


def test_no_difference_and_empty_texts() -> None:
    assert diff("same\n\ntext ", "same\n\ntext ") == (Piece("same", "same\n\ntext "),)
    assert diff("", "") == ()
    assert diff("", "new") == (Piece("added", "new"),)
    assert diff("old", "") == (Piece("removed", "old"),)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_give_both_texts(seed: int) -> None:
    some = random.Random(seed)
    words = ["a", "bus", "Bus.", "late!", "\n", "\n\n", " ", "  ", "👩‍👩‍👧", "שלום", "e\u0301"]
    before, after = ("".join(some.choices(words, k=60)) for _ in range(2))
    assert sides(diff(before, after)) == (before, after)


def test_emoji_and_combined_letters_stay_whole() -> None:
    # Characters of one family emoji were shown as three changes.
    pieces = diff("hi 👩‍👩‍👧 cafe\u0301", "hi 👨‍👩‍👧 cafe\u0301")
    assert [p.text for p in pieces if p.sign != "same"] == ["👩‍👩‍👧", "👨‍👩‍👧"]
    assert diff("שלום עולם", "שלום לעולם")[-1] == Piece("added", "לעולם")


def test_a_long_text_is_compared_by_sentences() -> None:
    # Blanks matched with each other: 200 kB took hours.
    lines = [f"Sentence {i} says that the bus number {i} is late today.\n" for i in range(3600)]
    before = "".join(lines)
    lines[1800] = lines[1800].replace("late", "early")
    pieces = diff(before, "".join(lines))
    assert [p.text for p in pieces if p.sign != "same"] == ["late", "early"]
    new = "".join(f"{word}x " for word in before.split())
    assert sides(diff(before, new)) == (before, new)


def test_signs_are_seen_without_colour() -> None:
    assert signed(Piece("removed", "their")) == "-their-"
    assert signed(Piece("added", "they're")) == "+they're+"
    assert signed(Piece("added", "\n ")) == "+↵␣+"
    assert signed(Piece("same", " ")) == " "


def test_marks_lie_on_what_they_mark() -> None:
    pieces = [
        (Piece("same", "One\nt"), False),
        (Piece("removed", "wo\nthree"), True),
        (Piece("added", "wo"), True),
        (Piece("same", " end"), False),
    ]
    shown = marked(pieces)
    lines = shown.text.split("\n")
    assert lines == ["One", "t[-wo", "three-+wo+] end"]
    assert [lines[r][a:b] for r in shown.marks for a, b, _ in shown.marks[r]] == [
        "-wo",
        "three-",
        "+wo+",
    ]
    assert shown.at == (1, 2)
    assert marked(pieces[:2]).text.endswith("three-]")


@pytest.mark.parametrize(
    ("was", "to", "kind"),
    [
        ("i", "I", "capitals"),
        ("late", "late.", "punctuation"),
        ("its", "it's", "punctuation"),
        ("tomorow", "tomorrow", "spelling or form"),
        ("", "the", "added"),
        ("the", "", "left out"),
        ("  ", " ", "blanks"),
        ("a lot", "alot", "one word or two"),
        ("me and Jules", "Jules and I", "wording"),
    ],
)
def test_kinds_of_changes(was: str, to: str, kind: str) -> None:
    assert reason(was, to) == kind


def review_of(before: str, after: str) -> Review:
    edits = [Edit(s, e, before[s:e], to) for s, e, to in word_edits(before, after)]
    return Review.of(before, [Correction.of(e) for e in edits], protected(before))


def test_decisions_make_the_text() -> None:
    review = review_of("Their are too keys hear.", "There are two keys here.")
    assert review.proposed == "There are two keys here."
    assert review.decided == "Their are too keys hear."
    review = review.decide("kept").decide("undone")
    assert (review.current, review.decided) == (2, "There are too keys hear.")
    assert review.proposed == "There are too keys here."
    assert review.go(-1).current == 1
    assert review.go(1).current == 0
    assert review.decide_all("kept").decided == "There are two keys here."
    assert review.decide_all("kept", only_open=True).decided == "There are too keys here."


def test_the_last_decision_goes_back_to_what_was_skipped() -> None:
    review = review_of("a b c", "A B C").go(1).go(1).decide("kept")
    assert review.current == 0
    assert review.decide_all("kept").decide("undone").count("undone") == 1


def test_a_review_without_corrections_has_nothing_to_decide() -> None:
    review = review_of("Fine.", "Fine.")
    assert review.decide("kept") is review
    assert review.go(1) is review
    assert review.pieces() == [(Piece("same", "Fine."), None)]


def test_corrections_of_what_is_protected_are_dropped() -> None:
    before = "Teh page https://a.org/Teh and `Teh code` are fine"
    after = "The page https://a.org/The and `The code` are fine."
    review = review_of(before, after)
    assert review.spared == 2
    assert review.proposed == "The page https://a.org/Teh and `Teh code` are fine."


def test_what_is_shown_of_a_review() -> None:
    review = review_of("a b c", "A B C").decide("kept").decide("undone")
    shown = [(p.sign, p.text, i) for p, i in review.pieces()]
    assert shown == [
        ("added", "A", 0),
        ("same", " ", None),
        ("same", "b", 1),
        ("same", " ", None),
        ("removed", "c", 2),
        ("added", "C", 2),
    ]
