"""Fill fixed windows with samples, and deal the windows out in reproducible batches.

Conversations stay whole: best-fit decreasing bin packing ("Fewer Truncations Improve Language
Modeling", arXiv 2404.10830), or an even spread if that needs fewer windows. Texts fill the room
they leave, then windows of their own, and are cut where a window ends; the rest begins with the
last token before the cut, so that every token but the first of a text is predicted exactly once.
Within a window, samples do not attend to each other. Positions need not restart: RoPE is relative.
(Only where queries and keys are scaled after it, as ``qk_norm`` does, does a model notice where in
the window a sample lies.) Samples that begin alike, as all requests of a feature do, may share
that beginning: it stands in a window once, before them, and each goes on from it, with positions
as if it were alone.

What item ``i`` of the stream holds depends on the seed and ``i`` alone, so that a resumed run
goes on with the same data, and each rank takes its rows of the same global batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from afm_mlx.data.beginnings import Beginnings, no_beginnings
from afm_mlx.data.bins import fewest, fill
from afm_mlx.data.tokens import TokenStore
from afm_mlx.errors import InputError

import mlx.core as mx
import numpy as np

Array = np.ndarray[Any, Any]

BLOCK = 1000  # items in which the shares of the sources are exact, if none is tiny
LEAST_SHARE = 1e-5


@dataclass(frozen=True)
class PackingReport:
    """How well samples fill the windows.

    Attributes:
        tokens: positions in use; the token that a cut text repeats counts again.
        padding: share of the positions not in use.
        truncated: conversations longer than a window, which lost their end.
    """

    windows: int
    tokens: int
    padding: float
    truncated: int


@dataclass(frozen=True, eq=False)
class Packing:
    """Windows made of pieces of samples.

    Window ``w`` holds the pieces ``first[w]`` to ``first[w + 1]`` in this order, after ``shared``
    positions for beginnings; a piece is the tokens ``start`` to ``stop`` of ``sample``. All
    arrays are int64.
    """

    first: Array
    sample: Array
    start: Array
    stop: Array
    report: PackingReport
    shared: int = 0

    @cached_property
    def tokens(self) -> Array:
        """Positions in use of each window."""
        ends = np.concatenate([[0], np.cumsum(self.stop - self.start)])
        return np.diff(ends[self.first]) + self.shared


def pack(lengths: Array, splittable: Array, window: int) -> Packing:
    """Pack samples of ``lengths`` tokens into windows of ``window`` positions.

    Windows stand in the order of the samples they begin with. Samples of one token are left
    out, since there is nothing to predict.
    """
    if window < 2:
        raise InputError(f"a window of {window} tokens predicts nothing: choose at least 2")
    lengths, splittable = np.asarray(lengths, np.int64), np.asarray(splittable, np.bool_)
    ids = np.flatnonzero((lengths > 1) & ~splittable)
    sizes = np.minimum(lengths[ids], window)
    order = np.argsort(-sizes, kind="stable")
    ids, sizes = ids[order], sizes[order]
    bins, room = fewest(sizes, window)
    texts = np.flatnonzero((lengths > 1) & splittable)
    pieces = fill(texts.tolist(), lengths[texts].tolist(), room, window)

    bins, sample = np.concatenate([bins, pieces[:, 0]]), np.concatenate([ids, pieces[:, 1]])
    start = np.concatenate([np.zeros_like(sizes), pieces[:, 2]])
    stop = np.concatenate([sizes, pieces[:, 3]])
    counts = np.bincount(bins)
    heads = np.argsort(bins, kind="stable")[np.cumsum(counts) - counts]  # first piece of each
    turn = np.lexsort([start[heads], sample[heads]])
    order = np.argsort(np.argsort(turn)[bins], kind="stable")
    windows, tokens = len(counts), int((stop - start).sum())
    padding = 1 - tokens / (windows * window) if windows else 0.0
    truncated = int((lengths[~splittable] > window).sum())
    return Packing(
        np.concatenate([[0], np.cumsum(counts[turn])]),
        sample[order],
        start[order],
        stop[order],
        PackingReport(windows, tokens, padding, truncated),
    )


def pack_after(store: TokenStore, window: int, shared: Beginnings) -> Packing:
    """Pack the samples of ``store`` into windows that each begin with what samples share."""
    cut, room = shared.lengths[shared.of], shared.positions
    found = pack(store.lengths - cut, store.splittable, window - room)
    tokens, windows = found.report.tokens + found.report.windows * room, found.report.windows
    padding = 1 - tokens / (windows * window) if windows else 0.0
    return replace(
        found,
        start=found.start + cut[found.sample],
        stop=found.stop + cut[found.sample],
        report=replace(found.report, tokens=tokens, padding=padding),
        shared=room,
    )


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows ready for a model; ``B`` windows of ``L`` positions.

    Attributes:
        tokens: int32 ``[B, L]``.
        segments: int32 ``[B, L]``, the number of the sample in its window from 1; 0 is padding.
            Beginnings that samples share are numbered with them.
        learn: bool ``[B, L]``, whether predicting ``tokens[b, t + 1]`` at position ``t`` counts.
        window: int64 ``[B]``, stable number of each window over all sources.
        parents: int32 ``[B, L]``, the number of the beginning that a sample goes on from, or
            its own; left out where nothing is shared.
    """

    tokens: Array
    segments: Array
    learn: Array
    window: Array
    parents: Array | None = None

    @property
    def num_tokens(self) -> int:
        """Positions in use, padding aside."""
        return int((self.segments > 0).sum())

    @cached_property
    def labels(self) -> Array:
        """int32 ``[B, L]``: the token to predict at each position, 0 where none counts."""
        shifted = np.zeros_like(self.tokens)
        shifted[:, :-1] = self.tokens[:, 1:]
        return np.where(self.learn, shifted, 0)


