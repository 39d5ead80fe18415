"""What the writing tools leave alone, and what they do where an answer lost it."""

from afm_mlx.tui.writing.protect import (
    Kind,
    Protected,
    keep_sentence,
    lost,
    protected,
    stretches,
    touches,
)

import pytest


def found(text: str) -> list[tuple[Kind, str]]:
    out = protected(text)
    assert all(text[p.start : p.end] == p.text for p in out)
    return [(p.kind, p.text) for p in out]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Just words, 3 > 2, a*b and a snake_case.", []),
        ("See https://a.org/x?y=1#z.", [("link", "https://a.org/x?y=1#z")]),
        ("(https://en.org/Fox_(animal)), ok", [("link", "https://en.org/Fox_(animal)")]),
        ("(see https://a.org/x)", [("link", "https://a.org/x")]),
        ("www.a.org, and", [("link", "www.a.org")]),
        ("<https://a.org>", [("link", "https://a.org")]),
        ("a [page](https://a.org/b_(c)) b", [("link", "[page](https://a.org/b_(c))")]),
        ('![pic](p.png "A title")', [("link", '![pic](p.png "A title")')]),
        ("Ask ana.b+c@mail.example.org.", [("address", "ana.b+c@mail.example.org")]),
        ("mailto:a@b.org", [("address", "mailto:a@b.org")]),
        ("run `rm -r x` now", [("code", "`rm -r x`")]),
        ("with ``a ` tick`` in", [("code", "``a ` tick``")]),
        ("one ` tick", []),
        ("`a@b.org`", [("code", "`a@b.org`")]),
        ("x\n> quoted\n>> deeper\n>\ny", [("quote", "> quoted\n>> deeper\n>\n")]),
        (">5 people came", []),
        ("a\n```py\nx = 1\n```\nb", [("code block", "```py\nx = 1\n```\n")]),
        ("~~~\n```\n~~~", [("code block", "~~~\n```\n~~~")]),
        ("a\n```\nnever closed", [("code block", "```\nnever closed")]),
        ("```inline``` is no block", [("code", "```inline```")]),
        ("> `a` and a@b.org", [("quote", "> `a` and a@b.org")]),
        ("schreib an jörg@exämple.de שלום", [("address", "jörg@exämple.de")]),
    ],
)
def test_what_is_found(text: str, expected: list[tuple[Kind, str]]) -> None:
    assert found(text) == expected


def test_odd_texts_take_no_time() -> None:
    # Runs of one letter and of brackets were searched again from each of their characters.
    for text in ("a" * 100_000, "[" * 100_000, "a@" * 30_000, "https://" * 10_000):
        protected(text)


def test_stretches_are_the_text_between_blocks() -> None:
    text = "One.\n```\ncode\n```\n\n> quote\nTwo `x`.\n"
    cut = stretches(text, protected(text))
    assert [(s.text, s.free) for s in cut] == [
        ("One.\n", True),
        ("```\ncode\n```\n", False),
        ("\n", False),
        ("> quote\n", False),
        ("Two `x`.\n", True),
    ]
    assert "".join(s.text for s in cut) == text
    assert all(text.startswith(s.text, s.start) for s in cut)
    assert stretches("", ()) == []


def test_edits_that_touch_something() -> None:
    text = "see https://a.org now"
    link = protected(text)
    assert touches(4, 17, "x", link)
    assert touches(0, 5, "See h", link)
    assert not touches(0, 3, "See", link)
    assert not touches(18, 21, "later", link)
    # Letters directly beside a link would make another one of it.
    assert touches(17, 17, "/x", link)
    assert touches(4, 4, "x", link)
    assert not touches(4, 4, "the ", link)
    assert not touches(17, 17, " and", link)


def test_what_an_answer_lost() -> None:
    source = "Write to a@b.org or `run x`, see https://a.org and https://a.org/b."
    items = protected(source)
    assert lost(items, source) == ()
    gone = lost(items, "See https://a.org/b, write to a@b.org.uk.")
    assert [p.text for p in gone] == ["a@b.org", "`run x`", "https://a.org"]


def test_something_said_twice_is_lost_once() -> None:
    items = protected("a@b.org and a@b.org")
    assert [p.start for p in lost(items, "Only a@b.org.")] == [12]


def item(source: str) -> Protected:
    return protected(source)[0]


def test_the_original_sentence_takes_the_place_of_the_one_like_it() -> None:
    source = "Hello Ana. Please open https://a.org/x today. Bye."
    answer = "Hi Ana! Please open the page today, thanks! See you."
    kept = keep_sentence(source, answer, item(source))
    assert kept == "Hi Ana! Please open https://a.org/x today. See you."
    assert lost(protected(source), kept) == ()


def test_a_sentence_like_no_other_comes_where_it_was() -> None:
    source = "One thing. Mail x@y.org.\nLast words here."
    answer = "First of all. Finally some closing words."
    kept = keep_sentence(source, answer, item(source))
    assert "Mail x@y.org." in kept
    assert kept.startswith("First of all.") and kept.endswith("closing words.")
    assert keep_sentence(source, "", item(source)) == "Mail x@y.org."


def test_code_that_looks_like_the_end_of_a_sentence() -> None:
    source = "Type `a. B` twice. Then wait."
    kept = keep_sentence(source, "Type it twice. Wait.", item(source))
    assert "`a. B`" in kept
