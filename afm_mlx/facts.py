"""Facts that an answer states and its source does not: names, quantities, and what is denied.

A cheap sign of invention, without a model or a dictionary: quantities are compared by what they
mean (:mod:`afm_mlx.quantities`), capitalised words by their letters. A word that begins a sentence
has a capital anyway, so it counts as a name only if it is neither in the source nor a common
word. "Not" counts if the source speaks of the same thing and denies nothing near it.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from afm_mlx.common_words import COMMON
from afm_mlx.quantities import Quantity, borne_out, quantities, runs
from afm_mlx.text import sentences, similarity, words

Kind = Literal["name", "number", "time", "date", "amount", "negation"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LETTERS = re.compile(r"[^\W\d_]+")
_OPENING = re.compile(
    r"(?:^|\n)[\s\"'“‘(*#•–—>|\[-]*(?:\d+[.)]\s+)?[\"'“‘(*_]*$"
    r"|[.!?…:|]\W*\s\W*$"
)
_ENDING = re.compile(
    r"\w{3,}(?:[ts]ions?|ments?|ness|ings?|ingly|edly|ously|ably|ibly|[ai]ble|less|ful|ships?|it(?:y|ies)"
    r"|isms?|ists|[ae]nces?|ional)"
)
_PREFIX = re.compile("un|re|over|pre|mis|dis|in|non|out|under")
_BEFORE = 24  # characters that tell whether a sentence begins
_CLAUSE = 80  # characters after "not" that may say what is not
_FEW = 5
_LIST_NUMBER = re.compile(r"(?:^|\n)\s*\d+[.)]\s")
_STAMMER = re.compile(r"\b([^\W\d]+)(?:[\s,.!]+\1\b){2,}", re.IGNORECASE)
_REPEATED = 0.8  # similarity of sentences
_CONTRACTION = re.compile(r"['’](?:m|d|s|t|ll|re|ve)\b", re.IGNORECASE)
_NOT = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|neither|nor|without|cannot"
    r"|(?:do|does|did|is|are|was|were|has|have|had|ca|wo|would|could|should|must|need|ai)n['’]?t)\b",
    re.IGNORECASE,
)
_AS_GOOD_AS_NOT = re.compile(
    r"\b(?:un\w{4,}|in(?:active|correct|valid)\w*|fail\w*|refus\w*|declin\w*|den(?:y|ied)\w*"
    r"|reject\w*|cancel\w*|clos\w*|miss\w*|lack\w*|stop\w*|out|only|except|until|till|unless"
    r"|instead|rather|hardly|barely|still|yet|wait\w*|pending|lost|avoid\w*|left|zero|free|over"
    r"|gone|wrong)\b",
    re.IGNORECASE,
)
_AUXILIARY = frozenset(
    "a an and any as at be been being but by can could did do does for from get got had has have"
    " he her his i if in is it its just longer me more much my of on or our she so than that the"
    " their them there they this to too us very was we were will with would yet you your".split()
)


@dataclass(frozen=True)
class Claim:
    """Characters ``start`` to ``end`` of an answer state something its source does not."""

    kind: Kind
    text: str
    start: int
    end: int


def unsupported(answer: str, source: str, kinds: Collection[Kind] = KINDS) -> tuple[Claim, ...]:
    """What ``answer`` states and ``source`` does not bear out, in the order of the answer."""
    return tuple(c for c in Source(source).unsupported(answer) if c.kind in kinds)


def without_repeats(text: str) -> str:
    """``text`` without stammering: words said three times on end count once, and sentences
    that nearly repeat an earlier one, with no fact of their own, are left out.
    Small models fall into such loops."""
    text = _STAMMER.sub(r"\1", text)
    kept: list[str] = []
    for sentence in sentences(text):
        repeats = (
            similarity(sentence, k) >= _REPEATED and not unsupported(sentence, k) for k in kept
        )
        if not words(sentence) or not any(repeats):
            kept.append(sentence)
    return "".join(kept)


def opens(text: str, end: int | None = None) -> bool:
    """Whether a word after ``text[:end]`` begins a sentence or an item of a list."""
    end = len(text) if end is None else end
    start = max(0, end - _BEFORE)
    return bool(_OPENING.search("x" * (start > 0) + text[start:end]))


def english(text: str) -> bool:
    """Whether most words of ``text`` are common English ones; text of a few words passes."""
    small = [word for word in _LETTERS.findall(text) if word.islower()]
    return len(small) < _FEW or sum(map(common, small)) >= len(small) / 2


def fold(word: str) -> str:
    """``word`` in small letters without accents."""
    marks = unicodedata.normalize("NFKD", word.lower())
    return "".join(c for c in marks if not unicodedata.combining(c))


class Source:
    """A text that answers are held against; reads it once for many answers."""

    def __init__(self, text: str) -> None:
        self.known = borne_out(text)
        self._codes = f" {' '.join(runs(text))} "
        folded = [fold(w) for w in _LETTERS.findall(text)]
        capitals = re.findall(r"[A-ZÀ-Þ]?[^\WA-ZÀ-Þ\d_]+|[A-ZÀ-Þ]+", text)
        self.words = frozenset(
            [*folded, *(a + b for a, b in pairwise(folded)), *map(fold, capitals)]
        )
        self._initials = "".join(w[0] for w in folded)
        self._english = english(text)
        said = [s.lower() for s in sentences(text)]
        self._denials = {i for i, s in enumerate(said) if _denies(s)}
        self._said: dict[str, set[int]] = defaultdict(set)  # sentences by the stems of their words
        for i, sentence in enumerate(said):
            for word in re.findall(r"[a-z]{3,}", sentence):
                for size in range(3, 6):
                    self._said[word[:size]].add(i)

    def unsupported(self, answer: str) -> tuple[Claim, ...]:
        """What ``answer`` states and this text does not bear out."""
        found = [*self._quantities(answer), *self._negations(answer)]
        taken = {i for q in quantities(answer) for i in range(q.start, q.end)}
        found += self._names(answer, taken)
        return tuple(sorted(found, key=lambda c: c.start))

    def _quantities(self, answer: str) -> Iterator[Claim]:
        numbers = {i for m in _LIST_NUMBER.finditer(answer) for i in range(*m.span())}
        for quantity in quantities(answer):
            words = answer[quantity.start : quantity.end]
            if quantity.start in numbers or not _claims(quantity, answer, words):
                continue
            if not self._bears_out(quantity):
                yield Claim(quantity.kind, words, quantity.start, quantity.end)

    def _bears_out(self, quantity: Quantity) -> bool:
        if quantity.readings & self.known:
            return True
        for reading in quantity.readings:
            match reading:
                case ("code", str(code)) if f" {code} " in self._codes:
                    return True
                case ("date", month, int(day)):  # "June 12 to 14"
                    if {("month", month), ("loose", float(day))} <= self.known:
                        return True
        return False

    def _names(self, answer: str, taken: set[int]) -> Iterator[Claim]:
        start = end = -1
        for match in _LETTERS.finditer(answer):
            if match.start() in taken or not self._invents(match, answer):
                continue
            if start >= 0 and answer[end : match.start()].strip(" ") == "":
                end = match.end()
                continue
            if start >= 0:
                yield Claim("name", answer[start:end], start, end)
            start, end = match.span()
        if start >= 0:
            yield Claim("name", answer[start:end], start, end)

    def _invents(self, match: re.Match[str], answer: str) -> bool:
        word = match[0]
        if not any(c.isupper() for c in word) or word == "I":
            return False
        if self.knows(word):
            return False
        if not common(fold(word)):  # or words of a language whose common ones are not known
            return self._english or not opens(answer, match.start())
        contraction = _CONTRACTION.match(answer, match.end())
        shouted = len(word) > 1 and word.isupper()
        return not (contraction or shouted or opens(answer, match.start()))

    def knows(self, word: str) -> bool:
        """Whether a name is in the text: case, accents, plural aside; or its initials are."""
        name = fold(word)
        if len(name) == 1:
            return name in self._initials
        forms = {name, f"{name}s", f"{name}es", name.removesuffix("s"), name.removesuffix("es")}
        if forms & self.words:
            return True
        return word.isupper() and len(word) < 6 and name in self._initials

    def _negations(self, answer: str) -> Iterator[Claim]:
        for match in _NOT.finditer(answer):
            near = answer[match.end() : match.end() + _CLAUSE]
            clause = re.split(r"[.,;:!?\n]", near, maxsplit=1)[0]
            content = (w for w in re.findall(r"[a-z]+", clause.lower()) if w not in _AUXILIARY)
            head = next((w for w in content if len(w) > 2), None)
            if head is None:
                continue
            about = self._said.get(head[: max(3, min(5, len(head) - 2))], set())
            denied = {j for i in about for j in (i - 1, i, i + 1)} & self._denials
            if not (denied if about else self._denials):
                yield Claim("negation", match[0], *match.span())


def common(word: str) -> bool:
    """Whether ``word``, in small letters, is or looks like a common English word."""
    if word in COMMON or word.removesuffix("s") in COMMON or _ENDING.fullmatch(word):
        return True
    prefix = _PREFIX.match(word)
    parts = [(word[:i], word[i:]) for i in range(3, len(word) - 2)]
    return bool(prefix and word[prefix.end() :] in COMMON) or any(
        {first, second} <= COMMON for first, second in parts
    )


def _denies(sentence: str) -> bool:
    return bool(_NOT.search(sentence) or _AS_GOOD_AS_NOT.search(sentence))


def _claims(quantity: Quantity, answer: str, words: str) -> bool:
    """Whether it is more than a word that happens to look like a quantity."""
    if words.lower() in ("one", "second"):
        return False
    if quantity.kind == "date" and words.isalpha() and len(words) <= 5:  # may, sun, march, "tues"
        full = len(words) > 4 and words.lower() != "march"
        return full or (words[0].isupper() and not opens(answer, quantity.start))
    return True
