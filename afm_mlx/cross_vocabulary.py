"""Distillation across vocabularies: what two models with different tokens say of the same text.

- :func:`uld`, Universal Logit Distillation (arXiv 2402.12030), compares sorted probabilities, so
  it needs no common token.
- :func:`span_loss`: at the start of a span (:mod:`afm_mlx.alignment`) both models stand before
  the same text ``x``. Their next-token distributions become distributions over the same events:

  1. "the text goes on with ``c``" for every token ``c`` that both vocabularies have. A token
     that only one side has counts for the longest common token it begins with ("unhappily" for
     "un"), so models that differ in how they cut words still agree.
  2. ``x`` itself, unless it is such a token, with the product of the probabilities of its tokens
     (chain rule); the first of them keeps what its probability exceeds that product by.

  The loss is KL(teacher || student) over them. Tokens that are neither, as markers of one side,
  count for nothing: the text does go on, so the teacher is conditioned on that, and whatever
  the student gives to them it loses. Between equal vocabularies this is the plain forward KL.

  Where the student has several tokens for ``x``, those after the first stand at positions of
  their own, which would count only as much as the teacher expects ``x``, and not once as every
  position does. So the part of the KL that tells ``x`` from what else begins as it does,
  ``p KL(r || s)`` with p the teacher's probability of both and r and s the share of ``x`` in it,
  gets the weight 1 instead of p. (Without that a student of other tokens learnt far more slowly.)

  ``uld_weight`` adds the sorted comparison of the tokens that only one side has, as TRL's GOLD
  trainer does beside its common tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from afm_mlx import ops
from afm_mlx.errors import InputError, ModelError

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]

MAX_GROUP = 16
"""Tokens of a span on either side; longer ones say little and are left out."""
SPANS, ROWS = 96, 128
"""Spans and rows of logits of a chunk: 0.5 GB in all with a teacher of 152 k tokens."""
ULD_WEIGHT = 0.0
"""Weight of the sorted term of :func:`span_loss`."""
TOP = 64
"""Ranks that the sorted term compares one by one."""
_LEAST = 1e-30  # stands for no probability at all
_NEAREST = 1e-7  # float32 cannot tell a probability nearer to 1 from 1


@dataclass(frozen=True)
class Side:
    """One vocabulary against the ``C`` common tokens.

    Attributes:
        common: ids ``[C]`` of the common tokens.
        others: all other ids ``[O]``, those without a token included.
        events: ``[V]``, for each id the index of the common token that it is, or of the longest
            one it begins with, or ``C`` for none.
    """

    common: Ints
    others: Ints
    events: Ints

    @classmethod
    def of(cls, common: Ints, pieces: Sequence[bytes], size: int) -> "Side":
        """``pieces`` are the bytes of the tokens; ``size`` is the width of the logits.

        Raises:
            ModelError: the tokenizer has more tokens than the model.
        """
        if len(common) and common.max() >= size:
            raise ModelError(
                f"the tokenizer has a token {common.max()}, the model only {size}:"
                " load the tokenizer that belongs to the model"
            )
        known = {pieces[i]: n for n, i in enumerate(common) if pieces[i]}
        others = np.setdiff1d(np.arange(size, dtype=np.int32), common)
        events = np.full(size, len(common), np.int32)
        events[common] = np.arange(len(common))
        for i in others[others < len(pieces)]:
            prefixes = (pieces[i][:n] for n in range(len(pieces[i]), 0, -1))
            events[i] = next((known[p] for p in prefixes if p in known), len(common))
        return cls(common, others, events)


@dataclass(frozen=True)
class Vocabularies:
    """Which events the tokens of both sides stand for."""

    student: Side
    teacher: Side


@dataclass(frozen=True)
class Rows:
    """Where one model's logits are needed, arrays ``[R]``.

    Attributes:
        row, position: place in the batch; the logits there predict the token after it.
        token: the token that follows.
        span: the span it belongs to. The first ``M`` rows stand at the starts of spans 0 to
            ``M - 1``, the others follow in the order of their spans; span ``M`` is padding.
    """

    row: Ints
    position: Ints
    token: Ints
    span: Ints

    @classmethod
    def of_spans(
        cls, places: Sequence[tuple[int, int, int]], tokens: npt.NDArray[np.integer]
    ) -> "Rows":
        """Rows that predict the tokens of spans, each given as row, start and stop."""
        row, start, stop = np.array(places, np.int32).reshape(-1, 3).T
        starts, more = np.arange(len(places)), stop - start - 1
        of = np.repeat(starts, more)
        nth = np.arange(len(of)) - np.repeat(np.cumsum(more) - more, more)
        span = np.concatenate([starts, of]).astype(np.int32)
        at = np.concatenate([start, start[of] + 1 + nth]).astype(np.int32)
        return cls(row[span], at - 1, tokens[row[span], at].astype(np.int32), span)

    def several(self, spans: int) -> npt.NDArray[np.bool_]:
        """Which of the first ``spans`` spans have more than one row."""
        return np.bincount(self.span[spans:], minlength=spans + 1)[:spans] > 0

    def of(self, states: mx.array) -> mx.array:
        """Rows ``[R, D]`` of hidden states or logits ``[B, L, D]``."""
        return states[mx.array(self.row), mx.array(self.position)]

    def cut(self, total: int, at: slice, spans: int, extras: int) -> "Rows":
        """Rows of the spans ``at`` of ``total``, padded to ``spans`` starts and ``extras``."""
        low, high = total + np.searchsorted(self.span[total:], (at.start, at.stop))

        def padded(x: Ints, fill: int = 0) -> Ints:
            pad = (spans - (at.stop - at.start), extras - (high - low))
            parts = (x[at], np.full(pad[0], fill), x[low:high], np.full(pad[1], fill))
            return np.concatenate(parts).astype(np.int32)

        span = padded(self.span - at.start, spans)
        span[:spans] = np.arange(spans)
        return Rows(padded(self.row), padded(self.position), padded(self.token), span)


@dataclass(frozen=True)
class SpanTargets:
    """``M`` spans of a batch as flat arrays.

    Attributes:
        event: ``[M]``, index of the common token with the text of the span; how many common
            tokens there are, if it is none.
        weight: ``[M]``, 0 for padding, else 1.
    """

    student: Rows
    teacher: Rows
    event: Ints
    weight: npt.NDArray[np.float32]

    def chunks(self, spans: int = SPANS, rows: int = ROWS) -> Iterator["SpanTargets"]:
        """Parts of exactly ``spans`` spans and ``rows`` rows on either side, padded.

        All have the same shapes, since MLX compiles its kernels for each.

        Raises:
            InputError: ``rows`` leaves no room for a span of ``MAX_GROUP`` tokens.
        """
        room = rows - spans
        if spans < 1 or room < MAX_GROUP - 1:
            raise InputError(f"{rows} rows are too few for {spans} spans: allow {MAX_GROUP} more")
        total, start = len(self.weight), 0
        extras = [
            np.searchsorted(side.span[total:], np.arange(total + 1))
            for side in (self.student, self.teacher)
        ]
        while start < total:
            fits = [int(np.searchsorted(e, e[start] + room, "right")) - 1 for e in extras]
            at = slice(start, min(start + spans, *fits))
            pad = (0, spans - (at.stop - start))
            yield SpanTargets(
                self.student.cut(total, at, spans, room),
                self.teacher.cut(total, at, spans, room),
                np.pad(self.event[at], pad),
                np.pad(self.weight[at], pad),
            )
            start = at.stop


def uld(student_logits: mx.array, teacher_logits: mx.array, top: int | None = None) -> mx.array:
    """Sum of the differences between sorted probabilities, ``[N]``, between 0 and 2.

    Args:
        student_logits, teacher_logits: ``[N, Vs]`` and ``[N, Vt]``; zeros pad the shorter.
        top: compare so many ranks one by one, and of the others only what they have in all.
            That is too small by at most twice the lesser of both rests, and about four times
            as fast as sorting a whole vocabulary.
    """
    student, teacher = (x.astype(mx.float32) for x in (student_logits, teacher_logits))
    student, teacher = (x - ops.logsumexp(x)[:, None] for x in (student, teacher))
    return _sorted_difference(student, mx.stop_gradient(teacher), top)


def _sorted_difference(student: mx.array, teacher: mx.array, top: int | None) -> mx.array:
    """:func:`uld` of log-probabilities, which need not sum to one."""
    ranks = max(student.shape[-1], teacher.shape[-1])
    ranks = ranks if top is None else min(ranks, top)
    return mx.sum(mx.abs(_ranked(student, ranks) - _ranked(teacher, ranks)), axis=-1)


def _ranked(logs: mx.array, ranks: int) -> mx.array:
    """The ``ranks`` largest probabilities in falling order and the sum of all others."""
    n, width = logs.shape
    if width <= ranks:
        return mx.pad(ops.exp(-mx.sort(-logs, axis=-1)), [(0, 0), (0, ranks + 1 - width)])
    at = mx.argpartition(mx.stop_gradient(-logs), ranks - 1, axis=-1)
    split = ops.exp(mx.take_along_axis(logs, at, axis=-1))
    first = -mx.sort(-split[:, :ranks], axis=-1)
    return mx.concatenate([first, mx.sum(split[:, ranks:], axis=-1, keepdims=True)], axis=-1)


def span_loss(
    student_logits: mx.array,
    teacher_logits: mx.array,
    targets: SpanTargets,
    vocabularies: Vocabularies,
    uld_weight: float = ULD_WEIGHT,
    top: int | None = TOP,
) -> mx.array:
    """What the models differ by at every span, ``[M]``; 0 for padding.

    Args:
        student_logits, teacher_logits: ``[R, V]``, those at ``targets.student`` and
            ``targets.teacher``; divide them by a temperature beforehand.
        uld_weight: weight of the sorted term between tokens that only one side knows.
        top: ranks of that term, ``None`` for all.

    Raises:
        ModelError: the logits are not as wide as ``vocabularies`` was made for.
    """
    student, _, others = _events(student_logits, targets.student, targets, vocabularies.student)
    teacher, gone, taught = _events(
        mx.stop_gradient(teacher_logits), targets.teacher, targets, vocabularies.teacher
    )
    teacher = teacher - mx.log1p(-mx.minimum(gone, 1 - _NEAREST))[:, None]
    loss = mx.sum(ops.exp(teacher) * (teacher - student), axis=-1)
    loss = loss + _later_tokens(teacher, student, targets, vocabularies.student)
    if uld_weight:
        loss = loss + uld_weight * _sorted_difference(others, taught, top)
    return loss * mx.array(targets.weight)


def _later_tokens(
    teacher: mx.array, student: mx.array, targets: SpanTargets, side: Side
) -> mx.array:
    """What the text's share in all that begins as it does lacks in weight, ``[M]``."""
    spans = len(targets.weight)
    begun = side.events[targets.student.token[:spans]]
    # Twice the same event where there is nothing to tell apart: shares of one half, and KL 0.
    other = np.where(targets.student.several(spans), begun, targets.event)
    pair = mx.array(np.stack([targets.event, other], axis=-1))
    t, s = (mx.take_along_axis(x, pair, axis=-1) for x in (teacher, student))
    both = mx.logsumexp(t, axis=-1, keepdims=True)
    t, s = t - both, s - mx.logsumexp(s, axis=-1, keepdims=True)
    return (1 - mx.exp(both[:, 0])) * mx.sum(mx.exp(t) * (t - s), axis=-1)