@dataclass(frozen=True, eq=False)
class Windows:
    """Packed windows of one or more sources, each with a number that never changes.

    Attributes:
        size: positions of a window.
        shared: for each source, the beginnings that its samples share.
        numbers: for each source, the numbers of the windows that are in here; :meth:`split`
            and :attr:`per_source` leave some out.
    """

    size: int
    stores: tuple[TokenStore, ...]
    packings: tuple[Packing, ...]
    shared: tuple[Beginnings, ...]
    numbers: tuple[Array, ...]

    @classmethod
    def of(cls, store: TokenStore, size: int, shared: Beginnings | None = None) -> "Windows":
        """Pack the samples of ``store`` into windows of ``size`` positions."""
        shared = shared or no_beginnings(store)
        packing = pack_after(store, size, shared)
        if not packing.report.windows:
            raise InputError("no sample has two tokens, so nothing can be predicted: give more")
        return cls(size, (store,), (packing,), (shared,), (np.arange(packing.report.windows),))

    def __len__(self) -> int:
        return sum(map(len, self.numbers))

    @cached_property
    def _first(self) -> Array:
        """Number of the first window of each source, and of one after the last."""
        return np.cumsum([0, *(p.report.windows for p in self.packings)])

    @property
    def reports(self) -> tuple[PackingReport, ...]:
        """How each source was packed, before any split."""
        return tuple(p.report for p in self.packings)

    @property
    def per_source(self) -> list["Windows"]:
        """The same windows and numbers, one object a source; what :class:`Batches` deals out."""
        none = np.arange(0)
        return [
            replace(self, numbers=tuple(n if i == s else none for i, n in enumerate(self.numbers)))
            for s in range(len(self.stores))
        ]

    @property
    def num_tokens(self) -> int:
        """Positions in use of the windows in here."""
        return sum(
            int(p.tokens[n - first].sum())
            for p, n, first in zip(self.packings, self.numbers, self._first[:-1], strict=True)
        )

    def split(self, held_out: int | float) -> tuple["Windows", "Windows"]:
        """Windows to train on, and the last ones of each source held out.

        ``held_out`` is a number of windows of each source, or a share of each below 1; of a
        share at least one window is held out, and at least one stays.
        """
        share = held_out if isinstance(held_out, float) else None
        if held_out < 0 or (share is not None and not share < 1):
            raise InputError(f"cannot hold out {held_out}: give a share below 1 or a whole number")
        kept, held = [], []
        for numbers in self.numbers:
            count = int(held_out)
            if share:
                count = min(max(round(share * len(numbers)), 1), max(len(numbers) - 1, 0))
            if len(numbers) and count >= len(numbers):
                raise InputError(
                    f"a source has {len(numbers)} windows, and {count} to hold out leave none"
                    " to train on: hold out fewer"
                )
            stop = max(len(numbers) - count, 0)
            kept.append(numbers[:stop])
            held.append(numbers[stop:])
        if held_out and not any(map(len, held)):
            raise InputError("there is only one window, too little to hold any out: give more data")
        return replace(self, numbers=tuple(kept)), replace(self, numbers=tuple(held))

    def batch(self, numbers: Sequence[int] | Array) -> Batch:
        """The windows of these numbers, in this order."""
        window = np.asarray(numbers, np.int64)
        if len(window) and not (0 <= window.min() and window.max() < self._first[-1]):
            raise InputError(
                f"windows are numbered 0 to {self._first[-1] - 1}: the numbers asked for belong to"
                " other data"
            )
        shape = len(window), self.size
        tokens, segments, parents = (np.zeros(shape, np.int32) for _ in range(3))
        wanted, learn = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        for row, number in enumerate(window.tolist()):
            source = int(np.searchsorted(self._first, number, "right")) - 1
            store, packing = self.stores[source], self.packings[source]
            shared, local = self.shared[source], number - int(self._first[source])
            tokens[row, : packing.shared] = shared.tokens
            segments[row, : packing.shared] = parents[row, : packing.shared] = shared.numbers
            column, common = packing.shared, len(shared.lengths) - 1
            begin, end = packing.first[local], packing.first[local + 1]
            for segment, piece in enumerate(range(begin, end), common + 1):
                sample = packing.sample[piece]
                offset = store.offsets[sample]
                span = slice(offset + packing.start[piece], offset + packing.stop[piece])
                to = slice(column, column + span.stop - span.start)
                tokens[row, to], wanted[row, to] = store.tokens[span], store.learn[span]
                segments[row, to], parents[row, to] = segment, shared.of[sample] or segment
                column = to.stop
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        learn[:, :-1] = wanted[:, 1:] & same
        some = any(p.shared for p in self.packings)
        return Batch(tokens, segments, learn, window, parents if some else None)


