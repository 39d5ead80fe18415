"""What an adapter learns by: cross-entropy of the answers, and nothing computed beside it.

Prompts are most of what is read and carry no loss, so the head runs on the positions before
answers only, some of them at a time. Layers below the lowest one with an adapter never change:
what they make of a window is computed once and kept.
"""

import copy
import math
from typing import Any

from afm_mlx.data.packing import Array, Batch, PackedCache, Windows
from afm_mlx.losses import chunked_sum, plain_sum
from afm_mlx.model import Decoder, Model
from afm_mlx.ops import logsumexp

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

ROWS = 64
"""Positions with a loss that logits are made of at a time; the last ones are filled up, since on
CPUs each shape is compiled."""
STATES = 2**30
"""Bytes of states below the lowest adapted layer that are kept."""


class Answers:
    """Loss of a batch for :func:`afm_mlx.training.train`, of a model whose adapter is in place.

    Args:
        states: bytes for what frozen layers say; windows beyond are computed anew each time.
    """

    def __init__(self, model: Model, states: int = STATES) -> None:
        self.model, self.first = model, lowest(model)
        tied = model.args.tie_word_embeddings
        self.train_head = _learns(model.model.embed_tokens if tied else model.lm_head)
        self._room = states
        self._kept: dict[int, mx.array] = {}

    def __call__(self, batch: Batch) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
        """Summed loss, number of predictions, nothing to show beside."""
        return self.loss(*self.inputs(batch))

    def inputs(self, batch: Batch) -> list[mx.array]:
        """What :meth:`loss` takes.

        Tokens ``[B, L]``; places ``[1 or 2, B, L]``, which are segments, and parents where samples
        share their beginning; where something is predicted, counted through all rows ``[N]``, the
        labels there, and which of these are real; and, if the lowest layers are frozen, what they
        say ``[B, L, D]``.
        """
        at = np.flatnonzero(batch.learn)
        size = max(-(-len(at) // ROWS), 1) * ROWS
        real = np.arange(size) < len(at)
        at = np.resize(at, size) if len(at) else np.zeros(size, np.int64)
        labels = batch.labels.reshape(-1)[at]
        given = [batch.tokens, _places(batch), at.astype(np.int32), labels]
        made = [mx.array(x) for x in (*given, real.astype(np.float32))]
        if self.first:
            rows = range(len(batch.tokens))
            made.append(mx.concatenate([self._below(batch, row) for row in rows]))
        return made

    def hidden(
        self, tokens: mx.array, places: mx.array, at: mx.array, *states: mx.array
    ) -> mx.array:
        """What the head is applied to, ``[N, D]``."""
        decoder = self.model.model
        cache: list[Any] = [PackedCache(*places)] * len(decoder.layers)
        if states:
            hidden = _above(decoder, self.first)(tokens, cache[self.first :], states[0])
        else:
            hidden = decoder(tokens, cache)
        return hidden.reshape(-1, hidden.shape[-1])[at]

    def loss(
        self,
        tokens: mx.array,
        places: mx.array,
        at: mx.array,
        labels: mx.array,
        real: mx.array,
        *states: mx.array,
    ) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
        """The loss of :meth:`inputs`."""
        hidden = self.hidden(tokens, places, at, *states)
        head = self.model.head_weight
        (total,) = chunked_sum(_loss, hidden, head, [labels, real], ROWS, self.train_head)
        return total, mx.sum(real), {}

    def _below(self, batch: Batch, row: int) -> mx.array:
        """What goes into the lowest adapted layer for a window, ``[1, L, D]``.

        One window at a time, so that it is the same to the last bit beside any others.
        """
        window = int(batch.window[row])
        if window in self._kept:
            return self._kept[window]
        seen: list[mx.array] = []
        one = slice(row, row + 1)
        packed = PackedCache(*_places(batch)[:, one])
        cache: list[Any] = [packed] * len(self.model.layers)
        self.model.model(mx.array(batch.tokens[one]), cache, seen=seen)
        state = mx.stop_gradient(seen[self.first])
        mx.eval(state)  # the layers above are never computed
        if state.nbytes <= self._room:
            self._room -= state.nbytes
            self._kept[window] = state
        return state


def _places(batch: Batch) -> Array:
    return np.stack([batch.segments] if batch.parents is None else [batch.segments, batch.parents])


def _loss(
    hidden: mx.array, weight: mx.array, labels: mx.array, real: mx.array
) -> tuple[mx.array, ...]:
    """Summed cross-entropy; labels pick rows of the head, so no gradient is spread over logits."""
    logits = (hidden @ weight.T).astype(mx.float32)
    chosen = mx.sum(hidden.astype(mx.float32) * weight[labels].astype(mx.float32), axis=-1)
    return (mx.sum((logsumexp(logits) - chosen) * real),)


def _judged(
    hidden: mx.array, weight: mx.array, labels: mx.array, real: mx.array
) -> tuple[mx.array, ...]:
    """Summed cross-entropy, how many labels are likeliest, how many there are."""
    logits = (hidden @ weight.T).astype(mx.float32)
    right = mx.sum((mx.argmax(logits, -1) == labels) * real)
    return *_loss(hidden, weight, labels, real), right, mx.sum(real)


class HeldOut:
    """Figures of the model on windows that it does not learn from."""

    def __init__(self, answers: Answers, windows: Windows) -> None:
        self.answers, self.windows = answers, windows

    def __call__(self) -> dict[str, float]:
        """``loss`` in nats a token of the answers, ``perplexity``, ``accuracy``, the share of these
        tokens that the model finds likeliest, and ``errors``, the share of the others."""
        sums = np.zeros(3)
        weight = self.answers.model.head_weight
        for number in np.concatenate(self.windows.numbers).tolist():
            inputs = self.answers.inputs(self.windows.batch([number]))
            tokens, places, at, labels, real, *states = inputs
            hidden = self.answers.hidden(tokens, places, at, *states)
            found = plain_sum(_judged, hidden, weight, [labels, real], ROWS)
            sums += [float(np.array(x)) for x in found]
        loss, accuracy = (sums[:2] / max(sums[2], 1)).tolist()
        perplexity = math.exp(min(loss, 700.0))
        return {
            "loss": loss,
            "perplexity": perplexity,
            "accuracy": accuracy,
            "errors": 1 - accuracy,
        }


def lowest(model: Model) -> int:
    """The lowest layer that learns; those that read keys and values of others go with them."""
    if _learns(model.model.embed_tokens):
        return 0
    learning = [i for i, layer in enumerate(model.layers) if _learns(layer)]
    return min([*learning, model.model.num_regular - 1])


def _learns(module: nn.Module) -> bool:
    return bool(tree_flatten(module.trainable_parameters()))


def _above(decoder: Decoder, first: int) -> Decoder:
    """The layers from ``first`` on, shared, as a decoder."""
    upper = copy.copy(decoder)
    upper.layers = decoder.layers[first:]
    upper.num_regular = decoder.num_regular - first
    return upper
