"""Plain-text helpers for long input and for checking answers: words, sentences, parts."""

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

MAX_CHARACTERS = 200_000
"""Longest input of one request; over an hour of work for the embedded model on two cores."""

_WORD = re.compile(r"[\w’'%$€£@#&+./:-]+")
_FULL_STOP = "".join(rf"(?<!\b{a})" for a in "Dr Mr Mrs Ms Prof St".split()) + r"\."
_SENTENCE_END = re.compile(rf"(?:{_FULL_STOP}|[!?…。！？])[\"'”’)\]]*\s+")
_CLAUSE_END = re.compile(rf"(?:{_FULL_STOP}|[;,!?:–—]) |\n")
_DANGLING = set(
    "a an and as at but by for from her his in is its my of on or our so that the their to with"
    " your".split()
)


def words(text: str) -> list[str]:
    """Words of ``text``; a time, a price or an address counts as one."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Sentences of ``text``, each with the blanks that follow it: joined they give the text."""
    pieces, start = [], 0
    for line_end in re.finditer(r"\n+|$", text):
        line = text[start : line_end.end()]
        cuts = [m.end() for m in _SENTENCE_END.finditer(line) if m.end() < len(line)]
        pieces += [line[a:b] for a, b in zip([0, *cuts], [*cuts, len(line)], strict=True)]
        start = line_end.end()
    return [p for p in pieces if p]


def parts(text: str, size: Callable[[str], int], limit: int) -> list[str]:
    """Split ``text`` at sentence ends into parts of at most ``limit`` by ``size``.

    Joined, the parts give the text. A single sentence over the limit is split at blanks, and
    a single word over it in the middle. Blanks stay with the words beside them, over the
    limit if need be.
    """
    out: list[str] = []
    for piece in sentences(text):
        for fitting in _halve(piece, size, limit):
            alone = not fitting.strip() or (out and not out[-1].strip())
            if out and (alone or size(out[-1] + fitting) <= limit):
                out[-1] += fitting
            else:
                out.append(fitting)
    return out


def _halve(piece: str, size: Callable[[str], int], limit: int) -> list[str]:
    if len(piece) < 2 or size(piece) <= limit:
        return [piece]
    middle = len(piece) // 2
    blank = max(piece.rfind(" ", 0, middle), piece.rfind("\n", 0, middle))
    cut = blank + 1 if blank > 0 else middle
    return [*_halve(piece[:cut], size, limit), *_halve(piece[cut:], size, limit)]


def shorten(text: str, limit: int) -> str:
    """At most ``limit`` words of ``text``, ending at the last clause end that fits, if any
    leaves at least half of them, and never on a word like "the" or "for"."""
    matches = list(_WORD.finditer(text))
    if len(matches) <= limit:
        return text
    last = limit - 1
    while last > limit // 2 and matches[last][0].lower() in _DANGLING:
        last -= 1
    head = text[: matches[last].end()]
    ends = [m.start() for m in _CLAUSE_END.finditer(text[: len(head) + 2])]
    for end in reversed(ends):
        if len(words(text[:end])) * 2 >= limit:
            return text[:end]
    return head


def similarity(a: str, b: str) -> float:
    """Share of words in common and in order, case aside, between 0 and 1."""
    first, second = words(a.casefold()), words(b.casefold())
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


def word_edits(before: str, after: str) -> list[tuple[int, int, str]]:
    """Edits that turn ``before`` into ``after``, word by word.

    Each is ``(start, end, replacement)`` with character offsets into ``before``. Blanks count
    as words of their own, so that applying all edits gives ``after`` exactly.
    """
    a, b = _tokens(before), _tokens(after)
    offsets = [0]
    for token in a:
        offsets.append(offsets[-1] + len(token))
    out = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag != "equal":
            out.append((offsets[i1], offsets[i2], "".join(b[j1:j2])))
    return out


def _tokens(text: str) -> Sequence[str]:
    return re.findall(r"\s+|[^\s]+", text)
