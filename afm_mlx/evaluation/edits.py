"""Corrections as edits that can be counted, after ERRANT (Bryant et al. 2017) without its tagger.

Tokens of both texts are aligned at the least cost, where similar words cost less to replace than
others and words may change places; neighbouring changes are then merged or told apart by rules.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import groupby

_TOKEN = re.compile(r"[^\W_]+(?:['’.@-][^\W_]+)*|\S")
_ALIKE = 0.7
"""Words that share so much are one word, spelled otherwise: an edit by themselves."""


@dataclass(frozen=True)
class Edit:
    """Tokens ``start`` to ``end`` of the source become ``to``."""

    start: int
    end: int
    to: tuple[str, ...]


@dataclass(frozen=True)
class Counts:
    """Edits that an answer has and a reference has too, has alone, and lacks."""

    right: int
    wrong: int
    missed: int


def count(source: str, answer: str, reference: str) -> Counts:
    """Compare the edits of ``answer`` with those of ``reference``."""
    ours, theirs = set(edits(source, answer)), set(edits(source, reference))
    return Counts(len(ours & theirs), len(ours - theirs), len(theirs - ours))


def edits(source: str, target: str) -> list[Edit]:
    """The edits that turn ``source`` into ``target``, in order; blanks do not count."""
    a, b = _TOKEN.findall(source), _TOKEN.findall(target)
    first = _common(a, b)  # most of a text stays, and costs nothing to align
    last = _common(a[first:][::-1], b[first:][::-1])
    a, b = a[first : len(a) - last], b[first : len(b) - last]
    found: list[Edit] = []
    for same, group in groupby(align(a, b), key=lambda op: op.same):
        for op in [] if same else _merge([*group], a, b):
            found.append(Edit(first + op.i, first + op.i_end, tuple(b[op.j : op.j_end])))
    return found


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((n for n, (x, y) in pairs if x != y), min(len(a), len(b)))


@dataclass(frozen=True)
class Operation:
    """Tokens ``i`` to ``i_end`` of one text stand against ``j`` to ``j_end`` of the other."""

    i: int
    i_end: int
    j: int
    j_end: int
    same: bool = False


def align(a: Sequence[str], b: Sequence[str]) -> list[Operation]:
    """The cheapest way from ``a`` to ``b``; a token left out or put in costs 1."""
    cost = [[float(i + j) for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    step = [[(0, 1) if j else (1, 0) for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            choices = [
                (cost[i - 1][j - 1] + replacing(a[i - 1], b[j - 1]), (1, 1)),
                (cost[i - 1][j] + 1, (1, 0)),
                (cost[i][j - 1] + 1, (0, 1)),
            ]
            if i > 1 and j > 1 and _swapped(a[i - 2 : i], b[j - 2 : j]):
                choices.append((cost[i - 2][j - 2] + 1, (2, 2)))
            cost[i][j], step[i][j] = min(choices, key=lambda choice: choice[0])
    found = []
    i, j = len(a), len(b)
    while i or j:
        di, dj = step[i][j]
        same = (di, dj) == (1, 1) and a[i - 1] == b[j - 1]
        found.append(Operation(i - di, i, j - dj, j, same))
        i, j = i - di, j - dj
    return found[::-1]


def replacing(word: str, other: str) -> float:
    """What it costs that ``other`` stands for ``word``: below 1 if they are alike."""
    if word == other:
        return 0.0
    if word.lower() == other.lower():
        return 0.1
    if word[0].isalnum() != other[0].isalnum():
        return 2.0  # a sign never becomes a word
    return 1.5 - _likeness(word.lower(), other.lower())


@lru_cache(maxsize=100_000)
def _likeness(word: str, other: str) -> float:
    return SequenceMatcher(None, word, other, autojunk=False).ratio()


def _swapped(a: Sequence[str], b: Sequence[str]) -> bool:
    first, second = (token.lower() for token in a)
    return first != second and [token.lower() for token in b] == [second, first]


def _merge(group: list[Operation], a: Sequence[str], b: Sequence[str]) -> list[Operation]:
    """Neighbouring changes as edits: "alot" to "a lot" is one, two misspelt words are two."""
    if not group:
        return []
    whole = Operation(group[0].i, group[-1].i_end, group[0].j, group[-1].j_end)
    if len(group) == 1 or _letters(a[whole.i : whole.i_end]) == _letters(b[whole.j : whole.j_end]):
        return [whole]
    for n, one in enumerate(group):
        if _alone(a[one.i : one.i_end], b[one.j : one.j_end]):
            return [*_merge(group[:n], a, b), one, *_merge(group[n + 1 :], a, b)]
    return [whole]


def _alone(before: Sequence[str], after: Sequence[str]) -> bool:
    if len(before) == 2 and len(after) == 2:
        return True  # changed places
    if not any(token[0].isalnum() for token in (*before, *after)):
        return True  # signs
    return len(before) == len(after) == 1 and (
        _likeness(before[0].lower(), after[0].lower()) >= _ALIKE
    )


def _letters(tokens: Sequence[str]) -> str:
    return "".join(c for token in tokens for c in token.lower() if c.isalnum())
