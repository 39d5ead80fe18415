"""Two tokenizers, one text: which tokens of a student and of its teacher cover the same bytes.

:func:`align` pairs the smallest groups of tokens that begin and end at the same places, as TRL's
GOLD trainer does. An :class:`Aligner` re-tokenises a student's batch for a teacher with another
vocabulary and lists where both models stand before the same text. A trainer then has the logits
of one chunk in memory at a time:

    aligner = Aligner(student_tokenizer, teacher_tokenizer)
    vocabularies = aligner.vocabularies(student_width, teacher_width)
    batch = aligner.prepare(tokens, segments, max_length)  # numpy, can run ahead
    taught = teacher(mx.array(batch.tokens))  # hidden states [B, Lt, D]
    for part in batch.targets.chunks():
        rows = student_head(part.student.of(hidden)), teacher_head(part.teacher.of(taught))
        loss += mx.sum(span_loss(*rows, part, vocabularies))
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile

from afm_mlx.cross_vocabulary import MAX_GROUP, Ints, Rows, Side, SpanTargets, Vocabularies
from afm_mlx.errors import ModelError
from afm_mlx.tokenizer import Tokenizer

import numpy as np
import numpy.typing as npt

LOOKAHEAD = 8
"""Bytes that must agree before two texts that differed count as aligned again."""


@dataclass(frozen=True)
class Span:
    """Tokens ``student[0]`` to ``student[1]`` and ``teacher[0]`` to ``teacher[1]``, ends
    excluded, cover the same bytes."""

    student: tuple[int, int]
    teacher: tuple[int, int]


# --- vocabularies ---------------------------------------------------------------------------


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the bytes: printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in printable)
    return {
        **{chr(b): b for b in printable},
        **{chr(256 + n): b for n, b in enumerate(others)},
    }


_ALPHABET = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[c] for c in token)
    except KeyError:
        return b""


def _sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every token, by id; ``b""`` for special tokens and ids without a token.

    Raises:
        ModelError: the vocabulary is neither byte-level BPE nor like SentencePiece's.
    """
    backend = tokenizer.backend
    parts = (backend.decoder, backend.pre_tokenizer)
    kinds = "".join(part.__getstate__().decode() for part in parts if part is not None)
    byte_level = '"ByteLevel"' in kinds
    if not byte_level and not any(k in kinds for k in ('"ByteFallback"', '"Metaspace"', "▁")):
        raise ModelError(
            "the tokenizer is neither byte-level nor SentencePiece-like: choose another teacher"
        )
    vocabulary = backend.get_vocab(with_added_tokens=True)
    out = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        out[i] = _byte_level(token) if byte_level else _sentence_piece(token)
    for i, added in backend.get_added_tokens_decoder().items():
        content = added.content if byte_level else added.content.replace("▁", " ")
        out[i] = b"" if added.special else content.encode()
    return out


def _markers(tokenizer: Tokenizer) -> dict[str, int]:
    added = tokenizer.backend.get_added_tokens_decoder()
    return {token.content: i for i, token in added.items() if token.special}


def common_markers(student: Tokenizer, teacher: Tokenizer) -> dict[int, int]:
    """Ids of the student's special tokens and of the teacher's with the same names."""
    theirs = _markers(teacher)
    return {i: theirs[name] for name, i in _markers(student).items() if name in theirs}


def common_tokens(
    student: Tokenizer, teacher: Tokenizer, markers: Mapping[int, int] | None = None
) -> tuple[Ints, Ints]:
    """Ids ``[C]`` in either vocabulary of the tokens both have: those with the same bytes, and
    ``markers``, which are the special tokens of the same name unless given."""
    # Of two ids with the same bytes the later one: byte-fallback tokens come first.
    ours = {piece: i for i, piece in enumerate(token_bytes(student)) if piece}
    theirs = {piece: i for i, piece in enumerate(token_bytes(teacher)) if piece}
    pairs = [(i, theirs[piece]) for piece, i in ours.items() if piece in theirs]
    pairs += (common_markers(student, teacher) if markers is None else markers).items()
    one_to_one = {theirs: ours for ours, theirs in sorted(pairs, reverse=True)}
    both = np.array(sorted((o, t) for t, o in one_to_one.items()), np.int32).reshape(-1, 2)
    return both[:, 0], both[:, 1]


# --- alignment ------------------------------------------------------------------------------


