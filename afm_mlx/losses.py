"""What a student learns by: divergences between distributions, and chunks that keep them small.

A divergence takes two arrays of log-probabilities ``[..., K]``, the teacher's and the student's,
and gives ``[...]``. ``K`` is the vocabulary, or the teacher's ``k`` likeliest tokens and one
bucket for the rest of the mass (:func:`bucketed`), so every divergence works on both.

- forward and reverse KL; skew KL, arXiv 2402.03898; generalised Jensen-Shannon, arXiv 2306.13649;
- Apple's pre-training target, 0.9 of the teacher's likeliest token and 0.1 of the label
  (arXiv 2407.21075, section 3.1);
- hidden states, arXiv 1910.01108, and relations between positions, arXiv 2012.15828.

:func:`chunked_sum` applies a loss to a few rows of logits at a time and makes their gradients on
the way, so no array ``[batch, time, vocabulary]`` ever exists (as in arXiv 2410.10989).
"""

from collections.abc import Callable, Sequence
from typing import Any

from afm_mlx import ops

import mlx.core as mx

Divergence = Callable[[mx.array, mx.array], mx.array]

TEACHER_WEIGHT = 0.9
"""Share of the teacher's likeliest token in Apple's target; the label has the rest."""
SKEW = 0.1
"""Share of the other distribution in skew divergences (arXiv 2402.03898)."""
LEAST_MASS = 1e-7
"""Float32 cannot tell a rest of the mass that is smaller from none."""
CHUNK = 128
"""Rows of logits that exist at a time: 25 MB in float32 for 49,152 tokens."""


def log_softmax(logits: mx.array, temperature: float = 1.0) -> mx.array:
    """Log-probabilities ``[..., V]`` of ``logits / temperature``."""
    scaled = logits if temperature == 1.0 else logits * (1 / temperature)
    return scaled - ops.logsumexp(scaled)[..., None]


def bucketed(logits: mx.array, indices: mx.array, temperature: float = 1.0) -> mx.array:
    """Log-probabilities ``[..., k + 1]`` of the tokens ``indices`` ``[..., k]`` and of the rest."""
    scaled = logits if temperature == 1.0 else logits * (1 / temperature)
    chosen = mx.take_along_axis(scaled, indices, axis=-1) - ops.logsumexp(scaled)[..., None]
    return with_rest(chosen)


def with_rest(chosen: mx.array) -> mx.array:
    """``[..., k]`` log-probabilities and the log of what they leave over, ``[..., k + 1]``."""
    rest = 1 - mx.sum(mx.exp(chosen), axis=-1, keepdims=True)
    return mx.concatenate([chosen, mx.log(mx.maximum(rest, LEAST_MASS))], axis=-1)


def forward_kl(teacher: mx.array, student: mx.array) -> mx.array:
    """KL(teacher || student): the student must cover all that the teacher says."""
    return mx.sum(ops.exp(teacher) * (teacher - student), axis=-1)


def reverse_kl(teacher: mx.array, student: mx.array) -> mx.array:
    """KL(student || teacher): the student must say nothing that the teacher does not."""
    return mx.sum(ops.exp(student) * (student - teacher), axis=-1)


def skew_kl(teacher: mx.array, student: mx.array, alpha: float = SKEW) -> mx.array:
    """KL(teacher || alpha teacher + (1 - alpha) student): bounded, so gradients stay small."""
    return forward_kl(teacher, _mix(teacher, student, alpha))


def skew_reverse_kl(teacher: mx.array, student: mx.array, alpha: float = SKEW) -> mx.array:
    """KL(student || (1 - alpha) teacher + alpha student)."""
    return forward_kl(student, _mix(student, teacher, alpha))


def jensen_shannon(teacher: mx.array, student: mx.array, beta: float = 0.5) -> mx.array:
    """beta KL(teacher || m) + (1 - beta) KL(student || m), m the mixture of teacher by beta."""
    mixture = _mix(teacher, student, beta)
    return beta * forward_kl(teacher, mixture) + (1 - beta) * forward_kl(student, mixture)


def _mix(a: mx.array, b: mx.array, share: float) -> mx.array:
    """log(share exp(a) + (1 - share) exp(b))."""
    return mx.log(share * ops.exp(a) + (1 - share) * ops.exp(b) + 1e-30)


DIVERGENCES: dict[str, Divergence] = {
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "skew-kl": skew_kl,
    "skew-reverse-kl": skew_reverse_kl,
    "jsd": jensen_shannon,
}


def cross_entropy(logits: mx.array, labels: mx.array) -> mx.array:
    """-log of the probability that ``logits`` ``[..., V]`` give ``labels`` ``[...]``."""
    chosen = mx.take_along_axis(logits, labels[..., None], axis=-1)
    return ops.logsumexp(logits) - mx.squeeze(chosen, -1)


