"""Edits are cheapest alignments, counted as a person would."""

import random
from collections.abc import Sequence
from functools import cache

from afm_mlx.evaluation.edits import Counts, Edit, align, count, edits, replacing

import pytest


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (
            "i has two apple .",
            "I have two apples.",
            [(0, 1, "I"), (1, 2, "have"), (3, 4, "apples")],
        ),
        ("I like alot of it", "I like a lot of it", [(2, 3, "a lot")]),
        ("we need also bread", "we also need bread", [(1, 3, "also need")]),
        ("Its late", "It's late.", [(0, 1, "It's"), (2, 2, ".")]),
        ("the the bus", "the bus", [(1, 2, "")]),
        ("He go home yesterday", "He went home yesterday", [(1, 2, "went")]),
        ("same text\nhere", "same  text here", []),
        ("", "Hi", [(0, 0, "Hi")]),
        ("Bye", "", [(0, 1, "")]),
        ("I should of gone", "I should have gone", [(2, 3, "have")]),
        ("in the home", "at home", [(0, 2, "at")]),
        ("recieve teh mail", "receive the mail", [(0, 1, "receive"), (1, 2, "the")]),
    ],
)
def test_edits(source: str, target: str, expected: list[tuple[int, int, str]]) -> None:
    assert edits(source, target) == [Edit(a, b, tuple(to.split())) for a, b, to in expected]


def test_counts() -> None:
    source = "i has two apple in my bag"
    reference = "I have two apples in my bag."
    assert count(source, reference, reference) == Counts(4, 0, 0)
    assert count(source, source, reference) == Counts(0, 0, 4)
    # Right where it changes "has", wrong about the bag, another word for "apple".
    assert count(source, "I have two pears in the bag", reference) == Counts(2, 2, 2)


def cheapest(a: Sequence[str], b: Sequence[str]) -> float:
    """The cost of the best of all alignments, found by trying them."""

    @cache
    def rest(i: int, j: int) -> float:
        ways = []
        if i < len(a) and j < len(b):
            ways.append(replacing(a[i], b[j]) + rest(i + 1, j + 1))
        if i < len(a):
            ways.append(1 + rest(i + 1, j))
        if j < len(b):
            ways.append(1 + rest(i, j + 1))
        if i + 1 < len(a) and j + 1 < len(b) and a[i] != a[i + 1]:
            if (a[i], a[i + 1]) == (b[j + 1], b[j]):
                ways.append(1 + rest(i + 2, j + 2))
        return min(ways, default=0.0)

    return rest(0, 0)


@pytest.mark.parametrize("seed", range(30))
def test_alignment_is_the_cheapest_and_leads_to_the_target(seed: int) -> None:
    rng = random.Random(seed)
    a, b = (
        [rng.choice(["ab", "abc", "x", ".", "xyz"]) for _ in range(rng.randrange(7))] for _ in "ab"
    )
    operations = align(a, b)
    cost = 0.0
    for op in operations:
        before, after = a[op.i : op.i_end], b[op.j : op.j_end]
        if len(before) == len(after) == 1:
            cost += replacing(before[0], after[0])
        else:
            cost += 1
    assert cost == pytest.approx(cheapest(a, b))
    assert [t for op in operations for t in b[op.j : op.j_end]] == b
    assert [t for op in operations for t in a[op.i : op.i_end]] == a


@pytest.mark.parametrize("seed", range(30))
def test_edits_lead_to_the_target(seed: int) -> None:
    # Guards: what both texts begin and end with is left out of the alignment, and edits that
    # were counted from there would stand in the wrong place.
    rng = random.Random(seed)
    a, b = ([rng.choice(["ab", "abc", "x", "."]) for _ in range(rng.randrange(9))] for _ in "ab")
    result, shift = list(a), 0
    for edit in edits(" ".join(a), " ".join(b)):
        result[edit.start + shift : edit.end + shift] = edit.to
        shift += len(edit.to) - (edit.end - edit.start)
    assert result == b
