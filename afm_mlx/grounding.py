"""Grounded decoding: a name, number, amount or time can only be written if the source has it.

A :class:`Text` says before each token which ones may follow. Words that hold a capital, a digit or
a sign like $ or % are marked: they are spelled out of what the source bears out, case aside
(:mod:`afm_mlx.facts`); at the beginning of a sentence a common word will do too. Small words are
free, but for those that say a number or a day.

A tokenizer's vocabulary is read once. What may begin a word is a mask that a source makes in a
millisecond or two; what may go on in a word is found by spelling on from it.
"""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from functools import cache, lru_cache

from afm_mlx.alignment import token_bytes
from afm_mlx.common_words import COMMON
from afm_mlx.errors import ModelError
from afm_mlx.facts import Source, opens
from afm_mlx.quantities import DAY_NAMES, MONTH_NAMES, NUMBER_WORDS, Reading, quantities
from afm_mlx.tokenizer import Tokenizer

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

_CONNECTORS = frozenset(".,:/")
_SIGNS = "$€£¥₹%"
_LETTER = rf"(?:[^\W_]|[{_SIGNS}])"
_WORD = re.compile(rf"{_LETTER}+(?:(?<=\d)[.,:/](?=\d){_LETTER}+)*")
_TOKEN = re.compile(
    rf"(?P<head>{_LETTER}*)(?P<gap>(?:(?!{_LETTER}).)*)(?P<word>{_LETTER}*)(?P<more>.*)", re.DOTALL
)
_NUMBER = re.compile(rf"([{_SIGNS}]?)(\d+(?:[.,:/]\d+)*)(%?)")
_SAYS: dict[str, Reading] = {
    **{word: ("number", float(n)) for word, n in NUMBER_WORDS.items() if word != "one"},
    **{name: ("day", n) for n, name in enumerate(DAY_NAMES)},
    **{name: ("month", n) for n, name in enumerate(MONTH_NAMES, 1) if name not in ("march", "may")},
    **{word: ("relative", word) for word in ("tomorrow", "yesterday", "tonight")},
    **{"noon": ("time", 720), "midday": ("time", 720), "midnight": ("time", 0)},
}
"""Words that are held to the source though they are no names, and what they say."""
_TAIL = 32  # characters that tell whether a sentence begins


