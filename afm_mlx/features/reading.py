"""Read what the model wrote: one line, a list, a table, a corrected text.

A small model adds greetings, quotes and explanations; here they are taken off, limits are
held, and an answer that cannot be right is replaced by words of the input, with a note.
"""

import re
from dataclasses import dataclass

from afm_mlx.facts import Kind, unsupported, without_repeats
from afm_mlx.features.declaration import Reading
from afm_mlx.features.inputs import Change, NotificationStack, Text, Thread
from afm_mlx.text import sentences, shorten, similarity, word_edits, words

SUMMARY_WORDS, SUMMARY_SENTENCES = 60, 3
NOTIFICATION_WORDS = 12
REPLY_WORDS = 8
POINT_WORDS, POINTS = 14, 6
CONCISE = 0.7
"""Share of the words that a concise rewrite may have, and one word more."""
KEPT: tuple[Kind, ...] = ("name", "number", "time", "date", "amount")
"""Facts of a text that another tone has too."""
LEAST_SIMILAR = 0.5
"""Words that a corrected text shares with its source; real corrections keep two thirds."""

_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|of course|okay)\b[^\n:]{0,20}[!,.]\s*)?"
    r"(?:here(?:'s| is| are| you go)|the (?:corrected|rewritten|revised) (?:text|version))\b"
    r"[^\n:]{0,60}:(?:\s+|$)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"^(summary|answer|text|output|corrected( text)?|rewritten( text)?|reply( \d)?)\s*:\s*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-*•–]|\d+[.)])\s+")


@dataclass(frozen=True)
class Edit:
    """One correction: characters ``start`` to ``end`` of the text become ``to``."""

    start: int
    end: int
    was: str
    to: str


@dataclass(frozen=True)
class Proofread:
    """A corrected text and the edits that lead to it."""

    corrected: str
    edits: tuple[Edit, ...]


def clean(answer: str, source: str = "") -> str:
    """``answer`` without preamble, label and surrounding quotes, unless ``source`` has them."""
    text, source = answer.strip(), source.strip()
    for pattern in (_PREAMBLE, _LABEL):
        if not pattern.match(source):
            text = pattern.sub("", text).strip()
    for opening, closing in ('""', "''", "“”", "``"):
        if source.startswith(opening):
            continue
        if len(text) > 1 and text[0] == opening and text[-1] == closing:
            inner = text[1:-1]
            if opening not in inner and closing not in inner:
                text = inner.strip()
    return text


def notification_summary(answer: str, stack: NotificationStack) -> Reading:
    """One line of at most 12 words without a final full stop."""
    whole = next(iter(without_repeats(clean(answer)).splitlines()), "").strip()
    line = shorten(whole, NOTIFICATION_WORDS).rstrip(" .;,:-–—")
    newest = _newest(stack)
    if not line:
        return Reading(newest, "the model said nothing: newest notification shown")
    invented = unsupported(line, stack.source)
    if invented:
        names = ", ".join(dict.fromkeys(claim.text for claim in invented))
        return Reading(newest, f"{names} is not in the notifications: newest one shown")
    return Reading(line, cut=_cut(whole, line))


def _newest(stack: NotificationStack) -> str:
    last = stack.notifications[-1]
    body = " ".join(last.body.split())
    text = body if not last.title or last.title in body else f"{last.title}: {body}"
    return shorten(text, NOTIFICATION_WORDS).rstrip(" .;,:-–—")


def summary(answer: str, source: Text) -> Reading:
    """At most 3 sentences and 60 words."""
    text = without_repeats(" ".join(clean(answer).split()))
    kept = "".join(sentences(text)[:SUMMARY_SENTENCES]).strip()
    kept = shorten(kept, SUMMARY_WORDS)
    if not kept:
        opening = "".join(sentences(source.text.strip())[:2]).strip()
        return Reading(
            shorten(opening, SUMMARY_WORDS), "the model said nothing: opening of the text shown"
        )
    return Reading(kept, cut=_cut(text, kept))


