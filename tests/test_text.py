"""Splitting keeps every character, and edits lead to the new text."""

import random

from afm_mlx.text import (
    parts,
    sentences,
    shorten,
    similarity,
    word_edits,
    words,
)

import pytest

TEXT = 'One fish. "Two fish!" Red fish?\n\nBlue fish, 3.5 kg… And so on.\nEnd'


def test_sentences() -> None:
    found = sentences(TEXT)
    assert "".join(found) == TEXT
    assert [s.strip() for s in found] == [
        "One fish.",
        '"Two fish!"',
        "Red fish?",
        "Blue fish, 3.5 kg…",
        "And so on.",
        "End",
    ]


@pytest.mark.parametrize("seed", range(20))
def test_parts_keep_everything_and_the_limit(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(rng.choice("ab. \n!é界") for _ in range(rng.randrange(1, 400)))
    limit = rng.randrange(1, 60)
    found = parts(text, len, limit)
    assert "".join(found) == text
    assert all(len(p.strip()) <= limit for p in found)
    assert len(found) == 1 or all(p.strip() for p in found)


def test_titles_end_no_sentence() -> None:
    assert sentences("See Dr. Sato. Then Mrs. Okafor.") == ["See Dr. Sato. ", "Then Mrs. Okafor."]
    assert shorten("Your visit to Dr. Sato on Monday was moved", 6) == "Your visit to Dr. Sato"


def test_parts_end_at_sentences() -> None:
    assert parts("One two. Three four. Five.", lambda t: len(words(t)), 4) == [
        "One two. Three four. ",
        "Five.",
    ]


def test_words_count_times_and_prices_once() -> None:
    found = words("At 19:00 (or $3.50) for Ana's cat!")
    assert found == ["At", "19:00", "or", "$3.50", "for", "Ana's", "cat"]


def test_shorten() -> None:
    text = "The table is free; come at eight, or nine if you must"
    assert shorten(text, 50) == text
    assert shorten(text, 8) == "The table is free; come at eight"
    assert shorten("one two three four", 2) == "one two"


def test_shorten_ends_on_no_loose_word() -> None:
    assert shorten("closed to cars on 21 September for the street party", 8) == (
        "closed to cars on 21 September"
    )


def test_similarity() -> None:
    assert similarity("a b c d", "a b c d") == 1
    assert similarity("a b c d", "a x c d") == 0.75
    assert similarity("a b", "x y") == 0


@pytest.mark.parametrize("seed", range(20))
def test_word_edits_lead_to_the_new_text(seed: int) -> None:
    rng = random.Random(seed)

    def text() -> str:
        return "".join(rng.choice(["a", "bb ", " ", "c.", "\n"]) for _ in range(rng.randrange(30)))

    before, after = text(), text()
    result, shift = before, 0
    for start, end, to in word_edits(before, after):
        result = result[: start + shift] + to + result[end + shift :]
        shift += len(to) - (end - start)
    assert result == after