class Vocabulary:
    """The tokens of a tokenizer by what they do to the word that is being written.

    Args:
        pieces: bytes of every token; none for special ones, which end a word.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)
        size = len(self.pieces)
        self.free: Mask = np.zeros(size, np.bool_)  # has nothing marked
        self.has_head: Mask = np.zeros(size, np.bool_)  # goes on in a word
        self.has_digit: Mask = np.zeros(size, np.bool_)  # goes on in a number
        self.gap_of: npt.NDArray[np.intp] = np.zeros(size, np.intp)  # what stands before its word
        self.begin: dict[str, list[int]] = defaultdict(list)  # by the word that they begin
        self.spell: dict[str, list[int]] = defaultdict(list)  # by the letters that they are
        self.ends: dict[str, list[int]] = defaultdict(list)  # the same, with something after
        self.connect: dict[str, list[int]] = defaultdict(list)
        self.pronoun: list[int] = []
        self.leads: list[tuple[int, str, bytes]] = []  # a gap and first bytes of a character
        self.trails: list[int] = []  # begin with later bytes of a character
        gaps = {"": 0}
        for i, piece in enumerate(self.pieces):
            text, rest = decode(piece)
            if text is None:
                self.trails.append(i)
            elif rest:
                if not _WORD.search(text):
                    self.leads.append((i, text, rest))
            else:
                self._sort(i, text, gaps)
        self.gaps = list(gaps)
        self.common: Mask = np.zeros(size, np.bool_)
        for word, ids in self.begin.items():
            self.common[ids] = word in _beginnings()
        self._common = sorted(COMMON)
        self._spelled: dict[str, list[int]] = {}

    def _sort(self, i: int, text: str, gaps: dict[str, int]) -> None:
        match = _TOKEN.fullmatch(text)
        assert match is not None  # it matches any text
        head, gap, word, more = match.groups()
        self.has_head[i] = bool(head)
        self.has_digit[i] = head[:1].isdigit() or (gap in _CONNECTORS and word[:1].isdigit())
        several = bool(more or (head and gap))
        said = several and not _SAYS.keys().isdisjoint(_WORD.findall(text))
        self.free[i] = not marked(text) and not said
        if several:  # free, or never allowed
            self.ends[head.lower()].append(i)
            return
        if head or word:
            self.gap_of[i] = gaps.setdefault(gap, len(gaps))
            self.begin[(head or word).lower()].append(i)
        if head:
            self.spell[head.lower()].append(i)
        if gap in _CONNECTORS and not word:
            self.connect[gap].append(i)
        if (head or word) == "I":
            self.pronoun.append(i)

    def spelling(self, words: Sequence[str], begun: str) -> list[int]:
        """Tokens whose letters go on from ``begun`` to one of the sorted ``words``."""
        rests = {word[len(begun) :] for word in _starting(words, begun)}
        parts = {rest[:n] for rest in rests for n in range(1, len(rest) + 1)}
        return [i for part in parts for i in self.spell.get(part, ())]

    def spelling_common(self, begun: str) -> list[int]:
        """The same for all common words; kept, since there are many."""
        if begun not in self._spelled:
            self._spelled[begun] = self.spelling(self._common, begun)
        return self._spelled[begun]


@lru_cache(maxsize=2)
def vocabulary(tokenizer: Tokenizer) -> Vocabulary | None:
    """The vocabulary of ``tokenizer``, read once; ``None`` if the bytes of tokens are unknown."""
    try:
        return Vocabulary(token_bytes(tokenizer))
    except ModelError:
        return None


class Grounding:
    """What ``source`` allows to be written with the tokens of ``vocabulary``."""

    def __init__(self, vocabulary: Vocabulary, source: str) -> None:
        self.vocabulary = vocabulary
        facts = Source(source)
        words = {*facts.words, *_written(source)}
        words |= {str(int(n)) for kind, n in _pairs(facts.known) if kind == "number" and n % 1 == 0}
        words |= {word for word, reading in _SAYS.items() if reading in facts.known}
        self.words = sorted(words)
        self._complete = words
        self._beginnings = {word[:n] for word in words for n in range(1, len(word) + 1)}
        self._blocked = _SAYS.keys() - words
        self.inside = vocabulary.free.copy()
        for beginning in self._beginnings:
            self.inside[vocabulary.begin.get(beginning, [])] = True
        self.inside[vocabulary.pronoun] = True
        self.opening = self.inside | vocabulary.common
        for word in self._blocked - self._beginnings:
            self.opening[vocabulary.begin.get(word, [])] = False
            self.inside[vocabulary.begin.get(word, [])] = False

    def start(self) -> "Text":
        """An answer of which nothing is written yet."""
        return Text(self)

    def may_end(self, word: str, opening: bool) -> bool:
        """Whether ``word`` may stand as it is."""
        key = word.lower()
        if key in self._blocked:
            return False
        common = opening and word[0].isupper() and key in COMMON
        return not marked(word) or key in self._complete or word == "I" or common

    def may_begin(self, word: str, opening: bool) -> bool:
        """Whether ``word`` may stand as it is, or with more letters."""
        key = word.lower()
        if key in self._beginnings:
            return True
        if key in self._blocked:
            return False
        common = opening and word[0].isupper() and key in _beginnings()
        return not marked(word) or word == "I" or common

    def going_on(self, word: str, opening: bool) -> Mask:
        """Tokens that may follow within ``word``."""
        vocabulary, key = self.vocabulary, word.lower()
        mask = np.zeros_like(vocabulary.free)
        if not marked(word):
            mask |= vocabulary.free & vocabulary.has_head
        elif opening:
            mask[vocabulary.spelling_common(key)] = True
        for blocked in self._blocked:
            if blocked.startswith(key):
                rest = blocked[len(key) :]
                mask[vocabulary.spell.get(rest, [])] = False
                mask[vocabulary.ends.get(rest, [])] = False
        mask[vocabulary.spelling(self.words, key)] = True
        return mask


class Text:
    """An answer on its way: which tokens may follow, and what is written."""

    def __init__(self, grounding: Grounding) -> None:
        self._grounding = grounding
        self._tail = ""
        self._word, self._opening = "", False  # the word at the end, if it began a sentence
        self._connector = ""  # after a number: it may go on
        self._pending = b""  # first bytes of a character

    @property
    def ended(self) -> bool:
        """Never: an answer ends with the model's own token."""
        return False

    def allowed(self) -> Mask:
        """Which tokens ``[vocabulary]`` may follow; never none."""
        mask = self._completions() if self._pending else self._followers()
        return mask if mask.any() else self._grounding.vocabulary.free

    def advance(self, token: int) -> None:
        """Write ``token``."""
        piece = self._grounding.vocabulary.pieces[token]
        if not piece:  # special tokens end a word
            self._word = self._connector = ""
        data = self._pending + piece
        text, self._pending = decode(data)
        for character in data.decode(errors="replace") if text is None else text:
            self._write(character)

    def _write(self, character: str) -> bool:
        """Write one character; false if it ends a word that may not end so."""
        fine, goes_on = True, bool(self._word)
        if self._connector:
            goes_on = character.isdecimal()
            self._word += self._connector if goes_on else ""
        elif self._word[-1:].isdecimal() and character in _CONNECTORS:
            self._connector = character
            self._tail = (self._tail + character)[-_TAIL:]
            return True
        self._connector = ""
        letter = bool(_WORD.match(character))
        if self._word and not (goes_on and letter):
            fine = self._grounding.may_end(self._word, self._opening)
            self._word = ""
        if letter:
            self._opening = self._opening if self._word else opens(self._tail)
            self._word += character
        self._tail = (self._tail + character)[-_TAIL:]
        return fine

    def _fits(self) -> bool:
        """Whether the word at the end may stand so, or go on."""
        if self._connector:
            return self._ends() or self._connects(self._connector)
        return not self._word or self._grounding.may_begin(self._word, self._opening)

    def _ends(self) -> bool:
        return not self._word or self._grounding.may_end(self._word, self._opening)

    def _connects(self, connector: str) -> bool:
        return self._grounding.may_begin(self._word + connector, False)

    def _followers(self) -> Mask:
        grounding, vocabulary = self._grounding, self._grounding.vocabulary
        ends = self._ends()
        mask = np.zeros_like(vocabulary.free)
        if ends:
            opening = np.array([opens(self._tail + gap) for gap in vocabulary.gaps])
            mask = np.where(opening[vocabulary.gap_of], grounding.opening, grounding.inside)
        if self._connector:
            mask &= ~vocabulary.has_digit
            mask |= grounding.going_on(self._word + self._connector, False)
        elif self._word:
            mask &= ~vocabulary.has_head
            if self._word[-1].isdecimal():
                mask &= ~vocabulary.has_digit
                for connector in filter(self._connects, _CONNECTORS):
                    mask[vocabulary.connect.get(connector, [])] = True
            mask |= grounding.going_on(self._word, self._opening)
        mask[[i for i, gap, lead in vocabulary.leads if self._leads(gap, lead, ends)]] = True
        return mask

    def _leads(self, gap: str, lead: bytes, ends: bool) -> bool:
        """Whether a character with first bytes ``lead`` may come after ``gap``."""
        if gap or self._connector or not marked(self._word):
            return ends
        rests = _starting(self._grounding.words, self._word.lower())
        begun = len(self._word)
        return any(word[begun:].encode().startswith(lead) for word in rests)

    def _completions(self) -> Mask:
        mask = np.zeros_like(self._grounding.vocabulary.free)
        for i in self._grounding.vocabulary.trails:
            data = self._pending + self._grounding.vocabulary.pieces[i]
            text, rest = decode(data)
            if text is None:
                continue
            if not text:
                mask[i] = self._leads("", rest, self._ends())
                continue
            twin = copy(self)
            fine = all([twin._write(character) for character in text])
            mask[i] = fine and twin._fits() and not rest
        return mask