def bullets(answer: str, source: Text) -> Reading:
    """A list of strings, one per line of the answer."""
    lines = [line for line in clean(answer).splitlines() if line.strip()]
    marked = [line for line in lines if _BULLET.match(line)] or lines
    items = [_BULLET.sub("", line).strip().rstrip(";") for line in marked]
    items = list(dict.fromkeys(i for i in items if i))
    if not items:
        items = [s.strip() for s in sentences(source.text) if s.strip()][:POINTS]
        return Reading(items, "the model gave no list: sentences of the text shown")
    return Reading(items)


def key_points(answer: str, source: Text) -> Reading:
    """At most 6 points of at most 14 words."""
    reading = bullets(answer, source)
    points = [shorten(p, POINT_WORDS).rstrip(".") for p in reading.value[:POINTS]]
    return Reading(points, reading.note, _cut(" ".join(reading.value), " ".join(points)))


def table(answer: str, source: Text) -> Reading:
    """Rows of cells, the head first; all rows have the width of the head."""
    rows = []
    for line in clean(answer).splitlines():
        if "|" not in line or re.fullmatch(r"[\s|:-]+", line):
            continue
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    if len(rows) < 2:
        lines = [[s.strip()] for s in sentences(source.text) if s.strip()]
        return Reading([["Text"], *lines], "the model gave no table: sentences of the text shown")
    width = len(rows[0])
    return Reading([(row + [""] * width)[:width] for row in rows])


def proofread(answer: str, source: Text) -> Reading:
    """The corrected text with its edits; an answer that rewrites the text is refused."""
    corrected = _like(source.text, clean(answer, source.text))
    if similarity(source.text, corrected) < LEAST_SIMILAR:
        return Reading(
            Proofread(source.text, ()), "the model's answer was no correction: text unchanged"
        )
    edits = tuple(
        Edit(start, end, source.text[start:end], to)
        for start, end, to in word_edits(source.text, corrected)
    )
    return Reading(Proofread(corrected, edits))


def rewrite(answer: str, source: Text | Change) -> Reading:
    """A new version of the text, with the blanks at its ends."""
    text = _like(source.text, without_repeats(clean(answer, source.text)))
    if not text.strip():
        return Reading(source.text, "the model said nothing: text unchanged")
    return Reading(text)


def replies(answer: str, thread: Thread) -> Reading:
    """Two different replies of at most 8 words."""
    lines = [_BULLET.sub("", line) for line in clean(answer).splitlines()]
    whole = [without_repeats(clean(line)) for line in lines if words(line)]
    found = [shorten(line, REPLY_WORDS).rstrip(" ,;:") for line in whole]
    distinct = list(dict.fromkeys(found))[:2]
    for usual in ("Sounds good, thanks!", "Sorry, I can't."):
        if len(distinct) < 2 and usual not in distinct:
            distinct.append(usual)
    note = "the model gave too few: a usual reply was added" if len(set(found)) < 2 else None
    return Reading(distinct, note, any(map(_cut, whole, found)))


def choice(answer: str, _: object) -> Reading:
    """Whether the answer is yes."""
    return Reading(answer.strip().lower() == "yes")


def unchanged(answer: str, value: Text | Change) -> int:
    """1 if nothing was done, else 0."""
    return int(answer.strip() == value.text.strip())


def lost(answer: str, text: Text) -> int:
    """How many facts of a text are not in its rewriting, and 1 more if nothing was done."""
    return len(unsupported(text.text, answer, KEPT)) + unchanged(answer, text)


def too_long(answer: str, text: str) -> bool:
    """Whether a rewriting of ``text`` is not concise."""
    return len(words(answer)) > CONCISE * len(words(text)) + 1


def long_or_lost(answer: str, text: Text) -> int:
    """The same as :func:`lost`, and 1 more if the rewriting is not concise."""
    return lost(answer, text) + too_long(answer, text.text)


def _cut(whole: str, kept: str) -> bool:
    return len(words(kept)) < len(words(whole))


def _like(source: str, text: str) -> str:
    """``text`` with the blanks at both ends of ``source``."""
    head = source[: len(source) - len(source.lstrip())]
    tail = source[len(source.rstrip()) :]
    return head + text.strip() + tail
