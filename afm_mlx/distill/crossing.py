"""A teacher with another vocabulary: its own tokens for the same text, compared span by span."""

from collections.abc import Mapping
from typing import Any

from afm_mlx.alignment import Aligner
from afm_mlx.cross_vocabulary import ROWS, SpanTargets, span_loss
from afm_mlx.data.packing import Batch, PackedCache
from afm_mlx.distill.objective import Learner
from afm_mlx.distill.teachers import Teacher
from afm_mlx.losses import chunked_sum, cross_entropy
from afm_mlx.tokenizer import Tokenizer

import mlx.core as mx
import numpy as np

STRETCH = 1.5
"""The teacher's window in those of the student: other tokens may be shorter."""


class CrossObjective:
    """Loss of a batch for :func:`afm_mlx.training.train`, see :mod:`afm_mlx.cross_vocabulary`.

    Args:
        label_weight: share of the cross-entropy to the text that is mixed in.
    """

    def __init__(
        self, learner: Learner, tokenizer: Tokenizer, teacher: Teacher, label_weight: float = 0.0
    ) -> None:
        self.learner, self.teacher, self.label_weight = learner, teacher, label_weight
        self.aligner = Aligner(tokenizer, teacher.tokenizer)
        probe = teacher.head(teacher.trunk(mx.array([[0]]), None)[0])
        self.vocabularies = self.aligner.vocabularies(
            learner.student.args.vocab_size, probe.shape[-1]
        )

    def __call__(self, batch: Batch) -> tuple[mx.array, mx.array, Mapping[str, mx.array]]:
        student = self.learner.student
        learnt = np.zeros_like(batch.learn)
        learnt[:, 1:] = batch.learn[:, :-1]
        length = round(batch.tokens.shape[1] * STRETCH)
        theirs = self.aligner.prepare(batch.tokens, batch.segments, length, learnt)
        said = self.teacher.states(
            Batch(theirs.tokens, theirs.segments, theirs.segments > 0, batch.window)
        )
        cache: list[Any] = [PackedCache(batch.segments)] * len(student.layers)
        hidden = student.model(mx.array(batch.tokens), cache)
        chunks = list(theirs.targets.chunks())
        total = mx.array(0.0)
        if chunks:
            total = self._spans(hidden, said, chunks)
        count = mx.array(float(theirs.targets.weight.sum()))
        parts = {"spans": total}
        if self.label_weight:
            text, predictions = self._labels(hidden, batch)
            text = text * count / mx.maximum(predictions, 1)  # as many as there are spans
            parts["cross-entropy"] = text
            total = (1 - self.label_weight) * total + self.label_weight * text
        return total, count, parts

    def _spans(self, hidden: mx.array, said: mx.array, chunks: list[SpanTargets]) -> mx.array:
        remaining = iter(chunks)  # chunked_sum goes through the rows in order, each once

        def rows(own: mx.array, weight: mx.array, other: mx.array) -> tuple[mx.array]:
            logits = self.teacher.head(other).astype(mx.float32)
            ours = (own @ weight.T).astype(mx.float32)
            return (mx.sum(span_loss(ours, logits, next(remaining), self.vocabularies)),)

        own = mx.concatenate([c.student.of(hidden) for c in chunks])
        other = mx.concatenate([c.teacher.of(said) for c in chunks])
        return chunked_sum(rows, own, self.learner.student.head_weight, [other], ROWS)[0]

    def _labels(self, hidden: mx.array, batch: Batch) -> tuple[mx.array, mx.array]:
        def rows(
            own: mx.array, weight: mx.array, labels: mx.array, learn: mx.array
        ) -> tuple[mx.array]:
            return (mx.sum(cross_entropy((own @ weight.T).astype(mx.float32), labels) * learn),)

        learn = mx.array(batch.learn.astype(np.float32)).reshape(-1)
        labels = mx.array(batch.labels).reshape(-1)
        flat = hidden.reshape(-1, hidden.shape[-1])
        weight = self.learner.student.head_weight
        return chunked_sum(rows, flat, weight, [labels, learn])[0], mx.sum(learn)
