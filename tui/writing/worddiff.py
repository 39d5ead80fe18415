"""Differences between two texts by words: what was left out, what came in, what stayed.

Sentences are compared first, then the words of those that differ, so that long texts take
seconds. Additions and deletions are told apart by signs, ``-was- +is+``, not by colour alone.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from afm_mlx.text import sentences

Sign = Literal["same", "removed", "added"]

MOST_PAIRS = 4_000_000
"""Pairs of words that are compared at most; above, sentences count as new altogether."""

_TOKEN = re.compile(r"\s+|\S+")
_ENDS = re.compile(r"^\W+|\W+$")


@dataclass(frozen=True)
class Piece:
    """Characters that both texts have, or only one of them."""

    sign: Sign
    text: str


def diff(before: str, after: str) -> tuple[Piece, ...]:
    """Pieces of both texts: without the added ones they give ``before``, without the removed
    ones ``after``."""
    out: list[Piece] = []
    a, b = sentences(before), sentences(after)
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        was, now = "".join(a[i1:i2]), "".join(b[j1:j2])
        out += [Piece("same", was)] if tag == "equal" else _words(was, now)
    return _joined(out)


def _words(before: str, after: str) -> list[Piece]:
    a, b = _TOKEN.findall(before), _TOKEN.findall(after)
    if len(a) * len(b) > MOST_PAIRS:
        return [Piece("removed", before), Piece("added", after)]
    out = []
    # Blanks are everywhere: as junk, they only match beside words that match.
    for tag, i1, i2, j1, j2 in SequenceMatcher(str.isspace, a, b, autojunk=False).get_opcodes():
        was, now = "".join(a[i1:i2]), "".join(b[j1:j2])
        out += [Piece("same", was)] if tag == "equal" else _changed(was, now)
    return out


def _changed(was: str, now: str) -> list[Piece]:
    return [Piece("removed", was)] * bool(was) + [Piece("added", now)] * bool(now)


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Neighbours of one sign as one; a blank between two changes is a part of both."""
    out: list[Piece] = []
    was = now = ""
    waiting = list(pieces)
    for i, piece in enumerate(waiting):
        inside = piece.text == " " and bool(was and now) and _replaces(waiting[i + 1 : i + 3])
        if piece.sign == "same" and not inside:
            out += _changed(was, now)
            was = now = ""
            if out and out[-1].sign == "same":
                out[-1] = Piece("same", out[-1].text + piece.text)
            else:
                out.append(piece)
            continue
        was += piece.text if piece.sign != "added" else ""
        now += piece.text if piece.sign != "removed" else ""
    return (*out, *_changed(was, now))


def _replaces(pieces: list[Piece]) -> bool:
    return [p.sign for p in pieces] == ["removed", "added"]


def signed(piece: Piece) -> str:
    """``piece`` as it is shown: ``-removed-``, ``+added+``; blanks alone are made visible."""
    if piece.sign == "same":
        return piece.text
    sign = "-" if piece.sign == "removed" else "+"
    shown = piece.text
    if not shown.strip():
        shown = shown.replace(" ", "␣").replace("\t", "⇥").replace("\n", "↵")
    return f"{sign}{shown}{sign}"


def reason(was: str, to: str) -> str:
    """What kind of change it is, from the characters alone."""
    old, new = was.split(), to.split()
    if old == new:
        return "blanks"
    if not new:
        return "left out"
    if not old:
        return "added"
    if was.casefold().split() == to.casefold().split():
        return "capitals"
    bare = [[_ENDS.sub("", w) for w in side] for side in (old, new)]
    if bare[0] == bare[1]:
        return "punctuation"
    if "".join(old).casefold() == "".join(new).casefold():
        return "one word or two"
    plain = [re.sub(r"[\W_]", "", "".join(side)).casefold() for side in (old, new)]
    if plain[0] == plain[1]:
        return "punctuation"
    alike = SequenceMatcher(None, plain[0], plain[1], autojunk=False).ratio()
    return "spelling or form" if len(old) == len(new) and alike >= 0.6 else "wording"


@dataclass(frozen=True)
class Marked:
    """Pieces as one text to show, and where its marks are.

    Attributes:
        marks: by line: ``(start, end, sign)`` in its characters.
        at: line and column of the piece that is looked at, if any.
    """

    text: str
    marks: dict[int, list[tuple[int, int, Sign]]]
    at: tuple[int, int] | None = None


def marked(pieces: Iterable[tuple[Piece, bool]]) -> Marked:
    """Pieces with their signs; those that are looked at stand in brackets."""
    out: list[str] = []
    marks: dict[int, list[tuple[int, int, Sign]]] = {}
    at: tuple[int, int] | None = None
    row = column = 0
    inside = False

    def put(text: str, sign: Sign) -> None:
        nonlocal row, column
        out.append(text)
        for i, line in enumerate(text.split("\n")):
            row, column = (row + 1, 0) if i else (row, column)
            if sign != "same" and line:
                marks.setdefault(row, []).append((column, column + len(line), sign))
            column += len(line)

    for piece, looked_at in pieces:
        if looked_at != inside:
            put("[" if looked_at else "]", "same")
            at = (row, column) if looked_at else at
            inside = looked_at
        put(signed(piece), piece.sign)
    if inside:
        put("]", "same")
    return Marked("".join(out), marks, at)