class _Pieces:
    """Tokens with text, where they lie in it, and where bytes occur at a token's start."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.places = [k for k, piece in enumerate(pieces) if piece]
        self.offsets = list(accumulate((len(pieces[k]) for k in self.places), initial=0))
        self.text = b"".join(pieces)
        self._starts: dict[bytes, list[int]] | None = None

    def key(self, n: int) -> bytes:
        return self.text[self.offsets[n] : self.offsets[n] + LOOKAHEAD]

    def next_start(self, key: bytes, least: int) -> int | None:
        """The first token from ``least`` on that begins with the bytes ``key``."""
        if self._starts is None:
            self._starts = {}
            for n in range(len(self.places)):
                self._starts.setdefault(self.key(n), []).append(n)
        found = self._starts.get(key, [])
        at = bisect_left(found, least)
        return found[at] if at < len(found) else None

    def tokens(self, start: int, stop: int) -> tuple[int, int] | None:
        """Places of tokens with text, or ``None`` if a marker lies among them."""
        first, last = self.places[start], self.places[stop - 1]
        return (first, last + 1) if last - first == stop - 1 - start else None


def align(
    student_pieces: Sequence[bytes], teacher_pieces: Sequence[bytes]
) -> tuple[list[Span], int]:
    """Smallest groups of tokens that cover the same bytes, and how many bytes have none.

    A piece ``b""`` is a marker: it belongs to no span. Where the texts differ (a tokenizer that
    normalises, or puts a blank before the text), tokens are left out up to the nearest place
    where both begin a token and the next ``LOOKAHEAD`` bytes agree.

    Returns:
        spans in the order of the text, and the student's bytes that are in none.
    """
    ours, theirs = _Pieces(student_pieces), _Pieces(teacher_pieces)
    spans: list[Span] = []
    skipped = i = a = 0
    while i < len(ours.places) and a < len(theirs.places):
        end = _group(ours, theirs, i, a)
        j, b = end or _resume(ours, theirs, i, a)
        tokens = ours.tokens(i, j) if end else None
        teacher_tokens = theirs.tokens(a, b) if end else None
        if tokens and teacher_tokens:
            spans.append(Span(tokens, teacher_tokens))
        else:
            skipped += ours.offsets[j] - ours.offsets[i]
        i, a = j, b
    return spans, skipped + len(ours.text) - ours.offsets[i]


def _group(ours: _Pieces, theirs: _Pieces, i: int, a: int) -> tuple[int, int] | None:
    """Where the group from ``i`` and ``a`` ends; ``None`` if the texts differ before that."""
    start, teacher_start = ours.offsets[i], theirs.offsets[a]
    j, b, seen = i + 1, a + 1, 0
    while j < len(ours.offsets) and b < len(theirs.offsets):
        size, teacher_size = ours.offsets[j] - start, theirs.offsets[b] - teacher_start
        least = min(size, teacher_size)
        if (
            ours.text[start + seen : start + least]
            != theirs.text[teacher_start + seen : teacher_start + least]
        ):
            return None
        if size == teacher_size:
            return j, b
        j, b, seen = j + (size < teacher_size), b + (teacher_size < size), least
    return None


def _resume(ours: _Pieces, theirs: _Pieces, i: int, a: int) -> tuple[int, int]:
    """The nearest pair of tokens after ``i`` and ``a`` from which the texts agree again."""
    best, least = (len(ours.places), len(theirs.places)), len(ours.text) + len(theirs.text)
    for j in range(i, len(ours.places)):
        passed = ours.offsets[j] - ours.offsets[i]
        if passed >= least:
            break
        b = theirs.next_start(ours.key(j), a + (j == i))
        if b is not None and passed + theirs.offsets[b] - theirs.offsets[a] < least:
            best, least = (j, b), passed + theirs.offsets[b] - theirs.offsets[a]
    return best


# --- batches --------------------------------------------------------------------------------


@dataclass(frozen=True)
class TeacherBatch:
    """The text of a student's batch in the teacher's tokens.

    Attributes:
        tokens, segments: ``[B, Lt]``, packed as the student's; segment 0 is padding.
        targets: the spans both models can be compared at.
        skipped: bytes of the student's text that could not be aligned or did not fit.
        size: bytes of the student's text.
    """

    tokens: Ints
    segments: Ints
    targets: SpanTargets
    skipped: int
    size: int


class Aligner:
    """Turns batches of student tokens into teacher tokens and pairs of positions.

    ``markers`` maps special tokens of the student to those of the teacher that mean the same,
    beside those of the same name. A marker without a counterpart is left out for the teacher.
    """

    def __init__(
        self, student: Tokenizer, teacher: Tokenizer, markers: Mapping[int, int] | None = None
    ) -> None:
        self.pieces, self.teacher_pieces = token_bytes(student), token_bytes(teacher)
        self._teacher = teacher
        self._markers = {**common_markers(student, teacher), **(markers or {})}
        self.common = common_tokens(student, teacher, self._markers)
        ids = self.common[0].tolist()
        self._events = {self.pieces[i] or i: n for n, i in enumerate(ids)}
        ends = teacher.eos_token_ids
        opening = teacher.backend.encode("", add_special_tokens=True).ids
        self._opening = [i for i in opening if i not in ends]

    def vocabularies(self, student_size: int, teacher_size: int) -> Vocabularies:
        """What the tokens of both sides stand for, given the widths of the models' logits."""
        return Vocabularies(
            Side.of(self.common[0], self.pieces, student_size),
            Side.of(self.common[1], self.teacher_pieces, teacher_size),
        )

    def prepare(
        self,
        tokens: npt.NDArray[np.integer],
        segments: npt.NDArray[np.integer],
        max_length: int,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> TeacherBatch:
        """Re-tokenise a student's batch for the teacher, segment by segment.

        A span counts if the tokens before it, from which both models predict it, lie in its
        segment.

        Args:
            tokens, segments: ``[B, L]``; a sample is a run of one number, 0 is padding.
            max_length: the teacher's window; what exceeds it is cut off.
            mask: booleans ``[B, L]``, the tokens to learn; a span needs all of its own.
        """
        shape = (len(tokens), max_length)
        teacher_tokens, teacher_segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        places, taught = list[tuple[int, int, int]](), list[tuple[int, int, int]]()
        events = list[int]()
        skipped = size = 0
        for row in range(len(tokens)):
            used = 0
            for segment, start, stop in _runs(segments[row]):
                ids, spans, missed, length = self._segment(tokens[row, start:stop].tolist())
                skipped, size = skipped + missed, size + length
                end = min(used + len(ids), max_length)
                teacher_tokens[row, used:end] = ids[: end - used]
                teacher_segments[row, used:end] = segment
                for span in spans:
                    (i, j), (a, b) = span.student, span.teacher
                    own = tokens[row, start + i : start + j].tolist()
                    text = b"".join(self.pieces[t] for t in own)
                    if used + b > max_length or max(j - i, b - a) > MAX_GROUP:
                        skipped += len(text)
                    elif i and a and (mask is None or mask[row, start + i : start + j].all()):
                        places.append((row, start + i, start + j))
                        taught.append((row, used + a, used + b))
                        events.append(self._events.get(text or own[0], len(self._events)))
                used = end
        targets = SpanTargets(
            Rows.of_spans(places, tokens),
            Rows.of_spans(taught, teacher_tokens),
            np.array(events, np.int32),
            np.ones(len(events), np.float32),
        )
        return TeacherBatch(teacher_tokens, teacher_segments, targets, skipped, size)

    def _segment(self, ids: list[int]) -> tuple[list[int], list[Span], int, int]:
        """The teacher's tokens of one sample, the spans, bytes without span, and all bytes."""
        pieces = [self.pieces[i] if i < len(self.pieces) else b"" for i in ids]
        out, spans = list(self._opening), list[Span]()
        skipped, place, alike = 0, 0, True
        while place < len(ids):
            part = list(takewhile(bool, pieces[place:]))
            if part:
                text = b"".join(part).decode("utf-8", "ignore")
                taught = self._teacher.encode(text)
                found, missed = align(part, [self.teacher_pieces[i] for i in taught])
                skipped += missed
                for span in found:
                    (i, j), (a, b) = span.student, span.teacher
                    if i or alike:  # else the student has just read what the teacher has not
                        spans.append(Span((place + i, place + j), (len(out) + a, len(out) + b)))
                out += taught
                place, alike = place + len(part), True
                continue
            twin = self._markers.get(ids[place])
            alike = twin is not None
            if twin is not None and (place or out != [twin]):  # not the opening once more
                spans.append(Span((place, place + 1), (len(out), len(out) + 1)))
                out.append(twin)
            place += 1
        return out, spans, skipped, sum(map(len, pieces))


def _runs(segments: npt.NDArray[np.integer]) -> Iterator[tuple[int, int, int]]:
    """Segment, start and stop of every sample of a row."""
    cuts = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(segments)]
    for start, stop in pairwise(cuts):
        if start < stop and segments[start]:
            yield int(segments[start]), start, stop
