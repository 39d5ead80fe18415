"""Rules of thumb that tell written English from menus, tables and stammering.

Those of Gopher (arXiv 2112.11446, appendix A1.1 and table A1) with the paper's limits, and C4's
for placeholder text (arXiv 1910.10683). They count over words between blanks and need some
dozens of words to mean anything, so conversations below the smallest document only have to
contain a letter.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from afm_mlx.errors import InputError

STOP_WORDS = frozenset("the be to of and that have with".split())
_SIGNS = ".,;:!?\"'`()[]-–—"
_BULLETS = ("-", "*", "•", "‣", "◦", "·")
_ELLIPSES = ("...", "…")
_PARAGRAPH_END = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Rules:
    """Limits a text must keep; shares are between 0 and 1.

    Attributes:
        min_words: size of the smallest document; shorter texts break a rule, while shorter
            conversations are examined no further.
        min_mean_length: mean length of words in characters.
        max_symbols: ``#`` signs by words, and ellipses by words.
        min_alphabetic: share of words with at least one letter.
        min_stop_words: how many of :data:`STOP_WORDS` must occur.
        max_duplicate_lines: share of lines that were there before; ..._characters: share of
            the text that they make up. Likewise for paragraphs.
        max_top_ngrams: ``(n, share)``; what the most frequent n words may make up of the text.
        max_duplicate_ngrams: ``(n, share)``; what all n words said before may make up of it.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_mean_length: float = 3.0
    max_mean_length: float = 10.0
    max_symbols: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2
    max_duplicate_lines: float = 0.3
    max_duplicate_line_characters: float = 0.2
    max_duplicate_paragraphs: float = 0.3
    max_duplicate_paragraph_characters: float = 0.2
    max_top_ngrams: tuple[tuple[int, float], ...] = ((2, 0.2), (3, 0.18), (4, 0.16))
    max_duplicate_ngrams: tuple[tuple[int, float], ...] = (
        (5, 0.15),
        (6, 0.14),
        (7, 0.13),
        (8, 0.12),
        (9, 0.11),
        (10, 0.10),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= self.max_words:
            raise InputError(f"min_words must be between 0 and {self.max_words} (max_words)")

    def broken(self, text: str, conversation: bool = False) -> str | None:
        """The first rule that ``text`` breaks, in a few words, or ``None``."""
        # Tokenised corpora (WikiText) set signs apart: they are no words.
        words = [word for word in text.split() if word.strip(_SIGNS)]
        if not any(c.isalpha() for c in text):
            return "no letters"
        if len(words) < self.min_words:
            return None if conversation else f"fewer than {self.min_words} words"
        return next(self._of_words(text, words), None) or next(self._of_repeats(text, words), None)

    def _of_words(self, text: str, words: list[str]) -> Iterator[str]:
        if len(words) > self.max_words:
            yield f"more than {self.max_words} words"
        mean = sum(map(len, words)) / len(words)
        if mean < self.min_mean_length:
            yield "words too short on average"
        if mean > self.max_mean_length:
            yield "words too long on average"
        if text.count("#") > self.max_symbols * len(words):
            yield "too many hash signs"
        if sum(text.count(e) for e in _ELLIPSES) > self.max_symbols * len(words):
            yield "too many ellipses"
        lines = _lines(text)
        if sum(line.startswith(_BULLETS) for line in lines) > self.max_bullet_lines * len(lines):
            yield "too many bullet lines"
        if sum(line.endswith(_ELLIPSES) for line in lines) > self.max_ellipsis_lines * len(lines):
            yield "too many lines that end in an ellipsis"
        alphabetic = sum(any(c.isalpha() for c in word) for word in words)
        if alphabetic < self.min_alphabetic * len(words):
            yield "too few words with letters"
        plain = {word.strip(_SIGNS).lower() for word in words}
        if len(STOP_WORDS & plain) < self.min_stop_words:
            yield "too few stop words"
        if "lorem ipsum" in text.lower():
            yield "placeholder text"

    def _of_repeats(self, text: str, words: list[str]) -> Iterator[str]:
        lines = _lines(text)
        again = _repeats(lines)
        if len(again) > self.max_duplicate_lines * len(lines) or sum(
            map(len, again)
        ) > self.max_duplicate_line_characters * len(text):
            yield "too many repeated lines"
        paragraphs = [p.strip() for p in _PARAGRAPH_END.split(text) if p.strip()]
        again = _repeats(paragraphs)
        if len(again) > self.max_duplicate_paragraphs * len(paragraphs) or sum(
            map(len, again)
        ) > self.max_duplicate_paragraph_characters * len(text):
            yield "too many repeated paragraphs"
        for n, share in self.max_top_ngrams:
            if top_ngram_share(words, n) > share:
                yield f"one {n}-gram too often"
        for n, share in self.max_duplicate_ngrams:
            if duplicate_ngram_share(words, n) > share:
                yield f"too many repeated {n}-grams"


def top_ngram_share(words: Sequence[str], n: int) -> float:
    """Share of the characters of ``words`` in the n-gram that makes up most; 0 if none repeats."""
    counts = Counter(_ngrams(words, n))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0.0
    longest = max(sum(map(len, gram)) for gram, count in counts.items() if count == most)
    return most * longest / sum(map(len, words))


def duplicate_ngram_share(words: Sequence[str], n: int) -> float:
    """Share of the characters of ``words`` in n-grams that were there before; each counts once."""
    seen: set[tuple[str, ...]] = set()
    repeated = bytearray(len(words))
    for i, gram in enumerate(_ngrams(words, n)):
        if gram in seen:
            repeated[i : i + n] = b"\1" * n
        seen.add(gram)
    inside = sum(len(word) for word, again in zip(words, repeated, strict=True) if again)
    return inside / max(1, sum(map(len, words)))


def _ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(n)), strict=False)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _repeats(pieces: Sequence[str]) -> list[str]:
    """Those of ``pieces`` that were there before."""
    seen: set[str] = set()
    again = []
    for piece in pieces:
        if piece in seen:
            again.append(piece)
        seen.add(piece)
    return again