@cache
def _beginnings() -> frozenset[str]:
    """What common words begin with."""
    return frozenset(word[:n] for word in COMMON for n in range(1, len(word) + 1))


def marked(word: str) -> bool:
    """Whether ``word`` looks like a name or a number."""
    return any(c.isupper() or c in _SIGNS or (c.isnumeric() and not c.isalpha()) for c in word)


def decode(data: bytes) -> tuple[str | None, bytes]:
    """The whole characters of UTF-8 ``data`` and the bytes of one that is not complete; no text
    if it is no UTF-8."""
    try:
        return data.decode(), b""
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return None, b""
        return data[: error.start].decode(), data[error.start :]


def _starting(words: Sequence[str], begun: str) -> Iterator[str]:
    """Those of the sorted ``words`` that begin with ``begun`` and are longer."""
    for n in range(bisect_left(words, begun), len(words)):
        if not words[n].startswith(begun):
            return
        if words[n] != begun:
            yield words[n]


def _written(source: str) -> Iterator[str]:
    """Words and numbers of ``source``, and its times in other ways of writing."""
    for word in _WORD.findall(source.lower()):
        yield word
        for sign, number, percent in _NUMBER.findall(word):
            yield from (number, sign + number, number + percent)
    for quantity in quantities(source):
        times = [int(value) for kind, value in _pairs(quantity.readings) if kind == "time"]
        if quantity.kind == "time" and len(times) == 1:
            yield from _clocks(*divmod(times[0], 60))


def _clocks(hour: int, minute: int) -> Iterator[str]:
    short, half = hour % 12 or 12, "pm" if hour >= 12 else "am"
    yield from (f"{hour}:{minute:02}", f"{hour:02}:{minute:02}", f"{short}:{minute:02}")
    yield f"{short}:{minute:02}{half}"
    if not minute:
        yield f"{short}{half}"


def _pairs(readings: Collection[Reading]) -> list[tuple[str, float]]:
    """Readings that are one number."""
    return [
        (str(r[0]), float(r[1])) for r in readings if isinstance(r[-1], int | float) and len(r) == 2
    ]
