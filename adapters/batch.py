"""Answer several requests at once, each row of the batch with an adapter of its own.

Prompts are read one by one, with their adapter and what is cached of them: a prompt keeps the
machine busy by itself. Then all answers are written in step, which reads the weights once for
all rows. Rows may be held to choices or constraints; what these allow is then found out between
steps. KV caches are filled up on the left, so that all rows end together; each row has its own
positions, and sees nothing of the filling. Rows leave when their answer ends.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from afm_mlx.adapters.store import Loaded, Store
from afm_mlx.constraints import Constraint, restricted
from afm_mlx.errors import InputError
from afm_mlx.generation import (
    Cancelled,
    FinishReason,
    Request,
    Snapshot,
    Writer,
    answer_budget,
    bytes_per_token,
    read_prompt,
)
from afm_mlx.model import Model
from afm_mlx.prefixes import PrefixCache
from afm_mlx.tokenizer import Tokenizer

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map


class PaddedCache:
    """A KV cache of rows whose beginnings are filled up to one length.

    Args:
        inner: cache with arrays ``[B, heads, positions, ...]``.
        padding: how many positions of each row are filling, ``[B]``.
    """

    def __init__(self, inner: Any, padding: mx.array) -> None:
        self.inner, self.padding = inner, padding
        self._even = not mx.any(padding).item()

    @classmethod
    def join(cls, caches: Sequence[Any]) -> "PaddedCache":
        """One cache of several with a row each; ``caches`` must be of one kind."""
        longest = max(c.offset for c in caches)
        joined = copy.copy(caches[0])
        parts = [
            tree_map(lambda x, n=longest - c.offset: _filled(x, n), c.keys_and_values())
            for c in caches
        ]
        joined.keys, joined.values = tree_map(lambda *rows: mx.concatenate(rows), *parts)
        joined.offset = longest
        return cls(joined, longest - mx.array([c.offset for c in caches]))

    @property
    def offset(self) -> mx.array:
        """Position of the next token in each row, ``[B]``."""
        return self.inner.offset - self.padding

    def make_mask(self, length: int, **_: Any) -> mx.array | None:
        """Which keys ``length`` new queries see, ``[B, 1, length, positions]``."""
        if self._even and length == 1:
            return None
        keys = mx.arange(self.inner.offset + length)
        queries = keys[-length:, None]
        return (keys <= queries) & (keys >= self.padding[:, None, None, None])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> Any:
        return self.inner.update_and_fetch(keys, values)

    def keep(self, rows: mx.array) -> "PaddedCache":
        """The cache of some of the rows, ``[B]``."""
        kept = copy.copy(self.inner)
        kept.keys, kept.values = tree_map(lambda x: x[rows], (kept.keys, kept.values))
        return PaddedCache(kept, self.padding[rows])


def _filled(x: mx.array, positions: int) -> mx.array:
    return mx.pad(x, [(0, 0), (0, 0), (positions, 0), (0, 0)])


@dataclass
class _Row:
    """A request being answered: its index, and its KV cache until rows are joined."""

    index: int
    request: Request
    adapter: Loaded | None
    writer: Writer
    budget: int
    within: Constraint | None
    cache: list[Any] = field(default_factory=list)

    def take(self, token: int) -> FinishReason | None:
        """Write a token; the reason if the answer ends with it."""
        if self.within is not None:
            self.within.advance(token)
        if not self.writer.take(token) or (self.within is not None and self.within.ended):
            return "stop"
        return "length" if len(self.writer.tokens) == self.budget else None

    def show(
        self, reason: FinishReason | None, model: Model, cache: list[Any], rows: int = 1
    ) -> tuple[int, Snapshot]:
        """What is written, for good if there is a reason; ``rows`` share what a step reads."""
        if reason is None:
            return self.index, self.writer.snapshot()
        return self.index, self.writer.end(reason, bytes_per_token(model, cache) // rows)


def generate_batch(
    model: Model,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    store: Store,
    prefixes: PrefixCache,
    cancelled: Cancelled = lambda: False,
) -> Iterator[tuple[int, Snapshot]]:
    """Answer ``requests`` together, greedily: growing snapshots with the request's index.

    Each request ends with a snapshot that has a finish reason, in whatever order.

    Raises:
        InputError: a request draws at random, or names an unknown adapter.
        ExceededContextWindowSizeError: a prompt leaves no room for an answer.
    """
    for request in requests:
        drawn = request.options.sampling.kind == "random" and request.options.temperature > 0
        if drawn and not request.choices:
            raise InputError("a batch is answered greedily: send requests that draw alone")
    mx.reset_peak_memory()
    waiting = [
        _Row(i, r, store.get(r.adapter), Writer(tokenizer, r), answer_budget(model, r), r.within())
        for i, r in enumerate(requests)
    ]
    rows: list[_Row] = []
    first: list[int] = []
    while waiting:
        row = waiting[0]
        number = store.use(row.adapter)
        logits, row.cache = read_prompt(model, row.request, row.writer, prefixes, cancelled, number)
        if logits is None:
            yield from (row.show("cancelled", model, row.cache) for row in (*rows, *waiting))
            return
        waiting.pop(0)
        token = int(mx.argmax(restricted(logits, [row.within]) if row.within else logits))
        reason = row.take(token)
        yield row.show(reason, model, row.cache)
        if reason is None:
            rows.append(row)
            first.append(token)
    if rows:
        yield from _in_step(model, rows, mx.array(first), store, cancelled)


def _in_step(
    model: Model, rows: list[_Row], tokens: mx.array, store: Store, cancelled: Cancelled
) -> Iterator[tuple[int, Snapshot]]:
    """Write the answers of ``rows`` together, which begin with ``tokens`` ``[B]``."""
    store.use_rows([row.adapter for row in rows])
    caches = [PaddedCache.join(layer) for layer in zip(*(r.cache for r in rows), strict=True)]
    for row in rows:
        row.cache = []
    held = any(row.within is not None for row in rows)
    upcoming = _next(model, tokens, caches, rows)
    while rows:
        current = upcoming
        if not held and any(len(row.writer.tokens) + 1 < row.budget for row in rows):
            upcoming = _next(model, current, caches, rows)  # computed while these are read
        stopped, kept = cancelled(), []
        for place, (row, token) in enumerate(zip(rows, np.array(current).tolist(), strict=True)):
            reason = "cancelled" if stopped else row.take(token)
            if reason is None:
                kept.append(place)
            yield row.show(reason, model, [c.inner for c in caches], len(rows))
        if kept and len(kept) < len(rows):
            left = mx.array(kept)
            current, upcoming = current[left], upcoming[left]
            caches = [c.keep(left) for c in caches]
            store.keep_rows(left)
        rows = [rows[place] for place in kept]
        if held and rows:
            upcoming = _next(model, current, caches, rows)


def _next(
    model: Model, tokens: mx.array, caches: list[PaddedCache], rows: Sequence[_Row]
) -> mx.array:
    """The likeliest tokens ``[B]`` after ``tokens`` that each row may write."""
    logits = model(tokens[:, None], cache=caches)[:, -1]
    constraints = [row.within for row in rows]
    if any(c is not None for c in constraints):
        logits = restricted(logits, constraints)
    found = mx.argmax(logits, axis=-1)
    mx.async_eval(found)
    return found
