"""How close a compressed model stays to its source, token by token.

The figures that ``mlx-kld`` and ``mlx-quant-fidelity`` report: KL(source || compressed) over the
whole vocabulary, how often the likeliest token changes, and the perplexities.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from afm_mlx.data.packing import Batch, PackedCache
from afm_mlx.losses import CHUNK, forward_kl, log_softmax
from afm_mlx.model import Model

import mlx.core as mx
import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Fidelity:
    """Differences from the source on a text; KL in nats a token.

    Attributes:
        flips: share of the tokens whose likeliest successor is another one.
    """

    tokens: int
    kl: float
    median: float
    p99: float
    largest: float
    flips: float
    perplexity: float
    source_perplexity: float


class Judge:
    """Compares models with a source on a text; the source runs once.

    Its last hidden states are kept, ``hidden_size`` numbers a token; its output table is used
    again for every comparison.
    """

    def __init__(self, source: Model, batches: Sequence[Batch]) -> None:
        self.batches, self.weight = list(batches), source.head_weight
        self.states = [_hidden(source, batch) for batch in self.batches]
        mx.eval(self.weight, self.states)

    def __call__(self, model: Model) -> Fidelity:
        """The figures of ``model``, which has the source's vocabulary."""
        was_training = model.training
        model.eval()
        rows: list[Array] = []
        head = model.head_weight
        for batch, states in zip(self.batches, self.states, strict=True):
            hidden = _hidden(model, batch)
            labels = mx.array(_labels(batch).reshape(-1))
            for start in range(0, len(labels), CHUNK):
                chunk = slice(start, start + CHUNK)
                rows.append(
                    _compare(states[chunk], self.weight, hidden[chunk], head, labels[chunk])
                )
        model.train(was_training)
        figures = np.concatenate(rows)[np.concatenate([_real(b) for b in self.batches])]
        kl, flips, ours, theirs = figures.T
        scored = ~np.isnan(ours)
        return Fidelity(
            tokens=len(kl),
            kl=float(kl.mean()),
            median=float(np.median(kl)),
            p99=float(np.quantile(kl, 0.99)),
            largest=float(kl.max()),
            flips=float(flips.mean()),
            perplexity=math.exp(min(float(ours[scored].mean()), 700.0)),
            source_perplexity=math.exp(float(theirs[scored].mean())),
        )


def _hidden(model: Model, batch: Batch) -> mx.array:
    cache: Any = [PackedCache(batch.segments)] * len(model.layers)
    hidden = model.model(mx.array(batch.tokens), cache)
    return hidden.reshape(-1, hidden.shape[-1])


def _real(batch: Batch) -> Array:
    real: Array = batch.segments.reshape(-1) > 0
    return real


def _labels(batch: Batch) -> Array:
    """The next token of the same sample, -1 where it ends: int32 ``[B, L]``."""
    labels = np.full_like(batch.tokens, -1)
    same = (batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, 1:] > 0)
    labels[:, :-1] = np.where(same, batch.tokens[:, 1:], -1)
    return labels


def _compare(
    states: mx.array, weight: mx.array, hidden: mx.array, head: mx.array, labels: mx.array
) -> Array:
    """KL, whether the likeliest token differs, and both models' NLL (NaN without a label)."""
    p = log_softmax((states @ weight.T).astype(mx.float32))
    q = log_softmax((hidden @ head.T).astype(mx.float32))
    kl = forward_kl(p, q)
    flips = (mx.argmax(p, axis=-1) != mx.argmax(q, axis=-1)).astype(mx.float32)
    at = mx.maximum(labels, 0)[:, None]
    nll = [-mx.take_along_axis(x, at, axis=-1)[:, 0] for x in (q, p)]
    nll = [mx.where(labels >= 0, x, mx.nan) for x in nll]
    return np.array(mx.stack([kl, flips, *nll], axis=-1), np.float64)
