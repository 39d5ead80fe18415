"""What the writing tools leave alone: code, quoted lines, links and e-mail addresses.

Fenced code and quoted lines are blocks: lines of their own that no model gets to see. Inline
code, links and addresses stand within sentences; whether an answer still has them word for word
is checked after it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from afm_mlx.text import sentences, similarity

Kind = Literal["code block", "quote", "code", "link", "address"]

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_QUOTE = re.compile(r" {0,3}>(?:[\s>]|$)")
_INLINE = re.compile(
    r"(?P<code>(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<link>!?\[[^\]\n]{0,200}\]\([^()\s]*(?:\([^()\s]*\)[^()\s]*)*(?: \"[^\"\n]*\")?\)"
    r"|(?:https?|ftp)://[^\s<>\"`]+|\bwww\.[^\s<>\"`]+)"
    r"|(?P<address>(?<![\w.+-])(?:mailto:)?[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]+)+)"
)
_ALIKE = 0.2
"""Share of words that a sentence has in common with what became of it, at least."""


@dataclass(frozen=True)
class Protected:
    """Characters ``start`` to ``end`` of a text, which must stay as they are."""

    kind: Kind
    start: int
    end: int
    text: str

    @property
    def block(self) -> bool:
        """Whether it is made of lines of its own."""
        return self.kind in ("code block", "quote")


@dataclass(frozen=True)
class Stretch:
    """A part of a text: ``free`` to be worked on, or a block to be left alone."""

    text: str
    start: int
    free: bool


def protected(text: str) -> tuple[Protected, ...]:
    """What is protected in ``text``, in its order."""
    found, free = _blocks(text), 0
    out: list[Protected] = []
    for block in [*found, Protected("quote", len(text), len(text), "")]:
        for match in _INLINE.finditer(text, free, block.start):
            out += _inline(match)
        free = block.end
        out += [block] if block.text else []
    return tuple(out)


def _blocks(text: str) -> list[Protected]:
    """Fenced code and runs of quoted lines, each with its last line's end."""
    out: list[Protected] = []
    position, opened, fence = 0, 0, ""
    for line in text.splitlines(keepends=True):
        end = position + len(line)
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                out.append(Protected("code block", opened, end, text[opened:end]))
                fence = ""
        elif mark:
            fence, opened = mark[1], position
        elif _QUOTE.match(line):
            joins = out and out[-1].kind == "quote" and out[-1].end == position
            start = out.pop().start if joins else position
            out.append(Protected("quote", start, end, text[start:end]))
        position = end
    if fence:  # never closed: code to the end, as in Markdown
        out.append(Protected("code block", opened, position, text[opened:]))
    return out


def _inline(match: re.Match[str]) -> Iterable[Protected]:
    kind: Kind = "code" if match["code"] else "link" if match["link"] else "address"
    found = match[0]
    if kind == "address":
        found = found.rstrip(".-")
    elif kind == "link" and not found.endswith(")"):
        found = found.rstrip(".,;:!?'*_]}’”")
    while kind == "link" and found.endswith(")") and found.count(")") > found.count("("):
        found = found[:-1].rstrip(".,;:!?'*_]}’”")
    yield Protected(kind, match.start(), match.start() + len(found), found)


def stretches(text: str, found: Sequence[Protected]) -> list[Stretch]:
    """``text`` cut at its blocks; joined, the stretches give the text."""
    out, position = [], 0
    for block in (p for p in found if p.block):
        out += [Stretch(text[position : block.start], position, True)]
        out += [Stretch(block.text, block.start, False)]
        position = block.end
    out += [Stretch(text[position:], position, True)]
    # Blanks between two blocks are nothing to work on.
    return [Stretch(s.text, s.start, s.free and bool(s.text.strip())) for s in out if s.text]


def touches(start: int, end: int, to: str, found: Iterable[Protected]) -> bool:
    """Whether an edit of characters ``start`` to ``end`` to ``to`` alters something protected."""
    for p in found:
        if start < p.end and end > p.start:
            return True
        # Letters put directly before or behind it become part of it.
        if start == end == p.start and to and not to[-1].isspace():
            return True
        if start == end == p.end and to and not to[0].isspace() and not p.block:
            return True
    return False


def lost(found: Iterable[Protected], answer: str) -> tuple[Protected, ...]:
    """Those that ``answer`` no longer has word for word, or not as often."""
    have: Counter[str] = Counter()
    out = []
    for p in found:
        have[p.text] += 1
        if have[p.text] > _count(p, answer):
            out.append(p)
    return tuple(out)


def _count(p: Protected, answer: str) -> int:
    if p.kind not in ("link", "address"):
        return answer.count(p.text)
    # An address that goes on with more letters is another address.
    whole = rf"(?<![\w@.+/-]){re.escape(p.text)}(?![\w@/-])(?![.:?&=#+]\w)"
    return len(re.findall(whole, answer))


def keep_sentence(source: str, answer: str, kept: Protected) -> str:
    """``answer`` with the sentence of ``source`` around ``kept`` as it was.

    It takes the place of the sentence that shares the most words with it, and where none does,
    it stands as far down the answer as it stood in the source.
    """
    before, after = sentences(source), sentences(answer)
    original, index, position = "", 0, 0
    for i, sentence in enumerate(before):  # code may hold what looks like the end of one
        if position < kept.end and kept.start < position + len(sentence):
            original, index = original + sentence, i
        position += len(sentence)
    alike = [similarity(original, sentence) for sentence in after]
    best = max(range(len(after)), key=alike.__getitem__, default=0)
    if alike and alike[best] >= _ALIKE:
        sentence = after[best]
        blanks = sentence[len(sentence.rstrip()) :]
        after[best] = original.rstrip() + blanks
        return "".join(after)
    place = round((index + 1) * len(after) / len(before))
    head, tail = "".join(after[:place]), "".join(after[place:])
    head += "" if not head or head[-1].isspace() else " "
    blanks = original[len(original.rstrip()) :] or " "
    return head + original.rstrip() + (blanks + tail if tail.strip() else tail)