def _events(
    logits: mx.array, rows: Rows, targets: SpanTargets, side: Side
) -> tuple[mx.array, mx.array, mx.array]:
    """Log-probabilities of the events ``[M, C + 1]``, probability ``[M]`` of what is none, and
    log-probabilities of uncommon tokens ``[M, O]``."""
    if logits.shape[-1] != len(side.events):
        raise ModelError(
            f"the logits are {logits.shape[-1]} wide, the vocabulary {len(side.events)}:"
            " give Aligner.vocabularies the widths of both models"
        )
    logits, spans = logits.astype(mx.float32), len(targets.weight)
    tokens, event = mx.array(rows.token)[:, None], mx.array(targets.event)[:, None]
    total = ops.logsumexp(logits)[:, None]
    chosen = mx.take_along_axis(logits, tokens, axis=-1) - total
    first, after = chosen[:spans], mx.array(rows.span[spans:])
    rest = mx.zeros((spans + 1, 1)).at[after].add(chosen[spans:])[:spans]
    several = mx.array(rows.several(spans))[:, None]
    otherwise = mx.log(-mx.expm1(mx.minimum(rest, -_NEAREST)))
    left = mx.where(several, first + otherwise, ops.MASKED)
    logs = mx.put_along_axis(logits[:spans] - total[:spans], tokens[:spans], left, axis=-1)
    common = mx.take(logs, mx.array(side.common), axis=1)
    others = mx.take(logs, mx.array(side.others), axis=1)
    # By columns: a scatter of whole rows is four times as fast as one of numbers.
    homes = mx.array(side.events[side.others])
    mass = mx.zeros((len(side.common) + 1, spans)).at[homes].add(ops.exp(others).T)
    known = mx.logaddexp(common, mx.log(mx.maximum(mass[:-1].T, _LEAST)))
    events = mx.concatenate([known, mx.full((spans, 1), math.log(_LEAST))], axis=-1)
    text = mx.logaddexp(mx.take_along_axis(events, event, axis=-1), first + rest)
    return mx.put_along_axis(events, event, text, axis=-1), mass[-1], others