def join(parts: Sequence[Windows]) -> Windows:
    """The windows of all ``parts``; numbers of later parts follow those of earlier ones."""
    sizes = {part.size for part in parts}
    if len(sizes) != 1:
        raise InputError(f"sources are packed into windows of {sorted(sizes)}: choose one length")
    numbers: list[Array] = []
    first = 0
    for part in parts:
        numbers += [n + first for n in part.numbers]
        first += int(part._first[-1])
    stores = tuple(s for part in parts for s in part.stores)
    packings = tuple(p for part in parts for p in part.packings)
    shared = tuple(s for part in parts for s in part.shared)
    return Windows(sizes.pop(), stores, packings, shared, tuple(numbers))


class Batches:
    """An endless stream of windows, mixed from sources by weight, in batches.

    Each source is gone through in a new order every time. In each block of items (1000, more
    if a share is under 1 %) every source has exactly its share, rounded to whole items.
    """

    def __init__(
        self,
        windows_per_source: Sequence[Windows],
        weights: Sequence[float],
        batch_size: int,
        seed: int = 0,
    ) -> None:
        """``batch_size`` is over all ranks; ``weights`` need not sum to 1.

        Raises:
            InputError: an option is out of range, or a source has no windows.
        """
        if not windows_per_source or len(windows_per_source) != len(weights):
            raise InputError(
                f"{len(windows_per_source)} sources have {len(weights)} weights: give one for each"
            )
        if batch_size < 1 or seed < 0:
            raise InputError(
                f"a batch of {batch_size} with seed {seed}: choose at least 1, and a seed from 0 up"
            )
        if any(w.packings is not windows_per_source[0].packings for w in windows_per_source):
            raise InputError("the sources' windows share numbers: join them first")
        if not all(map(len, windows_per_source)):
            raise InputError("a source has no windows left to train on: hold out fewer")
        total = sum(weights)
        if not all(LEAST_SHARE * total <= w < float("inf") for w in weights) or total <= 0:
            raise InputError(
                f"weights {list(weights)} must be above 0, none under {LEAST_SHARE:g} of the sum:"
                " leave such a source out"
            )
        shares = np.array(weights) / total
        self.windows, self.batch_size, self.seed = list(windows_per_source), batch_size, seed
        self.numbers = [np.concatenate(w.numbers) for w in self.windows]
        self.counts = _apportion(shares, max(BLOCK, int(np.ceil(10 / shares.min()))))
        means = [w.num_tokens / len(w) for w in self.windows]
        self.tokens_per_step = round(batch_size * float(shares @ means))
        """Tokens in a batch on average, padding aside."""
        self.epoch_steps = -(-sum(map(len, self.numbers)) // batch_size)
        """Steps that deal out as many windows as there are."""

    def batch(self, step: int, rank: int = 0, size: int = 1) -> Batch:
        """Rows ``rank::size`` of batch ``step``, counted from 0."""
        items = items_of(step, self.batch_size, rank, size)
        return self.windows[0].batch([self._number(i) for i in items])

    def _number(self, item: int) -> int:
        """Number of the window that is item ``item`` of the stream."""
        block, place = divmod(item, sum(self.counts))
        sources, ranks = _block(self.seed, self.counts, block)
        source = int(sources[place])
        numbers = self.numbers[source]
        turn = block * self.counts[source] + int(ranks[place])
        epoch, place = divmod(turn, len(numbers))
        return int(numbers[_permutation(self.seed, source + 1, epoch, len(numbers))[place]])


def items_of(step: int, batch_size: int, rank: int, size: int) -> range:
    """Which items of the stream are rows ``rank::size`` of batch ``step``, counted from 0."""
    if batch_size % size:
        raise InputError(
            f"a batch of {batch_size} cannot be divided among {size} processes:"
            f" choose a multiple of {size}"
        )
    return range(step * batch_size + rank, (step + 1) * batch_size, size)


def _apportion(shares: Array, total: int) -> tuple[int, ...]:
    """Whole numbers near ``shares * total`` that sum to ``total`` (largest remainders)."""
    exact = shares * total
    counts = np.floor(exact).astype(np.int64)
    most = np.argsort(counts - exact, kind="stable")
    counts[most[: total - int(counts.sum())]] += 1
    return tuple(counts.tolist())


@lru_cache(maxsize=16)
def _permutation(seed: int, stream: int, turn: int, n: int) -> Array:
    """A random order of ``n``. numpy promises that raw streams never change with its version."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, stream, turn]))
    return np.argsort(bits.random_raw(n), kind="stable")


@lru_cache(maxsize=4)
def _block(seed: int, counts: tuple[int, ...], block: int) -> tuple[Array, Array]:
    """Source of each item of a block, and how many of the same source come before it."""
    order = _permutation(seed, 0, block, sum(counts))
    sources = np.repeat(np.arange(len(counts)), counts)[order]
    ranks = np.empty_like(sources)
    for source, count in enumerate(counts):
        ranks[sources == source] = np.arange(count)
    return sources, ranks


def mask(segments: Array | mx.array, parents: Array | mx.array | None = None) -> mx.array:
    """Bool ``[B, 1, L, L]``: who may attend to whom, by ``segments`` and ``parents`` ``[B, L]``.

    Causal within a sample and the beginning it goes on from; padding attends to itself alone,
    so that its softmax stays finite.
    """
    s = mx.array(segments)
    position = mx.arange(s.shape[1])
    seen = s[:, :, None] == s[:, None, :]
    if parents is not None:
        seen = seen | (mx.array(parents)[:, :, None] == s[:, None, :])
    causal = position[:, None] >= position
    return ((seen & (s[:, :, None] > 0) & causal) | (position[:, None] == position))[:, None]


class PackedCache:
    """Stands in for a KV cache, so that any mlx-lm model attends within samples only.

    ``model(tokens, cache=[PackedCache(segments)] * len(model.layers))``: nothing is stored,
    and the model gets its mask here (``mlx_lm.models.base.create_attention_mask``). With
    ``parents``, ``offset`` is the position of every token in its sample, ``[B, L]``: that takes
    our own model (:mod:`afm_mlx.model`).
    """

    def __init__(self, segments: Array | mx.array, parents: Array | mx.array | None = None) -> None:
        self._mask = mask(segments, parents)
        self.offset: int | mx.array = 0
        if parents is not None:  # as many as are seen before it
            self.offset = mx.sum(self._mask[:, 0], axis=-1) - 1

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        if window_size is None:
            return self._mask
        position = mx.arange(N)
        return self._mask & (position[:, None] < position + window_size)