def teacher_top1(
    logits: mx.array, likeliest: mx.array, labels: mx.array, weight: float = TEACHER_WEIGHT
) -> mx.array:
    """Apple's target: cross-entropy to the teacher's ``likeliest`` token and the label, mixed."""
    both = mx.stack([likeliest, labels], axis=-1)
    chosen = mx.take_along_axis(logits, both, axis=-1)
    return ops.logsumexp(logits) - weight * chosen[..., 0] - (1 - weight) * chosen[..., 1]


def hidden_error(student: mx.array, teacher: mx.array, projection: mx.array | None) -> mx.array:
    """Squared distance of hidden states ``[..., D]``, relative to the teacher's size.

    Args:
        projection: ``[teacher D, student D]``, learnt along; ``None`` where widths are equal.
    """
    if projection is not None:
        student = student @ projection.T
    student, teacher = student.astype(mx.float32), teacher.astype(mx.float32)
    size = mx.mean(mx.square(teacher), axis=-1) + 1e-6
    return mx.mean(mx.square(student - teacher), axis=-1) / size


def relation_error(
    student: mx.array, teacher: mx.array, mask: mx.array, heads: int = 8
) -> mx.array:
    """KL between how positions relate to each other in the two models, ``[B, L]``.

    Vectors ``[B, L, D]`` (queries, keys or values of all heads) are cut anew into ``heads``
    relation heads, so the models may differ in width, depth and number of heads.

    Args:
        mask: booleans ``[B, 1, L, L]``, what a position may look at.
    """
    return mx.mean(
        forward_kl(_relations(teacher, mask, heads), _relations(student, mask, heads)), 1
    )


def _relations(x: mx.array, mask: mx.array, heads: int) -> mx.array:
    b, length, dim = x.shape
    if dim % heads:
        raise ValueError(f"{dim} cannot be cut into {heads} relation heads")
    split = x.astype(mx.float32).reshape(b, length, heads, -1).transpose(0, 2, 1, 3)
    scores = (split @ split.swapaxes(-1, -2)) * (dim // heads) ** -0.5
    return log_softmax(mx.where(mask, scores, ops.MASKED))


Rows = Callable[..., tuple[mx.array, ...]]
"""(hidden ``[n, D]``, head weight ``[V, D]``, further rows...) to a loss to minimise and further
sums."""


def chunked_sum(
    rows: Rows,
    hidden: mx.array,
    weight: mx.array,
    along: Sequence[mx.array] = (),
    chunk: int = CHUNK,
    train_head: bool = True,
) -> tuple[mx.array, ...]:
    """Sums of what ``rows`` gives for ``chunk`` rows of ``hidden`` at a time.

    Only the first result carries gradients. They are made with the sums, one chunk after the
    other, and multiplied by the cotangent later: ``[chunk, V]`` is the largest array beside the
    gradient of ``weight``.

    Args:
        hidden: ``[N, D]``, what the head is applied to.
        weight: ``[V, D]``, the output table.
        along: arrays ``[N, ...]`` (labels, what the teacher says) cut into the same rows.
        train_head: whether ``weight`` gets a gradient.
    """

    def walk(hidden: mx.array, weight: mx.array, *along: mx.array) -> list[mx.array]:
        with_gradients: Any = mx.value_and_grad(rows, argnums=(0, 1) if train_head else 0)
        sums: list[mx.array] = []
        pieces: list[mx.array] = []
        total: mx.array | None = None
        for start in range(0, hidden.shape[0], chunk):
            parts = [a[start : start + chunk] for a in (hidden, *along)]
            if pieces:  # one chunk after the other, or the logits of all would be alive at once
                parts = mx.depends(parts, [*sums, pieces[-1], *([] if total is None else [total])])
            values, gradients = with_gradients(parts[0], weight, *parts[1:])
            pieces.append(gradients[0] if train_head else gradients)
            if train_head:
                head = gradients[1].astype(mx.float32)  # many small sums
                total = head if total is None else total + head
            sums = _add(sums, values)
        return [*sums, mx.concatenate(pieces), *([] if total is None else [total])]

    summed: Any = mx.custom_function(walk)

    def scaled(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        scale = cotangents[0]
        constant = [mx.zeros_like(p) for p in primals[1 + train_head :]]
        learnt = zip(outputs[-1 - train_head :], primals, strict=False)
        return [(g * scale).astype(p.dtype) for g, p in learnt] + constant

    summed.vjp(scaled)
    results = summed(hidden, weight, *along)
    return tuple(results[: -1 - train_head])


def plain_sum(
    rows: Rows,
    hidden: mx.array,
    weight: mx.array,
    along: Sequence[mx.array] = (),
    chunk: int = CHUNK,
) -> tuple[mx.array, ...]:
    """The sums of :func:`chunked_sum` alone, evaluated chunk by chunk."""
    sums: list[mx.array] = []
    for start in range(0, hidden.shape[0], chunk):
        parts = [a[start : start + chunk] for a in (hidden, *along)]
        sums = _add(sums, rows(parts[0], weight, *parts[1:]))
        mx.eval(sums)
    return tuple(sums)


def _add(sums: Sequence[mx.array], values: Sequence[mx.array]) -> list[mx.array]:
    return [a + b for a, b in zip(sums, values, strict=True)] if sums else list(values)
